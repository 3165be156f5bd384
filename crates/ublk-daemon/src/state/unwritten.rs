//! Records devices whose write-back failed.
//!
//! The kernel reports a failed write-back once and treats the pages as clean from then on, so a second sync succeeds. The
//! failure is therefore recorded until the device is gone.

use super::{StateError, Store, remove_if_there};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const EXTENSION: &str = "unwritten";

impl Store {
    /// An empty file, which needs no disk space; its name is the information.
    fn unwritten_path(&self, nonce: u64) -> PathBuf {
        self.dir.join(format!("{nonce:016x}.{EXTENSION}"))
    }

    /// Records that data of the device with this nonce was not written back. Does nothing for nonce 0, which all
    /// devices of other programs share.
    ///
    /// # Errors
    /// File system errors, and [`StateError::Untrusted`].
    pub fn note_unwritten(&self, nonce: u64) -> Result<(), StateError> {
        if nonce == 0 {
            return Ok(());
        }
        self.prepare()?;
        let path = self.unwritten_path(nonce);
        OpenOptions::new()
            .write(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map(drop)
            .map_err(|source| StateError::Io { path, source })
    }

    /// Whether a failed write-back is recorded.
    #[must_use]
    pub fn is_unwritten(&self, nonce: u64) -> bool {
        nonce != 0 && self.unwritten_path(nonce).symlink_metadata().is_ok()
    }

    /// Removes the record; the device and its unwritten data are gone.
    pub(super) fn forget_unwritten(&self, nonce: u64) -> Result<(), StateError> {
        remove_if_there(&self.unwritten_path(nonce))
    }

    /// Removes the record of a device that is gone.
    pub(super) fn sweep_unwritten(&self, path: &Path, nonces: &[u64]) -> Result<(), StateError> {
        if path.extension().is_none_or(|e| e != EXTENSION) {
            return Ok(());
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        match u64::from_str_radix(&stem, 16) {
            Ok(nonce) if !nonces.contains(&nonce) => self.forget_unwritten(nonce),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L22 The record is per device, lasts as long as the device, and is removed with it.
    #[test]
    fn l22_what_was_not_written_back_is_remembered() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::at(dir.path().join("run"));
        assert!(!store.is_unwritten(7));
        store.note_unwritten(7).expect("noted");
        store.note_unwritten(7).expect("noted twice");
        assert!(store.is_unwritten(7) && !store.is_unwritten(8));
        store.sweep(&[7]).expect("swept");
        assert!(store.is_unwritten(7), "its device is there");
        store.remove(0, 7).expect("removed");
        assert!(!store.is_unwritten(7), "its device went");
        store.note_unwritten(9).expect("noted");
        store.sweep(&[7]).expect("swept");
        assert!(!store.is_unwritten(9), "nobody has it any more");
        store.note_unwritten(0).expect("not noted");
        assert!(!store.is_unwritten(0), "the word of many");
    }
}
