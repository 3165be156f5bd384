//! Opens and checks the device nodes, which udev creates asynchronously.
#![forbid(unsafe_code)]

use crate::wait::{deadline_in, until};
use crate::{Error, Operation, sys};
use core::time::Duration;
use std::fs::{self, File, OpenOptions, read_dir};
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;
use ublk_core::{DevId, Errno, SECTOR_SIZE};

/// Time allowed for a node to be created in a `/dev` that is not a devtmpfs (by mdev, or a container manager).
const GRACE: Duration = Duration::from_secs(2);

/// Root directories of the nodes: `/dev` and `/sys`, or the same below another root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nodes {
    dev: PathBuf,
    sys: PathBuf,
    mounts: PathBuf,
}

impl Default for Nodes {
    fn default() -> Self {
        Self::under(Path::new("/"))
    }
}

impl Nodes {
    /// `dev` and `sys` below another root.
    #[must_use]
    pub fn under(root: &Path) -> Self {
        Self {
            dev: root.join("dev"),
            sys: root.join("sys"),
            mounts: root.join("proc/self/mountinfo"),
        }
    }

    /// The control node.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.dev.join("ublk-control")
    }

    /// The character device, which the server opens.
    #[must_use]
    pub fn char_device(&self, id: DevId) -> PathBuf {
        self.dev.join(format!("ublkc{id}"))
    }

    /// The block device, which everybody else opens.
    #[must_use]
    pub fn block_device(&self, id: DevId) -> PathBuf {
        self.dev.join(format!("ublkb{id}"))
    }

    /// Opens the character device for reading and writing, close-on-exec. Waits until udev has created the node and set
    /// its permissions, and while another server has it open.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the node does not appear, [`Error::NoNode`] if it never will, [`Error::NoPermission`] and
    /// [`Error::Busy`] if these last, [`Error::Refused`].
    pub fn open_char(&self, id: DevId, deadline: Duration) -> Result<OwnedFd, Error> {
        let mut options = OpenOptions::new();
        // std sets O_CLOEXEC (L23).
        options.read(true).write(true);
        Ok(self.open(&options, &self.server_end(id), deadline)?.into())
    }

    /// Whether a server in this `/dev` can open the character device of an existing device. Called before a working
    /// server is replaced.
    ///
    /// # Errors
    /// [`Error::NoNode`] if the node does not exist and never will.
    pub fn can_serve(&self, id: DevId) -> Result<(), Error> {
        self.may_appear(&self.server_end(id), Errno::ENOENT)
    }

    /// Waits until the block device exists, can be opened by the caller and has `size` bytes, without opening it: by
    /// its node and sysfs. So nothing here waits for the server, and a process that serves the device can check itself
    /// (L80). The partition scan may still be running afterwards.
    ///
    /// # Errors
    /// As [`Nodes::prove_ready`].
    pub fn see_ready(&self, id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
        let node = self.disk(id);
        let looked = self.wait(&node, deadline, || {
            sys::may_read(&node.path).and_then(|()| disk_size(&node.path, &node.kernel))
        });
        let got = looked?;
        same_size(id, size, got)
    }

    /// Waits until the block device exists, opens for reading and has `size` bytes: the definition of "ready" (L38).
    ///
    /// The open reads from the device on most systems (udev and the kernel look for partitions), so the server must be
    /// serving, and a server that does not answer blocks the caller in the kernel beyond any deadline. **Do not call it
    /// in the server's process**: a server that is killed meanwhile would never exit, because the open waits for its
    /// answers and its exit for the open (L80). Use [`Nodes::see_ready`] there.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if it does not appear, [`Error::WrongSize`], [`Error::NoPermission`] if that lasts,
    /// [`Error::Refused`] with ENXIO or ENODEV if it disappeared again.
    pub fn prove_ready(&self, id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
        let mut options = OpenOptions::new();
        options.read(true);
        let mut node = self.open(&options, &self.disk(id), deadline)?;
        // The end of a block device is its size, the same as BLKGETSIZE64 (blkdev_llseek).
        let got = node.seek(SeekFrom::End(0)).map_err(|e| Error::Refused {
            operation: Operation::ProveReady,
            dev: Some(id),
            errno: Errno::from_io(&e),
        })?;
        same_size(id, size, got)
    }

    /// Writes back the block device's page cache and flushes its server's cache (fsync). File systems on it must be
    /// synced separately (`syncfs`). Blocks in the kernel until the server has answered: call it from a helper.
    ///
    /// # Errors
    /// [`Error::Refused`] with the errno of the open or the write-back, [`Error::NoPermission`].
    pub fn sync(&self, id: DevId) -> Result<(), Error> {
        let synced = File::open(self.block_device(id)).and_then(|node| node.sync_all());
        synced.map_err(|e| Error::of_command(Operation::Sync, Some(id), Errno::from_io(&e)))
    }

    /// The existing devices, sorted, without a command: from sysfs, else from the nodes. Takes no lock of the driver,
    /// so it works while a device is stuck.
    ///
    /// # Errors
    /// [`Error::Refused`] if neither directory can be read.
    pub fn list_devices(&self) -> Result<Vec<DevId>, Error> {
        let class = self.sys.join("class/ublk-char");
        let dir = read_dir(class).or_else(|_| read_dir(&self.dev));
        let dir = dir.map_err(|e| Error::Refused {
            operation: Operation::List,
            dev: None,
            errno: Errno::from_io(&e),
        })?;
        let id = |name: std::ffi::OsString| {
            let number = name.to_str()?.strip_prefix("ublkc")?;
            DevId::new(number.parse().ok()?).ok()
        };
        let mut ids: Vec<_> = dir
            .filter_map(|entry| id(entry.ok()?.file_name()))
            .collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(crate) fn scheduler(&self, id: DevId) -> PathBuf {
        self.sys
            .join(format!("class/block/ublkb{id}/queue/scheduler"))
    }

    fn server_end(&self, id: DevId) -> Awaited {
        Awaited {
            path: self.char_device(id),
            kernel: self.sys.join(format!("class/ublk-char/ublkc{id}")),
            operation: Operation::OpenChar,
            id,
        }
    }

    fn disk(&self, id: DevId) -> Awaited {
        Awaited {
            path: self.block_device(id),
            kernel: self.sys.join(format!("class/block/ublkb{id}")),
            operation: Operation::ProveReady,
            id,
        }
    }

    /// Opens a node, waiting for temporary obstacles: it does not exist yet, udev has not set its owner yet, its disk does
    /// not exist yet, or it is busy.
    fn open(
        &self,
        options: &OpenOptions,
        node: &Awaited,
        deadline: Duration,
    ) -> Result<File, Error> {
        let open = || options.open(&node.path);
        self.wait(node, deadline, || open().map_err(|e| Errno::from_io(&e)))
    }

    /// Checks a node repeatedly until it is ready, as long as waiting may help.
    fn wait<T>(
        &self,
        node: &Awaited,
        deadline: Duration,
        mut look: impl FnMut() -> Result<T, Errno>,
    ) -> Result<T, Error> {
        let Awaited { operation, id, .. } = *node;
        let mut last = Errno::ENOENT;
        let mut judge_at = Some(Instant::now() + GRACE);
        let found = until(deadline_in(deadline), || {
            match look() {
                Ok(found) => return Ok(Some(found)),
                Err(errno) => last = errno,
            }
            if judge_at.is_some_and(|at| Instant::now() >= at) {
                judge_at = None;
                self.may_appear(node, last)?;
            }
            may_pass(last)
                .then_some(None)
                .ok_or_else(|| refused(operation, id, last))
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
        self.may_appear(node, last)?;
        Err(not_in_time(operation, id, last, deadline))
    }

    /// Whether a missing node may still appear: if this `/dev` is a devtmpfs, the kernel creates it as soon as it has
    /// the device.
    fn may_appear(&self, node: &Awaited, last: Errno) -> Result<(), Error> {
        let never = last == Errno::ENOENT
            && !node.path.exists()
            && node.kernel.exists()
            && self.is_devtmpfs() == Some(false);
        if !never {
            return Ok(());
        }
        Err(Error::NoNode {
            operation: node.operation,
            dev: node.id,
            node: node.path.display().to_string(),
        })
    }

    /// Whether `/dev` is a devtmpfs, according to the mount with its device number (proc_pid_mountinfo(5)); `None` if
    /// that cannot be determined.
    fn is_devtmpfs(&self) -> Option<bool> {
        let (major, minor) = sys::device_number(fs::metadata(&self.dev).ok()?.dev());
        let number = format!("{major}:{minor}");
        let mounts = fs::read_to_string(&self.mounts).ok()?;
        let kind = |line: &str| {
            let (mount, kind) = line.split_once(" - ")?;
            let is_it = mount.split(' ').nth(2) == Some(&number);
            is_it.then(|| kind.starts_with("devtmpfs "))
        };
        // A plain directory of a chroot: its mount is not visible.
        Some(mounts.lines().find_map(kind).unwrap_or(false))
    }
}

/// A node that is being waited for.
struct Awaited {
    path: PathBuf,
    /// Its directory in sysfs, which exists once the kernel has the device.
    kernel: PathBuf,
    operation: Operation,
    id: DevId,
}

/// Whether waiting may help.
const fn may_pass(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::ENOENT
            | Errno::EACCES
            | Errno::EPERM
            | Errno::EBUSY
            | Errno::ENXIO
            | Errno::ENODEV
            | Errno::EINTR
    )
}

const fn refused(operation: Operation, id: DevId, errno: Errno) -> Error {
    Error::Refused {
        operation,
        dev: Some(id),
        errno,
    }
}

/// The error for a node that did not become ready before the deadline.
fn not_in_time(operation: Operation, id: DevId, last: Errno, deadline: Duration) -> Error {
    match last {
        Errno::ENOENT | Errno::EINTR => Error::TimedOut {
            operation,
            dev: Some(id),
            after: deadline,
            abandoned: false,
        },
        Errno::ENXIO | Errno::ENODEV => refused(operation, id, last),
        errno => Error::of_command(operation, Some(id), errno),
    }
}

const fn same_size(id: DevId, want: u64, got: u64) -> Result<(), Error> {
    if got == want {
        return Ok(());
    }
    Err(Error::WrongSize { dev: id, want, got })
}

/// The size of a disk in bytes from its directory in sysfs: ENXIO if it has none, ENOENT if the node belongs to another
/// disk (L42).
fn disk_size(node: &Path, disk: &Path) -> Result<u64, Errno> {
    let read = |name| fs::read_to_string(disk.join(name)).map_err(|_| Errno::ENXIO);
    let sectors: u64 = read("size")?.trim().parse().map_err(|_| Errno::ENXIO)?;
    let found = fs::metadata(node).map_err(|error| Errno::from_io(&error))?;
    if found.file_type().is_block_device() {
        let (major, minor) = sys::device_number(found.rdev());
        if read("dev")?.trim() != format!("{major}:{minor}") {
            return Err(Errno::ENOENT);
        }
    }
    Ok(sectors.saturating_mul(SECTOR_SIZE))
}

/// [`Nodes::open_char`] in `/dev`.
///
/// # Errors
/// As there.
pub fn open_char(id: DevId, deadline: Duration) -> Result<OwnedFd, Error> {
    Nodes::default().open_char(id, deadline)
}

/// [`Nodes::can_serve`] in `/dev`.
///
/// # Errors
/// As there.
pub fn can_serve(id: DevId) -> Result<(), Error> {
    Nodes::default().can_serve(id)
}

/// Whether an open file is the character device with this id, by the driver's numbering of the nodes.
pub(crate) fn is_char_of(file: &OwnedFd, id: DevId) -> bool {
    let file = file.try_clone().map(File::from);
    let found = file.and_then(|file| file.metadata());
    let minor = |found: fs::Metadata| libc::minor(found.rdev());
    found.is_ok_and(|found| found.file_type().is_char_device() && minor(found) == id.get())
}

/// [`Nodes::see_ready`] in `/dev` and `/sys`.
///
/// # Errors
/// As there.
pub fn see_ready(id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
    Nodes::default().see_ready(id, size, deadline)
}

/// [`Nodes::prove_ready`] in `/dev`.
///
/// # Errors
/// As there.
pub fn prove_ready(id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
    Nodes::default().prove_ready(id, size, deadline)
}

/// [`Nodes::sync`] in `/dev`.
///
/// # Errors
/// As there.
pub fn sync(id: DevId) -> Result<(), Error> {
    Nodes::default().sync(id)
}

/// [`Nodes::list_devices`] of this machine.
///
/// # Errors
/// As there.
pub fn list_devices() -> Result<Vec<DevId>, Error> {
    Nodes::default().list_devices()
}

#[cfg(test)]
mod tests;
