//! The conditions and write pointers of zones: what may be written where, and what becomes of it.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ublk_core::{Errno, ZoneCondition};

/// A device's zones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ZoneLayout {
    /// Size of a zone in bytes, a power of two.
    pub size: u64,
    /// Writable bytes of a sequential zone: whole blocks, not above `size`.
    pub capacity: u64,
    /// Number of conventional zones, which come first.
    pub conventional: u32,
    /// Zones that may be open at once; 0 for any number.
    pub max_open: u32,
    /// Zones that may be active at once; 0 for any number.
    pub max_active: u32,
}

/// As the options of `ublkctl add`; what is usual is left out.
impl std::fmt::Display for ZoneLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "--zone-size {}", self.size)?;
        if self.capacity != self.size {
            write!(f, " --zone-capacity {}", self.capacity)?;
        }
        for (option, number) in [
            ("conventional-zones", self.conventional),
            ("max-open-zones", self.max_open),
            ("max-active-zones", self.max_active),
        ] {
            if number != 0 {
                write!(f, " --{option} {number}")?;
            }
        }
        Ok(())
    }
}

/// A sequential zone. The pointer counts from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) pointer: u64,
    pub(super) condition: ZoneCondition,
}

impl State {
    pub(super) const EMPTY: Self = Self {
        pointer: 0,
        condition: ZoneCondition::Empty,
    };

    const fn is_open(self) -> bool {
        matches!(
            self.condition,
            ZoneCondition::ImplicitlyOpen | ZoneCondition::ExplicitlyOpen
        )
    }

    const fn is_active(self) -> bool {
        self.is_open() || matches!(self.condition, ZoneCondition::Closed)
    }

    /// The zone after its server has gone: nothing is open any more.
    pub(super) const fn at_rest(self) -> Self {
        match (self.is_open(), self.pointer) {
            (true, 0) => Self::EMPTY,
            (true, pointer) => Self {
                pointer,
                condition: ZoneCondition::Closed,
            },
            (false, _) => self,
        }
    }
}

/// The conditions that a sequential zone has here, by the low bits of its word.
const CONDITIONS: [ZoneCondition; 5] = [
    ZoneCondition::Empty,
    ZoneCondition::ImplicitlyOpen,
    ZoneCondition::ExplicitlyOpen,
    ZoneCondition::Closed,
    ZoneCondition::Full,
];

/// The bits of a word that are not of the pointer, which is a multiple of 512.
const CONDITION: u64 = 0x1ff;

/// Whether the zone of a word is open.
const fn is_open(word: u64) -> bool {
    matches!(word & CONDITION, 1 | 2)
}

/// The error of a write that is not where it should be, or of an append without room.
const fn refused(at: Option<u64>) -> Errno {
    match at {
        Some(_) => Errno::EIO,
        None => Errno::ENOSPC,
    }
}

impl State {
    fn pack(self) -> u64 {
        let number = CONDITIONS.iter().position(|c| *c == self.condition);
        debug_assert!(number.is_some() && self.pointer & CONDITION == 0);
        self.pointer | number.unwrap_or(0) as u64
    }

    #[inline]
    fn unpack(word: u64) -> Self {
        let number = usize::try_from(word & CONDITION).unwrap_or(0);
        Self {
            pointer: word & !CONDITION,
            condition: *CONDITIONS.get(number).unwrap_or(&ZoneCondition::Empty),
        }
    }
}

/// How many zones are open and active.
#[derive(Debug, Default)]
struct Counts {
    open: u32,
    active: u32,
    /// Where the search for an implicitly open zone to close begins.
    hand: usize,
}

/// All sequential zones, numbered from 0.
///
/// A word is changed by adding differences, for it has two writers: who holds [`counts`](Self::counts) changes its condition,
/// and who writes to the zone, one at a time, moves its pointer. A reset or finish does both, and is both.
#[derive(Debug)]
pub(super) struct Table {
    layout: ZoneLayout,
    words: Box<[AtomicU64]>,
    counts: Mutex<Counts>,
}

impl Table {
    pub(super) fn new(layout: ZoneLayout, states: Vec<State>) -> Self {
        let table = Self {
            layout,
            words: states.iter().map(|_| AtomicU64::new(0)).collect(),
            counts: Mutex::default(),
        };
        table.replace(states);
        table
    }

    /// Takes over zones whose server has gone.
    pub(super) fn replace(&self, states: Vec<State>) {
        let mut counts = self.counts();
        *counts = Counts::default();
        for (word, state) in self.words.iter().zip(states) {
            let state = state.at_rest();
            counts.active += u32::from(state.is_active());
            word.store(state.pack(), Ordering::Release);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }

    #[inline]
    pub(super) fn get(&self, zone: usize) -> State {
        State::unpack(self.words[zone].load(Ordering::Acquire))
    }

    /// Changes a zone from what [`get`](Self::get) returned with the counts held.
    fn set(&self, counts: &mut Counts, zone: usize, was: State, to: State) {
        let difference = to.pack().wrapping_sub(was.pack());
        self.words[zone].fetch_add(difference, Ordering::AcqRel);
        let count = |total: u32, was: bool, is: bool| total + u32::from(is) - u32::from(was);
        counts.open = count(counts.open, was.is_open(), to.is_open());
        counts.active = count(counts.active, was.is_active(), to.is_active());
    }

    /// Makes room for one more open zone, and one more active zone if it is not active yet.
    ///
    /// # Errors
    /// EOVERFLOW for too many active zones, ETOOMANYREFS for too many open ones, as the block layer expects.
    fn admit(&self, counts: &mut Counts, state: State) -> Result<(), Errno> {
        let ZoneLayout {
            max_open,
            max_active,
            ..
        } = self.layout;
        if !state.is_active() && max_active != 0 && counts.active >= max_active {
            return Err(Errno::EOVERFLOW);
        }
        if !state.is_open() && max_open != 0 && counts.open >= max_open {
            self.close_one(counts)?;
        }
        Ok(())
    }

    /// Closes a zone that was opened by a write, as drives do.
    fn close_one(&self, counts: &mut Counts) -> Result<(), Errno> {
        let count = self.len();
        let mut order = (0..count).map(|n| (counts.hand + n) % count);
        let implicit = |zone: &usize| self.get(*zone).condition == ZoneCondition::ImplicitlyOpen;
        let zone = order.find(implicit).ok_or(Errno::ETOOMANYREFS)?;
        counts.hand = (zone + 1) % count;
        let was = self.get(zone);
        self.set(counts, zone, was, was.at_rest());
        Ok(())
    }

    /// Opens a zone for a write of `len` bytes at `at`, or at its pointer; returns where it goes. The caller is the only
    /// one who writes to the zone, until [`written`](Self::written).
    ///
    /// # Errors
    /// EIO for a write that is not at the pointer or beyond the capacity, ENOSPC for such an append, and those of too many
    /// zones.
    #[inline]
    pub(super) fn begin(&self, zone: usize, at: Option<u64>, len: u64) -> Result<u64, Errno> {
        let word = self.words[zone].load(Ordering::Acquire);
        let pointer = word & !CONDITION;
        let fits = len <= self.layout.capacity.saturating_sub(pointer);
        if at.is_none_or(|at| at == pointer) && fits {
            if !is_open(word) {
                self.open_for_write(zone, at)?;
            }
            return Ok(pointer);
        }
        Err(refused(at))
    }

    #[cold]
    fn open_for_write(&self, zone: usize, at: Option<u64>) -> Result<(), Errno> {
        let mut counts = self.counts();
        let was = self.get(zone);
        match was.condition {
            ZoneCondition::Full => return Err(refused(at)),
            _ if was.is_open() => return Ok(()),
            _ => {}
        }
        self.admit(&mut counts, was)?;
        let condition = ZoneCondition::ImplicitlyOpen;
        self.set(&mut counts, zone, was, State { condition, ..was });
        Ok(())
    }

    /// The data of a write of `len` bytes at the pointer is there; returns the zone after it.
    #[inline]
    pub(super) fn written(&self, zone: usize, len: u64) -> State {
        let word = self.words[zone].fetch_add(len, Ordering::AcqRel) + len;
        match is_open(word) && word & !CONDITION < self.layout.capacity {
            true => State::unpack(word),
            false => self.settle_condition(zone),
        }
    }

    /// The condition of a zone that a write has filled, or that was closed during the write.
    #[cold]
    fn settle_condition(&self, zone: usize) -> State {
        let mut counts = self.counts();
        let was = self.get(zone);
        let condition = match was.condition {
            _ if was.pointer >= self.layout.capacity => ZoneCondition::Full,
            ZoneCondition::Empty => ZoneCondition::Closed,
            condition => condition,
        };
        let to = State { condition, ..was };
        self.set(&mut counts, zone, was, to);
        to
    }

    /// Opens a zone explicitly.
    pub(super) fn open(&self, zone: usize) -> Result<(), Errno> {
        let mut counts = self.counts();
        let was = self.get(zone);
        match was.condition {
            ZoneCondition::Full => return Err(Errno::EIO),
            ZoneCondition::ExplicitlyOpen => return Ok(()),
            ZoneCondition::ImplicitlyOpen => {}
            _ => self.admit(&mut counts, was)?,
        }
        let condition = ZoneCondition::ExplicitlyOpen;
        self.set(&mut counts, zone, was, State { condition, ..was });
        Ok(())
    }

    pub(super) fn close(&self, zone: usize) -> Result<(), Errno> {
        let mut counts = self.counts();
        let was = self.get(zone);
        match was.condition {
            ZoneCondition::Empty | ZoneCondition::Full => Err(Errno::EIO),
            _ => {
                self.set(&mut counts, zone, was, was.at_rest());
                Ok(())
            }
        }
    }

    /// Fills a zone that nobody writes to.
    pub(super) fn finish(&self, zone: usize) -> Result<(), Errno> {
        let mut counts = self.counts();
        let was = self.get(zone);
        if !was.is_active() && was.condition != ZoneCondition::Full {
            // As for a write: it becomes active for a moment.
            self.admit(&mut counts, was)?;
        }
        let condition = ZoneCondition::Full;
        self.set(&mut counts, zone, was, State { condition, ..was });
        Ok(())
    }

    /// Empties a zone that nobody writes to.
    pub(super) fn reset(&self, zone: usize) {
        let mut counts = self.counts();
        let was = self.get(zone);
        self.set(&mut counts, zone, was, State::EMPTY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ZoneCondition as C;

    const LAYOUT: ZoneLayout = ZoneLayout {
        size: 64 << 10,
        capacity: 48 << 10,
        conventional: 0,
        max_open: 2,
        max_active: 3,
    };

    fn table(layout: ZoneLayout) -> Table {
        Table::new(layout, vec![State::EMPTY; 6])
    }

    fn write(table: &Table, zone: usize, len: u64) -> Result<u64, Errno> {
        let at = table.begin(zone, None, len)?;
        table.written(zone, len);
        Ok(at)
    }

    fn counts(table: &Table) -> (u32, u32) {
        let counts = table.counts();
        (counts.open, counts.active)
    }

    fn conditions(table: &Table) -> Vec<C> {
        (0..table.len())
            .map(|zone| table.get(zone).condition)
            .collect()
    }

    /// Writes go to the pointer and nowhere else, up to the capacity.
    #[test]
    fn writes_are_in_sequence() {
        let t = table(LAYOUT);
        assert_eq!(write(&t, 0, 4096), Ok(0));
        assert_eq!(t.begin(0, Some(0), 4096), Err(Errno::EIO));
        assert_eq!(t.begin(0, Some(8192), 4096), Err(Errno::EIO));
        assert_eq!(t.begin(0, Some(4096), 48 << 10), Err(Errno::EIO));
        assert_eq!(t.begin(0, None, 48 << 10), Err(Errno::ENOSPC));
        assert_eq!(write(&t, 0, 44 << 10), Ok(4096));
        assert_eq!(t.get(0).condition, C::Full);
        assert_eq!(t.begin(0, None, 4096), Err(Errno::ENOSPC));
        t.reset(0);
        assert_eq!(t.get(0), State::EMPTY);
        assert_eq!(counts(&t), (0, 0));
    }

    /// A write closes another implicitly open zone, never an explicitly open one, and active zones are limited.
    #[test]
    fn open_and_active_zones_are_limited() {
        let t = table(LAYOUT);
        t.open(0).unwrap();
        write(&t, 1, 4096).unwrap();
        write(&t, 2, 4096).unwrap();
        assert_eq!(
            conditions(&t)[..3],
            [C::ExplicitlyOpen, C::Closed, C::ImplicitlyOpen]
        );
        assert_eq!(write(&t, 3, 4096), Err(Errno::EOVERFLOW));
        write(&t, 1, 4096).unwrap();
        assert_eq!(
            conditions(&t)[..3],
            [C::ExplicitlyOpen, C::ImplicitlyOpen, C::Closed]
        );
        t.open(1).unwrap();
        assert_eq!(write(&t, 2, 4096), Err(Errno::ETOOMANYREFS));
        t.finish(1).unwrap();
        write(&t, 2, 4096).unwrap();
        t.close(0).unwrap();
        assert_eq!(conditions(&t)[..3], [C::Empty, C::Full, C::ImplicitlyOpen]);
        assert_eq!(counts(&t), (1, 1));
        assert_eq!(t.close(0), Err(Errno::EIO));
        assert_eq!(t.open(1), Err(Errno::EIO));
    }

    /// After its server has gone nothing is open, and the pointers are as they were.
    #[test]
    fn a_new_server_finds_closed_zones() {
        let t = table(LAYOUT);
        t.open(0).unwrap();
        write(&t, 1, 4096).unwrap();
        t.finish(2).unwrap();
        let states = (0..t.len()).map(|zone| t.get(zone));
        let t = Table::new(LAYOUT, states.collect());
        assert_eq!(conditions(&t)[..3], [C::Empty, C::Closed, C::Full]);
        assert_eq!((t.get(1).pointer, counts(&t)), (4096, (0, 1)));
    }

    /// A zone that is closed during its first write is closed after it, not empty, and active.
    #[test]
    fn a_zone_closed_during_a_write_is_not_empty() {
        let t = table(LAYOUT);
        assert_eq!(t.begin(0, None, 4096), Ok(0));
        t.close(0).unwrap();
        let closed = State {
            pointer: 4096,
            condition: C::Closed,
        };
        assert_eq!(t.written(0, 4096), closed);
        assert_eq!((t.get(0), counts(&t)), (closed, (0, 1)));
        // The same for a zone whose place another one takes.
        assert_eq!(t.begin(1, None, 4096), Ok(0));
        write(&t, 0, 4096).unwrap();
        write(&t, 2, 4096).unwrap();
        write(&t, 0, 4096).unwrap();
        assert_eq!(t.get(1).condition, C::Empty);
        assert_eq!(t.written(1, 4096), closed);
        assert_eq!(counts(&t), (2, 3));
    }

    /// A word says what its state does.
    #[test]
    fn words_and_states_agree() {
        for condition in CONDITIONS {
            let state = State {
                pointer: 512 * 7,
                condition,
            };
            assert_eq!(State::unpack(state.pack()), state);
            assert_eq!(is_open(state.pack()), state.is_open());
        }
    }
}
