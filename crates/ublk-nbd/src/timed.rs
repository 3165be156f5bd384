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

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.check()?))?;
        let mut socket = self.socket;
        socket.read(bytes).map_err(timed_out)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.check()?))?;
        let mut socket = self.socket;
        socket.write(bytes).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
