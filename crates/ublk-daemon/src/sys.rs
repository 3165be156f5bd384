//! System calls for managing processes. This module holds all `unsafe` of this crate.
//!
//! Sockets of the link, poll, pidfds, sessions and one fork. Each function is a safe wrapper: it takes and returns
//! owned or borrowed descriptors, checks every result, and passes pointers only to memory that outlives the call.
//! `unsafe` is allowed here because std lacks poll, pidfd, `setsid` and `fork`.
#![expect(
    unsafe_code,
    reason = "the one module of system calls, see the paragraph above"
)]

pub mod closed;
pub mod device;
pub mod file;
pub mod lock;
pub mod memory;
pub mod poll;
pub mod process;
pub mod socket;
pub mod surroundings;
pub mod title;

use std::io;

/// Converts the result of a libc call.
fn check(res: libc::c_int) -> io::Result<libc::c_int> {
    if res < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(res)
    }
}

/// Converts the result of a libc call that returns a byte count.
fn check_len(res: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(res).map_err(|_| io::Error::last_os_error())
}
