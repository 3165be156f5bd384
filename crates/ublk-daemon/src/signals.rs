//! Signals as a descriptor to poll.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// SIGINT, SIGTERM and SIGHUP of this process, which from now on only make a descriptor readable.
#[derive(Debug)]
pub struct Signals {
    stream: UnixStream,
}

impl Signals {
    /// Takes the signals over, for the rest of the process's life.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn take() -> io::Result<Self> {
        let (stream, write) = UnixStream::pair()?;
        stream.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self { stream })
    }

    /// Signals that a test sends by writing to the other end.
    #[cfg(test)]
    pub(crate) fn fake(stream: UnixStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { stream }
    }

    /// Forgets the signals that came so far.
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
