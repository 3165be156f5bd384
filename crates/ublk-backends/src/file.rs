//! The file backend: a regular file, a block device, or a part of one.
//!
//! The capabilities of a file are probed: `statx` for O_DIRECT and its alignment, punching a hole beyond its end for
//! discard, and its content for the block size. The kind of file system only matters in one respect: whether it is in
//! memory.

mod aligned;
mod core;
mod create;
mod facts;
mod handler;
mod identity;
mod layer;
mod layout;
mod options;
mod os;
mod second;
mod sync;
mod usage;

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use ublk_core::{Backend, DataMode, Errno, Limits};

use self::core::Core;

// For metadata beside a file.
pub(crate) use self::aligned::zeroes;
pub(crate) use self::layer::Layer;
pub(crate) use self::os::{Os, is_in_memory};
pub(crate) use self::second::{NotMade, begins_with, beside, make_once, remove_unused};
pub(crate) use self::sync::Syncs;
pub(crate) use self::usage::lock;
#[cfg(all(test, not(miri)))]
pub(crate) use self::{core::Core as FileCore, os::Alignment};

pub use create::Created;
pub use handler::FileHandler;
pub use identity::Identity;
pub use options::FileOptions;
pub use usage::User;

/// A device whose data is in a file.
///
/// * **Size**: that of the file when it is opened, until [`Backend::resize`]. If the file is truncated behind the
///   device's back, reads of the missing part fail with EIO (L05).
/// * **Durability**: the device declares a volatile cache and FUA. A FLUSH is one fdatasync, a FUA write is the write
///   and one fdatasync. Concurrent requests share an fdatasync; a request that arrives while one runs waits for the
///   next (L07).
/// * **Errors** of the disk are returned unchanged: ENOSPC stays ENOSPC.
/// * **Discard** punches holes, or is the block device's own. Write-zeroes deallocates storage if it may and keeps it
///   if it must; if the file system supports neither, zeroes are written.
/// * **Threads**: requests are operations on the queue's ring, where they wait concurrently. A file in memory
///   ([`File::is_in_memory`]) is read and written by calls on the queue's own thread. [`File::arm`] chooses. As a plain
///   [`Backend`], calls on files that are not in memory run on a pool.
/// * **Blocks**: a device may have smaller blocks than the underlying disk. Its data then goes through the page cache,
///   zeroes at unaligned positions are written, and a discard deallocates the whole blocks of the disk that it covers
///   (L83).
///
/// ```
/// use ublk_backends::{Created, File};
/// use ublk_core::Backend;
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("disk.img");
/// Created::new(&path, 1 << 30)?.keep(); // sparse: takes no space yet
/// let file = File::options(&path).open()?;
/// assert_eq!(file.limits().size, 1 << 30);
/// file.write_at(&[7; 4096], 8192, true)?; // durable when this returns
/// let mut block = [0; 4096];
/// file.read_at(&mut block, 8192)?;
/// assert_eq!(block, [7; 4096]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct File {
    core: Core<Os>,
    direct: bool,
    in_memory: bool,
    identity: Identity,
    users: Vec<User>,
    /// Holds a claim that was taken after the open.
    claimed: OnceLock<fs::File>,
    notes: Vec<String>,
    choices: Vec<String>,
}

impl File {
    /// Options for opening a file: start here.
    pub fn options(path: impl Into<PathBuf>) -> FileOptions {
        FileOptions::new(path)
    }

    /// Whether data bypasses this machine's page cache (O_DIRECT).
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether the file's system is in memory (tmpfs), so that no call blocks: a call is then cheaper than an operation
    /// on a ring, which would hand it to a kernel worker. All others may wait for a disk or a network, even those that
    /// do not support RWF_NOWAIT: that says nothing about the cost of waiting (L81).
    #[must_use]
    pub const fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// The cheapest data mode for this file on a kernel that supports it (docs/tuning.md has the figures): zero copy,
    /// except for a file in memory, where each request would go to a kernel worker.
    #[must_use]
    pub const fn favoured_data(&self) -> DataMode {
        if self.in_memory {
            DataMode::Copy
        } else {
            DataMode::ZeroCopy
        }
    }

    /// Alignment in bytes that direct I/O requires of memory and positions; 1 and 1 without it.
    #[must_use]
    pub const fn alignment(&self) -> (u32, u32) {
        (self.core.alignment.memory, self.core.alignment.position)
    }

    /// Offset of the device in the file, in bytes.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.core.base
    }

    /// Identity of the file or disk, wherever its path leads later.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Others who used the file when it was opened. They do not prevent serving it: the caller decides whether somebody
    /// would lose data. Empty if the file was not claimed ([`FileOptions::claim`]).
    #[must_use]
    pub fn users(&self) -> &[User] {
        &self.users
    }

    /// Locks or claims the file now, for a server that took over from one that held lock and claim. True if this server
    /// holds them now.
    pub fn claim(&self) -> bool {
        let file = &self.core.layer.file;
        if let Identity::File { .. } = self.identity {
            return usage::lock(file, self.core.limits.read_only);
        }
        let node = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = fs::OpenOptions::new();
        match options.read(true).custom_flags(libc::O_EXCL).open(node) {
            Ok(claim) => self.claimed.set(claim).is_ok(),
            Err(_) => false,
        }
    }

    /// Remarks for the user on how the file is served: that direct I/O is not available, and why.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Choices made for unset options that may surprise: bytes after the last whole block that are not part of the
    /// device, and a block size taken from the disk's content. Empty if the file is opened with these numbers again.
    #[must_use]
    pub fn choices(&self) -> &[String] {
        &self.choices
    }

    /// Number of FLUSH and FUA requests, and of the fdatasync calls that served them. The engine counts syncs on the
    /// queues' rings (`Counters::syncs`).
    #[must_use]
    pub fn syncs(&self) -> (u64, u64) {
        self.core.syncs.counts()
    }
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.layer.file.as_fd()
    }
}

impl Backend for File {
    fn limits(&self) -> Limits {
        self.core.limits
    }

    #[inline]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.core.read_at(buf, offset)
    }

    #[inline]
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.core.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.core.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.core.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.core.write_zeroes(offset, len, may_unmap)
    }

    /// For a file that has grown, or a window of it to be enlarged. EINVAL if `size` is not whole blocks, ENOSPC if the
    /// file is smaller.
    fn resize(&self, size: u64) -> Result<(), Errno> {
        let block = u64::from(self.core.limits.logical_block_size);
        if size == 0 || !size.is_multiple_of(block) {
            return Err(Errno::EINVAL);
        }
        let room = facts::length(&self.core.layer.file)?.checked_sub(self.core.base);
        if room.is_none_or(|room| room < size) {
            return Err(Errno::ENOSPC);
        }
        self.core.size.store(size, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(all(test, not(miri)))]
mod tests;
