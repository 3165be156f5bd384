//! The agent's socket: a caller may ask for a change of the backend, is given the server's health, and hung up on.

use crate::link::listener;
use crate::report::Health;
use crate::spec::BackendCommand;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Callers that may wait at once; more are hung up on.
const MAX_WAITING: usize = 16;

/// How long a caller may take to read what does not fit into its socket.
const PATIENCE: Duration = Duration::from_millis(200);

/// The socket and who waits at it. The directory it lies in is private, so whoever connects is the
/// same user or root.
#[derive(Debug, Default)]
pub(super) struct Relay {
    listener: Option<(UnixListener, PathBuf)>,
    waiting: Vec<Waiting>,
    ticket: u64,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    stream: UnixStream,
    /// What the server has told so far.
    health: Option<Health>,
}

impl Relay {
    /// Makes the socket beside `path`, where nobody looks for it.
    pub(super) fn prepare(&mut self, path: &Path) -> io::Result<()> {
        let aside = listener::aside(path)?;
        let listener = UnixListener::bind(&aside)?;
        listener.set_nonblocking(true)?;
        self.listener = Some((listener, aside));
        Ok(())
    }

    /// Puts the socket where callers look for it, in the place of an earlier one; made now, if it was not prepared.
    pub(super) fn open(&mut self, path: &Path) -> io::Result<()> {
        if self.listener.is_none() {
            self.prepare(path)?;
        }
        if let Some((_, at)) = &mut self.listener {
            fs::rename(&*at, path)?;
            path.clone_into(at);
        }
        Ok(())
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(|(listener, _)| listener.as_fd())
    }

    /// Takes one caller. The ticket to ask the server with, and the change that the caller wants.
    pub(super) fn accept(&mut self) -> Option<(u64, Option<BackendCommand>)> {
        let (listener, _) = self.listener.as_ref()?;
        let (stream, _) = listener.accept().ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let command = heard(&stream);
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.remove(0);
        }
        self.ticket += 1;
        self.waiting.push(Waiting {
            ticket: self.ticket,
            stream,
            health: None,
        });
        Some((self.ticket, command))
    }

    /// Takes what the server tells of its health, and gives it to the caller when that is all. One that does not read
    /// loses it.
    pub(super) fn answer(&mut self, ticket: u64, part: Health, more: bool) {
        let Some(at) = self.waiting.iter().position(|w| w.ticket == ticket) else {
            return;
        };
        let Some(waiting) = self.waiting.get_mut(at) else {
            return;
        };
        match &mut waiting.health {
            Some(health) => health.queues.extend(part.queues),
            health => *health = Some(part),
        }
        if more {
            return;
        }
        let mut waiting = self.waiting.swap_remove(at);
        if let Ok(bytes) = serde_json::to_vec(&waiting.health) {
            let _ = waiting.stream.write_all(&bytes);
        }
    }

    /// Hangs up on everybody; the socket at its place is another's.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        self.listener = None;
    }

    /// Hangs up on everybody and takes the socket away.
    pub(super) fn close(&mut self) {
        self.waiting.clear();
        if let Some((_, path)) = self.listener.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// What a caller says before it stops talking: nothing, or a change. One that neither talks nor stops, or takes its time
/// over it, asks for nothing.
fn heard(mut stream: &UnixStream) -> Option<BackendCommand> {
    const LONGEST: usize = 64 << 10;
    let until = Instant::now() + PATIENCE;
    let (mut bytes, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Zero means no limit to the call.
        stream
            .set_read_timeout(Some(left).filter(|left| !left.is_zero()))
            .ok()?;
        if left.is_zero() || bytes.len() > LONGEST {
            return None;
        }
        match stream.read(&mut some).ok()? {
            0 => break,
            len => bytes.extend(some.iter().take(len)),
        }
    }
    if bytes.is_empty() {
        return None;
    }
    let command = serde_json::from_slice(&bytes);
    command
        .map_err(|e| tracing::warn!("a caller wants what is not understood: {e}"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A caller that says nothing asks for the health, in whatever way it says nothing; one that says rubbish, too.
    #[test]
    fn a_caller_may_ask_for_a_change() {
        let said = |bytes: &[u8], stops: bool| {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(bytes).unwrap();
            if stops {
                near.shutdown(std::net::Shutdown::Write).unwrap();
            }
            heard(&far)
        };
        assert_eq!(said(b"", true), None);
        assert_eq!(said(b"", false), None);
        assert_eq!(said(b"{\"backend\":\"tape\"}", true), None);
        let command = BackendCommand::Nbd {
            uri: None,
            retry: Some(crate::spec::Retry::Forever),
            give_up: false,
            keep: true,
        };
        let bytes = serde_json::to_vec(&command).unwrap();
        assert_eq!(said(&bytes, true), Some(command.clone()));
        let mut spec = crate::spec::BackendSpec::Nbd {
            uri: "nbd://one/".to_owned(),
            length: None,
            retry: crate::spec::Retry::Never,
            request_timeout: 30,
            wait_for_server: 0,
        };
        assert!(spec.keep(&command));
        assert!(
            matches!(&spec, crate::spec::BackendSpec::Nbd { uri, retry, .. }
                if uri == "nbd://one/" && *retry == crate::spec::Retry::Forever)
        );
    }
}
