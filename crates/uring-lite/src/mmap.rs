//! Mappings of the ring, and of our own memory shared with it.
//!
//! # Why there is `unsafe` here
//! mmap and munmap. [`Mapping`] owns its pages, so they are unmapped once and not used afterwards; it hands out
//! pointers, never references, because the kernel writes to them.
#![expect(unsafe_code, reason = "mmap, madvise, munmap")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use crate::errno::Errno;

/// Shared pages that children do not inherit.
///
/// # Invariants
/// `base` is the start of a live mapping of `len` bytes, which only this value unmaps.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps `len` bytes of `file` (or of zeroed memory) and excludes them from `fork`: a child that inherited ring
    /// memory would keep the ring alive (L23).
    fn new(len: usize, file: Option<(BorrowedFd<'_>, u64)>) -> Result<Self, Errno> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, fd, offset) = match file {
            Some((fd, offset)) => (
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                offset,
            ),
            None => (
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            ),
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::new(libc::EOVERFLOW))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::new(libc::ENOMEM))?;
        let mapping = Self { base, len };
        // SAFETY: the range is the mapping just made; DONTFORK changes nothing in this process.
        if unsafe { libc::madvise(base.as_ptr().cast(), len, libc::MADV_DONTFORK) } != 0 {
            return Err(Errno::last());
        }
        Ok(mapping)
    }

    /// Maps a part of a ring.
    pub(crate) fn ring(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self, Errno> {
        Self::new(len, Some((fd, offset)))
    }

    /// Maps zeroed, page-aligned memory.
    pub(crate) fn anonymous(len: usize) -> Result<Self, Errno> {
        Self::new(len, None)
    }

    /// Pointer to `count` values of `T` at byte `offset`; `None` unless aligned and in bounds.
    pub(crate) fn pointer<T>(&self, offset: u32, count: u32) -> Option<NonNull<T>> {
        let (offset, count) = (usize::try_from(offset).ok()?, usize::try_from(count).ok()?);
        let end = size_of::<T>().checked_mul(count)?.checked_add(offset)?;
        if end > self.len || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // SAFETY: offset ≤ len, so the result is inside the mapping or at its end; the base is page aligned.
        Some(unsafe { self.base.add(offset) }.cast())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant the range is ours and live; pointers into it die with their owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
