//! The lock that ensures one agent per device; the kernel releases it when its holder dies.

use super::{StateError, Store};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Instant;

/// The lock that makes its holder the agent of a device; released on drop.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// The lock file, if it is removed with the lock.
    passing: Option<PathBuf>,
}

impl Lock {
    /// A lock that another process passed on; it is held until both descriptors are closed.
    #[must_use]
    pub fn of_descriptor(fd: OwnedFd) -> Self {
        Self {
            file: fd.into(),
            passing: None,
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(path) = &self.passing {
            // A waiter notices that the path no longer leads to its file, and creates a new one.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Store {
    pub(crate) fn lock_path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.lock"))
    }

    /// Takes the lock of the device's agent, waiting until the deadline while another agent holds it; `None` if it
    /// still does.
    ///
    /// # Errors
    /// File system errors, and [`StateError::Untrusted`].
    pub fn lock(&self, id: u32, deadline: Instant) -> Result<Option<Lock>, StateError> {
        let lock = self.lock_file(self.lock_path(id), deadline)?;
        Ok(lock.map(|(file, _)| Lock {
            file,
            passing: None,
        }))
    }

    /// Takes the lock for adding a device with this name, in the same way.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_name(&self, name: &str, deadline: Instant) -> Result<Option<Lock>, StateError> {
        self.lock_passing(&format!("name-{name}.lock"), deadline)
    }

    /// Takes the lock for removing the device with this id, in the same way.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_removal(&self, id: u32, deadline: Instant) -> Result<Option<Lock>, StateError> {
        self.lock_passing(&format!("{id}.removal.lock"), deadline)
    }

    /// Takes the lock for changing the live device with this id, in the same way: two commands that each wait for their own
    /// change would undo each other's.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_change(&self, id: u32, deadline: Instant) -> Result<Option<Lock>, StateError> {
        self.lock_passing(&format!("{id}.change.lock"), deadline)
    }

    fn lock_passing(&self, name: &str, deadline: Instant) -> Result<Option<Lock>, StateError> {
        let lock = self.lock_file(self.dir.join(name), deadline)?;
        Ok(lock.map(|(file, path)| Lock {
            file,
            passing: Some(path),
        }))
    }

    /// Removes the lock file that a killed command left behind.
    pub(super) fn sweep_lock(&self, path: PathBuf) -> Result<(), StateError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let passing = name.ends_with(".removal.lock")
            || name.ends_with(".change.lock")
            || (name.starts_with("name-") && name.ends_with(".lock"));
        if passing && let Some((file, path)) = self.lock_file(path.clone(), Instant::now())? {
            drop(Lock {
                file,
                passing: Some(path),
            });
        }
        Ok(())
    }

    fn lock_file(
        &self,
        path: PathBuf,
        deadline: Instant,
    ) -> Result<Option<(File, PathBuf)>, StateError> {
        self.prepare()?;
        ublk_ctrl::wait::until(deadline, || match take(&path) {
            Ok(file) => Ok(file.map(|file| (file, path.clone()))),
            Err(source) => Err(StateError::Io {
                path: path.clone(),
                source,
            }),
        })
    }
}

/// `None` if another process holds the lock, or if the file was removed with its device meanwhile; the next attempt
/// creates a new one.
fn take(path: &std::path::Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(e)) => return Err(e),
    }
    let (ours, named) = (file.metadata()?, std::fs::symlink_metadata(path));
    let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
    Ok(same.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;

    /// L34 A device has at most one agent. The next agent gets the lock when the first is gone, even if the file was
    /// removed with the device.
    #[test]
    fn l34_a_device_has_one_agent() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        let now = Instant::now();
        let first = store.lock(3, now).unwrap();
        assert!(first.is_some());
        assert!(store.lock(3, now).unwrap().is_none());
        assert!(store.lock(4, now).unwrap().is_some());
        std::fs::remove_file(store.lock_path(3)).unwrap();
        let second = store.lock(3, now).unwrap();
        assert!(second.is_some());
        drop(first);
        assert!(store.lock(3, now).unwrap().is_none());
        drop(second);
        let free = || store.lock(3, now).unwrap().is_some();
        assert!(fakes::soon(free));
        std::fs::remove_file(store.lock_path(3)).unwrap();
        std::os::unix::fs::symlink("/dev/null", store.lock_path(3)).unwrap();
        assert!(store.lock(3, now).is_err(), "no link is followed");
    }

    #[test]
    fn a_name_is_brought_up_by_one_command() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        let now = Instant::now();
        let first = store.lock_name("data", now).unwrap();
        assert!(first.is_some());
        assert!(store.lock_name("data", now).unwrap().is_none());
        assert!(store.lock_name("other", now).unwrap().is_some());
        drop(first);
        let left = std::fs::read_dir(dir.path().join("run")).unwrap().count();
        assert_eq!(left, 0, "its file goes with it");
        let free = || store.lock_name("data", now).unwrap().is_some();
        assert!(fakes::soon(free));
    }

    /// L42 One command at a time removes a device, whoever its agent is.
    #[test]
    fn l42_a_device_is_taken_away_by_one_command() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        let now = Instant::now();
        let agent = store.lock(3, now).unwrap();
        let first = store.lock_removal(3, now).unwrap();
        assert!(agent.is_some() && first.is_some());
        assert!(store.lock_removal(3, now).unwrap().is_none());
        assert!(store.lock_removal(4, now).unwrap().is_some());
        let change = store.lock_change(3, now).unwrap();
        assert!(change.is_some() && store.lock_change(3, now).unwrap().is_none());
        drop(change);
        let files = || std::fs::read_dir(dir.path().join("run")).unwrap().count();
        store.sweep(&[]).unwrap();
        assert_eq!(files(), 2, "the agent's, and the one that is held");
        // As after a kill: the kernel releases the lock, the file stays.
        let change = store.lock_change(3, now).unwrap();
        for mut killed in [first, change].into_iter().flatten() {
            killed.passing = None;
            drop(killed);
        }
        assert_eq!(files(), 3);
        let swept = || store.sweep(&[]).is_ok() && files() == 1;
        assert!(fakes::soon(swept), "{} files", files());
        assert!(store.lock_removal(3, now).unwrap().is_some());
    }
}
