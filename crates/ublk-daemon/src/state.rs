//! The state store: records of our devices, in files that outlive every process.
//!
//! A record is written under the device's nonce before ADD_DEV, and under its id before START_DEV; the kernel keeps the
//! same nonce (`ublksrv_flags`). So a device can be attributed after a kill at any moment (L31), and its record is
//! never mistaken for that of a later device with the same id. Files must satisfy L40: a private directory of our own
//! user, no links followed, written to a temporary file, synced and renamed, versioned, pids stored with their start
//! time.

mod alive;
mod aside;
mod error;
mod lock;
mod prepared;
pub(crate) mod process_id;
mod unwritten;

pub use alive::Held;
pub use error::StateError;
pub use lock::Lock;
pub use prepared::Prepared;
pub use process_id::ProcessId;

use crate::link::message::Lifetime;
use crate::names;
use crate::spec::{AddSpec, Registered};
use crate::sys::process::effective_uid;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use ublk_backends::Identity;
use ublk_core::DevId;

/// Version of the records that this code writes and reads.
pub const STATE_VERSION: u32 = 2;

/// The longest record in bytes.
const MAX_RECORD: u64 = 64 * 1024;

/// The environment variable that overrides the run directory.
pub const RUN_DIR_VARIABLE: &str = "UBLKCTL_RUN_DIR";

/// The phase of a device's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Phase {
    /// ADD_DEV is about to be sent or has been sent.
    Adding,
    /// The device exists; START_DEV is about to be sent or has been sent.
    Starting,
    /// The device serves I/O.
    Live,
    /// The device is getting a new server.
    Recovering,
    /// The server is being asked to leave the device to its successor.
    HandingOver,
    /// The server has left the device to its successor, as requested.
    Left,
    /// The device is being stopped and deleted.
    Leaving,
    /// Another process stopped the device; its own processes have exited.
    Stopped,
    /// The server exited without being asked to.
    Ended,
}

/// The record of one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// The nonce, which the kernel keeps in `ublksrv_flags`; hexadecimal.
    #[serde(with = "hex")]
    pub nonce: u64,
    /// The device id, once the kernel has assigned it.
    pub id: Option<u32>,
    /// Its phase.
    pub phase: Phase,
    /// Why the device ended, if it did.
    pub cause: Option<String>,
    /// The device's configuration.
    pub spec: AddSpec,
    /// The agent.
    pub agent: Option<ProcessId>,
    /// The server.
    pub server: Option<ProcessId>,
    /// The log file.
    pub log: Option<PathBuf>,
    /// The user who created it.
    pub owner_uid: u32,
    /// Its registered memory that is shared with clients.
    #[serde(default)]
    pub shm: Option<Registered>,
    /// Identities of the files behind it, in order, independent of their paths.
    #[serde(default, with = "one_or_many")]
    pub backing: Vec<Identity>,
    /// What ends its processes; `None` in records of earlier versions.
    #[serde(default)]
    pub lifetime: Option<Lifetime>,
}

impl Record {
    /// The record of a device that this process is about to add.
    #[must_use]
    pub fn new(nonce: u64, spec: AddSpec) -> Self {
        Self {
            version: STATE_VERSION,
            nonce,
            id: None,
            phase: Phase::Adding,
            cause: None,
            spec,
            agent: ProcessId::of(std::process::id()),
            server: None,
            log: None,
            owner_uid: effective_uid(),
            shm: None,
            backing: Vec::new(),
            lifetime: None,
        }
    }
}

/// Serialises identities as earlier versions read them: one by itself, none as null.
mod one_or_many {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use ublk_backends::Identity;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Stored {
        One(Identity),
        Many(Vec<Identity>),
    }

    pub(super) fn serialize<S: Serializer>(all: &[Identity], to: S) -> Result<S::Ok, S::Error> {
        match all {
            [] => to.serialize_none(),
            [one] => Stored::One(*one).serialize(to),
            many => Stored::Many(many.to_vec()).serialize(to),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Identity>, D::Error> {
        Ok(match Option::deserialize(from)? {
            None => Vec::new(),
            Some(Stored::One(one)) => vec![one],
            Some(Stored::Many(many)) => many,
        })
    }
}

/// Generates a random non-zero nonce for a new device.
///
/// # Errors
/// `/dev/urandom` cannot be read.
pub fn nonce() -> io::Result<u64> {
    let mut bytes = [0; 8];
    let mut random = File::open("/dev/urandom")?;
    loop {
        random.read_exact(&mut bytes)?;
        match u64::from_ne_bytes(bytes) {
            0 => {}
            nonce => return Ok(nonce),
        }
    }
}

/// The run directory, with one file per device.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// The run directory of this user: `/run/ublkctl` for root; `ublkctl` in `$XDG_RUNTIME_DIR`, in `/run/user/UID` or
    /// in `$XDG_STATE_HOME` for others; or the value of [`RUN_DIR_VARIABLE`]. Creates nothing.
    ///
    /// # Errors
    /// [`StateError::NoDirectory`].
    pub fn of_user() -> Result<Self, StateError> {
        if let Some(dir) = std::env::var_os(RUN_DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
            // Roles run in another working directory and get this path.
            let dir = std::path::absolute(&dir).unwrap_or_else(|_| PathBuf::from(dir));
            return Ok(Self::at(dir));
        }
        if effective_uid() == 0 {
            return Ok(Self::at(PathBuf::from("/run/ublkctl")));
        }
        let named = |variable| std::env::var_os(variable).map(PathBuf::from);
        let usual = || Some(PathBuf::from(format!("/run/user/{}", effective_uid())));
        let dir = named("XDG_RUNTIME_DIR")
            .or_else(|| usual().filter(|dir| dir.is_dir()))
            .or_else(|| named("XDG_STATE_HOME"))
            .filter(|dir| dir.is_absolute())
            .ok_or(StateError::NoDirectory)?;
        Ok(Self::at(dir.join("ublkctl")))
    }

    /// Whether a device with this name has a record.
    #[must_use]
    pub fn has_name(&self, name: &str) -> bool {
        self.records()
            .any(|record| record.spec.name.as_deref() == Some(name))
    }

    /// All readable records.
    pub fn records(&self) -> impl Iterator<Item = Record> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let paths = entries
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "json"));
        paths.filter_map(|path| self.read(&path).ok()?)
    }

    /// Whether a running agent is adding a device with this name; its record has no id yet.
    #[must_use]
    pub fn is_adding(&self, name: &str) -> bool {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let pending = entries.map(|e| e.path()).filter(|p| {
            let file = p.file_name().unwrap_or_default().to_string_lossy();
            file.starts_with("pending-") && file.ends_with(".json")
        });
        let adds =
            |record: &Record| record.spec.name.as_deref() == Some(name) && self.has_agent(record);
        pending
            .filter_map(|path| self.read(&path).ok()?)
            .any(|r| adds(&r))
    }

    /// The ids that have a record.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let id = |entry: fs::DirEntry| {
            let name = entry.file_name();
            name.to_str()?.strip_suffix(".json")?.parse().ok()
        };
        entries.filter_map(id).collect()
    }

    /// A store in this directory.
    #[must_use]
    pub const fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Path of the socket of a device's agent.
    #[must_use]
    pub fn socket(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.sock"))
    }

    /// Path of the socket on which a successor asks the current agent to hand over the device.
    #[must_use]
    pub fn next_socket(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.next"))
    }

    /// Path of the socket on which a server without an agent accepts a new one.
    #[must_use]
    pub fn server_socket(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.server"))
    }

    /// Path of the record of a service's starts.
    #[must_use]
    pub fn starts(&self, name: &str) -> PathBuf {
        self.dir.join(format!("name-{name}.starts"))
    }

    /// Path of a device's default log.
    #[must_use]
    pub fn log(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.log"))
    }

    fn path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    fn pending_path(&self, nonce: u64) -> PathBuf {
        self.dir.join(format!("pending-{nonce:016x}.json"))
    }

    /// Creates the directory if necessary and checks that only its owner can use it.
    ///
    /// # Errors
    /// [`StateError::Untrusted`] for a link, another user's directory, or one that others can access.
    pub fn prepare(&self) -> Result<(), StateError> {
        let at = |source| StateError::Io {
            path: self.dir.clone(),
            source,
        };
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = self.dir.parent() {
                    fs::create_dir_all(parent).map_err(at)?;
                }
                DirBuilder::new()
                    .mode(0o700)
                    .create(&self.dir)
                    .map_err(at)?;
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(at)?,
        }
        self.check()
    }

    fn check(&self) -> Result<(), StateError> {
        let no = |why| StateError::Untrusted {
            path: self.dir.clone(),
            why,
        };
        let meta = fs::symlink_metadata(&self.dir).map_err(|source| StateError::Io {
            path: self.dir.clone(),
            source,
        })?;
        if !meta.is_dir() {
            return Err(no("it is a link or a file, not a directory"));
        }
        if meta.uid() != effective_uid() {
            return Err(no("it belongs to another user"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(no("other users can access it; its mode must be 0700"));
        }
        Ok(())
    }

    /// Writes a record to a temporary file, syncs it, and renames it over the old one. A record without an id is stored
    /// under its nonce; one with an id replaces that file.
    ///
    /// # Errors
    /// File system errors, and [`StateError::Untrusted`].
    pub fn write(&self, record: &Record) -> Result<(), StateError> {
        self.prepare()?;
        let path = match record.id {
            Some(id) => self.path(id),
            None => self.pending_path(record.nonce),
        };
        let aside = self.dir.join(format!(".{:016x}.tmp", record.nonce));
        let at = |source| StateError::Io {
            path: path.clone(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(record).map_err(|e| at(e.into()))?;
        // Remove the leftover of a killed writer, on which `create_new` would fail.
        remove_if_there(&aside)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&aside)
            .map_err(at)?;
        file.write_all(&bytes).map_err(at)?;
        file.sync_all().map_err(at)?;
        fs::rename(&aside, &path).map_err(at)?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(at)?;
        if record.id.is_some() {
            remove_if_there(&self.pending_path(record.nonce))?;
        }
        Ok(())
    }

    /// The record of device `id` if it has this nonce, which the kernel reports. A record with another nonce belongs to
    /// an earlier device with the same id.
    ///
    /// # Errors
    /// The file exists but is untrusted, unreadable or not ours.
    pub fn find(&self, id: u32, nonce: u64) -> Result<Option<Record>, StateError> {
        let by_id = self.read(&self.path(id))?.filter(|r| r.nonce == nonce);
        match by_id {
            None if nonce != 0 => self.read(&self.pending_path(nonce)),
            found => Ok(found),
        }
    }

    /// The last record for device `id`, whatever its nonce.
    ///
    /// # Errors
    /// As [`Store::find`].
    pub fn last(&self, id: u32) -> Result<Option<Record>, StateError> {
        self.read(&self.path(id))
    }

    fn read(&self, path: &Path) -> Result<Option<Record>, StateError> {
        let at = |source| StateError::Io {
            path: path.to_owned(),
            source,
        };
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let mut file = match opened {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) if e.raw_os_error() == Some(libc::ELOOP) => {
                return Err(StateError::Untrusted {
                    path: path.to_owned(),
                    why: "it is a link",
                });
            }
            other => other.map_err(at)?,
        };
        self.check()?;
        let no = |why| StateError::Untrusted {
            path: path.to_owned(),
            why,
        };
        let meta = file.metadata().map_err(at)?;
        if !meta.is_file() {
            return Err(no("it is not a regular file"));
        }
        if meta.uid() != effective_uid() {
            return Err(no("it belongs to another user"));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(no("other users can write it"));
        }
        let mut bytes = Vec::new();
        io::Read::by_ref(&mut file)
            .take(MAX_RECORD + 1)
            .read_to_end(&mut bytes)
            .map_err(at)?;
        parse(path, &bytes).map(Some)
    }

    /// Removes the files of a device: record, socket and log. A failed device's log stays; the next device with its id
    /// appends to it.
    ///
    /// # Errors
    /// File system errors other than ENOENT.
    pub fn remove(&self, id: u32, nonce: u64) -> Result<(), StateError> {
        remove_if_there(&self.pending_path(nonce))?;
        self.forget_unwritten(nonce)?;
        let record = self.read(&self.path(id))?;
        if record.as_ref().is_some_and(|r| r.nonce != nonce) {
            return Ok(());
        }
        remove_if_there(&self.path(id))?;
        remove_if_there(&self.socket(id))?;
        remove_if_there(&self.next_socket(id))?;
        remove_if_there(&self.server_socket(id))?;
        remove_if_there(&self.lock_path(id))?;
        remove_if_there(&self.serving_path(id))?;
        if record.is_none_or(|r| r.phase != Phase::Ended) {
            remove_if_there(&self.log(id))?;
        }
        Ok(())
    }

    /// Removes the record of a device that was never added.
    ///
    /// # Errors
    /// File system errors other than ENOENT.
    pub fn forget_pending(&self, nonce: u64) -> Result<(), StateError> {
        remove_if_there(&self.adding_path(nonce))?;
        remove_if_there(&self.pending_path(nonce))
    }

    /// Removes the files and stable links of devices that no longer exist: their nonce is not in `nonces`, and neither
    /// agent nor server runs. Returns what was removed.
    ///
    /// # Errors
    /// File system errors; files that are untrusted or unparsable stay.
    pub fn sweep(&self, nonces: &[u64]) -> Result<Vec<PathBuf>, StateError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(|source| StateError::Io {
                path: self.dir.clone(),
                source,
            })?,
        };
        self.check()?;
        let mut removed = Vec::new();
        for path in entries.flatten().map(|e| e.path()) {
            if path.extension().is_none_or(|e| e != "json") {
                if self.sweep_aside(&path, nonces)? {
                    removed.push(path);
                    continue;
                }
                self.sweep_unwritten(&path, nonces)?;
                self.sweep_lock(path)?;
                continue;
            }
            let record = match self.read(&path) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(e) => {
                    tracing::warn!("{e}");
                    continue;
                }
            };
            let at_work = || self.has_agent(&record) || self.has_server(&record);
            if nonces.contains(&record.nonce) || at_work() {
                continue;
            }
            match record.id {
                Some(id) => {
                    if let Ok(dev) = DevId::new(id) {
                        names::unlink(record.spec.name.as_deref(), dev);
                    }
                    self.remove(id, record.nonce)?;
                }
                None => self.forget_pending(record.nonce)?,
            }
            removed.push(path);
        }
        Ok(removed)
    }

    /// Opens a log for appending, without following links; only its owner may access it. Never blocks: a FIFO without a
    /// reader is an error here, and a full one drops messages later.
    ///
    /// # Errors
    /// File system errors.
    pub fn open_log(path: &Path) -> Result<File, StateError> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| StateError::Io {
                path: path.to_owned(),
                source,
            })
    }
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Record, StateError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let garbled = |why: String| StateError::Garbled {
        path: path.to_owned(),
        why,
    };
    if bytes.len() as u64 > MAX_RECORD {
        return Err(garbled(format!("longer than {MAX_RECORD} bytes")));
    }
    let head: Head = serde_json::from_slice(bytes).map_err(|e| garbled(e.to_string()))?;
    if head.version != STATE_VERSION {
        return Err(StateError::Version {
            path: path.to_owned(),
            version: head.version,
        });
    }
    serde_json::from_slice(bytes).map_err(|e| garbled(e.to_string()))
}

fn remove_if_there(path: &Path) -> Result<(), StateError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|source| StateError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Serialises a word as hexadecimal text, because many JSON readers lose bits above 2^53.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(word: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{word:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
