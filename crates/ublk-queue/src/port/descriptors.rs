//! The driver's I/O descriptor table, mapped read-only.
#![expect(unsafe_code, reason = "maps the driver's descriptors")]

use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use ublk_core::{Errno, Geometry, IoDesc, QueueId, Tag};
use ublk_sys::offset::DescMap;
use ublk_sys::ublksrv_io_desc;

use super::traits::Descriptors;
use crate::buffers::page_size;
use crate::thread::last_errno;

/// The I/O descriptors of one queue, mapped read-only.
///
/// # Invariants
/// `base` is the start of a live mapping of `len` bytes that this value owns; it holds `depth` descriptors, one every
/// `stride` bytes.
pub struct DescTable {
    base: NonNull<u8>,
    len: usize,
    depth: u16,
    stride: usize,
}

impl fmt::Debug for DescTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescTable")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl DescTable {
    /// Maps the descriptors of a queue at the driver's own stride (L01). Children do not inherit the mapping. The file
    /// must be a character device: with a file that is shorter than the table the first access raises SIGBUS, as with
    /// any mapping.
    ///
    /// # Errors
    /// EINVAL if another process has mapped this device, or the queue does not exist.
    pub fn map(
        char_device: BorrowedFd<'_>,
        geometry: &Geometry,
        qid: QueueId,
    ) -> Result<Self, Errno> {
        let place = DescMap::new(
            qid.get(),
            geometry.depth(),
            geometry.io_desc_size(),
            page_size(),
        )
        .map_err(|_| Errno::EINVAL)?;
        let offset = libc::off_t::try_from(place.offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the
        // result is checked below.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                place.len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                char_device.as_raw_fd(),
                offset,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or(Errno::EFAULT)?;
        let stride = usize::from(geometry.io_desc_size());
        let table = Self {
            base,
            len: place.len,
            depth: geometry.depth(),
            stride,
        };
        // SAFETY: the range is the mapping just made. A child that inherited it would hold the device open (L23).
        let res = unsafe { libc::madvise(addr, place.len, libc::MADV_DONTFORK) };
        if res == 0 {
            Ok(table)
        } else {
            Err(last_errno())
        }
    }
}

#[cold]
#[inline(never)]
fn beyond(tag: Tag) -> ! {
    panic!("tag {tag} is beyond the queue's depth")
}

impl Descriptors for DescTable {
    #[inline]
    fn load(&self, tag: Tag) -> IoDesc {
        if tag.get() >= self.depth {
            beyond(tag);
        }
        // SAFETY: tag < depth and depth × stride ≤ len, so the offset is inside the mapping.
        let place = unsafe { self.base.add(tag.index() * self.stride) };
        let place = place.cast::<ublksrv_io_desc>();
        // SAFETY: the place is inside the mapping and aligned (the stride is a multiple of 8); every bit pattern is a
        // descriptor. Volatile and by value, since the kernel writes there (L57): it does so before the CQE that the
        // caller has taken with acquire ordering, and not again before the commit.
        let raw = unsafe { place.as_ptr().read_volatile() };
        IoDesc::new(raw.op_flags, raw.start_sector, raw.nr_sectors, raw.addr)
    }
}

impl Drop for DescTable {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours (invariant) and nothing borrows from it: descriptors are copies.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
