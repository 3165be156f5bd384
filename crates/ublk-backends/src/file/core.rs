//! The requests of a file device, over any [`Layer`](super::layer::Layer).

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ublk_core::{Backend, Errno, Limits};

use super::aligned::{Aligned, zeroes};
use super::layer::Layer;
use super::os::Alignment;
use super::sync::Syncs;

/// A device in a window of a file.
#[derive(Debug)]
pub(crate) struct Core<L> {
    pub(crate) layer: L,
    /// Offset of the device in the file.
    pub(crate) base: u64,
    pub(crate) limits: Limits,
    /// Size of the device in bytes; [`Limits::size`] is its initial size.
    pub(crate) size: AtomicU64,
    /// Alignment for O_DIRECT; 1 and 1 without it.
    pub(crate) alignment: Alignment,
    pub(crate) syncs: Syncs,
    /// Zeroes and discards are sent in multiples of this; 1 for any range.
    pub(crate) unit: u64,
    /// The file has returned EOPNOTSUPP.
    pub(crate) no_unmap: AtomicBool,
    pub(crate) no_zero: AtomicBool,
}

impl<L: Layer> Core<L> {
    pub(crate) fn new(layer: L, base: u64, limits: Limits, alignment: Alignment) -> Self {
        Self {
            layer,
            base,
            limits,
            size: AtomicU64::new(limits.size),
            alignment,
            syncs: Syncs::default(),
            unit: 1,
            no_unmap: AtomicBool::new(false),
            no_zero: AtomicBool::new(false),
        }
    }

    /// Sends zeroes and discards in whole units of the underlying disk.
    pub(crate) const fn unit(mut self, bytes: u32) -> Self {
        self.unit = if bytes == 0 { 1 } else { bytes as u64 };
        self
    }

    /// The whole units inside a range of the file: begin and end, equal if there is none.
    const fn whole(&self, at: u64, len: u64) -> (u64, u64) {
        let last = (at + len) / self.unit * self.unit;
        // A range that ends beyond the last unit below 2^64 has no whole unit there.
        match at.checked_next_multiple_of(self.unit) {
            Some(first) if first < last => (first, last),
            _ => (at, at),
        }
    }

    /// The position in the file of a range of the device; EIO outside of it.
    #[inline]
    pub(crate) fn place(&self, offset: u64, len: u64) -> Result<u64, Errno> {
        let size = self.size.load(Ordering::Relaxed);
        // Nothing is added before it is known to be inside, so nothing wraps (L13).
        if offset > size || len > size - offset {
            return Err(Errno::EIO);
        }
        Ok(self.base + offset)
    }

    #[inline]
    fn suits(&self, buf: &[u8]) -> bool {
        let align = usize::try_from(self.alignment.memory).unwrap_or(usize::MAX);
        buf.as_ptr().addr().is_multiple_of(align)
    }

    /// Where to continue after a transfer of `n` bytes beyond `done` of `len`. With O_DIRECT a transfer can only
    /// continue at whole units; less than one unit is no progress: the end of the file, or a stuck disk.
    #[inline]
    fn behind(&self, done: usize, n: usize, len: usize) -> Result<usize, Errno> {
        let now = done.saturating_add(n);
        if now == len {
            return Ok(now);
        }
        let unit = usize::try_from(self.alignment.position).unwrap_or(1);
        let whole = now / unit * unit;
        if now > len || whole <= done {
            return Err(Errno::EIO);
        }
        Ok(whole)
    }

    fn fill(&self, buf: &mut [u8], at: u64) -> Result<(), Errno> {
        let mut done = 0;
        while done < buf.len() {
            let n = self.layer.read(&mut buf[done..], at + done as u64)?;
            done = self.behind(done, n, buf.len())?;
        }
        Ok(())
    }

    fn store(&self, buf: &[u8], at: u64) -> Result<(), Errno> {
        let mut done = 0;
        while done < buf.len() {
            let n = self.layer.write(&buf[done..], at + done as u64)?;
            done = self.behind(done, n, buf.len())?;
        }
        Ok(())
    }

    /// Reads through an aligned buffer, for callers whose memory is not aligned. The engine's is.
    #[cold]
    fn fill_misaligned(&self, buf: &mut [u8], at: u64) -> Result<(), Errno> {
        let mut memory = Aligned::new(buf.len());
        self.fill(memory.bytes(), at)?;
        buf.copy_from_slice(memory.bytes());
        Ok(())
    }

    #[cold]
    fn store_misaligned(&self, buf: &[u8], at: u64) -> Result<(), Errno> {
        let mut memory = Aligned::new(buf.len());
        memory.bytes().copy_from_slice(buf);
        self.store(memory.bytes(), at)
    }

    /// Makes all completed writes durable, together with concurrent callers.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        self.syncs.wait(|| self.layer.sync())
    }

    /// Writes zeroes as data.
    fn write_zeroes_as_data(&self, mut at: u64, mut len: u64) -> Result<(), Errno> {
        while len > 0 {
            let part = usize::try_from(len).unwrap_or(usize::MAX);
            let part = &zeroes()[..part.min(zeroes().len())];
            self.store(part, at)?;
            at += part.len() as u64;
            len -= part.len() as u64;
        }
        Ok(())
    }

    /// Calls unless the operation is known to be unsupported; remembers the first EOPNOTSUPP.
    fn unless(refused: &AtomicBool, call: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        if refused.load(Ordering::Relaxed) {
            return Err(Errno::EOPNOTSUPP);
        }
        let result = call();
        if result == Err(Errno::EOPNOTSUPP) {
            refused.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl<L: Layer> Backend for Core<L> {
    fn limits(&self) -> Limits {
        self.limits
    }

    #[inline]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let at = self.place(offset, buf.len() as u64)?;
        if self.suits(buf) {
            self.fill(buf, at)
        } else {
            self.fill_misaligned(buf, at)
        }
    }

    #[inline]
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        let at = self.place(offset, buf.len() as u64)?;
        if self.suits(buf) {
            self.store(buf, at)?;
        } else {
            self.store_misaligned(buf, at)?;
        }
        if fua { self.sync() } else { Ok(()) }
    }

    fn flush(&self) -> Result<(), Errno> {
        self.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        // A discard is advice: parts of units are kept.
        let at = self.place(offset, len)?;
        let (first, last) = self.whole(at, len);
        if first == last {
            return Ok(());
        }
        self.layer.discard(first, last - first)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        let at = self.place(offset, len)?;
        let (first, last) = self.whole(at, len);
        // Parts of units at either end are written as data.
        self.write_zeroes_as_data(at, first - at)?;
        self.write_zeroes_as_data(last, at + len - last)?;
        if first == last {
            return Ok(());
        }
        let (at, len) = (first, last - first);
        if may_unmap {
            match Self::unless(&self.no_unmap, || self.layer.unmap(at, len)) {
                Err(Errno::EOPNOTSUPP) => {}
                other => return other,
            }
        }
        match Self::unless(&self.no_zero, || self.layer.zero(at, len)) {
            Err(Errno::EOPNOTSUPP) => self.write_zeroes_as_data(at, len),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests;
