//! How a file is opened, and what becomes of the answers.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ublk_core::{Errno, Limits};

use super::core::Core;
use super::facts::{self, Facts, failed};
use super::os::{self, Alignment, Os};
use super::usage::{self, User};
use super::{File, Identity};
use crate::error::{Error, MAX_SIZE};

/// Largest WRITE_ZEROES: where the file system cannot make zeroes it is data written.
const MAX_WRITE_ZEROES: u64 = 64 << 20;

/// How a file is to be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    path: PathBuf,
    read_only: bool,
    buffered: bool,
    discard: bool,
    offset: u64,
    length: Option<u64>,
    block_size: Option<u32>,
    claim: bool,
}

/// A file just opened.
struct Opened {
    file: fs::File,
    direct: bool,
    users: Vec<User>,
}

/// The part of the file that is the device.
struct Window {
    length: u64,
    block: u32,
    /// What O_DIRECT asks, where it is used.
    direct: Option<Alignment>,
}

impl FileOptions {
    /// The whole of a file, for reading and writing, by O_DIRECT where the file allows it.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            buffered: false,
            discard: true,
            offset: 0,
            length: None,
            block_size: None,
            claim: true,
        }
    }

    /// Opens for reading only; the device refuses writes.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Goes through the page cache of this machine even where O_DIRECT could be had.
    #[must_use]
    pub const fn buffered(mut self, yes: bool) -> Self {
        self.buffered = yes;
        self
    }

    /// Offers DISCARD where the file can give storage back. It does by default.
    #[must_use]
    pub const fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// Begins the device at this byte of the file.
    #[must_use]
    pub const fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    /// Ends the device after so many bytes; `None` for the rest of the file as it is when it is opened.
    #[must_use]
    pub const fn length(mut self, bytes: Option<u64>) -> Self {
        self.length = bytes;
        self
    }

    /// Sets the logical block size; `None` for the smallest that O_DIRECT allows.
    #[must_use]
    pub const fn block_size(mut self, bytes: Option<u32>) -> Self {
        self.block_size = bytes;
        self
    }

    /// Locks a regular file (flock) and claims a block device (O_EXCL) for as long as it is open, where nobody else has
    /// done so; [`File::users`] tells who has. It does by default; without, the file is only looked at.
    #[must_use]
    pub const fn claim(mut self, yes: bool) -> Self {
        self.claim = yes;
        self
    }

    /// Opens the file and asks it what it can do. Use by others is no error: [`File::users`] tells it.
    ///
    /// # Errors
    /// [`Error::File`] where the kernel refuses; [`Error::NotStorage`]; [`Error::BlockSize`], [`Error::Unaligned`],
    /// [`Error::Window`], [`Error::Empty`], [`Error::TooLarge`] for numbers that do not fit the file.
    pub fn open(&self) -> Result<File, Error> {
        let opened = self.open_file()?;
        self.look_at(opened)
    }

    /// The same with a descriptor that another server of the device has opened: its lock and its claim belong to the
    /// open file, so they pass on with it, and the path may lead elsewhere meanwhile. One that was opened for another
    /// purpose (for reading only, say) is refused.
    ///
    /// # Errors
    /// As [`FileOptions::open`].
    pub fn open_passed(&self, descriptor: OwnedFd) -> Result<File, Error> {
        let file = fs::File::from(descriptor);
        let flags = os::open_flags(&file)
            .map_err(|e| failed("use the descriptor of the server before", e, ""))?;
        let wanted = if self.read_only {
            libc::O_RDONLY
        } else {
            libc::O_RDWR
        };
        if flags & libc::O_ACCMODE != wanted {
            return Err(failed(
                "use the descriptor of the server before",
                Errno::EBADF,
                "it was not opened for what this one has to do",
            ));
        }
        self.look_at(Opened {
            file,
            direct: flags & libc::O_DIRECT != 0,
            users: Vec::new(),
        })
    }

    fn look_at(&self, opened: Opened) -> Result<File, Error> {
        let Opened {
            file,
            direct,
            mut users,
        } = opened;
        let mut notes = Vec::new();
        let facts = Facts::of(&file)?;
        let direct = direct
            .then(|| facts::alignment(&file, self.read_only, facts.is_block))
            .flatten();
        let window = self.window(&facts, direct, &mut notes)?;
        if window.direct.is_none() {
            os::leave_direct(&file).map_err(|e| failed("leave O_DIRECT", e, ""))?;
        }
        if self.claim && !facts.is_block {
            let locked = !usage::lock(&file, self.read_only);
            users.extend(usage::of_file(&file, &self.path, locked));
        }
        let identity = Identity::of(&file).map_err(|e| failed("look at the file", e, ""))?;
        let nowait = facts::supports_nowait(&file, self.offset, window.block);
        let limits = self.limits(&facts, &window, nowait);
        let alignment = window.direct.unwrap_or(Alignment {
            memory: 1,
            position: 1,
        });
        let layer = Os {
            file,
            by_ioctl: facts.by_ioctl,
        };
        Ok(File {
            core: Core::new(layer, self.offset, limits, alignment),
            direct: window.direct.is_some(),
            nowait,
            identity,
            users,
            claimed: OnceLock::new(),
            notes,
        })
    }

    fn limits(&self, facts: &Facts, window: &Window, nowait: bool) -> Limits {
        let mut limits = Limits::new(window.length)
            .block_size(window.block)
            .read_only(self.read_only)
            .volatile_cache(!self.read_only)
            .fua(!self.read_only)
            // Memory is copied on the queue's own thread; what may wait for a disk goes to others.
            .quick(!nowait);
        limits.physical_block_size = facts.physical.max(window.block);
        if facts.optimal >= limits.physical_block_size {
            limits.optimal_io_size = facts.optimal;
        }
        limits.rotational = facts.rotational;
        if !self.read_only {
            limits = limits.write_zeroes(MAX_WRITE_ZEROES);
            if let Some((most, granularity)) = facts.discard.filter(|_| self.discard) {
                limits = limits.discard(most, granularity.max(window.block));
            }
        }
        if let Some(direct) = window.direct {
            // A segment shorter than a page is nothing that the driver takes.
            let segment = if facts.max_segment_size >= 4096 {
                facts.max_segment_size
            } else {
                0
            };
            limits = limits.memory(direct.memory.max(4), facts.max_segments, segment);
        }
        limits
    }

    /// Opens with O_DIRECT where it is wanted and can be had.
    fn open_file(&self) -> Result<Opened, Error> {
        let open = |flags: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(!self.read_only);
            options.custom_flags(flags).open(&self.path)
        };
        let meta = fs::metadata(&self.path).map_err(|e| {
            let errno = Errno::from_io(&e);
            let hint = if errno == Errno::ENOENT {
                "give the path of a file that is there, or create one with a size"
            } else {
                ""
            };
            failed("find the file", errno, hint)
        })?;
        facts::check_kind(&meta)?;
        // A block device that nobody else has claimed is claimed: mounting it, or a RAID over it, is then refused.
        let mut claim = if self.claim && meta.file_type().is_block_device() {
            libc::O_EXCL
        } else {
            0
        };
        let mut users = Vec::new();
        let mut direct = if self.buffered { 0 } else { libc::O_DIRECT };
        loop {
            match open(claim | direct).map_err(|e| Errno::from_io(&e)) {
                Ok(file) => {
                    return Ok(Opened {
                        file,
                        direct: direct != 0,
                        users,
                    });
                }
                Err(Errno::EINVAL) if direct != 0 => direct = 0,
                Err(Errno::EBUSY) if claim != 0 => {
                    claim = 0;
                    users = usage::of_block(&self.path, &meta);
                }
                Err(errno) => {
                    let hint = match errno {
                        Errno::EACCES | Errno::EPERM => {
                            "open it as its owner or as root, or read-only"
                        }
                        Errno::EROFS => "serve it read-only",
                        _ => "",
                    };
                    return Err(failed("open the file", errno, hint));
                }
            }
        }
    }

    /// The device's place, size and blocks; every number is checked against the file (L13).
    fn window(
        &self,
        facts: &Facts,
        direct: Option<Alignment>,
        notes: &mut Vec<String>,
    ) -> Result<Window, Error> {
        let size = facts.size;
        let rest = size.saturating_sub(self.offset);
        let asked = self.length.unwrap_or(rest);
        let (block, direct) = self.blocks(facts, direct, asked, notes)?;
        let b = u64::from(block);
        let unaligned = |what, value| Error::Unaligned {
            what,
            value,
            block_size: block,
        };
        if !self.offset.is_multiple_of(b) {
            return Err(unaligned("offset", self.offset));
        }
        if let Some(length) = self.length {
            if !length.is_multiple_of(b) || length == 0 {
                return Err(unaligned("length", length));
            }
            if length > rest {
                return Err(Error::Window {
                    offset: self.offset,
                    length,
                    size,
                });
            }
        }
        let length = asked / b * b;
        if length == 0 {
            return Err(Error::Empty {
                size,
                offset: self.offset,
                block_size: block,
            });
        }
        if length > MAX_SIZE {
            return Err(Error::TooLarge {
                size: length,
                max: MAX_SIZE,
            });
        }
        if length != asked {
            notes.push(format!(
                "the last {} bytes of the file are no whole block and not part of the device",
                asked - length
            ));
        }
        Ok(Window {
            length,
            block,
            direct,
        })
    }

    /// The logical block size, and whether O_DIRECT goes with it.
    fn blocks(
        &self,
        facts: &Facts,
        direct: Option<Alignment>,
        length: u64,
        notes: &mut Vec<String>,
    ) -> Result<(u32, Option<Alignment>), Error> {
        const PAGE: u32 = 4096;
        if let Some(block) = self.block_size
            && !(block.is_power_of_two() && (512..=PAGE).contains(&block))
        {
            return Err(Error::BlockSize(block));
        }
        let fits = |block: u32| (self.offset | length).is_multiple_of(block.into());
        if let Some(direct) = direct {
            let unit = direct.position.max(512);
            let block = self.block_size.unwrap_or(unit);
            let why = if unit > PAGE || direct.memory > PAGE {
                "it wants more than a page"
            } else if block < unit {
                "its unit is larger than the block size asked for"
            } else if !fits(unit) {
                "offset or length are no multiple of its unit"
            } else {
                return Ok((block, Some(direct)));
            };
            notes.push(format!(
                "no direct I/O, data goes through the page cache: {why} ({unit} bytes)"
            ));
        }
        let own = facts.logical.min(PAGE);
        let block = self.block_size.unwrap_or(if fits(own) { own } else { 512 });
        Ok((block, None))
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
