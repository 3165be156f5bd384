//! Questions to the agents of devices, each on a connection of its own.

use crate::link::message::{MetricsQuestion, Piece, Question, RecordOrder, RecordQuestion};
use crate::report::Health;
use crate::spec::BackendCommand;
use crate::state::Store;
use serde::de::DeserializeOwned;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use ublk_core::DevId;
use ublk_metrics::{Level, Snapshot};

/// The longest answer in bytes: the health of a server with thousands of queues.
const LONGEST: u64 = 16 << 20;

/// The server's health, through its agent; `None` if nothing answers in time.
pub(super) fn health(id: DevId, within: Duration) -> Option<Health> {
    ask(id, None, within)
}

/// Requests the metrics of a device from its agent, after a change of the level if there is one; `None` if nothing
/// answers in time, or the agent is older than the question.
pub(super) fn metrics(id: DevId, level: Option<Level>, within: Duration) -> Option<Snapshot> {
    let question = Question::Metrics(MetricsQuestion { metrics: level });
    ask(id, Some(&question), within)
}

/// Gives the server an order about a recording; `None` if nothing answers in time.
pub(super) fn recorded(id: DevId, order: RecordOrder, within: Duration) -> Option<Piece> {
    let question = Question::Record(RecordQuestion { record: order });
    ask(id, Some(&question), within)
}

/// Requests a change of the server's backend and returns its health; `None` if nothing answers in time.
pub(super) fn command(id: DevId, command: &BackendCommand, within: Duration) -> Option<Health> {
    ask(id, Some(&Question::Backend(command.clone())), within)
}

/// Asks an agent; `None` if nothing answers in time.
pub(super) fn ask<T: DeserializeOwned>(
    id: DevId,
    question: Option<&Question>,
    within: Duration,
) -> Option<T> {
    let path = Store::of_user().ok()?.socket(id.get());
    let stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(within)).ok()?;
    stream.set_write_timeout(Some(within)).ok()?;
    if let Some(question) = question {
        serde_json::to_writer(&stream, question).ok()?;
    }
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    let mut bytes = Vec::new();
    (&stream).take(LONGEST).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}
