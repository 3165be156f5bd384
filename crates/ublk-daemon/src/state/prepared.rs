//! A record that is written before it takes effect, so that publishing it needs no disk space (L44).

use super::{Record, StateError, Store, remove_if_there};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Size of a file page. Overwriting an existing page needs no disk space.
const PAGE: u64 = 4096;

/// A record that [`Prepared::publish`] puts into effect.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    staging: Staging,
}

#[derive(Debug)]
enum Staging {
    /// In a temporary file, synced.
    Aside(PathBuf),
    /// No space for another file: publishing overwrites the existing one.
    InPlace(Vec<u8>),
}

impl Store {
    /// Writes a record to a temporary file and syncs it. If there is no space for that, publishing overwrites the
    /// existing file.
    ///
    /// # Errors
    /// File system errors, and [`StateError::Untrusted`].
    pub fn prepare_record(&self, record: &Record) -> Result<Prepared, StateError> {
        self.prepare()?;
        let path = match record.id {
            Some(id) => self.path(id),
            None => self.pending_path(record.nonce),
        };
        let aside = self.dir.join(format!(".{:016x}.next", record.nonce));
        let at = |source| StateError::Io {
            path: path.clone(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(record).map_err(|e| at(e.into()))?;
        remove_if_there(&aside)?;
        let written = write_new(&aside, &bytes);
        let staging = match written {
            Ok(()) => Staging::Aside(aside),
            Err(e) => {
                let _ = fs::remove_file(&aside);
                let full = matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
                let has = fs::symlink_metadata(&path).map_or(0, |m| m.len());
                if !full || (bytes.len() as u64) > has.next_multiple_of(PAGE) {
                    return Err(at(e));
                }
                Staging::InPlace(bytes)
            }
        };
        Ok(Prepared { path, staging })
    }
}

fn write_new(path: &std::path::Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

impl Prepared {
    /// Puts the record into effect.
    ///
    /// # Errors
    /// File system errors.
    pub fn publish(mut self) -> Result<(), StateError> {
        let at = |source| StateError::Io {
            path: self.path.clone(),
            source,
        };
        let done = match &mut self.staging {
            Staging::Aside(aside) => fs::rename(aside, &self.path).and_then(|()| {
                let dir = self.path.parent().map_or_else(PathBuf::new, PathBuf::from);
                File::open(dir)?.sync_all()
            }),
            Staging::InPlace(bytes) => OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&self.path)
                .and_then(|mut file| {
                    file.write_all(bytes)?;
                    file.set_len(bytes.len() as u64)?;
                    file.sync_all()
                }),
        };
        done.map_err(at)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Staging::Aside(aside) = &self.staging {
            // Does not exist any more if it was published.
            let _ = fs::remove_file(aside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::spec;

    /// L44 A record takes effect when it is published; an unpublished one leaves no file; without disk space it
    /// overwrites the existing file.
    #[test]
    fn l44_a_prepared_record_needs_no_room_later() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        let mut record = Record::new(7, spec());
        record.id = Some(3);
        store.write(&record).unwrap();
        let files = || fs::read_dir(dir.path().join("run")).unwrap().count();
        record.cause = Some("first".to_owned());
        drop(store.prepare_record(&record).unwrap());
        assert_eq!((store.last(3).unwrap().unwrap().cause, files()), (None, 1));
        store.prepare_record(&record).unwrap().publish().unwrap();
        assert_eq!(
            (store.last(3).unwrap().as_ref(), files()),
            (Some(&record), 1)
        );
        record.cause = None;
        let bytes = serde_json::to_vec_pretty(&record).unwrap();
        let prepared = Prepared {
            path: store.path(3),
            staging: Staging::InPlace(bytes),
        };
        prepared.publish().unwrap();
        assert_eq!(store.last(3).unwrap(), Some(record));
    }
}
