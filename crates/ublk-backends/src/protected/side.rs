//! Side files by their paths.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ublk_core::Errno;

use super::beside::{Beside, Side, Use, make};
use super::header::{Header, MAGIC};
use crate::error::{Error, SideFileError};
use crate::file::{NotMade, Os, begins_with, beside, is_in_memory, lock, make_once, remove_unused};

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

    /// Makes the file.
    fn make(&self, device: &Header) -> Result<(), Error> {
        let made = make_once(&self.path, |file| {
            let layer = Os {
                file: file.try_clone()?,
                by_ioctl: false,
            };
            make(&layer, device).map_err(|errno| std::io::Error::from_raw_os_error(errno.get()))
        });
        made.map_err(|e| match e {
            NotMade::Busy => SideFileError::Locked.into(),
            NotMade::Io(e) => failed("make the file of integrity metadata", &e),
        })
    }

    /// Removes the file, unless a server has it: for a caller whose device failed after the file was made.
    pub fn remove_unused(&self) {
        remove_unused(&self.path);
    }
}
