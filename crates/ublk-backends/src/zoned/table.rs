//! The conditions and write pointers of zones: what may be written where, and what becomes of it.

#![forbid(unsafe_code)]

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

/// All sequential zones, numbered from 0.
#[derive(Debug)]
pub(super) struct Table {
    layout: ZoneLayout,
    states: Vec<State>,
    open: u32,
    active: u32,
    /// Where the search for an implicitly open zone to close begins.
    hand: usize,
}

impl Table {
    pub(super) fn new(layout: ZoneLayout, states: Vec<State>) -> Self {
        let mut table = Self {
            layout,
            states: Vec::new(),
            open: 0,
            active: 0,
            hand: 0,
        };
        table.states = states.into_iter().map(State::at_rest).collect();
        table.count();
        table
    }

    fn count(&mut self) {
        let count = |is: fn(State) -> bool| {
            let found = self.states.iter().filter(|state| is(**state)).count();
            u32::try_from(found).unwrap_or(u32::MAX)
        };
        (self.open, self.active) = (count(State::is_open), count(State::is_active));
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    pub(super) fn get(&self, zone: usize) -> State {
        self.states[zone]
    }

    fn set(&mut self, zone: usize, to: State) {
        let was = std::mem::replace(&mut self.states[zone], to);
        let count = |total: u32, was: bool, is: bool| total + u32::from(is) - u32::from(was);
        self.open = count(self.open, was.is_open(), to.is_open());
        self.active = count(self.active, was.is_active(), to.is_active());
    }

    /// Makes room for one more open zone, and one more active zone if it is not active yet.
    ///
    /// # Errors
    /// EOVERFLOW for too many active zones, ETOOMANYREFS for too many open ones, as the block layer expects.
    fn admit(&mut self, zone: usize) -> Result<(), Errno> {
        let state = self.states[zone];
        let ZoneLayout {
            max_open,
            max_active,
            ..
        } = self.layout;
        if !state.is_active() && max_active != 0 && self.active >= max_active {
            return Err(Errno::EOVERFLOW);
        }
        if !state.is_open() && max_open != 0 && self.open >= max_open {
            self.close_one()?;
        }
        Ok(())
    }

    /// Closes a zone that was opened by a write, as drives do.
    fn close_one(&mut self) -> Result<(), Errno> {
        let count = self.states.len();
        let order = (0..count).map(|n| (self.hand + n) % count);
        let implicit = |zone: &usize| self.states[*zone].condition == ZoneCondition::ImplicitlyOpen;
        let zone = order
            .into_iter()
            .find(implicit)
            .ok_or(Errno::ETOOMANYREFS)?;
        self.hand = (zone + 1) % count;
        self.set(zone, self.states[zone].at_rest());
        Ok(())
    }

    /// Opens a zone for a write of `len` bytes at `at`, or at its pointer; returns where it goes.
    ///
    /// # Errors
    /// EIO for a write that is not at the pointer or beyond the capacity, ENOSPC for such an append, and those of too many
    /// zones.
    pub(super) fn begin(&mut self, zone: usize, at: Option<u64>, len: u64) -> Result<u64, Errno> {
        let state = self.states[zone];
        let refused = at.map_or(Errno::ENOSPC, |_| Errno::EIO);
        let to = at.unwrap_or(state.pointer);
        let end = to
            .checked_add(len)
            .filter(|end| *end <= self.layout.capacity);
        let full = state.condition == ZoneCondition::Full;
        if full || to != state.pointer || end.is_none() {
            return Err(refused);
        }
        if !state.is_open() {
            self.admit(zone)?;
            self.set(
                zone,
                State {
                    condition: ZoneCondition::ImplicitlyOpen,
                    ..state
                },
            );
        }
        Ok(to)
    }

    /// The data of a write is there.
    pub(super) fn written(&mut self, zone: usize, end: u64) {
        let state = self.states[zone];
        let full = end >= self.layout.capacity;
        self.set(
            zone,
            State {
                pointer: end,
                condition: match full {
                    true => ZoneCondition::Full,
                    false => state.condition,
                },
            },
        );
    }

    /// Opens a zone explicitly.
    pub(super) fn open(&mut self, zone: usize) -> Result<(), Errno> {
        let state = self.states[zone];
        match state.condition {
            ZoneCondition::Full => return Err(Errno::EIO),
            ZoneCondition::ExplicitlyOpen => return Ok(()),
            ZoneCondition::ImplicitlyOpen => {}
            _ => self.admit(zone)?,
        }
        let condition = ZoneCondition::ExplicitlyOpen;
        self.set(zone, State { condition, ..state });
        Ok(())
    }

    pub(super) fn close(&mut self, zone: usize) -> Result<(), Errno> {
        let state = self.states[zone];
        match state.condition {
            ZoneCondition::Empty | ZoneCondition::Full => Err(Errno::EIO),
            _ => {
                self.set(zone, state.at_rest());
                Ok(())
            }
        }
    }

    pub(super) fn finish(&mut self, zone: usize) -> Result<(), Errno> {
        let state = self.states[zone];
        if !state.is_active() && state.condition != ZoneCondition::Full {
            // As for a write: it becomes active for a moment.
            self.admit(zone)?;
        }
        let condition = ZoneCondition::Full;
        self.set(zone, State { condition, ..state });
        Ok(())
    }

    pub(super) fn reset(&mut self, zone: usize) {
        self.set(zone, State::EMPTY);
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

    fn write(table: &mut Table, zone: usize, len: u64) -> Result<u64, Errno> {
        let at = table.begin(zone, None, len)?;
        table.written(zone, at + len);
        Ok(at)
    }

    fn conditions(table: &Table) -> Vec<C> {
        (0..table.len())
            .map(|zone| table.get(zone).condition)
            .collect()
    }

    /// Writes go to the pointer and nowhere else, up to the capacity.
    #[test]
    fn writes_are_in_sequence() {
        let mut t = table(LAYOUT);
        assert_eq!(write(&mut t, 0, 4096), Ok(0));
        assert_eq!(t.begin(0, Some(0), 4096), Err(Errno::EIO));
        assert_eq!(t.begin(0, Some(8192), 4096), Err(Errno::EIO));
        assert_eq!(t.begin(0, Some(4096), 48 << 10), Err(Errno::EIO));
        assert_eq!(t.begin(0, None, 48 << 10), Err(Errno::ENOSPC));
        assert_eq!(write(&mut t, 0, 44 << 10), Ok(4096));
        assert_eq!(t.get(0).condition, C::Full);
        assert_eq!(t.begin(0, None, 4096), Err(Errno::ENOSPC));
        t.reset(0);
        assert_eq!(t.get(0), State::EMPTY);
        assert_eq!((t.open, t.active), (0, 0));
    }

    /// A write closes another implicitly open zone, never an explicitly open one, and active zones are limited.
    #[test]
    fn open_and_active_zones_are_limited() {
        let mut t = table(LAYOUT);
        t.open(0).unwrap();
        write(&mut t, 1, 4096).unwrap();
        write(&mut t, 2, 4096).unwrap();
        assert_eq!(
            conditions(&t)[..3],
            [C::ExplicitlyOpen, C::Closed, C::ImplicitlyOpen]
        );
        assert_eq!(write(&mut t, 3, 4096), Err(Errno::EOVERFLOW));
        write(&mut t, 1, 4096).unwrap();
        assert_eq!(
            conditions(&t)[..3],
            [C::ExplicitlyOpen, C::ImplicitlyOpen, C::Closed]
        );
        t.open(1).unwrap();
        assert_eq!(write(&mut t, 2, 4096), Err(Errno::ETOOMANYREFS));
        t.finish(1).unwrap();
        write(&mut t, 2, 4096).unwrap();
        t.close(0).unwrap();
        assert_eq!(conditions(&t)[..3], [C::Empty, C::Full, C::ImplicitlyOpen]);
        assert_eq!((t.open, t.active), (1, 1));
        assert_eq!(t.close(0), Err(Errno::EIO));
        assert_eq!(t.open(1), Err(Errno::EIO));
    }

    /// After its server has gone nothing is open, and the pointers are as they were.
    #[test]
    fn a_new_server_finds_closed_zones() {
        let mut t = table(LAYOUT);
        t.open(0).unwrap();
        write(&mut t, 1, 4096).unwrap();
        t.finish(2).unwrap();
        let t = Table::new(LAYOUT, t.states);
        assert_eq!(conditions(&t)[..3], [C::Empty, C::Closed, C::Full]);
        assert_eq!((t.get(1).pointer, t.open, t.active), (4096, 0, 1));
    }
}
