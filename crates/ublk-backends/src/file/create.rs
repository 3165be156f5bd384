//! A new sparse file.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ublk_core::Errno;

use super::facts::failed;
use crate::error::{Error, check};

/// What to do about a link that leads nowhere.
pub(super) const DANGLING: &str = "it is a symbolic link to a file that is not there: remove the link, or give the path \
                                   that it leads to";

/// Whether a path is a link that leads nowhere.
pub(super) fn is_dangling(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) && !path.exists()
}

/// A file that was made a moment ago; dropping this removes it again, [`Created::keep`] leaves it.
#[derive(Debug)]
#[must_use = "dropped, it removes the file it has made"]
pub struct Created {
    path: PathBuf,
    kept: bool,
}

impl Created {
    /// Makes a file of `size` bytes that takes no room yet and reads as zeroes, for its owner alone (mode 0600). It
    /// is on disk, name and all, when this returns. A file that is there already is never touched.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::TooLarge`] for wrong sizes; [`Error::File`]: EEXIST for a file that is there, EFBIG
    /// where the file system has no files so large.
    pub fn new(path: impl Into<PathBuf>, size: u64) -> Result<Self, Error> {
        check(size, 512)?;
        let path = path.into();
        let dangling = is_dangling(&path);
        let error = |doing, e: &std::io::Error| {
            let errno = Errno::from_io(e);
            let hint = match errno {
                Errno::EEXIST if dangling => DANGLING,
                Errno::EEXIST => "serve it as it is, or name another file",
                Errno::EFBIG => "give a smaller size: the file system has no files so large",
                Errno::ENOENT => "make its directory first",
                _ => "",
            };
            failed(doing, errno, hint)
        };
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| error("create the file", &e))?;
        let created = Self { path, kept: false };
        file.set_len(size)
            .map_err(|e| error("give the file its size", &e))?;
        file.sync_all()
            .map_err(|e| error("write the file to disk", &e))?;
        // Else a FLUSH could be acknowledged of a file whose name a crash takes away (L07).
        let parent = match created.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| error("write the file's directory to disk", &e))?;
        Ok(created)
    }

    /// Leaves the file.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if !self.kept {
            // Nobody can be told; a file that stays is found by the next attempt.
            let _ = fs::remove_file(&self.path);
        }
    }
}
