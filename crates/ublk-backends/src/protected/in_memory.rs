//! Metadata in memory that the driver copies to and from.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ublk_core::Errno;
use ublk_queue::MemRef;

use super::store::{ESCAPE, Store};
use crate::mapping::AtomicBytes;

/// What is never stored: the first bytes of it stand for metadata of pages that are not in use.
static ONES: [u8; 4096] = [ESCAPE; 4096];

/// Where metadata of a READ is, for the driver.
pub(super) enum Source<'a> {
    /// In pages that are in use.
    Here(MemRef<'a>),
    /// Nothing of it is stored.
    Nowhere(&'static [u8]),
    /// Some of it, or it is long: [`Store::load`] has it.
    Mixed,
}

/// Keeps the metadata of a memory device, until the process ends. It takes memory only for pages with metadata that was stored.
///
/// Requests for the same blocks take turns, so that nothing is torn; the accesses are sound without that.
#[derive(Debug)]
pub struct InMemory {
    mapping: AtomicBytes,
    len: usize,
    /// Binary logarithm of the page size.
    page_shift: u32,
    /// A bit for each page in use. What is in the others is undefined, and means all ones.
    used: Box<[AtomicU64]>,
    /// Held while pages come into use.
    beginning: Mutex<()>,
}

/// The word of a page's bit, and the bit.
const fn bit(page: usize) -> (usize, u64) {
    (page / 64, 1 << (page % 64))
}

impl InMemory {
    /// For `len` bytes of metadata.
    ///
    /// # Errors
    /// ENOMEM if the kernel refuses that much address space.
    pub(super) fn new(len: u64) -> Result<Self, Errno> {
        let mapping = AtomicBytes::new(len.max(1))?;
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let page_shift = mapping.page().trailing_zeros();
        let words = (len >> page_shift) / 64 + 1;
        Ok(Self {
            mapping,
            len,
            page_shift,
            used: (0..words).map(|_| AtomicU64::new(0)).collect(),
            beginning: Mutex::new(()),
        })
    }

    /// Checks a range, whose end fits then.
    #[inline]
    fn range(&self, at: u64, len: usize) -> Result<usize, Errno> {
        match usize::try_from(at) {
            Ok(at) if at <= self.len && len <= self.len - at => Ok(at),
            _ => Err(Errno::EIO),
        }
    }

    #[inline]
    fn is_used(&self, page: usize) -> bool {
        let (word, bit) = bit(page);
        self.used[word].load(Ordering::Acquire) & bit != 0
    }

    /// The pages of a range that was checked: the first, and the one behind the last.
    #[inline]
    const fn pages(&self, at: usize, len: usize) -> (usize, usize) {
        let last = at + len.saturating_sub(1);
        (at >> self.page_shift, (last >> self.page_shift) + 1)
    }

    /// Fills a page with ones, and notes that it is in use.
    #[cold]
    fn begin(&self, page: usize) {
        let _one = self
            .beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.is_used(page) {
            return;
        }
        let (at, size) = (page << self.page_shift, 1 << self.page_shift);
        let ones = |byte: &AtomicU8| byte.store(ESCAPE, Ordering::Relaxed);
        self.mapping.bytes(at, size).iter().for_each(ones);
        let (word, bit) = bit(page);
        self.used[word].fetch_or(bit, Ordering::Release);
    }

    /// Where a READ's metadata is.
    #[inline]
    pub(super) fn source(&self, at: u64, len: usize) -> Result<Source<'_>, Errno> {
        let at = self.range(at, len)?;
        let (first, end) = self.pages(at, len);
        let used = self.is_used(first);
        if (first + 1..end).any(|page| self.is_used(page) != used) {
            return Ok(Source::Mixed);
        }
        Ok(match ONES.get(..len) {
            _ if used => Source::Here(self.mapping.memory(at, len)),
            Some(ones) => Source::Nowhere(ones),
            None => Source::Mixed,
        })
    }

    /// Where a WRITE's metadata goes.
    #[inline]
    pub(super) fn destination(&self, at: u64, len: usize) -> Result<MemRef<'_>, Errno> {
        let at = self.range(at, len)?;
        let (first, end) = self.pages(at, len);
        for page in first..end {
            if !self.is_used(page) {
                self.begin(page);
            }
        }
        Ok(self.mapping.memory(at, len))
    }
}

impl Store for InMemory {
    fn load(&self, _range: (u64, u64), at: u64, to: &mut [u8]) -> Result<(), Errno> {
        let at = self.range(at, to.len())?;
        let from = self.mapping.bytes(at, to.len());
        for (place, (to, from)) in (at..).zip(to.iter_mut().zip(from)) {
            *to = match self.is_used(place >> self.page_shift) {
                true => from.load(Ordering::Relaxed),
                false => ESCAPE,
            };
        }
        Ok(())
    }

    fn store(&self, at: u64, from: &[u8]) -> Result<(), Errno> {
        self.destination(at, from.len())?;
        let at = self.range(at, from.len())?;
        for (to, from) in self.mapping.bytes(at, from.len()).iter().zip(from) {
            to.store(*from, Ordering::Relaxed);
        }
        Ok(())
    }

    fn erase(&self, at: u64, len: u64) -> Result<(), Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::EIO)?;
        let at = self.range(at, len)?;
        let (end, size) = (at + len, 1 << self.page_shift);
        let (first, last) = self.pages(at, len);
        for page in (first..last).filter(|page| self.is_used(*page)) {
            let begin = page << self.page_shift;
            if at <= begin && (begin + size <= end || end == self.len) {
                // Its blocks are all of this range.
                let (word, bit) = bit(page);
                self.used[word].fetch_and(!bit, Ordering::Release);
                self.mapping.give_back(begin, size);
            } else {
                let (from, to) = (at.max(begin), end.min(begin + size));
                let ones = |byte: &AtomicU8| byte.store(ESCAPE, Ordering::Relaxed);
                self.mapping.bytes(from, to - from).iter().for_each(ones);
            }
        }
        Ok(())
    }

    fn forget(&self, _range: (u64, u64), at: u64, len: u64) {
        // It fails only for a range beyond the device.
        let _ = self.erase(at, len);
    }
}
