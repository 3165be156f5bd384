//! Locks of ranges: readers of a range share it, a writer has it alone.

#![forbid(unsafe_code)]

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Bytes of data behind one lock.
const UNIT: u64 = 1 << 20;

/// Number of locks; units share them in turn.
const COUNT: usize = 64;

/// Locks of units of a device.
#[derive(Debug)]
pub(super) struct Locks(Box<[RwLock<()>; COUNT]>);

/// The units of a range: the first lock, and how many follow it in turn.
fn span(offset: u64, len: u64) -> (usize, usize) {
    let first = offset / UNIT;
    let last = offset.saturating_add(len.max(1) - 1) / UNIT;
    let count = usize::try_from(last - first + 1).map_or(COUNT, |count| count.min(COUNT));
    let first = usize::try_from(first % COUNT as u64).unwrap_or(0);
    (first, count)
}

/// The locks of a range while they are held; most requests have one.
#[expect(dead_code, reason = "held until dropped")]
pub(super) enum Held<G> {
    One(G),
    Several(Vec<G>),
}

impl Locks {
    pub(super) fn new() -> Self {
        Self(Box::new([const { RwLock::new(()) }; COUNT]))
    }

    /// The locks of a range in ascending order, which all callers keep: those that follow the last one in turn come first.
    fn of(&self, offset: u64, len: u64) -> impl Iterator<Item = &RwLock<()>> {
        let (first, count) = span(offset, len);
        let end = first + count;
        let (around, here) = (end.saturating_sub(COUNT), first..end.min(COUNT));
        self.0[..around].iter().chain(&self.0[here])
    }

    #[inline]
    fn hold<'a, G>(
        &'a self,
        (offset, len): (u64, u64),
        take: impl Fn(&'a RwLock<()>) -> G,
    ) -> Held<G> {
        let last = offset.wrapping_add(len).wrapping_sub(1);
        if last / UNIT == offset / UNIT
            && let Ok(unit) = usize::try_from(offset / UNIT)
        {
            return Held::One(take(&self.0[unit % COUNT]));
        }
        Held::Several(self.several(offset, len, take))
    }

    #[cold]
    fn several<'a, G>(
        &'a self,
        offset: u64,
        len: u64,
        take: impl Fn(&'a RwLock<()>) -> G,
    ) -> Vec<G> {
        self.of(offset, len).map(take).collect()
    }

    /// Holds a range together with other readers.
    pub(super) fn read(&self, offset: u64, len: u64) -> Held<RwLockReadGuard<'_, ()>> {
        self.hold((offset, len), |lock| {
            lock.read().unwrap_or_else(PoisonError::into_inner)
        })
    }

    /// Holds a range alone.
    pub(super) fn write(&self, offset: u64, len: u64) -> Held<RwLockWriteGuard<'_, ()>> {
        self.hold((offset, len), |lock| {
            lock.write().unwrap_or_else(PoisonError::into_inner)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every unit of a range is locked, and no lock twice.
    #[test]
    fn all_units_of_a_range_are_locked() {
        let all = Locks::new();
        let number = |lock: &RwLock<()>| all.0.iter().position(|it| std::ptr::eq(it, lock));
        let locks = |offset, len| {
            let found = all.of(offset, len).filter_map(number);
            found.collect::<Vec<_>>()
        };
        assert_eq!(locks(0, 512), [0]);
        assert_eq!(locks(UNIT - 512, 1024), [0, 1]);
        assert_eq!(locks(UNIT, UNIT), [1]);
        assert_eq!(locks(63 * UNIT, 2 * UNIT), [0, 63], "ascending");
        assert_eq!(locks(5 * UNIT, 1 << 40), (0..COUNT).collect::<Vec<_>>());
        assert_eq!(locks(u64::MAX - 512, u64::MAX).len(), 1, "no wrap-around");
    }
}
