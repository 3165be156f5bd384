//! Opens files for the file backend and derives the device's limits.

#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ublk_core::{Errno, Limits};

use super::core::Core;
use super::facts::{self, Facts, failed};
use super::layout::{self, Layout};
use super::os::{self, Alignment, Os};
use super::usage::{self, User};
use super::{File, Identity, create};
use crate::error::{Error, MAX_SIZE};

/// Largest WRITE_ZEROES: if the file system does not support zeroing, it is data to be written.
const MAX_WRITE_ZEROES: u64 = 64 << 20;

/// The largest logical block.
const PAGE: u32 = 4096;

/// Options for serving a file.
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

/// A file that was just opened.
struct Opened {
    file: fs::File,
    direct: bool,
    users: Vec<User>,
}

/// The part of the file that is the device.
struct Window {
    length: u64,
    block: u32,
    /// The alignment for O_DIRECT, if it is used.
    direct: Option<Alignment>,
}

impl FileOptions {
    /// The whole file, for reading and writing, with O_DIRECT if the file supports it.
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

    /// Opens the file read-only; the device then refuses writes.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Uses this machine's page cache even if O_DIRECT is available.
    #[must_use]
    pub const fn buffered(mut self, yes: bool) -> Self {
        self.buffered = yes;
        self
    }

    /// Offers DISCARD if the file can deallocate storage. The default.
    #[must_use]
    pub const fn discard(mut self, yes: bool) -> Self {
        self.discard = yes;
        self
    }

    /// Sets the offset of the device in the file, in bytes.
    #[must_use]
    pub const fn offset(mut self, bytes: u64) -> Self {
        self.offset = bytes;
        self
    }

    /// Sets the length of the device in bytes; `None` for the rest of the file at the time of opening.
    #[must_use]
    pub const fn length(mut self, bytes: Option<u64>) -> Self {
        self.length = bytes;
        self
    }

    /// Sets the logical block size. `None` selects the one that the disk's content was written with, if it tells, else
    /// the smallest that O_DIRECT allows.
    #[must_use]
    pub const fn block_size(mut self, bytes: Option<u32>) -> Self {
        self.block_size = bytes;
        self
    }

    /// Locks a regular file (flock) or claims a block device (O_EXCL) while it is open, unless somebody else has;
    /// [`File::users`] tells who. The default. Without it, the file is only examined.
    #[must_use]
    pub const fn claim(mut self, yes: bool) -> Self {
        self.claim = yes;
        self
    }

    /// Opens the file and probes its capabilities. Use by others is not an error: see [`File::users`].
    ///
    /// # Errors
    /// [`Error::File`] if the kernel refuses; [`Error::NotStorage`]; [`Error::BlockSize`], [`Error::Unaligned`],
    /// [`Error::Window`], [`Error::Empty`] or [`Error::TooLarge`] for numbers that do not fit the file.
    pub fn open(&self) -> Result<File, Error> {
        let opened = self.open_file()?;
        self.look_at(opened)
    }

    /// Like [`open`](Self::open), with a descriptor that the device's previous server has opened: lock and claim belong
    /// to the open file, so they are passed on with it, even if the path leads elsewhere by now. A descriptor that was
    /// opened in another way (read-only, say) is refused.
    ///
    /// # Errors
    /// As for [`FileOptions::open`].
    pub fn open_passed(&self, descriptor: OwnedFd) -> Result<File, Error> {
        let file = fs::File::from(descriptor);
        let flags = os::open_flags(&file)
            .map_err(|e| failed("use the descriptor of the previous server", e, ""))?;
        let wanted = if self.read_only {
            libc::O_RDONLY
        } else {
            libc::O_RDWR
        };
        if flags & libc::O_ACCMODE != wanted {
            return Err(failed(
                "use the descriptor of the previous server",
                Errno::EBADF,
                "its access mode differs from this device's",
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
        let mut choices = Vec::new();
        let layout = match self.block_size {
            Some(_) => Layout::Blank,
            None => layout::of(&facts::head(&file, self.offset)),
        };
        let window = self.window(&facts, direct, layout, &mut notes, &mut choices)?;
        if window.direct.is_none() {
            os::leave_direct(&file).map_err(|e| failed("leave O_DIRECT", e, ""))?;
        }
        if self.claim && !facts.is_block {
            let locked = !usage::lock(&file, self.read_only);
            users.extend(usage::of_file(&file, &self.path, locked));
        }
        let identity = Identity::of(&file).map_err(|e| failed("examine the file", e, ""))?;
        let in_memory = !facts.is_block && os::is_in_memory(&file);
        let limits = self.limits(&facts, &window, in_memory);
        let alignment = window.direct.unwrap_or(Alignment {
            memory: 1,
            position: 1,
        });
        // A file system zeroes parts of its blocks itself.
        let unit = if facts.is_block { facts.logical } else { 1 };
        let layer = Os {
            file,
            by_ioctl: facts.by_ioctl,
        };
        Ok(File {
            core: Core::new(layer, self.offset, limits, alignment).unit(unit),
            direct: window.direct.is_some(),
            in_memory,
            identity,
            users,
            claimed: OnceLock::new(),
            notes,
            choices,
        })
    }

    fn limits(&self, facts: &Facts, window: &Window, in_memory: bool) -> Limits {
        let mut limits = Limits::new(window.length)
            .block_size(window.block)
            .read_only(self.read_only)
            .volatile_cache(!self.read_only)
            .fua(!self.read_only)
            // Memory is copied on the queue's own thread; calls that may block run elsewhere.
            .quick(in_memory);
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
            // The driver does not accept segments shorter than a page.
            let segment = if facts.max_segment_size >= 4096 {
                facts.max_segment_size
            } else {
                0
            };
            limits = limits.memory(direct.memory.max(4), facts.max_segments, segment);
        }
        limits
    }

    /// Opens the file, with O_DIRECT if requested and available.
    fn open_file(&self) -> Result<Opened, Error> {
        let open = |flags: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(!self.read_only);
            options.custom_flags(flags).open(&self.path)
        };
        let meta = fs::metadata(&self.path).map_err(|e| {
            let errno = Errno::from_io(&e);
            let hint = match errno {
                Errno::ENOENT if create::is_dangling(&self.path) => create::DANGLING,
                Errno::ENOENT => "give the path of an existing file",
                _ => "",
            };
            failed("find the file", errno, hint)
        })?;
        facts::check_kind(&meta)?;
        // Claims a block device unless somebody else has: mounting it, or a RAID on it, then fails.
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

    /// Computes the device's offset, size and blocks; every number is checked against the file (L13).
    fn window(
        &self,
        facts: &Facts,
        direct: Option<Alignment>,
        layout: Layout,
        notes: &mut Vec<String>,
        choices: &mut Vec<String>,
    ) -> Result<Window, Error> {
        let size = facts.size;
        let rest = size.saturating_sub(self.offset);
        let asked = self.length.unwrap_or(rest);
        let wanted = match self.block_size {
            Some(block) => Some(block),
            None => self.by_layout(facts, direct, layout, choices),
        };
        let (block, direct) = self.blocks(facts, direct, wanted, asked, notes)?;
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
            choices.push(format!(
                "the last {} bytes of the file are less than a block of {block} bytes and not part of the device",
                asked - length
            ));
        }
        Ok(Window {
            length,
            block,
            direct,
        })
    }

    /// The block size that the disk's content was written with, if it tells and the default differs: a device with
    /// another block size would hide the content (L82).
    fn by_layout(
        &self,
        facts: &Facts,
        direct: Option<Alignment>,
        layout: Layout,
        choices: &mut Vec<String>,
    ) -> Option<u32> {
        let usual = match direct {
            Some(direct) if facts.is_block => direct.position.max(facts.logical),
            Some(direct) => direct.position.max(512),
            None => facts.logical,
        }
        .min(PAGE);
        match layout {
            Layout::Blocks(block, what) if block != usual && self.may_have(block) => {
                choices.push(format!(
                    "block size {block}, as its {what} requires; the default for this file is {usual}"
                ));
                Some(block)
            }
            Layout::AtMost(most, what) if most < usual => {
                choices.push(format!(
                    "blocks of 512 bytes, since its {what} has smaller ones than the {usual} that would be usual for the file \
                     as it is today"
                ));
                Some(512)
            }
            Layout::Unknown if usual > 512 && !facts.is_block => {
                choices.push(format!(
                    "blocks of {usual} bytes, the smallest for direct I/O; give --block-size 512 if what is on it was written \
                     with those"
                ));
                None
            }
            _ => None,
        }
    }

    /// Whether the device's offset and length allow this block size.
    fn may_have(&self, block: u32) -> bool {
        (self.offset | self.length.unwrap_or(0)).is_multiple_of(block.into())
    }

    /// The logical block size, and whether O_DIRECT is possible with it.
    fn blocks(
        &self,
        facts: &Facts,
        direct: Option<Alignment>,
        wanted: Option<u32>,
        length: u64,
        notes: &mut Vec<String>,
    ) -> Result<(u32, Option<Alignment>), Error> {
        if let Some(block) = wanted
            && !(block.is_power_of_two() && (512..=PAGE).contains(&block))
        {
            return Err(Error::BlockSize(block));
        }
        // An incomplete last sector is cut off anyway.
        let length = if self.length.is_none() {
            length / 512 * 512
        } else {
            length
        };
        let fits = |block: u32| (self.offset | length).is_multiple_of(block.into());
        if let Some(direct) = direct {
            let unit = direct.position.max(512);
            let block = wanted.unwrap_or(unit);
            let why = if unit > PAGE || direct.memory > PAGE {
                "it needs an alignment of more than a page"
            } else if block < unit {
                "its unit is larger than the device's blocks"
            } else if !fits(unit) {
                "offset or length is not a multiple of its unit"
            } else {
                return Ok((block, Some(direct)));
            };
            notes.push(format!(
                "direct I/O is not possible, data goes through the page cache: {why} ({unit} bytes)"
            ));
        }
        let own = facts.logical.min(PAGE);
        let block = wanted.unwrap_or(if fits(own) { own } else { 512 });
        Ok((block, None))
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}
