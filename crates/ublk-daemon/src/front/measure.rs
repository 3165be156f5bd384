//! `stats`, `metrics` and the exporter: what the devices of this user have done. No control command is sent, so nothing
//! here hangs with the driver, and nothing needs a privilege.

use super::ask;
use super::silence::Silence;
use crate::failure::Failure;
use crate::report::Health;
use crate::state::{Record, Store};
use serde::Serialize;
use std::time::Duration;
use ublk_core::DevId;
use ublk_ctrl::nodes::Nodes;
use ublk_metrics::{Level, Snapshot};

/// How long an agent may take to answer.
const ASK: Duration = Duration::from_secs(1);

/// Agents that are asked at the same time.
const AT_ONCE: usize = 8;

/// Why a question to a device has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unanswered {
    /// Which process does not answer, and why.
    pub cause: String,
    /// What to do about it.
    pub next: Option<String>,
}

/// A device of ours, and what it has done.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Measured {
    /// Its number.
    pub id: u32,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// What answers its requests.
    pub backend: String,
    /// Whether its server runs.
    pub server_alive: bool,
    /// Whether its agent runs.
    pub agent_alive: bool,
    /// The server's health; `None` where nobody answers.
    #[serde(skip)]
    pub health: Option<Health>,
    /// What it has done; `None` where nobody answers.
    #[serde(skip)]
    pub snapshot: Option<Snapshot>,
    /// Why nobody answers.
    #[serde(skip)]
    pub unanswered: Option<Unanswered>,
}

/// The devices of this user that exist, or those that are named, in the order of their numbers, with what they have done
/// and, if it is asked for, their health.
///
/// # Errors
/// A named device that does not exist or is not ours. A device that does not answer is no error.
pub fn measured(ids: &[DevId], health: bool) -> Result<Vec<Measured>, Failure> {
    let store = Store::of_user()?;
    let records = ours(&store, ids)?;
    let mut all = Vec::with_capacity(records.len());
    for some in records.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let store = &store;
            let asked: Vec<_> = some
                .iter()
                .map(|(id, record)| scope.spawn(move || ask(store, *id, record, health)))
                .collect();
            all.extend(asked.into_iter().filter_map(|asked| asked.join().ok()));
        });
    }
    Ok(all)
}

/// The records of this user's devices that exist, or of those that are named, in the order of their numbers.
///
/// # Errors
/// A named device that does not exist or is not ours.
pub(super) fn ours(store: &Store, ids: &[DevId]) -> Result<Vec<(DevId, Record)>, Failure> {
    let there = ublk_ctrl::nodes::list_devices().unwrap_or_default();
    let mut records: Vec<(DevId, Record)> = store
        .records()
        .filter_map(|record| Some((DevId::new(record.id?).ok()?, record)))
        .filter(|(id, _)| there.contains(id))
        .collect();
    records.sort_by_key(|(id, _)| *id);
    for id in ids {
        if !records.iter().any(|(known, _)| known == id) {
            return Err(match there.contains(id) {
                true => Failure::foreign(*id),
                false => missing(*id),
            });
        }
    }
    records.retain(|(id, _)| ids.is_empty() || ids.contains(id));
    Ok(records)
}

/// The failure of a command about a device that does not exist.
#[must_use]
pub fn missing(id: DevId) -> Failure {
    // Where no driver is loaded there is no device at all, and that is what to cure.
    match Nodes::default().control().exists() {
        true => Failure::no_such_device(id),
        false => ublk_ctrl::Error::MissingModule.into(),
    }
}

fn ask(store: &Store, id: DevId, record: &Record, health: bool) -> Measured {
    let (server_alive, agent_alive) = (store.has_server(record), store.has_agent(record));
    let answers = server_alive && agent_alive;
    let snapshot = match answers {
        true => ask::metrics(id, None, ASK),
        false => Err(Silence::Unheard),
    };
    let unanswered = snapshot.as_ref().err().map(|silence| {
        let failure = silence.failure_of(id, store, record);
        Unanswered {
            cause: failure.text,
            next: failure.hint,
        }
    });
    Measured {
        id: id.get(),
        name: record.spec.name.clone(),
        backend: record.spec.backend.name().to_owned(),
        server_alive,
        agent_alive,
        health: match answers && health {
            true => ask::health(id, ASK).ok(),
            false => None,
        },
        snapshot: snapshot.ok(),
        unanswered,
    }
}

/// Changes what a live device measures, and its later servers: what is in force then.
///
/// # Errors
/// A device that does not exist, is not ours, or whose server does not answer.
pub fn measure(id: DevId, level: Level, deadline: Duration) -> Result<Level, Failure> {
    ours(&Store::of_user()?, &[id])?;
    let answer = ask::metrics(id, Some(level), deadline);
    let snapshot = answer.map_err(|silence| silence.of_change(id))?;
    Ok(snapshot.level)
}
