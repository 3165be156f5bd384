//! Creates sparse files.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ublk_core::Errno;

use super::facts::failed;
use crate::error::{Error, check};

/// The remedy for a dangling symbolic link.
pub(super) const DANGLING: &str = "it is a symbolic link to a missing file: remove the link, or give the path \
                                   that it leads to";

/// Whether a path is a dangling symbolic link.
pub(super) fn is_dangling(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) && !path.exists()
}

/// A file that was just created. Dropping it removes the file; [`Created::keep`] keeps it.
#[derive(Debug)]
#[must_use = "dropping it removes the new file"]
pub struct Created {
    path: PathBuf,
    kept: bool,
}

impl Created {
    /// Creates a sparse file of `size` bytes that reads as zeroes, accessible to its owner only (mode 0600). It is on
    /// disk, including its directory entry, when this returns. An existing file is never touched.
    ///
    /// # Errors
    /// [`Error::Size`] or [`Error::TooLarge`] for an invalid size; [`Error::File`] with EEXIST if the file exists, or
    /// EFBIG if the file system does not support files of this size.
    pub fn new(path: impl Into<PathBuf>, size: u64) -> Result<Self, Error> {
        check(size, 512)?;
        let path = path.into();
        let dangling = is_dangling(&path);
        let error = |doing, e: &std::io::Error| {
            let errno = Errno::from_io(e);
            let hint = match errno {
                Errno::EEXIST if dangling => DANGLING,
                Errno::EEXIST => "serve it as it is, or name another file",
                Errno::EFBIG => "give a smaller size: the file system does not support it",
                Errno::ENOENT => "create its directory first",
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
            .map_err(|e| error("set the size of the file", &e))?;
        file.sync_all().map_err(|e| error("sync the file", &e))?;
        // Otherwise a FLUSH could succeed on a file whose name a crash removes (L07).
        let parent = match created.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(|e| error("sync the file's directory", &e))?;
        Ok(created)
    }

    /// Keeps the file.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing can report this failure; the next attempt finds the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}
