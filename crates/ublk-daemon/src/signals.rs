//! Delivers signals through a descriptor to poll.

use crate::sys::surroundings;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Termination signals, which only make a descriptor readable from now on.
#[derive(Debug)]
pub struct Signals {
    stream: UnixStream,
}

impl Signals {
    /// Takes over SIGINT and SIGTERM for the rest of the role's life. A role has no terminal that could hang up, so
    /// SIGHUP is ignored.
    ///
    /// # Errors
    /// Descriptors run out.
    pub fn take() -> io::Result<Self> {
        Self::of(&[SIGINT, SIGTERM])
    }

    /// As [`Signals::take`] for a program that a user started, including SIGHUP. Signals that the caller ignored stay
    /// ignored, as under `nohup`.
    ///
    /// # Errors
    /// Descriptors run out.
    pub fn take_in_front() -> io::Result<Self> {
        let wanted = |signal: &i32| *signal == SIGTERM || !surroundings::is_ignored(*signal);
        let all = [SIGINT, SIGTERM, SIGHUP];
        let taken: Vec<i32> = all.into_iter().filter(wanted).collect();
        surroundings::unblock_all()?;
        Self::of(&taken)
    }

    fn of(signals: &[i32]) -> io::Result<Self> {
        let (stream, write) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        for signal in signals {
            signal_hook::low_level::pipe::register(*signal, write.try_clone()?)?;
        }
        Ok(Self { stream })
    }

    /// Whether a signal has arrived and was not cleared.
    #[must_use]
    pub fn came(&self) -> bool {
        let now = Some(std::time::Instant::now());
        matches!(
            crate::sys::poll::readable(&[self.as_fd()], now).as_deref(),
            Ok([true])
        )
    }

    /// Signals that a test sends by writing to the other end.
    #[cfg(test)]
    pub(crate) fn fake(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream }
    }

    /// Clears the signals that have arrived.
    pub fn clear(&mut self) {
        let mut buf = [0; 64];
        while matches!(self.stream.read(&mut buf), Ok(n) if n == buf.len()) {}
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{poll, process};
    use std::time::{Duration, Instant};

    #[test]
    fn a_signal_is_seen_once() {
        let mut signals = Signals::take().unwrap();
        let me = process::pidfd(std::process::id()).unwrap();
        process::signal(me.as_fd(), SIGTERM).unwrap();
        let soon = Some(Instant::now() + Duration::from_secs(5));
        assert_eq!(poll::readable(&[signals.as_fd()], soon).unwrap(), [true]);
        signals.clear();
        let now = Some(Instant::now());
        assert_eq!(poll::readable(&[signals.as_fd()], now).unwrap(), [false]);
    }
}
