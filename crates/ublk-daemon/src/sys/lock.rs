//! Locks that can be queried without being taken (F_OFD_SETLK, fcntl_locking(2)).

use super::check;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A lock on the whole file.
fn whole(kind: libc::c_int) -> io::Result<libc::flock> {
    Ok(libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(io::Error::other)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    })
}

/// Takes a shared lock on a file, released when it is closed. The file must be open for reading.
///
/// # Errors
/// EAGAIN while another process holds an exclusive lock.
pub fn share(file: &File) -> io::Result<()> {
    let lock = whole(libc::F_RDLCK)?;
    // SAFETY: the lock is one live struct that is only read; the descriptor is open for the length of the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }).map(drop)
}

/// Whether a lock on the file is held through another open file description.
///
/// # Errors
/// The file system does not support locks.
pub fn is_shared(file: &File) -> io::Result<bool> {
    let mut lock = whole(libc::F_WRLCK)?;
    // SAFETY: the lock is one live struct that is ours alone to write; the descriptor is open for the length of the call.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(libc::c_int::from(lock.l_type) != libc::F_UNLCK)
}
