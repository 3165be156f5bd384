//! A record that is written before it is true: the room it takes is there when the time comes (L44).

use super::{Record, StateError, Store, remove_if_there};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// What a page of a file takes: what is written into one that a file has already takes no room.
const PAGE: u64 = 4096;

/// A record that [`Prepared::publish`] makes that of its device.
#[derive(Debug)]
pub struct Prepared {
    path: PathBuf,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// Written aside and synced.
    Aside(PathBuf),
    /// There is no room for another file: into the one that is there.
    InPlace(Vec<u8>),
}

impl Store {
    /// Writes a record aside and syncs it. Where there is no room for that, the file that is there already will have to
    /// take it.
    ///
    /// # Errors
    /// Those of the file system, and [`StateError::Untrusted`].
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
        let way = match written {
            Ok(()) => Way::Aside(aside),
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
                Way::InPlace(bytes)
            }
        };
        Ok(Prepared { path, way })
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
    /// Makes it the record of its device.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(mut self) -> Result<(), StateError> {
        let at = |source| StateError::Io {
            path: self.path.clone(),
            source,
        };
        let done = match &mut self.way {
            Way::Aside(aside) => fs::rename(aside, &self.path).and_then(|()| {
                let dir = self.path.parent().map_or_else(PathBuf::new, PathBuf::from);
                File::open(dir)?.sync_all()
            }),
            Way::InPlace(bytes) => OpenOptions::new()
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
        if let Way::Aside(aside) = &self.way {
            // Gone already where it was published.
            let _ = fs::remove_file(aside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::spec;

    /// L44 A record counts once it is published, and one that never was leaves nothing behind; without room it goes
    /// into the file that is there.
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
            way: Way::InPlace(bytes),
        };
        prepared.publish().unwrap();
        assert_eq!(store.last(3).unwrap(), Some(record));
    }
}
