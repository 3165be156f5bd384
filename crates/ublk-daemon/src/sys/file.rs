//! What std lacks for files.

use super::check;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
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
