//! Which regions of a device may have data and metadata of different writes on the disk.
//!
//! A region is *dirty* from before the first write to it until data and metadata are known to be durable. Its bit is on the
//! disk before the write begins. Clearing a bit never waits: one that stays costs a check at the next opening.

#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ublk_core::Errno;

/// Flushes that a region stays dirty without a write: one that is written often is not marked for each write.
const PATIENCE: u64 = 8;

/// Writes a word of the bitmap, by its number.
pub(super) type Write<'a> = &'a dyn Fn(u64, u64) -> Result<(), Errno>;

/// The dirty regions of a device.
#[derive(Debug)]
pub(super) struct Regions {
    /// Bytes of a region.
    bytes: u64,
    /// Dirty regions above which a writer cleans some first, so that few have to be checked after a crash.
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The bitmap as it is in the file.
    words: Vec<u64>,
    dirty: HashMap<u64, Region>,
    /// Flushes that have begun.
    flushes: u64,
    /// A flush failed: what it should have made durable may be lost, so nothing is cleared any more.
    doubtful: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct Region {
    /// Its bit is on the disk.
    durable: bool,
    /// Writes in progress.
    busy: u32,
    /// Flushes that had begun when the last write ended.
    last: u64,
    /// Its metadata in the file is not to be believed.
    lost: bool,
}

/// Which regions a flush cleans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clean {
    /// Those that nobody has written for a while.
    Old,
    /// Those that were written first, until there is room for others.
    Half,
    /// All.
    All,
}

impl State {
    fn set(&mut self, region: u64, on: bool) -> Option<(u64, u64)> {
        let word = self.words.get_mut(usize::try_from(region / 64).ok()?)?;
        let bit = 1 << (region % 64);
        *word = if on { *word | bit } else { *word & !bit };
        Some((region / 64, *word))
    }
}

impl Regions {
    /// Regions of `bytes` each, of which those in the bitmap `words` are dirty.
    pub(super) fn new(bytes: u64, most: usize, words: Vec<u64>) -> Self {
        let found = Region {
            durable: true,
            ..Region::default()
        };
        let dirty = dirty_in(&words).map(|region| (region, found)).collect();
        Self {
            bytes,
            most,
            state: Mutex::new(State {
                words,
                dirty,
                flushes: 0,
                doubtful: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The regions of a range of the device.
    pub(super) const fn of(&self, (offset, len): (u64, u64)) -> RangeInclusive<u64> {
        let last = offset.saturating_add(if len == 0 { 0 } else { len - 1 });
        offset / self.bytes..=last / self.bytes
    }

    /// Whether these would be more dirty regions than there should be.
    pub(super) fn is_full(&self, range: RangeInclusive<u64>) -> bool {
        let state = self.lock();
        let new = range.filter(|region| !state.dirty.contains_key(region));
        let new = new.count();
        new != 0 && state.dirty.len() + new > self.most
    }

    /// Notes that writes to these regions begin. True if their bits have to be synced first.
    ///
    /// # Errors
    /// The errno of writing a word; nothing has begun.
    pub(super) fn begin(
        &self,
        range: RangeInclusive<u64>,
        write: Write<'_>,
    ) -> Result<bool, Errno> {
        let mut state = self.lock();
        let mut new = false;
        for region in range.clone() {
            let entry = state.dirty.entry(region).or_default();
            entry.busy += 1;
            if entry.durable {
                continue;
            }
            new = true;
            // Also if another write has done it: after a failed sync only what is written again is synced again.
            let word = state.set(region, true).ok_or(Errno::EIO);
            if let Err(errno) = word.and_then(|(number, word)| write(number, word)) {
                Self::abort_in(&mut state, *range.start()..=region);
                return Err(errno);
            }
        }
        Ok(new)
    }

    /// Notes that the bits of these regions are on the disk.
    pub(super) fn synced(&self, range: RangeInclusive<u64>) {
        let mut state = self.lock();
        for region in range {
            if let Some(entry) = state.dirty.get_mut(&region) {
                entry.durable = true;
            }
        }
    }

    /// Notes that writes that had begun will not be made.
    pub(super) fn abort(&self, range: RangeInclusive<u64>) {
        Self::abort_in(&mut self.lock(), range);
    }

    fn abort_in(state: &mut State, range: RangeInclusive<u64>) {
        for region in range {
            let Some(entry) = state.dirty.get_mut(&region) else {
                continue;
            };
            entry.busy = entry.busy.saturating_sub(1);
            if entry.busy == 0 && !entry.durable {
                state.dirty.remove(&region);
                // The word in the file may have the bit, which does no harm.
                state.set(region, false);
            }
        }
    }

    /// Notes that writes to these regions have ended, well or not.
    pub(super) fn end(&self, range: RangeInclusive<u64>) {
        let mut state = self.lock();
        let flushes = state.flushes;
        for region in range {
            if let Some(entry) = state.dirty.get_mut(&region) {
                entry.busy = entry.busy.saturating_sub(1);
                entry.last = flushes;
            }
        }
    }

    /// Begins a flush: returns its number.
    pub(super) fn flush(&self) -> u64 {
        let mut state = self.lock();
        state.flushes += 1;
        state.flushes
    }

    /// Notes that a flush failed.
    pub(super) fn doubt(&self) {
        self.lock().doubtful = true;
    }

    /// Cleans regions after data and metadata of a flush are durable: only those without a write since it began.
    pub(super) fn flushed(&self, number: u64, which: Clean, write: Write<'_>) {
        let mut state = self.lock();
        if state.doubtful {
            return;
        }
        let all = state.dirty.iter();
        let mut clean: Vec<(u64, u64)> = all
            .filter(|(_, r)| r.busy == 0 && r.durable && !r.lost && r.last < number)
            .map(|(region, r)| (r.last, *region))
            .collect();
        match which {
            Clean::All => {}
            Clean::Old => clean.retain(|(last, _)| last + PATIENCE <= number),
            Clean::Half => {
                clean.sort_unstable();
                clean.truncate(state.dirty.len().saturating_sub(self.most / 2));
            }
        }
        let mut words = HashMap::new();
        for (_, region) in clean {
            state.dirty.remove(&region);
            words.extend(state.set(region, false));
        }
        // Under the lock, so that no older word overtakes a newer one.
        for (number, word) in words {
            // A bit that stays does no harm.
            let _ = write(number, word);
        }
    }

    /// Stops believing the metadata of these regions until the next opening checks it.
    pub(super) fn lose(&self, range: RangeInclusive<u64>) {
        let mut state = self.lock();
        for region in range {
            state.dirty.entry(region).or_default().lost = true;
        }
    }

    /// Whether the metadata of a region is not to be believed.
    pub(super) fn is_lost(&self, region: u64) -> bool {
        self.lock().dirty.get(&region).is_some_and(|r| r.lost)
    }

    /// Makes room for regions behind the present ones.
    pub(super) fn grow(&self, regions: u64) {
        let words = usize::try_from(regions.div_ceil(64)).unwrap_or(0);
        let mut state = self.lock();
        if state.words.len() < words {
            state.words.resize(words, 0);
        }
    }
}

/// The dirty regions of a bitmap.
pub(super) fn dirty_in(words: &[u64]) -> impl Iterator<Item = u64> + '_ {
    let words = (0_u64..).zip(words).filter(|(_, word)| **word != 0);
    words.flat_map(|(number, word)| {
        let bits = (0..64).filter(move |bit| word >> bit & 1 == 1);
        bits.map(move |bit| number * 64 + bit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// The words that were written last, by number.
    #[derive(Default)]
    struct Bitmap(RefCell<HashMap<u64, u64>>);

    impl Bitmap {
        fn write(&self, number: u64, word: u64) -> Result<(), Errno> {
            self.0.borrow_mut().insert(number, word);
            Ok(())
        }

        fn word(&self, number: u64) -> u64 {
            self.0.borrow().get(&number).copied().unwrap_or(0)
        }
    }

    fn write(regions: &Regions, range: RangeInclusive<u64>, bitmap: &Bitmap) -> bool {
        let new = regions.begin(range.clone(), &|n, w| bitmap.write(n, w));
        regions.synced(range.clone());
        regions.end(range);
        new.unwrap()
    }

    /// A bit is written before the first write, and cleared by no flush that began before the last write ended.
    #[test]
    fn a_flush_cleans_what_was_written_before_it() {
        let bitmap = Bitmap::default();
        let put = |n, w| bitmap.write(n, w);
        let regions = Regions::new(4096, 8, vec![0; 2]);
        assert_eq!(regions.of((4095, 2)), 0..=1);
        assert_eq!(regions.of((8192, 4096)), 2..=2);
        assert!(write(&regions, 62..=65, &bitmap), "new");
        assert_eq!((bitmap.word(0), bitmap.word(1)), (3 << 62, 3));
        assert!(!write(&regions, 63..=64, &bitmap), "known");
        let early = regions.flush();
        write(&regions, 64..=64, &bitmap);
        assert_eq!(regions.begin(65..=65, &put), Ok(false));
        regions.flushed(early, Clean::All, &put);
        assert_eq!(
            (bitmap.word(0), bitmap.word(1)),
            (0, 3),
            "written meanwhile, and busy"
        );
        regions.end(65..=65);
        let late = regions.flush();
        regions.flushed(late, Clean::Old, &put);
        assert_eq!(bitmap.word(1), 3, "not for a while");
        regions.flushed(late, Clean::All, &put);
        assert_eq!(bitmap.word(1), 0);
        assert!(write(&regions, 64..=64, &bitmap), "new again");
    }

    /// Room for others is made by those that were written first.
    #[test]
    fn full_regions_are_cleaned_by_age() {
        let bitmap = Bitmap::default();
        let put = |n, w| bitmap.write(n, w);
        let regions = Regions::new(4096, 4, vec![0]);
        for region in 0..4 {
            assert!(!regions.is_full(region..=region));
            write(&regions, region..=region, &bitmap);
            regions.flush();
        }
        assert!(regions.is_full(4..=4) && !regions.is_full(0..=3));
        regions.flushed(regions.flush(), Clean::Half, &put);
        assert_eq!(bitmap.word(0), 0b1100);
        assert!(!regions.is_full(4..=5));
    }

    /// A failed sync leaves nothing that counts as marked, a failed flush nothing that is cleared.
    #[test]
    fn failures_leave_regions_dirty() {
        let bitmap = Bitmap::default();
        let put = |n, w| bitmap.write(n, w);
        let regions = Regions::new(4096, 4, vec![0]);
        assert_eq!(regions.begin(0..=1, &put), Ok(true));
        assert_eq!(
            regions.begin(1..=1, &put),
            Ok(true),
            "not durable for others"
        );
        regions.abort(0..=1);
        assert_eq!(regions.begin(0..=0, &put), Ok(true));
        regions.synced(0..=1);
        regions.end(0..=0);
        regions.end(1..=1);
        let full = |_, _| Err(Errno::ENOSPC);
        assert_eq!(regions.begin(1..=2, &full), Err(Errno::ENOSPC));
        regions.doubt();
        regions.flushed(regions.flush(), Clean::All, &put);
        assert_eq!(bitmap.word(0), 3);
        assert_eq!(dirty_in(&[3, 1 << 63]).collect::<Vec<_>>(), [0, 1, 127]);
    }

    /// Lost metadata stays lost, and its region dirty.
    #[test]
    fn lost_regions_are_not_cleaned() {
        let bitmap = Bitmap::default();
        let regions = Regions::new(4096, 4, vec![1]);
        regions.lose(0..=0);
        regions.flushed(regions.flush(), Clean::All, &|n, w| bitmap.write(n, w));
        assert!(regions.is_lost(0) && !regions.is_lost(1));
        assert!(bitmap.0.borrow().is_empty());
    }
}
