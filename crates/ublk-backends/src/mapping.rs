//! Anonymous memory that is populated on write.

// Allowed here for mmap, madvise and views of the mapping: the module owns the mapping and its length, and only hands out
// pointers and references to checked ranges.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU8;

use ublk_core::Errno;
use ublk_queue::MemRef;

/// A private anonymous mapping without reserve, not inherited by children, left out of core dumps.
///
/// # Invariants
/// `base` is page-aligned and is the start of a live mapping of `len` bytes, readable and writable, that only this
/// value unmaps. `len` is a multiple of the page size and at most `isize::MAX`.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    page: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; `Mapping` has no other state.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` only gives raw pointers; accesses through them must tolerate races (`ublk_queue::racy_copy`).
// Several threads may call madvise and mincore at once.
unsafe impl Sync for Mapping {}

/// The page size of the running kernel, in bytes.
fn page_size() -> usize {
    // SAFETY: sysconf has no memory arguments.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

impl Mapping {
    /// Maps `len` bytes, rounded up to whole pages.
    pub(crate) fn new(len: u64) -> Result<Self, Errno> {
        let page = page_size();
        let len = usize::try_from(len)
            .ok()
            .and_then(|len| len.checked_next_multiple_of(page))
            .filter(|len| isize::try_from(*len).is_ok())
            .ok_or(Errno::ENOMEM)?;
        // SAFETY: no address is requested, so no existing mapping is touched; no descriptor.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Errno::from_io(&io::Error::last_os_error()));
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        let mapping = Self { base, len, page };
        // A child would share the pages copy-on-write and double the memory; a core dump would contain the users' data.
        // DONTFORK is required, DONTDUMP is a courtesy.
        mapping.advise(0, len, libc::MADV_DONTFORK)?;
        let _ = mapping.advise(0, len, libc::MADV_DONTDUMP);
        Ok(mapping)
    }

    /// The page size, in bytes.
    pub(crate) const fn page(&self) -> usize {
        self.page
    }

    /// A pointer to byte `offset`, with `len` bytes after it inside the mapping.
    ///
    /// # Panics
    /// If the range is not inside the mapping: callers must have checked it against the device.
    #[inline]
    pub(crate) fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(
            offset <= self.len && len <= self.len - offset,
            "checked against the device's size"
        );
        // SAFETY: `offset <= self.len`, so the result is inside the mapping or one past its end,
        // and the offset fits isize (both by the type's invariant and the assert above).
        unsafe { self.base.add(offset) }
    }

    /// Returns whole pages to the kernel; they read as zeroes afterwards. False, with nothing changed, if the kernel
    /// refuses (locked memory).
    pub(crate) fn give_back(&self, offset: usize, len: usize) -> bool {
        len == 0 || self.advise(offset, len, libc::MADV_DONTNEED).is_ok()
    }

    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) -> Result<(), Errno> {
        let start = self.at(offset, len);
        // SAFETY: the range is inside our own mapping (`at`), which holds no Rust objects: its bytes
        // are accessed by the copies of `ublk_queue::racy_copy` only, for which any byte value is valid, so that
        // pages turning into zeroes (DONTNEED) break no invariant.
        let done = unsafe { libc::madvise(start.as_ptr().cast(), len, advice) };
        if done != 0 {
            return Err(Errno::from_io(&io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Number of bytes of the mapping that are populated now.
    pub(crate) fn resident(&self) -> Result<u64, Errno> {
        const PAGES: usize = 1 << 16;
        let mut map = vec![0_u8; PAGES.min(self.len / self.page)];
        let mut offset = 0;
        let mut pages = 0_u64;
        while offset < self.len {
            let len = (self.len - offset).min(map.len() * self.page);
            let start = self.at(offset, len);
            // SAFETY: the range is page-aligned and inside our mapping; `map` has a byte for each of
            // its pages, `len / page <= map.len()`.
            let done = unsafe { libc::mincore(start.as_ptr().cast(), len, map.as_mut_ptr()) };
            if done != 0 {
                return Err(Errno::from_io(&io::Error::last_os_error()));
            }
            pages += map
                .iter()
                .take(len / self.page)
                .map(|b| u64::from(b & 1))
                .sum::<u64>();
            offset += len;
        }
        Ok(pages * self.page as u64)
    }
}

/// A mapping whose bytes are atomic.
///
/// # Invariants
/// All accesses to the mapping are those of `bytes`, or the kernel's.
#[derive(Debug)]
pub(crate) struct AtomicBytes(Mapping);

impl AtomicBytes {
    /// Maps `len` bytes, rounded up to whole pages.
    pub(crate) fn new(len: u64) -> Result<Self, Errno> {
        Mapping::new(len).map(Self)
    }

    /// The page size, in bytes.
    pub(crate) const fn page(&self) -> usize {
        self.0.page()
    }

    /// A range, which must be inside.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> &[AtomicU8] {
        let first = self.0.at(at, len).cast::<AtomicU8>();
        // SAFETY: inside the mapping, readable and writable, which lives as long as `self`; by the type's invariant no plain
        // access and no exclusive reference to it exists.
        unsafe { std::slice::from_raw_parts(first.as_ptr(), len) }
    }

    /// A range, which must be inside, for the kernel.
    #[inline]
    pub(crate) fn memory(&self, at: usize, len: usize) -> MemRef<'_> {
        let first = self.0.at(at, len);
        // SAFETY: inside the mapping, readable and writable, which lives as long as `self`. The references to it are to
        // atomic bytes, which others may change.
        unsafe { MemRef::new(first, len) }
    }

    /// Returns whole pages to the kernel, if it takes them: what they contain is undefined.
    pub(crate) fn give_back(&self, at: usize, len: usize) {
        // Pages that it keeps have their content.
        let _ = self.0.give_back(at, len);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `base` and `len` are exactly what mmap returned; pointers from `at` are only used while the owner of
        // this value is borrowed.
        let _ = unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
