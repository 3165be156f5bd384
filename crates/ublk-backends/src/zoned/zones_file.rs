//! The file with the write pointers of a zoned file device: where it is, and how it is made and opened.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use ublk_core::Errno;

use super::header::{Header, MAGIC, durable_at, live_at};
use super::store::{Beside, encode};
use super::table::State;
use crate::error::{Error, ZonesFileError};
use crate::file::{NotMade, begins_with, beside, make_once, remove_unused};

/// The file with the write pointers of a zoned file device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZonesFile {
    path: PathBuf,
    create: bool,
    same: bool,
}

impl ZonesFile {
    /// The file at this path, which must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: false,
            same: false,
        }
    }

    /// The usual place: `.zones` after the name of the file with the data, or of the file that a link leads to.
    #[must_use]
    pub fn beside(data: &Path) -> Self {
        Self::new(beside(data, ".zones"))
    }

    /// Makes the file if there is none: all zones are then empty, whatever the file with the data holds.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }

    /// Refuses the write pointers of another file with data, as for a device whose server is replaced. Without it they become
    /// those of this file, which may be a copy.
    #[must_use]
    pub const fn same_data(mut self, yes: bool) -> Self {
        self.same = yes;
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file of write pointers, of whatever device. One that cannot be read is none.
    #[must_use]
    pub fn exists(&self) -> bool {
        begins_with(&self.path, MAGIC)
    }

    /// Whether the file is made when it is opened.
    pub(super) fn is_to_be_made(&self, read_only: bool) -> bool {
        self.create && !read_only && fs::symlink_metadata(&self.path).is_err()
    }

    /// Opens the file for a device, or makes it. It is not locked yet.
    ///
    /// # Errors
    /// What the file system says; [`ZonesFileError`] for what does not fit.
    pub(super) fn open(&self, device: Header, read_only: bool) -> Result<Beside, Error> {
        if self.is_to_be_made(read_only) {
            self.make(&device)?;
        }
        match fs::metadata(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(ZonesFileError::Missing.into()),
            Err(e) => return Err(failed("find the write pointers", &e)),
            // Opening a pipe could block.
            Ok(meta) if !meta.is_file() => return Err(ZonesFileError::Foreign.into()),
            Ok(_) => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!read_only).open(&self.path);
        let file = file.map_err(|e| failed("open the write pointers", &e))?;
        Header::read(&file)?.fits(&device, self.same)?;
        let needed = durable_at(device.zones, device.zones);
        let length = file.metadata().map_or(0, |meta| meta.len());
        if length < needed {
            return Err(ZonesFileError::Truncated { length, needed }.into());
        }
        Ok(Beside {
            file,
            device,
            same: self.same,
            read_only,
        })
    }

    /// Removes the file, unless a server has it: for a caller whose device failed after the file was made.
    pub fn remove_unused(&self) {
        remove_unused(&self.path);
    }

    /// Makes the file. Every word is written: a full disk then keeps no zone from being reset.
    fn make(&self, device: &Header) -> Result<(), Error> {
        let made = make_once(&self.path, |file| {
            let words = encode(State::EMPTY).to_le_bytes().repeat(device.zones);
            file.write_all_at(&words, live_at(0))?;
            file.write_all_at(&words, durable_at(device.zones, 0))?;
            file.write_all_at(&device.encode(), 0)?;
            file.sync_all()
        });
        made.map_err(|e| match e {
            NotMade::Busy => ZonesFileError::Locked.into(),
            NotMade::Io(e) => failed("make the file of write pointers", &e),
        })
    }
}

/// The failure of a system call on the file.
pub(super) fn failed(doing: &'static str, error: &std::io::Error) -> Error {
    let errno = Errno::from_io(error);
    let hint = match errno {
        Errno::EACCES | Errno::EPERM => "make it accessible to the user who serves the device",
        Errno::EROFS => "serve the device read-only",
        Errno::ENOSPC => "make room",
        _ => "the write pointers are beside the data, with `.zones` after its name",
    };
    Error::File { doing, errno, hint }
}
