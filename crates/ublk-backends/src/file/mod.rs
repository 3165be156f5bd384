//! The file backend: a regular file or a block device, or a part of it.
//!
//! What a file can do is found out by asking it: `statx` for O_DIRECT and its alignment, a hole punched behind its end for
//! discard, what is written on it for its block size. Of the kind of its file system one thing is asked: whether it is
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
use self::os::Os;

pub use create::Created;
pub use handler::FileHandler;
pub use identity::Identity;
pub use options::FileOptions;
pub use usage::User;

/// A device whose data is in a file.
///
/// * **Size**: that of the file when it is opened, until the device is told of another ([`Backend::resize`]). A file that
///   is cut short behind the device's back answers reads of what is gone with EIO (L05).
/// * **Durability**: the device declares a volatile cache and FUA. FLUSH is one fdatasync, a write with FUA is the
///   write and one fdatasync; concurrent ones share it, and one that comes while it runs waits for the next (L07).
/// * **Errors** of the disk are answered as they are: ENOSPC stays ENOSPC.
/// * **Discard** punches holes, or is the block device's own. Write-zeroes gives storage back where it may and keeps
///   it where it must; where the file system can do neither, zeroes are written.
/// * **Threads**: requests are operations on the queue's ring, where those that wait do so side by side; a file that is
///   memory in disguise ([`File::is_in_memory`]) is read and written by calls on the queue's own thread. [`File::arm`]
///   chooses. As a plain [`Backend`] the calls of the former run on a pool.
/// * **Blocks**: a device may have smaller ones than the disk behind it; then its data goes through the page cache, zeroes
///   at odd places are written, and a discard gives back what whole blocks of the disk it covers (L83).
///
/// ```
/// use ublk_backends::{Created, File};
/// use ublk_core::Backend;
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("disk.img");
/// Created::new(&path, 1 << 30)?.keep(); // sparse: it takes no room yet
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
    /// Holds a claim that came after the open.
    claimed: OnceLock<fs::File>,
    notes: Vec<String>,
    choices: Vec<String>,
}

impl File {
    /// How a file is to be served: begin here.
    pub fn options(path: impl Into<PathBuf>) -> FileOptions {
        FileOptions::new(path)
    }

    /// Whether data goes past this machine's page cache (O_DIRECT).
    #[must_use]
    pub const fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether the file is memory by the nature of its file system (tmpfs), so that no call on it waits: then a call costs
    /// less than an operation on a ring, which would hand it to a thread of the kernel. Whatever else waits for a disk or
    /// a network, also where it says that it cannot be asked not to (RWF_NOWAIT): that refusal tells nothing of what
    /// waiting costs (L81).
    #[must_use]
    pub const fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// The data mode that costs least for this file on a kernel that has it (docs/tuning.md has the figures): zero copy,
    /// but for a file in memory, of which each request would go to a thread of the kernel.
    #[must_use]
    pub const fn favoured_data(&self) -> DataMode {
        if self.in_memory {
            DataMode::Copy
        } else {
            DataMode::ZeroCopy
        }
    }

    /// Alignment in bytes that memory and positions of direct I/O must have; 1 and 1 without it.
    #[must_use]
    pub const fn alignment(&self) -> (u32, u32) {
        (self.core.alignment.memory, self.core.alignment.position)
    }

    /// Where in the file the device begins, in bytes.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.core.base
    }

    /// Which file or disk it is, whatever its path leads to later.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Who else used the file when it was opened: it is served all the same, and who would lose data by that is the
    /// caller's to judge. Empty where it was only looked at ([`FileOptions::claim`]).
    #[must_use]
    pub fn users(&self) -> &[User] {
        &self.users
    }

    /// Locks or claims the file now, for a server that took over from one that had lock and claim to itself. Whether they
    /// are this server's.
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

    /// What the user should know of how the file is served: that direct I/O cannot be had, and why.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What was decided of that which the options left open, where it may surprise: bytes behind the last whole block that
    /// are not part of the device, and a block size by what is on the disk. Who opens the file again with those numbers
    /// finds none.
    #[must_use]
    pub fn choices(&self) -> &[String] {
        &self.choices
    }

    /// How many FLUSH and FUA requests there were, and how many fdatasync calls served them. Syncs on the queues' rings
    /// are counted by the engine instead (`Counters::syncs`).
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

    /// For a file that has grown, or a window of it that is to. EINVAL for a part of a block, ENOSPC for more than there
    /// is.
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
