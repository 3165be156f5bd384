//! `gc`: finds and removes what dead processes have left behind.

use super::{ListEntry, Stop, Target, by_helper, delete, list};
use crate::failure::{Failure, FailureKind};
use crate::state::Store;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ublk_core::DevId;

/// The findings, as `gc` prints them as JSON.
#[derive(Debug, Clone, Default, Serialize)]
#[non_exhaustive]
pub struct Found {
    /// Devices without a server and an agent.
    pub orphans: Vec<ListEntry>,
    /// State files of devices that no longer exist; they are removed.
    pub litter: Vec<PathBuf>,
    /// Orphans that were removed.
    pub removed: Vec<u32>,
}

/// Looks for orphans and removes those named in `ids`; with `all` every one of ours that no recovery can bring back.
/// One that waits for a server, or that another program made, goes only by its number.
///
/// # Errors
/// A number that is none of an orphan, and what `delete` says of the first that could not be removed.
pub fn gc(
    program: &Path,
    ids: &[DevId],
    all: bool,
    how: Stop,
    deadline: Duration,
) -> Result<Found, Failure> {
    let entries = list(program, deadline)?;
    let mut found = Found::default();
    let there: Vec<_> = entries.iter().map(|e| e.id).collect();
    found.orphans = entries.into_iter().filter(|e| e.orphan).collect();
    for id in ids {
        if !found.orphans.iter().any(|e| e.id == id.get()) {
            if !there.contains(&id.get()) {
                return Err(Failure::no_such_device(id));
            }
            let text = format!("device {id} is not an orphan: its server or its agent is running");
            return Err(Failure::failed(text).hint("`ublkctl gc` shows the orphans"));
        }
    }
    let chosen = |e: &&ListEntry| {
        let named = ids.iter().any(|id| id.get() == e.id);
        named || (all && !e.foreign && !waits(e))
    };
    let ours: Vec<Target> = found
        .orphans
        .iter()
        .filter(chosen)
        .filter_map(ListEntry::target)
        .collect();
    let mut first = None;
    for orphan in ours {
        match remove(program, orphan, how, deadline) {
            Ok(()) => {
                let id = orphan.id.get();
                found.orphans.retain(|e| e.id != id);
                found.removed.push(id);
            }
            // Each is tried, and the first failure is the command's.
            Err(failure) => {
                if let Some(earlier) = first.replace(failure) {
                    tracing::error!("{earlier}");
                    first = Some(earlier);
                }
            }
        }
    }
    let nonces = super::look::nonces(program, deadline)?;
    found.litter = Store::of_user()?.sweep(&nonces)?;
    first.map_or(Ok(found), Err)
}

/// Deletes an orphan. A dead device has no data to lose, but its delete would block on its users.
fn remove(program: &Path, orphan: Target, how: Stop, deadline: Duration) -> Result<(), Failure> {
    if how == Stop::Safe {
        let holders = by_helper(program, |helper| helper.look(orphan.id, deadline))?;
        if !holders.is_empty() {
            let id = orphan.id;
            return Err(Failure::new(FailureKind::Busy, format!(
                "device {id} was not removed: it has no server and is {holders}"
            ))
            .hint(format!(
                "`ublkctl info {id}` shows whether it can be recovered; otherwise unmount and close it first, or use \
                 --force, which waits for its users"
            )));
        }
    }
    delete(program, orphan, how, false, deadline)
}

/// Whether a device waits for a server.
fn waits(e: &ListEntry) -> bool {
    matches!(e.state.as_str(), "quiesced" | "fail-io")
}
