//! Questions to the agents of devices, each on a connection of its own.

use super::silence::Silence;
use crate::link::message::{MetricsQuestion, Piece, Question, RecordOrder, RecordQuestion};
use crate::report::Health;
use crate::spec::BackendCommand;
use crate::state::Store;
use serde::de::DeserializeOwned;
use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use ublk_core::DevId;
use ublk_metrics::{Level, Snapshot};

/// The longest answer in bytes: the health of a server with thousands of queues.
const LONGEST: u64 = 16 << 20;

/// The server's health, through its agent.
pub(super) fn health(id: DevId, within: Duration) -> Result<Health, Silence> {
    ask(id, None, within)
}

/// Requests the metrics of a device from its agent, after a change of the level if there is one.
pub(super) fn metrics(
    id: DevId,
    level: Option<Level>,
    within: Duration,
) -> Result<Snapshot, Silence> {
    let question = Question::Metrics(MetricsQuestion { metrics: level });
    ask(id, Some(&question), within)
}

/// Gives the server an order about a recording.
pub(super) fn recorded(id: DevId, order: RecordOrder, within: Duration) -> Result<Piece, Silence> {
    let question = Question::Record(RecordQuestion { record: order });
    ask(id, Some(&question), within)
}

/// Requests a change of the server's backend and returns its health.
pub(super) fn command(
    id: DevId,
    command: &BackendCommand,
    within: Duration,
) -> Result<Health, Silence> {
    ask(id, Some(&Question::Backend(command.clone())), within)
}

/// Asks an agent.
pub(super) fn ask<T: DeserializeOwned>(
    id: DevId,
    question: Option<&Question>,
    within: Duration,
) -> Result<T, Silence> {
    let bytes = exchange(id, question, within).map_err(|e| match e.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Silence::Late(within),
        _ => Silence::Unheard,
    })?;
    // A connection that was closed, as at the end of an agent, is no answer.
    if bytes.is_empty() {
        return Err(Silence::Unheard);
    }
    serde_json::from_slice(&bytes).map_err(|_| Silence::Unknown)
}

fn exchange(id: DevId, question: Option<&Question>, within: Duration) -> io::Result<Vec<u8>> {
    let store = Store::of_user().map_err(io::Error::other)?;
    let stream = UnixStream::connect(store.socket(id.get()))?;
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    if let Some(question) = question {
        serde_json::to_writer(&stream, question)?;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut bytes = Vec::new();
    (&stream).take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}
