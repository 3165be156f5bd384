//! Memory shared with the clients of a device, mapped here as well.
//!
//! General safety argument. The mapping is this process's own, made by [`SharedMemory::map`] and removed when the last
//! value that has it is dropped: the lanes' shared parts do, and with them every request. Clients read and write its
//! bytes at any time, and so does the kernel. So no reference to them is ever made: they are named to the kernel by
//! address, or copied by [`Copier`](crate::racy_copy::Copier).
#![expect(unsafe_code, reason = "maps memory that others write")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use ublk_core::{Errno, IoDesc, SharedTable};

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
    pub(crate) fn place(&self, desc: &IoDesc, len: u64) -> Result<NonNull<u8>, Errno> {
        let range = self.table.place(desc, len)?;
        let mapping = self.mapping.as_ref().ok_or(Errno::EIO)?;
        let at = usize::try_from(range.start).map_err(|_| Errno::EIO)?;
        // SAFETY: the table gives ranges before its end only, and that much is mapped (`map`).
        Ok(unsafe { mapping.base.add(at) })
    }
}
