//! The file or disk behind a device: its identity, its other users, and how it passes from one server to the next.
//!
//! A path only leads to a backing store. The device's record has the store's identity, and a file opened later is compared
//! with it (L43). Lock and claim belong to the open file, so a server receives the descriptor of the previous server, from
//! the agent, which keeps a copy, or from the old server itself. No other process can take the lock in between.
#![forbid(unsafe_code)]

use crate::failure::{Failure, FailureKind};
use crate::link::message::Opening;
use crate::spec::{AddSpec, BackendSpec, Member};
use crate::state::{Phase, ProcessId, Record, Store};
use crate::sys::process;
use std::fs;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ublk_backends::{File, Identity, User};

/// How long to wait for a user of the file that may exit, or be identified, shortly.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

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
    /// Those of a device's files, in order. Of a file device, whose size may have changed, the one of its present size.
    fn all(spec: &AddSpec) -> Vec<Self> {
        let size = spec.backend.size();
        let one = matches!(spec.backend, BackendSpec::File { .. });
        let members = spec.backend.members().into_iter();
        let window = |m: Member| Self {
            begin: m.offset,
            end: m.offset.saturating_add(match m.length {
                Some(length) if !one => length,
                _ => size,
            }),
        };
        members.map(window).collect()
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

/// Judges the users of a file for a device over `window`, with the records of all other devices that are over the same,
/// and where.
fn judge(users: &[User], spec: &AddSpec, window: Window, others: &[(Record, Window)]) -> Verdict {
    let mut told = Vec::new();
    for (other, theirs) in others {
        if !theirs.overlaps(window) {
            continue;
        }
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
    spec.read_only || spec.backend.is_forced()
}

/// A file of a device that is being opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opened<'a> {
    /// The device.
    pub(crate) spec: &'a AddSpec,
    /// Its path.
    pub(crate) path: &'a Path,
    /// Where it stands among the device's files.
    pub(crate) number: usize,
    /// The files before it, which are open: locks and claims on them are our own.
    pub(crate) before: &'a [Identity],
}

/// Opens a file with `open` for a new device or a new server, unless its identity changed or other users' data would be
/// in danger. Harmless users are reported.
///
/// # Errors
/// Errors of the file, and the reasons above, with names.
pub(crate) fn opened(
    of: Opened<'_>,
    opening: &Opening,
    store: Option<&Store>,
    mut open: impl FnMut() -> Result<File, Failure>,
) -> Result<File, Failure> {
    let until = Instant::now() + PATIENCE;
    let Opened { spec, path, .. } = of;
    loop {
        let file = open()?;
        let identity = file.identity();
        if let Some(was) = opening.backing.get(of.number) {
            check(path, was, &identity)?;
        }
        let other = |record: &Record| Some(record.nonce) != opening.nonce && stands(record);
        let others: Vec<(Record, Window)> = match store {
            Some(store) => {
                let records = store.records().filter(other);
                records.flat_map(|record| over(record, &identity)).collect()
            }
            None => Vec::new(),
        };
        let ours = of.before.iter().any(|before| before.is(&identity));
        let users: Vec<User> = file
            .users()
            .iter()
            .filter(|u| !(is_predecessor(u, opening) || ours && is_own(u)))
            .cloned()
            .collect();
        let size = ublk_core::Backend::limits(&file).size;
        let window = Window {
            begin: file.base(),
            end: file.base().saturating_add(size),
        };
        let verdict = judge(&users, spec, window, &others);
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

/// Where a device has a file: once for each of its members.
fn over(record: Record, identity: &Identity) -> Vec<(Record, Window)> {
    let windows = Window::all(&record.spec);
    let all = record.backing.iter().zip(windows);
    let here = all.filter(|(is, _)| is.is(identity));
    let windows: Vec<Window> = here.map(|(_, window)| window).collect();
    let pair = |window| (record.clone(), window);
    windows.into_iter().map(pair).collect()
}

/// Whether a user of a file may be this process itself, which has another part of it open.
fn is_own(user: &User) -> bool {
    match user {
        User::Server { pid, .. } | User::Process { pid, .. } => *pid == std::process::id(),
        User::Unknown => true,
        _ => false,
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

/// How a device's next server opens its files, and descriptors of them if there are any, one for each: those `kept` by the
/// agent, or those of the running server. With `accept` the paths are used, even if one leads to another file.
pub(crate) fn next_opening(
    record: &Record,
    kept: &[OwnedFd],
    accept: bool,
) -> (Opening, Vec<OwnedFd>) {
    let mut opening = Opening {
        nonce: Some(record.nonce),
        backing: record.backing.clone(),
        ..Opening::default()
    };
    let members = record.spec.backend.members();
    if members.is_empty() {
        return (opening, Vec::new());
    }
    let old = record.server.filter(ProcessId::runs);
    opening.predecessor = old.map(|old| old.pid);
    let backing = &record.backing;
    if backing.len() != members.len() {
        return (opening, Vec::new());
    }
    let leads = |(member, backing): (&Member, &Identity)| {
        fs::metadata(&member.path).is_ok_and(|meta| backing.matches(&meta))
    };
    if accept && !members.iter().zip(backing).all(leads) {
        opening.backing.clear();
        return (opening, Vec::new());
    }
    let copies: Result<Vec<_>, _> = kept.iter().map(OwnedFd::try_clone).collect();
    if let Ok(copies) = copies
        && copies.len() == members.len()
    {
        return (opening, copies);
    }
    let Some(found) = old.and_then(|old| of_server(old, backing)) else {
        return (opening, Vec::new());
    };
    let (numbers, descriptors): (Vec<RawFd>, Vec<Option<OwnedFd>>) = found.into_iter().unzip();
    if let ([number], [None]) = (&*numbers, &*descriptors) {
        let pid = opening.predecessor.unwrap_or_default();
        opening.instead = Some(PathBuf::from(format!("/proc/{pid}/fd/{number}")));
    }
    // All or none: the paths lead to the others, too.
    let descriptors: Option<Vec<_>> = descriptors.into_iter().collect();
    (opening, descriptors.unwrap_or_default())
}

/// The descriptors by which a server has its files open: their numbers there, and copies where we may have them. A file
/// that is several members is open several times, in their order.
fn of_server(server: ProcessId, backing: &[Identity]) -> Option<Vec<(RawFd, Option<OwnedFd>)>> {
    // Open the pidfd before checking, so that the checked process is the one inspected.
    let pidfd = process::pidfd(server.pid).ok()?;
    if !server.runs() {
        return None;
    }
    let entries = fs::read_dir(format!("/proc/{}/fd", server.pid)).ok()?;
    let open = entries.flatten().filter_map(|entry| {
        let meta = fs::metadata(entry.path()).ok()?;
        let number: RawFd = entry.file_name().to_str()?.parse().ok()?;
        Some((number, meta))
    });
    let mut open: Vec<_> = open.collect();
    open.sort_by_key(|(number, _)| *number);
    let mut found = Vec::with_capacity(backing.len());
    for identity in backing {
        let place = open.iter().position(|(_, meta)| identity.matches(meta))?;
        let (number, _) = open.remove(place);
        let descriptor = process::take_descriptor(pidfd.as_fd(), number).map_err(|e| {
            let pid = server.pid;
            tracing::debug!("no copy of descriptor {number} of process {pid}: {e}");
        });
        found.push((number, descriptor.ok()));
    }
    Some(found)
}

#[cfg(test)]
mod tests;
