//! The agent's socket: a caller requests the server's health, after a change of the backend if it wants one, or the
//! device's metrics; gets it, and the connection is closed.

use crate::link::listener;
use crate::link::message::{Piece, Question};
use crate::report::Health;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ublk_metrics::Snapshot;

/// Maximum number of waiting callers; the connections of others are closed.
const MAX_WAITING: usize = 16;

/// How long a caller may take to read what exceeds its socket's buffer.
const PATIENCE: Duration = Duration::from_millis(200);

/// The socket and its waiting callers. Its directory is private, so whoever connects is the same user or root.
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
    /// The parts of the server's report so far.
    report: Option<Report>,
}

/// A server's report to a caller, in one or more parts.
#[derive(Debug, serde::Serialize)]
#[serde(untagged)]
pub(super) enum Report {
    Health(Box<Health>),
    Metrics(Snapshot),
    Recorded(Piece),
}

impl Report {
    /// Adds the queues of another part; a part of another kind is ignored.
    fn add(&mut self, part: Self) {
        match (self, part) {
            (Self::Health(all), Self::Health(part)) => all.queues.extend(part.queues),
            (Self::Metrics(all), Self::Metrics(part)) => all.queues.extend(part.queues),
            (Self::Recorded(all), Self::Recorded(part)) => all.requests.extend(part.requests),
            _ => {}
        }
    }
}

impl Relay {
    /// Creates the socket at a temporary path beside `path`.
    pub(super) fn prepare(&mut self, path: &Path) -> io::Result<()> {
        let aside = listener::aside(path)?;
        let listener = UnixListener::bind(&aside)?;
        listener.set_nonblocking(true)?;
        self.listener = Some((listener, aside));
        Ok(())
    }

    /// Moves the socket to its final path, replacing an earlier one; creates it now if it was not prepared.
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

    /// Accepts one caller. Returns the ticket for the request to the server, and the caller's question.
    pub(super) fn accept(&mut self) -> Option<(u64, Option<Question>)> {
        let (listener, _) = self.listener.as_ref()?;
        let (stream, _) = listener.accept().ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let question = receive(&stream);
        if self.waiting.len() >= MAX_WAITING {
            self.waiting.remove(0);
        }
        self.ticket += 1;
        self.waiting.push(Waiting {
            ticket: self.ticket,
            stream,
            report: None,
        });
        Some((self.ticket, question))
    }

    /// Handles a part of the server's report, and sends the whole to the caller once it is complete. A caller that does
    /// not read loses it.
    pub(super) fn answer(&mut self, ticket: u64, part: Report, more: bool) {
        let Some(at) = self.waiting.iter().position(|w| w.ticket == ticket) else {
            return;
        };
        let Some(waiting) = self.waiting.get_mut(at) else {
            return;
        };
        match &mut waiting.report {
            Some(report) => report.add(part),
            report => *report = Some(part),
        }
        if more {
            return;
        }
        let mut waiting = self.waiting.swap_remove(at);
        if let Ok(bytes) = serde_json::to_vec(&waiting.report) {
            let _ = waiting.stream.write_all(&bytes);
        }
    }

    /// Disconnects all callers; the socket's path now belongs to another agent.
    pub(super) fn abandon(&mut self) {
        self.waiting.clear();
        self.listener = None;
    }

    /// Disconnects all callers and removes the socket.
    pub(super) fn close(&mut self) {
        self.waiting.clear();
        if let Some((_, path)) = self.listener.take() {
            let _ = fs::remove_file(path);
        }
    }
}

/// Reads a caller's question. A caller that sends nothing, neither sends nor stops, or is slow, requests the health.
fn receive(mut stream: &UnixStream) -> Option<Question> {
    const LONGEST: usize = 64 << 10;
    let until = Instant::now() + PATIENCE;
    let (mut bytes, mut some) = (Vec::new(), [0; 4096]);
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // A timeout of zero would mean no limit.
        stream
            .set_read_timeout(Some(left).filter(|left| !left.is_zero()))
            .ok()?;
        if left.is_zero() || bytes.len() > LONGEST {
            return None;
        }
        match stream.read(&mut some) {
            Ok(0) => break,
            Ok(len) => bytes.extend(some.iter().take(len)),
            // A signal ends a read with a timeout, whatever its handler asks for.
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    if bytes.is_empty() {
        return None;
    }
    let question = serde_json::from_slice(&bytes);
    question
        .map_err(|e| {
            tracing::warn!("ignoring a request that this version does not understand: {e}")
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::MetricsQuestion;
    use crate::spec::{BackendCommand, NbdCommand};
    use ublk_metrics::Level;

    /// A caller that sends nothing requests the health, however it sends nothing; so does one that sends garbage.
    #[test]
    fn a_caller_may_ask_for_a_change() {
        let said = |bytes: &[u8], stops: bool| {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(bytes).unwrap();
            if stops {
                near.shutdown(std::net::Shutdown::Write).unwrap();
            }
            receive(&far)
        };
        assert_eq!(said(b"", true), None);
        assert_eq!(said(b"", false), None);
        assert_eq!(said(b"{\"backend\":\"tape\"}", true), None);
        let command = BackendCommand::Nbd(NbdCommand {
            retry: Some(crate::spec::Retry::Forever),
            ..NbdCommand::default()
        });
        let bytes = serde_json::to_vec(&command).unwrap();
        assert_eq!(said(&bytes, true), Some(Question::Backend(command.clone())));
        for (text, metrics) in [
            ("{\"metrics\":null}", None),
            ("{\"metrics\":\"latencies\"}", Some(Level::Latencies)),
        ] {
            let question = Question::Metrics(MetricsQuestion { metrics });
            assert_eq!(serde_json::to_string(&question).unwrap(), text);
            assert_eq!(said(text.as_bytes(), true), Some(question));
        }
        assert_eq!(said(b"{\"metrics\":\"all\"}", true), None);
        let mut spec = crate::spec::BackendSpec::Nbd {
            uri: "nbd://one/".to_owned(),
            moving_to: None,
            length: None,
            retry: crate::spec::Retry::Never,
            request_timeout: 30,
            wait_for_server: 0,
            tls: Box::default(),
        };
        assert!(spec.keep(&command));
        assert!(
            matches!(&spec, crate::spec::BackendSpec::Nbd { uri, retry, .. }
                if uri == "nbd://one/" && *retry == crate::spec::Retry::Forever)
        );
    }
}
