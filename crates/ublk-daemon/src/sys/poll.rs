//! Waits for one of several descriptors, until a deadline.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

/// Waits until one of `fds` is readable, hung up or in error. Returns one flag per descriptor; all are false when the
/// deadline passed. Without a deadline the wait has no timeout, so an idle caller never wakes up.
///
/// # Errors
/// Errors of `poll(2)`. A signal does not interrupt the wait.
pub fn readable(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    wait(fds, libc::POLLIN, deadline)
}

/// Waits until `fd` is writable or in error. Returns false when the deadline passed.
///
/// # Errors
/// As [`readable`].
pub fn writable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    Ok(wait(&[fd], libc::POLLOUT, deadline)?.contains(&true))
}

fn wait(
    fds: &[BorrowedFd<'_>],
    events: libc::c_short,
    deadline: Option<Instant>,
) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        })
        .collect();
    let count = libc::nfds_t::try_from(polled.len()).map_err(io::Error::other)?;
    loop {
        let timeout = deadline.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now());
            // Round up: a remaining time below one millisecond must not become a busy loop.
            libc::c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: `polled` holds `count` entries, lives through the call and is exclusively ours; the descriptors are
        // borrowed, hence open.
        let res = check(unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) });
        match res {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(polled.iter().map(|p| p.revents != 0).collect()),
        }
    }
}
