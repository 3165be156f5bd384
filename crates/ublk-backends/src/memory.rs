//! The memory backend.

// Allowed here for the calls of `racy_copy`: this type owns the mapping and checks every range.
#![allow(unsafe_code)]

use std::ptr::NonNull;

use ublk_core::{Backend, Errno, Limits};
use ublk_queue::racy_copy::{Copier, UNIT};
use ublk_queue::{Mapped, MemRef};

use crate::error::{Error, check};
use crate::mapping::Mapping;
use crate::pagemap::Pagemap;

/// Largest DISCARD: one system call, whose cost depends on the pages in use.
const MAX_DISCARD: u64 = 1 << 30;

/// Largest WRITE_ZEROES: if it may not unmap, populated pages are written on the queue's thread.
const MAX_WRITE_ZEROES: u64 = 16 << 20;

/// A memory device: sparse, populated by the first write to a page, deallocated by discard.
///
/// A device may be larger than the machine's memory as long as less is in use. The memory in use is ordinary memory of
/// the server, subject to its limits (cgroup, the kernel's OOM killer). The content is lost with the server, so no
/// write becomes more durable after it completes: the device declares no volatile cache, and a FLUSH has nothing to do.
///
/// Requests of several threads may overlap; each byte is then that of one of them.
#[derive(Debug)]
pub struct Memory {
    mapping: Mapping,
    /// Reports which pages are populated; `None` if the kernel does not support it.
    pagemap: Option<Pagemap>,
    copier: Copier,
    limits: Limits,
}

impl Memory {
    /// Creates a zeroed memory device of `size` bytes with logical blocks of 512 or 4096 bytes.
    ///
    /// # Errors
    /// [`Error::BlockSize`], [`Error::Size`] or [`Error::TooLarge`] for invalid numbers; [`Error::Reserve`] if the
    /// kernel refuses that much address space.
    pub fn new(size: u64, block_size: u32) -> Result<Self, Error> {
        check(size, block_size)?;
        let mapping = Mapping::new(size).map_err(|errno| Error::Reserve { size, errno })?;
        let page = u32::try_from(mapping.page()).unwrap_or(block_size);
        Ok(Self {
            mapping,
            pagemap: Pagemap::open().ok(),
            copier: Copier::detect(),
            limits: Limits::new(size)
                .block_size(block_size)
                .volatile_cache(false)
                // Smaller discards work, too, but only whole pages free memory.
                .discard(MAX_DISCARD, page)
                .write_zeroes(MAX_WRITE_ZEROES)
                .quick(true),
        })
    }

    /// Makes the device refuse writes: it reads as zeroes for ever.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.limits = self.limits.read_only(yes);
        self
    }

    /// Number of bytes of memory in use now, in whole pages.
    ///
    /// # Errors
    /// The errno of mincore(2): EAGAIN if the kernel is short of memory itself.
    pub fn resident(&self) -> Result<u64, Errno> {
        self.mapping.resident()
    }

    /// Checks a range: whole sectors (else EINVAL) inside the device (else EIO).
    #[inline]
    fn range(&self, offset: u64, len: u64) -> Result<(usize, usize), Errno> {
        if !(offset | len).is_multiple_of(UNIT as u64) {
            return Err(Errno::EINVAL);
        }
        // Nothing is added, so nothing wraps (L13).
        if offset > self.limits.size || len > self.limits.size - offset {
            return Err(Errno::EIO);
        }
        // The device fits into the address space, so both conversions succeed.
        match (usize::try_from(offset), usize::try_from(len)) {
            (Ok(offset), Ok(len)) => Ok((offset, len)),
            _ => Err(Errno::EIO),
        }
    }

    /// Checks a range and returns its address in the mapping.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> Result<NonNull<u8>, Errno> {
        let (offset, len) = self.range(offset, len as u64)?;
        Ok(self.mapping.at(offset, len))
    }

    /// Zeroes a range that `range` has checked.
    fn zero(&self, offset: usize, len: usize) {
        let shared = self.mapping.at(offset, len);
        // SAFETY: `len` bytes inside the mapping, which lives as long as `self`; whole sectors, so
        // aligned to eight; all accesses to the mapping's bytes go through `racy_copy`.
        unsafe { self.copier.zero(shared, len) };
    }

    /// Zeroes a range that `range` has checked and keeps its populated pages. Other pages read as zeroes already and
    /// are not populated: zeroes over a large sparse device would use up all memory.
    fn zero_kept(&self, offset: usize, len: usize) {
        let page = self.mapping.page();
        let end = offset + len;
        let zero = |begin: usize, count: usize| {
            let mut at = begin.max(offset);
            let end = (begin + count).min(end);
            while at < end {
                // One page at a time: a page that was only read is the kernel's zero page, and stays so.
                let next = ((at / page + 1) * page).min(end);
                if !self.is_zero(at, next - at) {
                    self.zero(at, next - at);
                }
                at = next;
            }
        };
        let Some(pagemap) = &self.pagemap else {
            return zero(offset, len);
        };
        let base = self.mapping.at(0, 0).as_ptr().addr() / page;
        let (first, last) = (offset / page, end.div_ceil(page));
        pagemap.present(base + first, last - first, |begin, count| {
            zero((begin - base) * page, count * page);
        });
    }

    /// Whether the sectors of a checked range read as zeroes now.
    fn is_zero(&self, offset: usize, len: usize) -> bool {
        let mut sector = [0; UNIT];
        (offset..offset + len).step_by(UNIT).all(|at| {
            let shared = self.mapping.at(at, UNIT);
            // SAFETY: a sector inside the mapping, which lives as long as `self`; all accesses to the mapping's bytes
            // go through `racy_copy`.
            unsafe { self.copier.load(shared, &mut sector) };
            sector.iter().all(|byte| *byte == 0)
        })
    }

    /// Zeroes a range and returns its whole pages to the kernel.
    fn unmap(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let (start, len) = self.range(offset, len)?;
        let end = start + len;
        let page = self.mapping.page();
        let first = start.next_multiple_of(page);
        let last = end / page * page;
        if first >= last {
            self.zero(start, len);
            return Ok(());
        }
        self.zero(start, first - start);
        if !self.mapping.give_back(first, last - first) {
            // Locked memory cannot be returned; its content must still become zeroes.
            self.zero(first, last - first);
        }
        self.zero(last, end - last);
        Ok(())
    }
}

impl Mapped for Memory {
    fn region(&self, offset: u64, len: usize) -> MemRef<'_> {
        match self.at(offset, len) {
            // SAFETY: the range is inside the mapping, which is readable and writable and lives as long as `self`; only
            // `racy_copy` and the kernel access its bytes, never a Rust reference.
            Ok(first) => unsafe { MemRef::new(first, len) },
            // Outside the device: an empty range, which fits no request.
            Err(_) => MemRef::EMPTY,
        }
    }
}

impl Backend for Memory {
    fn limits(&self) -> Limits {
        self.limits
    }

    #[inline]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let shared = self.at(offset, buf.len())?;
        // SAFETY: `at` checked that `buf.len()` bytes behind `shared` are inside the mapping, which
        // lives as long as `self`, and that both are whole sectors; all accesses to the mapping's
        // bytes go through `racy_copy`.
        unsafe { self.copier.load(shared, buf) };
        Ok(())
    }

    #[inline]
    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        let shared = self.at(offset, buf.len())?;
        // SAFETY: as in `read_at`; the mapping is writable.
        unsafe { self.copier.store(buf, shared) };
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.unmap(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        if may_unmap {
            return self.unmap(offset, len);
        }
        let (offset, len) = self.range(offset, len)?;
        self.zero_kept(offset, len);
        Ok(())
    }
}

#[cfg(all(test, not(miri)))]
mod tests;
