//! `list`, `info`, `features`: use only commands that never take the device mutex, and sysfs, so that they work while
//! START or STOP hangs.

use super::ask::health;
use super::{Target, by_helper};
use crate::backend;
use crate::failure::Failure;
use crate::report::Health;
use crate::spec::{AddSpec, BackendSpec, Member};
use crate::state::{Phase, Record, StateError, Store, process_id};
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ublk_backends::ZoneLayout;
use ublk_core::deadline_in;
use ublk_core::{DataMode, DevId, DevState, Geometry, Mode, QueueId, Recovery};
use ublk_ctrl::{Controller, Error};

/// How long an agent may take to report its server's health.
const HEALTH: Duration = Duration::from_secs(1);

/// The state of a device that is being deleted; the driver has no such state.
pub(super) const DELETING: &str = "deleting";

/// Who created a device.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Owner {
    /// The user who created it.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
}

/// Where the data of a file device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// The file or block device; several with a comma between them.
    pub path: PathBuf,
    /// Offset of the device in the file, in bytes.
    pub offset: u64,
    /// Length of the device in bytes.
    pub length: Option<u64>,
    /// The NBD server that the device moves to, or moved to when its processes ended.
    #[serde(default)]
    pub moving_to: Option<String>,
}

impl Backing {
    fn of(spec: &AddSpec) -> Option<Self> {
        match &spec.backend {
            BackendSpec::File {
                path,
                offset,
                length,
                ..
            } => Some(Self {
                path: path.clone(),
                offset: *offset,
                length: *length,
                moving_to: None,
            }),
            BackendSpec::Linear { files } | BackendSpec::Stripe { files, .. } => {
                let paths = files.files.iter().map(|file| file.path.to_string_lossy());
                Some(Self {
                    path: PathBuf::from(paths.collect::<Vec<_>>().join(",")),
                    offset: 0,
                    length: Some(files.bytes),
                    moving_to: None,
                })
            }
            BackendSpec::Nbd {
                uri,
                moving_to,
                length,
                ..
            } => Some(Self {
                path: PathBuf::from(uri),
                offset: 0,
                length: *length,
                moving_to: moving_to.clone(),
            }),
            _ => None,
        }
    }
}

/// A line of `list`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListEntry {
    /// The device.
    pub id: u32,
    /// Its block device, which exists while it is live.
    pub path: PathBuf,
    /// Its character device.
    pub char_path: PathBuf,
    /// `live`, `dead`, `quiesced`, `fail-io`; `deleting` after the driver has removed it while it is still open: its
    /// number is free once it is closed.
    pub state: String,
    /// Hw queues.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// The data mode, according to the granted features.
    pub data: DataMode,
    /// Whether batch mode is in force, according to the granted features.
    pub batch: bool,
    /// Size in bytes, if known.
    pub size: Option<u64>,
    /// The backend; unknown for a foreign device.
    pub backend: Option<String>,
    /// The server process, as the kernel reports it.
    pub server_pid: Option<u32>,
    /// Whether that process still runs.
    pub server_alive: bool,
    /// Whether its agent still runs; unknown for a foreign device. Without an agent the device is not recovered
    /// automatically.
    pub agent_alive: Option<bool>,
    /// The user who created it.
    pub owner: Owner,
    /// Whether no record of ours attributes it to ublkctl.
    pub foreign: bool,
    /// Why our record of it cannot be read, if so; then it is unknown whether the device is ours.
    #[serde(default)]
    pub record_error: Option<String>,
    /// The phase recorded by our processes.
    pub phase: Option<Phase>,
    /// Why it ended, if it did.
    pub cause: Option<String>,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The link for its name; an unprivileged device has none.
    pub link: Option<PathBuf>,
    /// What happens when its server dies, according to the granted features.
    pub recovery: Recovery,
    /// The backing store of a file device; unknown for a foreign one.
    pub backing: Option<Backing>,
    /// Whether its agent replaces a dead server; this and the following are unknown for a foreign device.
    pub supervised: Option<bool>,
    /// The memory file that clients share with it.
    pub shared_memory: Option<PathBuf>,
    /// Threads of each queue.
    pub threads: Option<u16>,
    /// What a thread does before it sleeps, in the syntax of `--poll`.
    pub polling: Option<String>,
    /// Whether its server is gone and no process is going to replace it or remove the device.
    pub orphan: bool,
    /// What to do about it, if anything.
    pub next: Option<String>,
    /// Whether the driver answers the caller's queries about it. For another user's device little is known: `state` is
    /// `unknown`, counts are 0.
    pub readable: bool,
    /// Distinguishes it from other devices with its number; internal.
    #[serde(skip)]
    nonce: u64,
}

impl ListEntry {
    /// This device, and no later one with its number.
    #[must_use]
    pub fn target(&self) -> Option<Target> {
        Some(Target {
            id: DevId::new(self.id).ok()?,
            nonce: self.readable.then_some(self.nonce),
        })
    }
}

/// Features of a device.
#[derive(Debug, Clone, Serialize)]
pub struct FeatureNames {
    /// Names of the requested features; unknown for a foreign device.
    pub asked: Option<Vec<String>>,
    /// Names of the granted features.
    pub granted: Vec<String>,
}

/// Everything known of a device.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Info {
    /// The fields of `list`.
    #[serde(flatten)]
    pub entry: ListEntry,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// Logical block size in bytes, if known.
    pub block_size: Option<u32>,
    /// Whether the device refuses writes, if known.
    pub read_only: Option<bool>,
    /// Its integrity metadata, in the syntax of `--integrity`.
    pub integrity: Option<String>,
    /// The file that keeps this metadata.
    pub integrity_file: Option<PathBuf>,
    /// The zones of a zoned device, in bytes.
    pub zones: Option<ZoneLayout>,
    /// The files of a device over several files, in their order.
    pub files: Vec<Member>,
    /// Features.
    pub features: FeatureNames,
    /// CPUs that submit to each queue.
    pub affinity: Vec<Vec<u32>>,
    /// The agent process.
    pub agent_pid: Option<u32>,
    /// The log file.
    pub log: Option<PathBuf>,
    /// The server's own report, if it is reachable.
    pub health: Option<Health>,
    /// Why it is not; `next` says what to do about it.
    pub health_error: Option<String>,
}

/// The features of a kernel's driver.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Features {
    /// The reply to GET_FEATURES.
    pub bits: u64,
    /// Each feature that this version knows.
    pub features: Vec<Feature>,
    /// Bits without a name here.
    pub unknown: u64,
}

/// One feature.
#[derive(Debug, Clone, Serialize)]
pub struct Feature {
    /// The kernel's name without its prefix.
    pub name: &'static str,
    /// Its bit.
    pub bit: u32,
    /// Whether this kernel has it.
    pub available: bool,
    /// The first kernel with it, as `major.minor`.
    pub since: String,
    /// Its purpose.
    pub meaning: &'static str,
}

/// The features of this kernel's driver.
///
/// # Errors
/// No driver, no permission, a deadline.
pub fn features(program: &Path, deadline: Duration) -> Result<Features, Failure> {
    let word = by_helper(program, |helper| helper.features(deadline))?;
    Ok(Features {
        bits: word.bits(),
        unknown: word.unknown().bits(),
        features: ublk_core::Features::TABLE
            .iter()
            .map(|f| Feature {
                name: f.name,
                bit: f.bit(),
                available: word.contains(f.flag),
                since: format!("{}.{}", f.since.0, f.since.1),
                meaning: f.meaning,
            })
            .collect(),
    })
}

/// The devices of this machine, without those that disappear meanwhile.
///
/// # Errors
/// No driver, no permission, a deadline.
pub fn list(program: &Path, deadline: Duration) -> Result<Vec<ListEntry>, Failure> {
    let all = known(program, deadline)?;
    Ok(all.into_iter().map(|(entry, _)| entry).collect())
}

/// The devices of this machine, with our records of those that are ours.
pub(super) fn known(
    program: &Path,
    deadline: Duration,
) -> Result<Vec<(ListEntry, Option<Record>)>, Failure> {
    let found = geometries(program, deadline)?;
    let told = |(id, geometry): &(DevId, Option<Geometry>)| match geometry {
        Some(geometry) => {
            let record = record(geometry);
            (entry(geometry, record.as_ref()), record)
        }
        None => (unreadable(*id), None),
    };
    let mut all: Vec<_> = found.iter().map(told).collect();
    for (entry, _) in all.iter_mut().filter(|(e, _)| e.state == DELETING) {
        let id = DevId::new(entry.id).map_err(|e| Failure::failed(e.to_string()))?;
        let holders = by_helper(program, |helper| helper.look(id, HEALTH)).unwrap_or_default();
        entry.next = Some(match holders.is_empty() {
            true => "is removed when its last user closes it".to_owned(),
            false => format!("is removed when it is closed; it is {holders}"),
        });
    }
    Ok(all)
}

/// Every device with the driver's information about it, or `None` if the caller may not ask.
fn geometries(
    program: &Path,
    deadline: Duration,
) -> Result<Vec<(DevId, Option<Geometry>)>, Failure> {
    let until = deadline_in(deadline);
    let left = || until.saturating_duration_since(Instant::now());
    by_helper(program, |helper| {
        let mut ids = ublk_ctrl::nodes::list_devices()?;
        let listed = ids.len();
        // The driver no longer shows a device that is being deleted, but still knows its number.
        let recorded = Store::of_user()
            .map(|store| store.ids())
            .unwrap_or_default();
        let recorded = recorded.into_iter().filter_map(|id| DevId::new(id).ok());
        ids.extend(recorded.filter(|id| !ids.contains(id)).collect::<Vec<_>>());
        if ids.is_empty() {
            // Report why there is no device: a missing driver must not look like an empty list.
            match helper.features(left()) {
                Ok(_) | Err(Error::NoPermission { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let mut found = Vec::with_capacity(ids.len());
        for (at, id) in ids.into_iter().enumerate() {
            match helper.info(id, left()) {
                Ok(geometry) => found.push((id, Some(geometry))),
                Err(Error::NoSuchDevice { .. }) => {}
                // An unprivileged device is queried by its node, which is gone.
                Err(Error::Refused { .. } | Error::NoPermission { .. }) if at >= listed => {
                    found.push((id, None));
                }
                Err(Error::NoPermission { .. }) => found.push((id, None)),
                Err(e) => return Err(e),
            }
        }
        found.sort_unstable_by_key(|(id, _)| *id);
        Ok(found)
    })
}

/// Whether the driver still knows a device but no longer shows it.
fn is_deleting(id: DevId) -> bool {
    let listed = ublk_ctrl::nodes::list_devices();
    listed.is_ok_and(|ids| !ids.contains(&id))
}

/// The nonces of existing devices, by which their records are recognized.
///
/// # Errors
/// As [`list`].
pub(super) fn nonces(program: &Path, deadline: Duration) -> Result<Vec<u64>, Failure> {
    let found = geometries(program, deadline)?;
    let readable = found.iter().filter_map(|(_, geometry)| geometry.as_ref());
    Ok(readable.map(Geometry::server_flags).collect())
}

/// Our devices that wait for a server, or whose server has no agent.
///
/// # Errors
/// As [`list`].
pub fn recoverable(program: &Path, deadline: Duration) -> Result<Vec<DevId>, Failure> {
    let waits = |e: &ListEntry| {
        let state = matches!(e.state.as_str(), "quiesced" | "fail-io");
        let missed = e.state == "live" && e.recovery.is_recoverable();
        let alone = e.state == "live" && e.server_alive && e.agent_alive == Some(false);
        !e.foreign && (alone || (e.orphan && (state || missed)))
    };
    let entries = list(program, deadline)?;
    let ids = entries.iter().filter(|e| waits(e));
    Ok(ids.filter_map(|e| DevId::new(e.id).ok()).collect())
}

/// Everything known of a device.
///
/// # Errors
/// No such device, no driver, no permission, a deadline.
pub fn info(program: &Path, id: DevId, deadline: Duration) -> Result<Info, Failure> {
    let until = deadline_in(deadline);
    let left = || until.saturating_duration_since(Instant::now());
    let (geometry, affinity) = by_helper(program, |helper| {
        let geometry = helper.info(id, left())?;
        let mut affinity = Vec::new();
        for qid in (0..geometry.queues()).map_while(|qid| QueueId::new(qid).ok()) {
            affinity.push(helper.affinity(id, qid, left())?.iter().collect());
        }
        Ok((geometry, affinity))
    })?;
    let record = record(&geometry);
    Ok(render_info(&geometry, affinity, record.as_ref()))
}

/// Everything that geometry, record and sysfs say about a device.
fn render_info(geometry: &Geometry, affinity: Vec<Vec<u32>>, record: Option<&Record>) -> Info {
    let id = geometry.dev_id();
    let spec = record.map(|r| &r.spec);
    let parameters = spec.map(|spec| &spec.parameters);
    let names = |f: ublk_core::Features| f.iter().map(|f| f.name.to_owned()).collect();
    let (health, silence) = match record.map(|_| health(id, HEALTH)) {
        Some(Ok(health)) => (Some(health), None),
        Some(Err(silence)) => (None, Some(silence.failure(id))),
        None => (None, None),
    };
    let mut entry = entry(geometry, record);
    if let Some(silence) = &silence {
        entry.next = entry.next.or_else(|| silence.hint.clone());
    }
    Info {
        entry,
        max_io_bytes: geometry.max_io_bytes(),
        block_size: sysfs(id, "queue/logical_block_size")
            .and_then(|s| u32::try_from(s).ok())
            .or(spec.map(|s| s.block_size)),
        read_only: sysfs(id, "ro")
            .map(|ro| ro != 0)
            .or(spec.map(|s| s.read_only)),
        integrity: parameters
            .and_then(|of| of.integrity)
            .map(|it| it.to_string()),
        integrity_file: spec
            .and_then(backend::side_file)
            .map(|side| side.path().to_owned()),
        zones: parameters.and_then(|of| of.zones),
        files: match spec.map(|spec| &spec.backend) {
            Some(BackendSpec::Linear { files } | BackendSpec::Stripe { files, .. }) => {
                files.files.clone()
            }
            _ => Vec::new(),
        },
        features: FeatureNames {
            asked: spec.map(|s| names(s.mode.features())),
            granted: names(geometry.features()),
        },
        affinity,
        agent_pid: record
            .and_then(|r| r.agent)
            .filter(|a| a.runs())
            .map(|a| a.pid),
        log: record.and_then(|r| r.log.clone()),
        health,
        health_error: silence.map(|silence| silence.text),
    }
}

/// Our record of the device that has this id and this nonce now.
pub(super) fn record(geometry: &Geometry) -> Option<Record> {
    readable_record(geometry).unwrap_or_else(|e| {
        tracing::warn!("{e}");
        None
    })
}

fn readable_record(geometry: &Geometry) -> Result<Option<Record>, StateError> {
    let Ok(store) = Store::of_user() else {
        return Ok(None);
    };
    store.find(geometry.dev_id().get(), geometry.server_flags())
}

/// Whether server and agent of a device are running: by our record and its locks, if there is one, because kernels up
/// to 6.12 report the pid of a dead server.
fn at_work(geometry: &Geometry, record: Option<&Record>) -> (bool, bool) {
    match (record, Store::of_user()) {
        (Some(record), Ok(store)) => (store.has_server(record), store.has_agent(record)),
        _ => (
            geometry.server_pid().is_some_and(process_id::may_run),
            false,
        ),
    }
}

fn entry(geometry: &Geometry, record: Option<&Record>) -> ListEntry {
    let id = geometry.dev_id();
    let server_pid = geometry.server_pid();
    let spec = record.map(|r| &r.spec);
    let mode = Mode::of(geometry.features());
    let (server_alive, agent_alive) = at_work(geometry, record);
    let recovery = Recovery::of(geometry.features());
    let deleting = is_deleting(id);
    // A device that was just added has an agent but no server yet.
    let orphan = !server_alive && !agent_alive && !deleting;
    let alone = server_alive && !agent_alive && record.is_some();
    let record_error = match record {
        Some(_) => None,
        None => readable_record(geometry).err().map(|e| e.to_string()),
    };
    let next = match (orphan, alone) {
        _ if record_error.is_some() => Some(format!(
            "its record cannot be read; `ublkctl delete {id}` still works"
        )),
        (true, _) => Some(next(geometry, record.is_none(), recovery)),
        (_, true) => Some(format!(
            "its agent is gone: `ublkctl recover {id}` starts another"
        )),
        _ => None,
    };
    let size = sysfs(id, "size").and_then(|sectors| sectors.checked_mul(ublk_core::SECTOR_SIZE));
    ListEntry {
        id: id.get(),
        path: PathBuf::from(format!("/dev/ublkb{id}")),
        char_path: PathBuf::from(format!("/dev/ublkc{id}")),
        state: match deleting {
            true => DELETING.to_owned(),
            false => geometry.state().to_string(),
        },
        queues: geometry.queues(),
        depth: geometry.depth(),
        data: mode.data,
        batch: mode.batch,
        size: size.or_else(|| record.map(|r| r.spec.backend.size())),
        backend: record.map(|r| r.spec.backend.name().to_owned()),
        server_pid,
        server_alive,
        agent_alive: record.map(|_| agent_alive),
        owner: Owner {
            uid: geometry.owner_uid(),
            gid: geometry.owner_gid(),
        },
        foreign: record.is_none(),
        record_error,
        phase: record.map(|r| r.phase),
        cause: record.and_then(|r| r.cause.clone()),
        name: spec.and_then(|s| s.name.clone()),
        link: spec
            .filter(|s| !s.unprivileged)
            .and_then(|s| s.name.as_deref())
            .map(crate::names::path),
        recovery,
        backing: spec.and_then(Backing::of),
        supervised: spec.map(|s| s.supervise),
        shared_memory: spec.and_then(|s| s.serving.shm.clone()),
        threads: spec.map(|s| s.serving.options.threads_per_queue),
        polling: spec.map(|s| s.serving.options.polling.to_string()),
        orphan,
        next,
        readable: true,
        nonce: geometry.server_flags(),
    }
}

/// A device that the driver does not let the caller query.
fn unreadable(id: DevId) -> ListEntry {
    let char_path = PathBuf::from(format!("/dev/ublkc{id}"));
    let node = fs::metadata(&char_path).ok();
    let size = sysfs(id, "size").and_then(|sectors| sectors.checked_mul(ublk_core::SECTOR_SIZE));
    ListEntry {
        id: id.get(),
        path: PathBuf::from(format!("/dev/ublkb{id}")),
        state: match is_deleting(id) {
            true => DELETING.to_owned(),
            false => "unknown".to_owned(),
        },
        queues: 0,
        depth: 0,
        data: DataMode::default(),
        batch: false,
        size,
        backend: None,
        server_pid: None,
        server_alive: false,
        agent_alive: None,
        owner: Owner {
            uid: node.as_ref().map_or(0, MetadataExt::uid),
            gid: node.as_ref().map_or(0, MetadataExt::gid),
        },
        char_path,
        foreign: true,
        record_error: None,
        phase: None,
        cause: None,
        name: None,
        link: None,
        recovery: Recovery::None,
        backing: None,
        supervised: None,
        shared_memory: None,
        threads: None,
        polling: None,
        orphan: false,
        next: None,
        readable: false,
        nonce: 0,
    }
}

/// What to do about a device without a server.
fn next(geometry: &Geometry, foreign: bool, recovery: Recovery) -> String {
    let id = geometry.dev_id();
    let (delete, recover) = (
        format!("`ublkctl delete {id}` removes it"),
        format!("`ublkctl recover {id}` starts a new server"),
    );
    match (recovery.is_recoverable(), geometry.state(), foreign) {
        (true, DevState::Dead, _) | (false, _, _) => delete,
        (true, _, true) => format!("the program that created it can recover it; {delete}"),
        (true, _, false) => format!("{recover}, {delete}"),
    }
}

/// A number from the sysfs directory of a live device.
fn sysfs(id: DevId, name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/sys/block/ublkb{id}/{name}")).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests;
