//! The lock that ensures one agent per device; the kernel releases it when its holder dies.

use super::{StateError, Store};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Instant;

/// The right to be the agent of a device, held as long as the value lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// The file goes with the lock: it means nothing without it.
    passing: Option<PathBuf>,
}

impl Lock {
    /// The right that another process has handed over: it is held as long as either of them lives.
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
            // Whoever waits for it sees that the name is another file's, and makes a new one.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Store {
    pub(crate) fn lock_path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("{id}.lock"))
    }

    /// Takes the lock of the device's agent, waiting until the deadline while another agent holds it; `None` if it still
    /// does.
    ///
    /// # Errors
    /// Those of the file system, and [`StateError::Untrusted`].
    pub fn lock(&self, id: u32, deadline: Instant) -> Result<Option<Lock>, StateError> {
        let lock = self.lock_file(self.lock_path(id), deadline)?;
        Ok(lock.map(|(file, _)| Lock {
            file,
            passing: None,
        }))
    }

    /// The right to bring up the device of a name, in the same way.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_name(&self, name: &str, deadline: Instant) -> Result<Option<Lock>, StateError> {
        let path = self.dir.join(format!("name-{name}.lock"));
        let lock = self.lock_file(path, deadline)?;
        Ok(lock.map(|(file, path)| Lock {
            file,
            passing: Some(path),
        }))
    }

    /// The right to take a device of this number away, in the same way.
    ///
    /// # Errors
    /// As [`Store::lock`].
    pub fn lock_removal(&self, id: u32, deadline: Instant) -> Result<Option<Lock>, StateError> {
        let path = self.dir.join(format!("{id}.removal.lock"));
        let lock = self.lock_file(path, deadline)?;
        Ok(lock.map(|(file, path)| Lock {
            file,
            passing: Some(path),
        }))
    }

    /// Removes the file of a lock for the length of a command whose command was killed.
    pub(super) fn sweep_lock(&self, path: PathBuf) -> Result<(), StateError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let passing = name.ends_with(".removal.lock")
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

/// `None` while another has it, or where the file went away under us: its device is gone, and the next
/// look makes a new one.
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

    /// L34 Two agents cannot have one device; the next one gets it when the first is gone, also where the
    /// file was removed with the device.
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

    /// L42 One command at a time takes a device away, whoever is its agent.
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
        let files = || std::fs::read_dir(dir.path().join("run")).unwrap().count();
        store.sweep(&[]).unwrap();
        assert_eq!(files(), 2, "the agent's, and the one that is held");
        // As a kill would: the kernel lets go of the lock, the file stays.
        let mut killed = first.unwrap();
        killed.passing = None;
        drop(killed);
        assert_eq!(files(), 2);
        let swept = || store.sweep(&[]).is_ok() && files() == 1;
        assert!(fakes::soon(swept), "{} files", files());
        assert!(store.lock_removal(3, now).unwrap().is_some());
    }
}
