//! Side files by their paths.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ublk_core::Errno;

use super::beside::{Beside, Side, Use, make};
use super::header::{Header, MAGIC};
use crate::error::{Error, SideFileError};
use crate::file::{Os, begins_with, beside, existing, is_at, is_in_memory, lock, remove_unused};

/// Dirty regions above which some are cleaned first: a gigabyte to check after a crash, in regions of the usual size.
const MOST_DIRTY: usize = 1024;

/// The file with the integrity metadata of a file device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    path: PathBuf,
    create: bool,
    same: bool,
    resize: bool,
}

impl Side for Os {
    fn lock(&self, read_only: bool) -> bool {
        lock(&self.file, read_only)
    }

    fn is_named(&self) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.nlink() != 0)
    }

    fn length(&self) -> Result<u64, Errno> {
        let meta = self.file.metadata().map_err(|e| Errno::from_io(&e))?;
        Ok(meta.len())
    }

    fn set_length(&self, bytes: u64) -> Result<(), Errno> {
        self.file.set_len(bytes).map_err(|e| Errno::from_io(&e))
    }
}

fn failed(doing: &'static str, error: &std::io::Error) -> Error {
    let errno = Errno::from_io(error);
    let hint = match errno {
        Errno::EACCES | Errno::EPERM => "make it accessible to the user who serves the device",
        Errno::EROFS => "serve the device read-only, or name a file elsewhere (--integrity-file)",
        Errno::EFBIG => "name a file on a file system with larger files (--integrity-file)",
        Errno::ENOSPC => "make room, or name a file elsewhere (--integrity-file)",
        _ => "",
    };
    Error::File { doing, errno, hint }
}

impl SideFile {
    /// The file at this path, which must exist and be for a device of the same size.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: false,
            same: false,
            resize: false,
        }
    }

    /// The usual place: `.integrity` after the name of the file with the data, or of the file that a link leads to.
    #[must_use]
    pub fn beside(data: &Path) -> Self {
        Self::new(beside(data, ".integrity"))
    }

    /// Makes the file if there is none: no block has metadata then.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }

    /// Refuses the metadata of another file with data, as for a device whose server is replaced. Without it the metadata becomes
    /// that of this file, which may be a copy.
    #[must_use]
    pub const fn same_data(mut self, yes: bool) -> Self {
        self.same = yes;
        self
    }

    /// Adapts the file to a device of another size, as after a resize. The metadata of what remains is kept.
    #[must_use]
    pub const fn resize(mut self, yes: bool) -> Self {
        self.resize = yes;
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a side file, of whatever device. One that cannot be read is none.
    #[must_use]
    pub fn exists(&self) -> bool {
        begins_with(&self.path, MAGIC)
    }

    /// Whether the file is made when it is opened.
    pub(super) fn is_to_be_made(&self, read_only: bool) -> bool {
        self.create && !read_only && fs::symlink_metadata(&self.path).is_err()
    }

    /// Opens the file for a device, or makes it; true if it is in memory.
    pub(super) fn open(
        &self,
        device: Header,
        read_only: bool,
    ) -> Result<(Beside<Os>, bool), Error> {
        if self.is_to_be_made(read_only) {
            self.make(&device)?;
        }
        let meta = match fs::metadata(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(SideFileError::Missing.into());
            }
            other => other.map_err(|e| failed("find the integrity metadata", &e))?,
        };
        // Opening a pipe could block.
        if !meta.is_file() {
            return Err(SideFileError::Foreign.into());
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!read_only).open(&self.path);
        let file = file.map_err(|e| failed("open the integrity metadata", &e))?;
        let in_memory = is_in_memory(&file);
        let layer = Os {
            file,
            by_ioctl: false,
        };
        let usage = Use {
            read_only,
            same: self.same,
            resize: self.resize,
            most: MOST_DIRTY,
        };
        Ok((Beside::open(layer, device, usage)?, in_memory))
    }

    /// Makes the file under another name first, so that it has its name only when it is whole. One server at a time: whoever has
    /// the lock of the unfinished file may remove or rename it.
    fn make(&self, device: &Header) -> Result<(), Error> {
        let failed = |e| failed("make the file of integrity metadata", &e);
        let mut unfinished = self.path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        clear_away(&unfinished)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = match options.mode(0o600).open(&unfinished) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(SideFileError::Locked.into());
            }
            other => other.map_err(failed)?,
        };
        if !lock(&file, false) || !is_at(&file, &unfinished) {
            return Err(SideFileError::Locked.into());
        }
        if fs::symlink_metadata(&self.path).is_ok() {
            // Another server was faster; its lock decides who has the file.
            return fs::remove_file(&unfinished).map_err(failed);
        }
        let layer = Os {
            file,
            by_ioctl: false,
        };
        let made = make(&layer, device)
            .map_err(|errno| std::io::Error::from_raw_os_error(errno.get()))
            .and_then(|()| fs::rename(&unfinished, &self.path));
        if made.is_err() {
            // What remains is removed by the next attempt.
            let _ = fs::remove_file(&unfinished);
            return made.map_err(failed);
        }
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed)
    }

    /// Removes the file, unless a server has it: for a caller whose device failed after the file was made.
    pub fn remove_unused(&self) {
        remove_unused(&self.path);
    }
}

/// Removes what an interrupted attempt left, or somebody's link: it is never written through.
fn clear_away(unfinished: &Path) -> Result<(), Error> {
    let left = match existing(unfinished) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.ok(),
    };
    match left {
        Some(left) if !lock(&left, false) => return Err(SideFileError::Locked.into()),
        // It has got its name since.
        Some(left) if !is_at(&left, unfinished) => {}
        // A failure is that of making it anew.
        _left => drop(fs::remove_file(unfinished)),
    }
    Ok(())
}
