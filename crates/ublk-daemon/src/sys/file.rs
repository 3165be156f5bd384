//! What std lacks for files.

use super::{check, check_len};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

/// Writes back all that is dirty of the file system that `path` is on.
///
/// # Errors
/// The errors of `open(2)` and `syncfs(2)`: EIO where something could not be written.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: syncfs takes a descriptor, open for the length of the call, and touches no memory.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// Writes what goes into one write(2).
///
/// # Errors
/// Those of the call.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one live slice, which the call only reads; the descriptor is borrowed,
    // hence open.
    check_len(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}
