//! Waiting for one of several descriptors, until a deadline.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;

/// Waits until one of `fds` can be read, is hung up or broken. The answer has a truth value for each;
/// all are false when the deadline passed. Without a deadline it waits for an event alone, so the
/// caller is idle and never wakes up by a clock.
///
/// # Errors
/// The error of `poll(2)`; an interruption by a signal is not one, the wait goes on.
pub fn readable(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> io::Result<Vec<bool>> {
    wait(fds, libc::POLLIN, deadline)
}

/// Waits until `fd` takes a write, or has an error to tell to one. False when the deadline passed.
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
            // Rounded up: a wait of half a millisecond must not become a spin.
            libc::c_int::try_from(left.as_micros().div_ceil(1000)).unwrap_or(libc::c_int::MAX)
        });
        // SAFETY: `polled` holds `count` entries that live through the call and are ours alone; the
        // descriptors are borrowed, hence open.
        let res = check(unsafe { libc::poll(polled.as_mut_ptr(), count, timeout) });
        match res {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => return Ok(polled.iter().map(|p| p.revents != 0).collect()),
        }
    }
}
