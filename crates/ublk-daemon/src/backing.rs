//! The file or disk behind a device: its identity, its other users, and how it passes from one server to the next.
//!
//! A path only leads to a backing store. The device's record has the store's identity, and a file opened later is compared
//! with it (L43). Lock and claim belong to the open file, so a server receives the descriptor of the previous server, from
//! the agent, which keeps a copy, or from the old server itself. No other process can take the lock in between.
#![forbid(unsafe_code)]

use crate::failure::{Failure, FailureKind};
use crate::link::message::Opening;
use crate::spec::{AddSpec, BackendSpec};
use crate::state::{Phase, ProcessId, Record, Store};
use crate::sys::process;
use std::fs;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ublk_backends::{File, Identity, User};

/// How long to wait for a user of the file that may exit, or be identified, shortly.
const PATIENCE: Duration = Duration::from_secs(2);

/// Interval between checks of such a user.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

const IN_USE: &str = "two writers corrupt each other's data: end the other use first, or serve another part of the file \
                      (--offset, --length); --read-only shares it without writing, --force serves it anyway";

/// The range of a backing store that a device uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    begin: u64,
    end: u64,
}

impl Window {
    /// That of a file device.
    fn of(spec: &AddSpec, length: u64) -> Option<Self> {
        let BackendSpec::File { offset, .. } = spec.backend else {
            return None;
        };
        Some(Self {
            begin: offset,
            end: offset.saturating_add(length),
        })
    }

    const fn overlaps(self, other: Self) -> bool {
        self.begin < other.end && other.begin < self.end
    }
}

/// What to do about the users of a file.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// No data is in danger; contains the messages to print.
    Fine(Vec<String>),
    /// A user that may exit, or be identified, shortly.
    Unclear(String),
    /// Data is in danger.
    Refused(String),
}

/// Whether the device of a record exists: served, waiting for a server, or about to be created.
fn stands(record: &Record) -> bool {
    match (record.phase, record.id) {
        (Phase::Adding | Phase::Starting, _) => record.agent.is_some_and(|agent| agent.runs()),
        (_, Some(id)) => Path::new(&format!("/sys/block/ublkb{id}")).exists(),
        (_, None) => false,
    }
}

/// The name of a device in messages.
fn name_of(record: &Record) -> String {
    let node = match record.id {
        Some(id) => format!("/dev/ublkb{id}"),
        None => "a device that is being created".to_owned(),
    };
    match &record.spec.name {
        Some(name) => format!("{node} ({name})"),
        None => node,
    }
}

/// Judges the users of a file for a device over `window`, with the records of all other devices that are over the same.
fn judge(users: &[User], spec: &AddSpec, window: Window, others: &[Record]) -> Verdict {
    let mut told = Vec::new();
    for other in others {
        let length = other.spec.backend.size();
        let Some(theirs) = Window::of(&other.spec, length).filter(|w| w.overlaps(window)) else {
            continue;
        };
        let name = name_of(other);
        if other.spec.read_only {
            if !spec.read_only {
                told.push(format!("it is also read as {name}"));
            }
            continue;
        }
        let text = format!(
            "bytes {} to {} are already used by {name}",
            theirs.begin, theirs.end
        );
        if !may_share(spec) {
            return Verdict::Refused(text);
        }
        told.push(text);
    }
    let mut unclear = None;
    for user in users {
        match user {
            // Its lock or claim belongs to a device that was handled above.
            User::Server { .. } | User::Unknown if !others.is_empty() => {}
            User::Process { .. } => told.push(format!("it is {user}")),
            _ if may_share(spec) => told.push(format!("it is {user}")),
            User::Server { .. } => unclear = Some(format!("it is {user}")),
            _ => return Verdict::Refused(format!("it is {user}")),
        }
    }
    unclear.map_or(Verdict::Fine(told), Verdict::Unclear)
}

/// Whether a device may share its file with others.
const fn may_share(spec: &AddSpec) -> bool {
    spec.read_only || matches!(spec.backend, BackendSpec::File { force: true, .. })
}

/// Opens a file with `open` for a new device or a new server, unless its identity changed or other users' data would be
/// in danger. Harmless users are reported.
///
/// # Errors
/// Errors of the file, and the reasons above, with names.
pub(crate) fn opened(
    path: &Path,
    spec: &AddSpec,
    opening: &Opening,
    store: Option<&Store>,
    mut open: impl FnMut() -> Result<File, Failure>,
) -> Result<File, Failure> {
    let until = Instant::now() + PATIENCE;
    loop {
        let file = open()?;
        let identity = file.identity();
        if let Some(was) = &opening.backing {
            check(path, was, &identity)?;
        }
        let same = |record: &Record| {
            Some(record.nonce) != opening.nonce
                && record.backing.is_some_and(|b| b.is(&identity))
                && stands(record)
        };
        let others: Vec<Record> = match store {
            Some(store) => store.records().filter(same).collect(),
            None => Vec::new(),
        };
        let users: Vec<User> = file
            .users()
            .iter()
            .filter(|u| !is_predecessor(u, opening))
            .cloned()
            .collect();
        let size = ublk_core::Backend::limits(&file).size;
        let verdict = match Window::of(spec, size) {
            Some(window) => judge(&users, spec, window, &others),
            None => return Ok(file),
        };
        let refused = match verdict {
            Verdict::Fine(told) => {
                for text in told {
                    tracing::warn!("{}: {text}", path.display());
                }
                return Ok(file);
            }
            Verdict::Unclear(text) if Instant::now() >= until => text,
            Verdict::Unclear(_) => {
                drop(file);
                std::thread::sleep(LOOK_AGAIN);
                continue;
            }
            Verdict::Refused(text) => text,
        };
        let text = format!("{}: {refused}", path.display());
        return Err(Failure::new(FailureKind::Busy, text).hint(IN_USE));
    }
}

fn is_predecessor(user: &User, opening: &Opening) -> bool {
    matches!(user, User::Server { pid, .. } if Some(*pid) == opening.predecessor)
}

/// Refuses a backing store whose identity changed.
///
/// # Errors
/// The recorded identity, the one found, and what to do.
pub(crate) fn check(path: &Path, was: &Identity, now: &Identity) -> Result<(), Failure> {
    if was.is(now) {
        return Ok(());
    }
    Err(Failure::failed(format!(
        "{} is not the file that the device was created with: that was {was}, this is {now}",
        path.display()
    ))
    .hint(
        "bring the old one back to that path; --accept-backing serves what is there now, and what is mounted from the \
         device does not survive that",
    ))
}

/// How a device's next server opens its backing store, and a descriptor of the store if there is one: the one `kept` by
/// the agent, or one of the running server. With `accept` the path is used, even if it leads to another store.
pub(crate) fn next_opening(
    record: &Record,
    kept: Option<&OwnedFd>,
    accept: bool,
) -> (Opening, Option<OwnedFd>) {
    let mut opening = Opening {
        nonce: Some(record.nonce),
        backing: record.backing,
        ..Opening::default()
    };
    let BackendSpec::File { path, .. } = &record.spec.backend else {
        return (opening, None);
    };
    let old = record.server.filter(ProcessId::runs);
    opening.predecessor = old.map(|old| old.pid);
    let Some(backing) = record.backing else {
        return (opening, None);
    };
    let leads_there = fs::metadata(path).is_ok_and(|meta| backing.matches(&meta));
    if accept && !leads_there {
        opening.backing = None;
        return (opening, None);
    }
    if let Some(kept) = kept.and_then(|kept| kept.try_clone().ok()) {
        return (opening, Some(kept));
    }
    let Some((number, descriptor)) = old.and_then(|old| of_server(old, &backing)) else {
        return (opening, None);
    };
    if descriptor.is_none() {
        let pid = opening.predecessor.unwrap_or_default();
        opening.instead = Some(PathBuf::from(format!("/proc/{pid}/fd/{number}")));
    }
    (opening, descriptor)
}

/// The descriptor by which a server has its backing store open: its number there, and a copy where we may have one.
fn of_server(server: ProcessId, backing: &Identity) -> Option<(RawFd, Option<OwnedFd>)> {
    // Open the pidfd before checking, so that the checked process is the one inspected.
    let pidfd = process::pidfd(server.pid).ok()?;
    if !server.runs() {
        return None;
    }
    let entries = fs::read_dir(format!("/proc/{}/fd", server.pid)).ok()?;
    let number = entries.flatten().find_map(|entry| {
        let meta = fs::metadata(entry.path()).ok()?;
        let number = entry.file_name().to_str()?.parse().ok()?;
        backing.matches(&meta).then_some(number)
    })?;
    match process::take_descriptor(pidfd.as_fd(), number) {
        Ok(descriptor) => Some((number, Some(descriptor))),
        Err(e) => {
            tracing::debug!(
                "no copy of descriptor {number} of process {}: {e}",
                server.pid
            );
            Some((number, None))
        }
    }
}

#[cfg(test)]
mod tests;
