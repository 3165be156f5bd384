//! A blocking socket with a deadline for all its calls.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use socket2::Socket;

/// Reads and writes fail with [`io::ErrorKind::TimedOut`] after the deadline, even if single bytes keep arriving.
pub(crate) struct Timed<'a> {
    pub(crate) socket: &'a Socket,
    pub(crate) deadline: Instant,
}

/// Never zero, because socket timeouts treat zero as none.
pub(crate) fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

impl Timed<'_> {
    fn check(&self) -> io::Result<Duration> {
        match Instant::now() >= self.deadline {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(left(self.deadline)),
        }
    }
}

/// A socket reports a timeout as WouldBlock.
fn timed_out(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// Repeats a call that a signal ends. A socket with a timeout is not restarted by the kernel, whatever the handler asks for
/// (signal(7)).
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut socket = self.socket;
        let read = uninterrupted(|| {
            socket.set_read_timeout(Some(self.check()?))?;
            socket.read(bytes)
        });
        read.map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut socket = self.socket;
        let written = uninterrupted(|| {
            socket.set_write_timeout(Some(self.check()?))?;
            socket.write(bytes)
        });
        written.map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signal is neither an error nor an end; anything else is reported at once.
    #[test]
    fn a_signal_does_not_end_a_call() {
        let mut results = vec![
            Err(io::ErrorKind::TimedOut.into()),
            Ok(7),
            Err(io::ErrorKind::Interrupted.into()),
            Err(io::ErrorKind::Interrupted.into()),
        ];
        let mut call = || results.pop().unwrap_or(Ok(0));
        assert_eq!(uninterrupted(&mut call).ok(), Some(7));
        let error = uninterrupted(&mut call).err().map(|e| e.kind());
        assert_eq!(error, Some(io::ErrorKind::TimedOut));
    }
}
