//! Side files by their paths.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ublk_core::Errno;

use super::beside::{self, Beside, Side, Use};
use super::header::{Header, SECTOR};
use crate::error::{Error, SideFileError};
use crate::file::{Os, is_in_memory, lock};

/// Dirty regions above which some are cleaned first: a gigabyte to check after a crash, in regions of the usual size.
const MOST_DIRTY: usize = 1024;

/// The file with the integrity metadata of a file device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    path: PathBuf,
    create: bool,
    resize: bool,
}

impl Side for Os {
    fn lock(&self, read_only: bool) -> bool {
        lock(&self.file, read_only)
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
            resize: false,
        }
    }

    /// The usual place: `.integrity` after the name of the file with the data.
    #[must_use]
    pub fn beside(data: &Path) -> Self {
        let mut path = data.as_os_str().to_owned();
        path.push(".integrity");
        Self::new(path)
    }

    /// Makes the file if there is none: no block has metadata then.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
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
        if !fs::metadata(&self.path).is_ok_and(|meta| meta.is_file()) {
            return false;
        }
        let mut sector = [0; SECTOR];
        let read = File::open(&self.path).and_then(|file| file.read_exact_at(&mut sector, 0));
        read.is_ok() && Header::has_magic(&sector)
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
            self.make(&device)
                .map_err(|e| failed("make the file of integrity metadata", &e))?;
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
            resize: self.resize,
            most: MOST_DIRTY,
        };
        Ok((Beside::open(layer, device, usage)?, in_memory))
    }

    /// Makes the file under another name first, so that it has its name only when it is whole.
    fn make(&self, device: &Header) -> std::io::Result<()> {
        let mut unfinished = self.path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        // What an interrupted attempt left, or somebody's link: never written through.
        let _ = fs::remove_file(&unfinished);
        let file = options.mode(0o600).open(&unfinished)?;
        let layer = Os {
            file,
            by_ioctl: false,
        };
        let made = beside::make(&layer, device)
            .map_err(|errno| std::io::Error::from_raw_os_error(errno.get()))
            .and_then(|()| fs::rename(&unfinished, &self.path));
        if made.is_err() {
            // What remains is removed by the next attempt.
            let _ = fs::remove_file(&unfinished);
            return made;
        }
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)?.sync_all()
    }
}
