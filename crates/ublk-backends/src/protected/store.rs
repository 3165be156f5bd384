//! Where metadata is kept.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use ublk_core::{Backend, Errno};

use crate::error::Error;

/// The metadata of a block that has none: its application tag tells the block layer to verify nothing.
pub(super) const ESCAPE: u8 = 0xff;

/// What an opening after a crash found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Checked {
    /// Regions in which data and metadata could differ.
    pub regions: u64,
    /// Intervals in them whose metadata matches their data.
    pub kept: u64,
    /// Intervals whose metadata was taken, because it does not match, or their data cannot be read.
    pub dropped: u64,
}

/// Keeps metadata by its position; what was never stored is all ones. Callers of overlapping ranges take turns.
///
/// A `range` is an offset on the device and a length, in bytes; `at` and `len` are of its metadata.
pub(super) trait Store: Send + Sync + 'static {
    /// Fills `to` from position `at`.
    fn load(&self, range: (u64, u64), at: u64, to: &mut [u8]) -> Result<(), Errno>;

    /// Stores `from` at position `at`.
    fn store(&self, at: u64, from: &[u8]) -> Result<(), Errno>;

    /// Makes `len` bytes at position `at` all ones.
    fn erase(&self, at: u64, len: u64) -> Result<(), Errno>;

    /// The same, durable on return, so that its data may change.
    fn erase_durably(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.erase(at, len)
    }

    /// Erases for data that has changed already: what cannot be erased is not loaded any more.
    fn forget(&self, range: (u64, u64), at: u64, len: u64);

    /// Prepares for a write to data and metadata, which a crash may tear apart.
    fn begin(&self, range: (u64, u64), data: &dyn Backend) -> Result<(), Errno> {
        let _ = (range, data);
        Ok(())
    }

    /// The write has ended, well or not.
    fn end(&self, range: (u64, u64)) {
        let _ = range;
    }

    /// Makes data and metadata durable.
    fn flush(&self, data: &dyn Backend) -> Result<(), Errno> {
        data.flush()
    }

    /// Begins to serve, once nobody else does; waits that long.
    fn start(&self, data: &dyn Backend, wait: Duration) -> Result<Checked, Error> {
        let _ = (data, wait);
        Ok(Checked::default())
    }

    /// Notes that nothing has to be checked at the next opening, if so.
    fn close(&self, data: &dyn Backend) -> Result<(), Errno> {
        let _ = data;
        Ok(())
    }

    /// Adapts to another size of the device.
    fn resize(&self, size: u64) -> Result<(), Errno> {
        let _ = size;
        Err(Errno::EOPNOTSUPP)
    }
}

/// For a device that keeps nothing.
#[derive(Debug)]
pub(super) struct Nowhere;

impl Store for Nowhere {
    fn load(&self, _range: (u64, u64), _at: u64, to: &mut [u8]) -> Result<(), Errno> {
        to.fill(ESCAPE);
        Ok(())
    }

    fn store(&self, _at: u64, _from: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn erase(&self, _at: u64, _len: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn forget(&self, _range: (u64, u64), _at: u64, _len: u64) {}
}

/// Bytes of metadata that are allocated together.
const PIECE: usize = 4096;

/// For memory, which ends with the process.
#[derive(Debug)]
pub(super) struct InMemory(RwLock<Pieces>);

/// Pieces by number; one that is missing is all ones.
type Pieces = HashMap<u64, Box<[u8; PIECE]>, BuildHasherDefault<Spread>>;

/// Hashes the number of a piece by a multiplication: the standard hash resists keys that are chosen to collide, but these are
/// positions on a device, and it takes more instructions than all else that a block of metadata needs.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio; the high bits are the best, the map uses low ones, too.
        let spread = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ spread >> 32;
    }
}

/// The piece of a position, the position in it, and how many of `len` bytes it has.
fn piece(at: u64, len: u64) -> (u64, usize, usize) {
    let within = usize::try_from(at % PIECE as u64).unwrap_or(0);
    let count = usize::try_from(len).map_or(PIECE - within, |len| len.min(PIECE - within));
    (at / PIECE as u64, within, count)
}

impl InMemory {
    pub(super) fn new() -> Self {
        Self(RwLock::default())
    }

    fn change(&self) -> RwLockWriteGuard<'_, Pieces> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for InMemory {
    fn load(&self, _range: (u64, u64), mut at: u64, to: &mut [u8]) -> Result<(), Errno> {
        let pieces = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = to;
        while !rest.is_empty() {
            let (number, within, count) = piece(at, rest.len() as u64);
            let (here, after) = rest.split_at_mut(count);
            match pieces.get(&number) {
                Some(piece) => here.copy_from_slice(&piece[within..within + count]),
                None => here.fill(ESCAPE),
            }
            (rest, at) = (after, at + count as u64);
        }
        Ok(())
    }

    fn store(&self, mut at: u64, from: &[u8]) -> Result<(), Errno> {
        let mut pieces = self.change();
        let mut rest = from;
        while !rest.is_empty() {
            let (number, within, count) = piece(at, rest.len() as u64);
            let (here, after) = rest.split_at(count);
            let piece = pieces
                .entry(number)
                .or_insert_with(|| Box::new([ESCAPE; PIECE]));
            piece[within..within + count].copy_from_slice(here);
            (rest, at) = (after, at + count as u64);
        }
        Ok(())
    }

    fn erase(&self, at: u64, len: u64) -> Result<(), Errno> {
        let end = at.saturating_add(len);
        let (first, last) = (at / PIECE as u64, end.div_ceil(PIECE as u64));
        let mut pieces = self.change();
        let clear = |pieces: &mut Pieces, number: u64| {
            let begin = number * PIECE as u64;
            let (_, from, _) = piece(at.max(begin), 0);
            let to = usize::try_from(end - begin).map_or(PIECE, |to| to.min(PIECE));
            if (from, to) == (0, PIECE) {
                pieces.remove(&number);
            } else if let Some(piece) = pieces.get_mut(&number) {
                piece[from..to].fill(ESCAPE);
            }
        };
        // Whichever is less: the pieces of the range, or those that exist.
        if last - first > pieces.len() as u64 {
            let numbers: Vec<u64> = pieces.keys().copied().collect();
            let numbers = numbers.into_iter().filter(|n| (first..last).contains(n));
            numbers.for_each(|number| clear(&mut pieces, number));
        } else {
            (first..last).for_each(|number| clear(&mut pieces, number));
        }
        Ok(())
    }

    fn forget(&self, _range: (u64, u64), at: u64, len: u64) {
        // It cannot fail.
        let _ = self.erase(at, len);
    }
}
