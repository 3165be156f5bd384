//! A zoned device over another backend: host-managed zones, with write pointers that survive server and machine.

#![forbid(unsafe_code)]

#[cfg(all(test, not(miri)))]
mod file_tests;
mod handler;
mod header;
mod store;
mod table;
#[cfg(all(test, not(miri)))]
mod tests;
mod zones_file;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ublk_core::{Backend, Errno, Limits, Zone, ZoneAction, ZoneReport, Zones};

use crate::error::Error;
use crate::{File, Memory};
use header::Header;
use store::{Nowhere, Store};
use table::{State, Table};

pub use table::ZoneLayout;
pub use zones_file::ZonesFile;

/// The largest append, unless a zone is smaller.
const MAX_APPEND: u64 = 1 << 20;

/// Makes a zoned device of a backend (Linux 6.6 with `CONFIG_BLK_DEV_ZONED`).
///
/// * **Zones**: conventional ones first, then sequential ones, as [`ZoneLayout`] says. Bytes of the backend behind the last
///   whole zone are not used. What is behind a write pointer reads as zeroes.
/// * **Order**: a write that is not at the write pointer fails with EIO, an append without room with ENOSPC. A write that
///   needs one open zone too many closes another one that a write has opened; where there is none, and for too many active
///   zones, it fails as the block layer expects.
/// * **Durability**: with memory, none. With a file, a write pointer is kept in a second file before its write is answered, so
///   that the next server goes on where acknowledged writes end; a FLUSH makes data and then pointers durable; after a crash
///   of the machine, pointers are those of the last FLUSH. A reset and a finish are durable when they are answered.
/// * **Threads**: writes to one zone wait for each other.
#[derive(Debug)]
pub struct ZonedDevice<B> {
    data: B,
    layout: ZoneLayout,
    limits: Limits,
    /// Held by changes that are made durable; the last durable state of each zone, if known.
    settled: Mutex<Vec<Option<State>>>,
    /// Held by the write to each sequential zone.
    writing: Box<[Mutex<()>]>,
    table: Table,
    store: Box<dyn Store>,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks a layout; returns the number of zones and of sequential ones.
fn check(layout: &ZoneLayout, limits: &Limits) -> Result<(u64, usize), Error> {
    let block = u64::from(limits.logical_block_size);
    let ZoneLayout { size, capacity, .. } = *layout;
    if !size.is_power_of_two() || size < block.max(4096) {
        return Err(Error::Zones(
            "the zone size must be a power of two from 4096 on",
        ));
    }
    if capacity == 0 || capacity > size || !capacity.is_multiple_of(block) {
        return Err(Error::Zones(
            "the zone capacity must be whole blocks, not above the zone size",
        ));
    }
    let zones = limits.size / size;
    let sequential = zones
        .checked_sub(layout.conventional.into())
        .filter(|n| *n != 0);
    let sequential = sequential.and_then(|n| usize::try_from(n).ok());
    let Some(sequential) = sequential else {
        return Err(Error::Zones(
            "there must be a sequential zone behind the conventional ones",
        ));
    };
    Ok((zones, sequential))
}

impl ZonedDevice<Memory> {
    /// A zoned device of memory; its content and its write pointers are lost with the server.
    ///
    /// # Errors
    /// [`Error::Zones`] for a layout that the memory or the kernel does not allow.
    pub fn memory(memory: Memory, layout: ZoneLayout) -> Result<Self, Error> {
        Self::blank(memory, layout)
    }
}

impl ZonedDevice<File> {
    /// A zoned device on a file, with its write pointers in a second file, ready to serve.
    ///
    /// # Errors
    /// As for [`prepared`](Self::prepared) and [`start`](Self::start).
    pub fn file(file: File, layout: ZoneLayout, pointers: &ZonesFile) -> Result<Self, Error> {
        let device = Self::prepared(file, layout, pointers)?;
        device.start(Duration::ZERO)?;
        Ok(device)
    }

    /// The same, before [`start`](Self::start): another server may still use both files.
    ///
    /// # Errors
    /// [`Error::Zones`] for a layout that the file or the kernel does not allow; [`Error::ZonesFile`] if the second file is
    /// not this device's; [`Error::File`] if the kernel refuses.
    pub fn prepared(file: File, layout: ZoneLayout, pointers: &ZonesFile) -> Result<Self, Error> {
        let limits = file.limits();
        let (_, sequential) = check(&layout, &limits)?;
        let zones = (sequential, limits.logical_block_size);
        let header = Header::new(layout, zones, file.base(), file.identity());
        let store = pointers.open(header, limits.read_only)?;
        Self::new(file, layout, Box::new(store))
    }

    /// A device whose limits are those of [`prepared`](Self::prepared), without making a second file that is not there yet.
    ///
    /// # Errors
    /// As for [`prepared`](Self::prepared).
    pub fn looked_at(file: File, layout: ZoneLayout, pointers: &ZonesFile) -> Result<Self, Error> {
        match pointers.is_to_be_made(file.limits().read_only) {
            true => Self::blank(file, layout),
            false => Self::prepared(file, layout, pointers),
        }
    }
}

impl<B: Backend> ZonedDevice<B> {
    /// A zoned device whose zones are empty, and whose write pointers are kept nowhere.
    fn blank(data: B, layout: ZoneLayout) -> Result<Self, Error> {
        let (_, sequential) = check(&layout, &data.limits())?;
        Self::new(data, layout, Box::new(Nowhere(sequential)))
    }

    fn new(data: B, layout: ZoneLayout, store: Box<dyn Store>) -> Result<Self, Error> {
        let mut limits = data.limits();
        let (zones, sequential) = check(&layout, &limits)?;
        let append = u32::try_from(layout.capacity.min(MAX_APPEND)).unwrap_or(u32::MAX);
        limits.size = zones * layout.size;
        // Neither keeps the order of a zone's writes.
        (limits.max_discard, limits.max_write_zeroes, limits.fua) = (0, 0, false);
        let limits = limits
            .zones(Zones::new(layout.size, append).at_once(layout.max_open, layout.max_active));
        let states = store.load()?;
        Ok(Self {
            data,
            layout,
            limits,
            settled: Mutex::new(vec![None; sequential]),
            writing: (0..sequential).map(|_| Mutex::new(())).collect(),
            table: Table::new(layout, states),
            store,
        })
    }

    /// The backend with the data.
    #[must_use]
    pub const fn data(&self) -> &B {
        &self.data
    }

    /// Begins to serve: locks the write pointers, waiting up to `wait` for their previous server to end, and reads what it has
    /// left. Call it once, before the first request. Does nothing for memory.
    ///
    /// # Errors
    /// [`Error::ZonesFile`] with `Locked` if another server uses them, and as for opening them, since they may have changed;
    /// [`Error::File`] if the kernel refuses.
    pub fn start(&self, wait: Duration) -> Result<(), Error> {
        self.store.start(wait)?;
        let mut settled = lock(&self.settled);
        self.table.replace(self.store.load()?);
        settled.fill(None);
        Ok(())
    }

    /// The sequential zone of an offset, and its start; `None` in a conventional zone. EIO beyond the device.
    fn zone(&self, offset: u64) -> Result<Option<(usize, u64)>, Errno> {
        if offset >= self.limits.size {
            return Err(Errno::EIO);
        }
        let number = offset / self.layout.size;
        let zone = number.checked_sub(self.layout.conventional.into());
        let zone = zone.and_then(|zone| usize::try_from(zone).ok());
        Ok(zone.map(|zone| (zone, number * self.layout.size)))
    }

    /// How many bytes from an offset on have data, in its zone.
    fn readable(&self, offset: u64) -> Result<u64, Errno> {
        Ok(match self.zone(offset)? {
            None => self.layout.size - offset % self.layout.size,
            Some((zone, start)) => {
                let pointer = self.table.get(zone).pointer;
                (start + pointer).saturating_sub(offset)
            }
        })
    }

    fn sequential(&self, offset: u64) -> Result<(usize, u64), Errno> {
        self.zone(offset)?.ok_or(Errno::EIO)
    }

    /// Writes `len` bytes at a place in a sequential zone, or at its pointer; returns where.
    fn write_in(
        &self,
        (zone, start): (usize, u64),
        (at, len): (Option<u64>, u64),
        write: impl FnOnce(u64) -> Result<(), Errno>,
    ) -> Result<u64, Errno> {
        let _writing = lock(&self.writing[zone]);
        let at = self.table.begin(zone, at, len)?;
        write(start + at)?;
        let state = self.table.written(zone, len);
        self.store.note(zone, state)?;
        Ok(start + at)
    }

    /// Writes `len` bytes at an offset of the device.
    fn write_with(
        &self,
        offset: u64,
        len: u64,
        write: impl FnOnce(u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        match self.zone(offset)? {
            None => write(offset),
            Some(zone) => {
                let at = (Some(offset - zone.1), len);
                self.write_in(zone, at, write).map(drop)
            }
        }
    }

    /// Appends `len` bytes to the zone that starts at `zone`; returns where.
    fn append_with(
        &self,
        zone: u64,
        len: u64,
        write: impl FnOnce(u64) -> Result<(), Errno>,
    ) -> Result<u64, Errno> {
        self.write_in(self.sequential(zone)?, (None, len), write)
    }

    /// Changes a zone so that it is durable on return.
    fn settle(
        &self,
        zone: usize,
        change: impl FnOnce(&Table) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut settled = lock(&self.settled);
        let _writing = lock(&self.writing[zone]);
        change(&self.table)?;
        let state = self.table.get(zone);
        self.store.note(zone, state)?;
        self.store.settle(&[(zone, state)])?;
        settled[zone] = Some(state);
        Ok(())
    }

    fn reset(&self, zone: usize, start: u64) -> Result<(), Errno> {
        self.settle(zone, |table| {
            table.reset(zone);
            Ok(())
        })?;
        // Gives storage back where it can; what is there does not matter.
        let _ = self.data.discard(start, self.layout.size);
        Ok(())
    }
}

impl<B: Backend> Backend for ZonedDevice<B> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let (mut rest, mut offset) = (buf, offset);
        while !rest.is_empty() {
            let left = self.layout.size - offset % self.layout.size;
            let len = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
            let (part, after) = rest.split_at_mut(len);
            let written = usize::try_from(self.readable(offset)?).map_or(len, |n| n.min(len));
            let (there, beyond) = part.split_at_mut(written);
            if !there.is_empty() {
                self.data.read_at(there, offset)?;
            }
            beyond.fill(0);
            (rest, offset) = (after, offset + len as u64);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        self.write_with(offset, buf.len() as u64, |at| {
            self.data.write_at(buf, at, false)
        })
    }

    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        self.append_with(zone, buf.len() as u64, |at| {
            self.data.write_at(buf, at, false)
        })
    }

    fn flush(&self) -> Result<(), Errno> {
        let mut settled = lock(&self.settled);
        // Before the data: a write that completes meanwhile is of the next FLUSH.
        let states = (0..self.table.len()).map(|zone| self.table.get(zone).at_rest());
        let states: Vec<State> = states.collect();
        self.data.flush()?;
        let changed = states.into_iter().enumerate();
        let changed: Vec<_> = changed
            .filter(|(zone, state)| settled[*zone] != Some(*state))
            .collect();
        self.store.settle(&changed)?;
        for (zone, state) in changed {
            settled[zone] = Some(state);
        }
        Ok(())
    }

    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        let size = self.layout.size;
        let mut start = offset / size * size;
        while start < self.limits.size {
            let zone = match self.zone(start)? {
                None => Zone::conventional(start, size),
                Some((zone, _)) => {
                    let State { pointer, condition } = self.table.get(zone);
                    let mut zone = Zone::sequential(start, size, start + pointer, condition);
                    zone.capacity = self.layout.capacity;
                    zone
                }
            };
            if !report.push(&zone) {
                break;
            }
            start += size;
        }
        Ok(())
    }

    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        let (zone, start) = self.sequential(zone)?;
        match action {
            ZoneAction::Open => self.table.open(zone),
            ZoneAction::Close => self.table.close(zone),
            ZoneAction::Finish => {
                if self.limits.volatile_cache {
                    self.data.flush()?;
                }
                self.settle(zone, |table| table.finish(zone))
            }
            ZoneAction::Reset => self.reset(zone, start),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    fn reset_all_zones(&self) -> Result<(), Errno> {
        let first = u64::from(self.layout.conventional) * self.layout.size;
        for zone in 0..self.writing.len() {
            if self.table.get(zone) != State::EMPTY {
                self.reset(zone, first + zone as u64 * self.layout.size)?;
            }
        }
        Ok(())
    }
}
