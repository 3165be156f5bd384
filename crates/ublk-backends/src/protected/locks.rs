//! Locks of ranges: readers of a range share it, a writer has it alone.

#![forbid(unsafe_code)]

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of data behind one lock.
const UNIT: u64 = 1 << 20;

/// Number of locks; units share them in turn.
const COUNT: usize = 64;

/// Locks of units of a device.
#[derive(Debug)]
pub(super) struct Locks(Box<[RwLock<()>]>);

/// The units of a range: the first lock, and how many follow it in turn.
fn span(offset: u64, len: u64) -> (usize, usize) {
    let first = offset / UNIT;
    let last = offset.saturating_add(len.max(1) - 1) / UNIT;
    let count = usize::try_from(last - first + 1).map_or(COUNT, |count| count.min(COUNT));
    let first = usize::try_from(first % COUNT as u64).unwrap_or(0);
    (first, count)
}

/// Whether a lock is in that span.
const fn is_in((first, count): (usize, usize), lock: usize) -> bool {
    (lock + COUNT - first) % COUNT < count
}

impl Locks {
    pub(super) fn new() -> Self {
        Self((0..COUNT).map(|_| RwLock::new(())).collect())
    }

    /// The locks of a range, in an order that all callers keep.
    fn of(&self, offset: u64, len: u64) -> impl Iterator<Item = &RwLock<()>> {
        let span = span(offset, len);
        let all = self.0.iter().enumerate();
        all.filter_map(move |(n, lock)| is_in(span, n).then_some(lock))
    }

    /// Holds a range together with other readers.
    pub(super) fn read(&self, offset: u64, len: u64) -> Vec<RwLockReadGuard<'_, ()>> {
        let all = self.of(offset, len);
        all.map(|lock| lock.read().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    /// Holds a range alone.
    pub(super) fn write(&self, offset: u64, len: u64) -> Vec<RwLockWriteGuard<'_, ()>> {
        let all = self.of(offset, len);
        all.map(|lock| lock.write().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every unit of a range is locked, and no lock twice.
    #[test]
    fn all_units_of_a_range_are_locked() {
        let locks = |offset, len| {
            let span = span(offset, len);
            (0..COUNT).filter(|n| is_in(span, *n)).collect::<Vec<_>>()
        };
        assert_eq!(locks(0, 512), [0]);
        assert_eq!(locks(UNIT - 512, 1024), [0, 1]);
        assert_eq!(locks(UNIT, UNIT), [1]);
        assert_eq!(locks(63 * UNIT, 2 * UNIT), [0, 63], "ascending");
        assert_eq!(locks(5 * UNIT, 1 << 40).len(), COUNT);
        assert_eq!(locks(u64::MAX - 512, u64::MAX).len(), 1, "no wrap-around");
    }
}
