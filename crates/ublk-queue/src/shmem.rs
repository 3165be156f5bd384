//! Memory shared with the clients of a device: mapped here as well, and copied to and from by ways that may race.
//!
//! General safety argument. The mapping is this process's own, made by [`SharedMemory::map`] and removed when the last
//! value that has it is dropped: the lanes' shared parts do, and with them every request. Clients read and write its
//! bytes at any time, and so does the kernel. So no reference to them is ever made: they are named to the kernel by
//! address, or copied by [`Copier`].
#![expect(unsafe_code, reason = "maps memory that others write")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use ublk_core::iod::Io;
use ublk_core::{Errno, IoDesc, SharedTable, Tag};

use crate::memref::MemRef;
use crate::racing::Copier;
use crate::shared::DataPath;

/// A file of memory that clients of a device have mapped too, as it was registered with the driver (REG_BUF, Linux 7.1).
/// Requests of direct I/O whose data lies in it arrive with their place in it and without a copy.
///
/// **Who can shrink the file can end this process**: bytes that are no more raise SIGBUS. Share a memfd that is sealed
/// against shrinking (`F_SEAL_SHRINK`) with clients that are not trusted.
#[derive(Clone, Default)]
pub struct SharedMemory {
    mapping: Option<Arc<Mapping>>,
    table: SharedTable,
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

/// # Invariants
/// `base` is the start of a live mapping of `len` bytes, readable and writable, that only this value unmaps.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and gives out addresses only.
unsafe impl Send for Mapping {}
// SAFETY: `&self` gives addresses; who copies through them does it by ways that may race.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours (invariant), and whoever has an address of it keeps this value alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl SharedMemory {
    /// Maps what was registered of a file. Children do not inherit it, core dumps do not have it.
    ///
    /// # Errors
    /// What mmap says; ENODATA for a file that is shorter than what was registered of it.
    pub fn map(file: BorrowedFd<'_>, table: SharedTable) -> io::Result<Self> {
        let size = std::fs::File::from(file.try_clone_to_owned()?)
            .metadata()?
            .len();
        if size < table.end() {
            return Err(io::Error::from_raw_os_error(libc::ENODATA));
        }
        if table.buffers().is_empty() {
            return Ok(Self::default());
        }
        let len = usize::try_from(table.end()).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Arc::new(Mapping { base, len });
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: the range is the mapping just made, and holds no Rust object.
            if unsafe { libc::madvise(base.as_ptr().cast(), len, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self {
            mapping: Some(mapping),
            table,
        })
    }

    /// Bytes that are shared.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.table.buffers().iter().map(|b| b.len).sum()
    }

    /// True where nothing is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The place of a request's data.
    fn place(&self, desc: &IoDesc, len: u64) -> Result<NonNull<u8>, Errno> {
        let range = self.table.place(desc, len)?;
        let mapping = self.mapping.as_ref().ok_or(Errno::EIO)?;
        let at = usize::try_from(range.start).map_err(|_| Errno::EIO)?;
        // SAFETY: the table gives ranges before its end only, and that much is mapped (`map`).
        Ok(unsafe { mapping.base.add(at) })
    }
}

/// The way of data of a lane whose device shares memory with its clients.
pub(crate) struct ClientPath {
    memory: SharedMemory,
    /// Where the data of a tag's request is, null where it goes the way `below`. Written by the lane before the request
    /// is handed out, read by whoever has the request.
    places: Box<[AtomicPtr<u8>]>,
    copier: Copier,
    pub(crate) below: DataPath,
}

impl ClientPath {
    pub(crate) fn memory(&self) -> SharedMemory {
        self.memory.clone()
    }

    pub(crate) fn new(memory: SharedMemory, depth: u16, below: DataPath) -> Self {
        Self {
            memory,
            places: (0..depth).map(|_| AtomicPtr::default()).collect(),
            copier: Copier::detect(),
            below,
        }
    }

    /// Notes where the data of a request is that has just come. True if it is in shared memory.
    pub(crate) fn locate(&self, tag: Tag, desc: &IoDesc, io: &Io) -> Result<bool, Errno> {
        let hit = io.flags.in_shared_memory() && io.op.has_data();
        let place = match hit {
            true => self.memory.place(desc, io.len)?.as_ptr(),
            false => std::ptr::null_mut(),
        };
        let kept = self.places.get(tag.index()).ok_or(Errno::EIO)?;
        // Relaxed: the request itself is handed on by whatever orders that.
        kept.store(place, Ordering::Relaxed);
        Ok(hit)
    }

    /// Where the `len` bytes of a tag's request are, if they are in shared memory.
    pub(crate) fn place(&self, tag: Tag, len: usize) -> Option<MemRef<'_>> {
        let place = self.places.get(tag.index())?.load(Ordering::Relaxed);
        // SAFETY: the range is inside the mapping, which `self` keeps; nobody looks at it through a reference.
        NonNull::new(place).map(|place| unsafe { MemRef::new(place, len) })
    }

    /// Copies between two places: one is the client's, the other a tag's own buffer.
    ///
    /// # Errors
    /// EIO for lengths that differ.
    pub(crate) fn copy(&self, from: MemRef<'_>, to: MemRef<'_>) -> Result<(), Errno> {
        copy(self.copier, from, to)
    }
}

/// Copies one place to another of the same length, in whole sectors.
pub(crate) fn copy(copier: Copier, from: MemRef<'_>, to: MemRef<'_>) -> Result<(), Errno> {
    if from.len() != to.len() || !from.len().is_multiple_of(crate::racing::UNIT) {
        return Err(Errno::EIO);
    }
    // SAFETY: both are mapped and looked at by no reference (the promise of `MemRef::new`); lengths are checked above.
    // A tag's buffer and a backend's memory are mappings of their own, so that they do not overlap a client's.
    unsafe { copier.transfer(from.ptr(), to.ptr(), from.len()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use ublk_core::{IoFlags, Op, SharedBuffer};

    fn tag(n: u16) -> Tag {
        Tag::new(n).expect("below 4096")
    }

    /// What a descriptor names is the file's byte, and what is not in the file is refused.
    #[test]
    fn places_are_bytes_of_the_file() {
        let path = std::env::temp_dir().join(format!("ublk-queue-shmem-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).expect("a file");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .and_then(|open| {
                file.write_all(&[7; 8192])?;
                file.write_all(&[9; 8192])?;
                std::fs::remove_file(&path)?;
                Ok(open)
            });
        let file = file.expect("ours");
        let buffer = SharedBuffer::new;
        let table = SharedTable::new(&[buffer(2, 0, 8192), buffer(5, 8192, 8192)]);
        let memory = SharedMemory::map(file.as_fd(), table.clone()).expect("mapped");
        assert_eq!(memory.len(), 16384);
        let path = ClientPath::new(memory, 2, DataPath::Buffer);
        let mut io = Io::new(Op::Write, IoFlags(IoFlags::SHMEM_ZC), 0, 4096);
        let mut desc = IoDesc::new(0, 0, 0, 5 << 32 | 4096);
        assert_eq!(path.locate(tag(1), &desc, &io), Ok(true));
        let place = path.place(tag(1), 4096).expect("a hit");
        let mut own = vec![0_u8; 4096];
        // SAFETY: a vector of that length, not looked at meanwhile.
        let to = unsafe { MemRef::new(NonNull::from(&mut own[..]).cast(), 4096) };
        path.copy(place, to).expect("as long");
        assert_eq!(own, [9; 4096]);
        assert!(path.place(tag(0), 4096).is_none() && path.place(tag(2), 1).is_none());
        desc.addr += 512;
        assert_eq!(path.locate(tag(1), &desc, &io), Err(Errno::EIO));
        io.flags = IoFlags(0);
        assert_eq!(path.locate(tag(1), &desc, &io), Ok(false));
        assert!(path.place(tag(1), 4096).is_none());
        file.set_len(8192).expect("ours");
        let short = SharedMemory::map(file.as_fd(), table).expect_err("too short");
        assert_eq!(short.raw_os_error(), Some(libc::ENODATA));
    }
}
