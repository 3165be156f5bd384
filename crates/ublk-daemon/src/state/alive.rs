//! Finds the running processes of a device by the locks that they hold (L47).
//!
//! A PID namespace reports "no such process" for every process outside it. The kernel releases a lock only when its
//! holder dies, and a lock is visible wherever the run directory is. Pids are checked in addition only because earlier
//! versions hold no lock.

use super::{ProcessId, Record, StateError, Store};
use crate::sys::lock;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A shared lock on a file, held until dropped.
#[derive(Debug)]
pub struct Held {
    _file: File,
    /// The file to remove on drop.
    passing: Option<PathBuf>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(path) = &self.passing {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Store {
    pub(super) fn serving_path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.serving"))
    }

    pub(super) fn adding_path(&self, nonce: u64) -> PathBuf {
        self.dir.join(format!("pending-{nonce:016x}.lock"))
    }

    /// Marks the device as served until dropped. During a hand-over two servers hold the mark.
    ///
    /// # Errors
    /// File system errors, and [`StateError::Untrusted`].
    pub fn serve(&self, id: u32) -> Result<Held, StateError> {
        let file = self.hold(&self.serving_path(id))?;
        Ok(Held {
            _file: file,
            passing: None,
        })
    }

    /// Marks a device that has no id yet as being added.
    ///
    /// # Errors
    /// As [`Store::serve`].
    pub fn adding(&self, nonce: u64) -> Result<Held, StateError> {
        let path = self.adding_path(nonce);
        let file = self.hold(&path)?;
        Ok(Held {
            _file: file,
            passing: Some(path),
        })
    }

    fn hold(&self, path: &Path) -> Result<File, StateError> {
        self.prepare()?;
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let held = open.and_then(|file| lock::share(&file).map(|()| file));
        held.map_err(|source| StateError::Io {
            path: path.to_owned(),
            source,
        })
    }

    /// Whether the agent of this record's device runs, in any PID namespace.
    #[must_use]
    pub fn has_agent(&self, record: &Record) -> bool {
        let held = match record.id {
            Some(id) => is_locked(&self.lock_path(id)),
            None => is_shared(&self.adding_path(record.nonce)),
        };
        held || record.agent.as_ref().is_some_and(ProcessId::runs)
    }

    /// Whether a server of this record's device runs, in any PID namespace.
    #[must_use]
    pub fn has_server(&self, record: &Record) -> bool {
        let held = record
            .id
            .is_some_and(|id| is_shared(&self.serving_path(id)));
        held || record.server.as_ref().is_some_and(ProcessId::runs)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Whether the lock of [`Store::lock`] is held. If that cannot be determined it counts as held, so that nothing is
/// removed.
fn is_locked(path: &Path) -> bool {
    match open(path) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

/// Whether a shared lock on the file is held. The test takes no lock itself, so it blocks nobody.
fn is_shared(path: &Path) -> bool {
    match open(path) {
        Ok(file) => lock::is_shared(&file).unwrap_or(true),
        Err(e) => e.kind() != io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;
    use std::time::Instant;

    /// L47 Processes in other PID namespaces count through their locks: their device is neither swept nor taken for an
    /// orphan. When they exit, the locks are released.
    #[test]
    fn l47_locks_tell_who_is_at_work_and_not_proc() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        let elsewhere = Some(ProcessId {
            pid: u32::MAX,
            start: 1,
        });
        let mut record = Record::new(7, fakes::spec());
        record.agent = elsewhere;
        record.server = elsewhere;
        let adding = store.adding(7).unwrap();
        store.write(&record).unwrap();
        assert!(store.has_agent(&record), "it is being made");
        assert_eq!(store.sweep(&[]).unwrap(), [""; 0].map(PathBuf::from));
        drop(adding);
        assert!(fakes::soon(|| !store.has_agent(&record)));
        record.id = Some(3);
        store.write(&record).unwrap();
        assert!(!store.has_agent(&record) && !store.has_server(&record));
        let agent = store.lock(3, Instant::now()).unwrap();
        let (old, new) = (store.serve(3).unwrap(), store.serve(3).unwrap());
        assert!(agent.is_some());
        assert!(store.has_agent(&record) && store.has_server(&record));
        drop((old, agent));
        assert!(fakes::soon(|| !store.has_agent(&record)));
        assert!(store.has_server(&record));
        assert_eq!(store.sweep(&[]).unwrap(), [""; 0].map(PathBuf::from));
        drop(new);
        assert!(fakes::soon(|| !store.has_server(&record)));
        assert_eq!(store.sweep(&[]).unwrap().len(), 1);
        let left = std::fs::read_dir(dir.path().join("run")).unwrap().count();
        assert_eq!(left, 0, "the locks go with the record");
    }
}
