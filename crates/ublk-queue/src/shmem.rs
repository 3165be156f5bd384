//! Memory shared with a device's clients, mapped into this process.
//!
//! General safety argument. The mapping belongs to this process: [`SharedMemory::map`] makes it, and dropping the last
//! value that holds it removes it. The lanes' shared parts hold it, and so does every request. Clients and the kernel
//! read and write its bytes at any time. So no reference to them is ever made: they are named to the kernel by address,
//! or copied by [`Copier`](crate::racy_copy::Copier).
#![expect(unsafe_code, reason = "maps memory that others write")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use ublk_core::{Errno, IoDesc, SharedTable};

/// A file of memory that the clients of a device have mapped too, as registered with the driver (REG_BUF, Linux 7.1).
/// For direct I/O from this memory the descriptor carries the position of the data, and nothing is copied.
///
/// **Anybody who can shrink the file can kill this process**: access beyond the end of the file raises SIGBUS. Share a
/// memfd that is sealed against shrinking (`F_SEAL_SHRINK`) with untrusted clients.
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
/// `base` is the start of a live mapping of `len` bytes that only this value unmaps: readable, and writable unless all of the
/// table is read-only.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and gives out addresses only.
unsafe impl Send for Mapping {}
// SAFETY: `&self` only gives addresses; copies through them tolerate races.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours (invariant), and every holder of an address in it keeps this value alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl SharedMemory {
    /// Maps the registered part of a file. The mapping is not inherited by children and is left out of core dumps.
    ///
    /// # Errors
    /// The errno of mmap, or ENODATA if the file is shorter than its registered part.
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
        // No READ has its place in read-only memory (`SharedTable::place`), so nothing writes to it.
        let access = match table.is_read_only() {
            true => libc::PROT_READ,
            false => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                access,
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

    /// Bytes shared.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.table.buffers().iter().map(|b| b.len).sum()
    }

    /// True if nothing is shared.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Finds the data of a request in the mapping.
    pub(crate) fn place(&self, desc: &IoDesc, len: u64) -> Result<NonNull<u8>, Errno> {
        let range = self.table.place(desc, len)?;
        let mapping = self.mapping.as_ref().ok_or(Errno::EIO)?;
        let at = usize::try_from(range.start).map_err(|_| Errno::EIO)?;
        // SAFETY: the table only gives ranges that end before its own end, and that much is mapped (`map`).
        Ok(unsafe { mapping.base.add(at) })
    }
}
