//! A device made of several files: one after the other, or striped.

#![forbid(unsafe_code)]

mod handler;
mod map;

use std::sync::atomic::{AtomicU64, Ordering};

use ublk_core::{Backend, DataMode, Errno, Limits};

use crate::error::{Error, MAX_SIZE};
use crate::file::File;
use map::Map;

pub use handler::ComposedHandler;
pub use map::Layout;

/// The largest number of members.
const MAX_MEMBERS: usize = 64;

/// The largest optimal I/O size that the driver accepts.
const MAX_IO_SIZE: u64 = 256 << 20;

/// A device whose data is in several files.
///
/// * **Members** are [`File`]s, each with its window. A linear device has them one after the other; a stripe deals chunks
///   to them in turn and uses as much of each as of the smallest.
/// * **Data** goes straight to the members, in zero copy, too: a request inside one member is forwarded as by a [`File`],
///   one that spans members is split by the engine.
/// * **FLUSH** syncs every member; a FUA write, the members it touches, or all if it spans several.
/// * **Limits** are those that every member can keep: the largest block, the strictest memory.
/// * **Nothing is redundant**: without one member the device has lost its data. For redundancy, growth, thin provisioning
///   and snapshots use the kernel's device mapper or MD.
///
/// ```
/// use ublk_backends::{Composed, Created, File};
/// use ublk_core::Backend;
///
/// let directory = tempfile::tempdir()?;
/// let mut members = Vec::new();
/// for name in ["a.img", "b.img"] {
///     let path = directory.path().join(name);
///     Created::new(&path, 1 << 20)?.keep();
///     members.push(File::options(&path).open()?);
/// }
/// let stripe = Composed::stripe(members, 64 << 10)?;
/// assert_eq!(stripe.limits().size, 2 << 20);
/// stripe.write_at(&[7; 4096], 64 << 10, true)?; // the first chunk of b.img
/// let mut block = [0; 4096];
/// stripe.members()[1].read_at(&mut block, 0)?;
/// assert_eq!(block, [7; 4096]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Composed {
    members: Vec<File>,
    map: Map,
    limits: Limits,
    /// FLUSH and FUA requests.
    syncs: AtomicU64,
}

impl Composed {
    /// A device of files one after the other.
    ///
    /// # Errors
    /// As for [`Composed::new`].
    pub fn linear(members: Vec<File>) -> Result<Self, Error> {
        Self::new(Layout::Linear, members)
    }

    /// A device of files that are dealt chunks of this many bytes in turn.
    ///
    /// # Errors
    /// As for [`Composed::new`].
    pub fn stripe(members: Vec<File>, chunk: u32) -> Result<Self, Error> {
        Self::new(Layout::Stripe { chunk }, members)
    }

    /// A device of files in this layout.
    ///
    /// # Errors
    /// [`Error::Members`], [`Error::Chunk`], [`Error::MemberBlocks`], [`Error::NoChunk`], [`Error::Overlap`],
    /// [`Error::TooLarge`].
    pub fn new(layout: Layout, members: Vec<File>) -> Result<Self, Error> {
        if !(1..=MAX_MEMBERS).contains(&members.len()) {
            return Err(Error::Members(members.len()));
        }
        let block = members.iter().map(|m| m.limits().logical_block_size).max();
        let block = block.unwrap_or(512);
        if let Layout::Stripe { chunk } = layout {
            if !chunk.is_power_of_two() || !(4096..=1 << 28).contains(&chunk) {
                return Err(Error::Chunk(chunk));
            }
            let small = |m: &File| m.limits().size < u64::from(chunk);
            if let Some(member) = members.iter().position(small) {
                let size = members[member].limits().size;
                return Err(Error::NoChunk {
                    member,
                    size,
                    chunk,
                });
            }
        }
        let odd = |m: &File| !m.limits().size.is_multiple_of(block.into());
        if layout == Layout::Linear
            && let Some(member) = members.iter().position(odd)
        {
            let size = members[member].limits().size;
            return Err(Error::MemberBlocks {
                member,
                size,
                block_size: block,
            });
        }
        check_overlap(&members)?;
        let lengths: Vec<u64> = members.iter().map(|m| m.limits().size).collect();
        let sum = lengths.iter().fold(0, |sum: u64, n| sum.saturating_add(*n));
        let too_large = |size| Error::TooLarge {
            size,
            max: MAX_SIZE,
        };
        let map = Map::new(layout, &lengths).ok_or(too_large(sum))?;
        if map.size() > MAX_SIZE {
            return Err(too_large(map.size()));
        }
        Ok(Self {
            limits: limits(layout, map.size(), &members),
            members,
            map,
            syncs: AtomicU64::new(0),
        })
    }

    /// The files, in order.
    #[must_use]
    pub fn members(&self) -> &[File] {
        &self.members
    }

    /// The indices of the members that hold a range of the device; all of them for a range of length 0, as of a FLUSH.
    #[must_use]
    pub fn members_of(&self, offset: u64, len: u64) -> Vec<usize> {
        let range = match len {
            0 => (0, self.map.size()),
            _ => (offset, len),
        };
        let pieces = self.map.ranges(range.0, range.1);
        pieces.map(|piece| piece.member).collect()
    }

    /// Whether all members bypass this machine's page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.members.iter().all(File::is_direct)
    }

    /// Whether some member's file is in memory ([`File::is_in_memory`]).
    #[must_use]
    pub fn has_memory(&self) -> bool {
        self.members.iter().any(File::is_in_memory)
    }

    /// The cheapest data mode on a kernel that supports it: that of the members, copy if they differ.
    #[must_use]
    pub fn favoured_data(&self) -> DataMode {
        match self.has_memory() {
            true => DataMode::Copy,
            false => DataMode::ZeroCopy,
        }
    }

    /// Number of FLUSH and FUA requests, and of fdatasync calls by the members themselves: see [`File::syncs`].
    #[must_use]
    pub fn syncs(&self) -> (u64, u64) {
        let calls = self.members.iter().map(|member| member.syncs().1).sum();
        (self.syncs.load(Ordering::Relaxed), calls)
    }

    fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let end = offset.checked_add(len);
        match end.is_some_and(|end| end <= self.map.size()) {
            true => Ok(()),
            false => Err(Errno::EIO),
        }
    }
}

/// Refuses members that share bytes.
fn check_overlap(members: &[File]) -> Result<(), Error> {
    for (second, two) in members.iter().enumerate() {
        let shares = |one: &File| {
            let ends = |m: &File| m.base().saturating_add(m.limits().size);
            one.identity().is(&two.identity()) && one.base() < ends(two) && two.base() < ends(one)
        };
        if let Some(first) = members[..second].iter().position(shares) {
            return Err(Error::Overlap { first, second });
        }
    }
    Ok(())
}

/// The limits that every member keeps.
fn limits(layout: Layout, size: u64, members: &[File]) -> Limits {
    let all = || members.iter().map(Backend::limits);
    let most = |of: fn(&Limits) -> u32| all().map(|l| of(&l)).max().unwrap_or(0);
    // 0 is no limit.
    let least =
        |of: fn(&Limits) -> u32| all().map(|l| of(&l)).filter(|n| *n != 0).min().unwrap_or(0);
    let mut limits = Limits::new(size)
        .block_size(most(|l| l.logical_block_size))
        .read_only(all().any(|l| l.read_only))
        .volatile_cache(all().any(|l| l.volatile_cache))
        .fua(all().all(|l| l.fua))
        .quick(all().all(|l| l.quick));
    limits.physical_block_size = most(|l| l.physical_block_size);
    limits.rotational = all().any(|l| l.rotational);
    limits.max_write_zeroes = all().map(|l| l.max_write_zeroes).min().unwrap_or(0);
    let discards = all().all(|l| l.max_discard != 0);
    let granularity = most(|l| l.discard_granularity);
    let max_discard = all().map(|l| l.max_discard).min().unwrap_or(0);
    if discards && max_discard >= granularity.into() {
        limits = limits.discard(max_discard, granularity);
    }
    let segments = u16::try_from(least(|l| l.max_segments.into())).unwrap_or(0);
    limits = limits.memory(
        most(|l| l.dma_alignment),
        segments,
        least(|l| l.max_segment_size),
    );
    match layout {
        Layout::Linear => limits.optimal_io_size = most(|l| l.optimal_io_size),
        Layout::Stripe { chunk } => {
            limits.minimum_io_size = chunk.max(limits.logical_block_size);
            let row = u64::from(chunk) * members.len() as u64;
            // The driver takes powers of two only.
            if row.is_power_of_two()
                && (limits.physical_block_size.into()..=MAX_IO_SIZE).contains(&row)
            {
                limits.optimal_io_size = u32::try_from(row).unwrap_or(0);
            }
        }
    }
    limits
}

impl Backend for Composed {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.check(offset, buf.len() as u64)?;
        let mut rest = buf;
        for piece in self.map.parts(offset, rest.len() as u64) {
            let (part, after) = rest.split_at_mut(usize::try_from(piece.len).unwrap_or(0));
            self.members[piece.member].read_at(part, piece.at)?;
            rest = after;
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.check(offset, buf.len() as u64)?;
        let mut rest = buf;
        for piece in self.map.parts(offset, rest.len() as u64) {
            let (part, after) = rest.split_at(usize::try_from(piece.len).unwrap_or(0));
            self.members[piece.member].write_at(part, piece.at, false)?;
            rest = after;
        }
        if fua {
            self.count_sync();
            for piece in self.map.ranges(offset, buf.len() as u64) {
                self.members[piece.member].flush()?;
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        self.count_sync();
        // All are synced, whatever becomes of one.
        let results = self.members.iter().map(Backend::flush);
        results.fold(Ok(()), Result::and)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.check(offset, len)?;
        let mut pieces = self.map.ranges(offset, len);
        pieces.try_for_each(|piece| self.members[piece.member].discard(piece.at, piece.len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.check(offset, len)?;
        let mut pieces = self.map.ranges(offset, len);
        pieces.try_for_each(|piece| {
            self.members[piece.member].write_zeroes(piece.at, piece.len, may_unmap)
        })
    }
}

#[cfg(all(test, not(miri)))]
mod tests;
