//! Where write pointers are kept.
//!
//! A file has two words for each zone. The *live* one is written when a write completes, before it is answered: it
//! survives the server's death, in the page cache. The *durable* one is written by a sync, after the data: it survives a
//! crash of the machine, where the live one may be ahead of the data. The header says in which boot the live words were
//! written; in another boot the durable ones count.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use ublk_core::{Errno, ZoneCondition};

use super::header::{Header, durable_at, live_at};
use super::table::State;
use super::zones_file::failed;
use crate::error::{Error, ZonesFileError};
use crate::file::lock;

/// Keeps the states of a device's sequential zones.
pub(super) trait Store: Send + Sync + 'static {
    /// The states as a new server finds them.
    fn load(&self) -> Result<Vec<State>, Error>;

    /// Keeps a state beyond the end of this process.
    fn note(&self, zone: usize, state: State) -> Result<(), Errno>;

    /// Keeps states beyond a crash of the machine; the data before their pointers is durable already.
    fn settle(&self, states: &[(usize, State)]) -> Result<(), Errno>;

    /// Begins to serve, once nobody else does; waits that long.
    fn start(&self, wait: Duration) -> Result<(), Error> {
        let _ = wait;
        Ok(())
    }
}

/// For memory, which ends with the process.
#[derive(Debug)]
pub(super) struct Nowhere(pub(super) usize);

impl Store for Nowhere {
    fn load(&self) -> Result<Vec<State>, Error> {
        Ok(vec![State::EMPTY; self.0])
    }

    fn note(&self, _zone: usize, _state: State) -> Result<(), Errno> {
        Ok(())
    }

    fn settle(&self, _states: &[(usize, State)]) -> Result<(), Errno> {
        Ok(())
    }
}

/// Interval between attempts to lock the file.
const AGAIN: Duration = Duration::from_millis(10);

/// A file beside the data.
#[derive(Debug)]
pub(super) struct Beside {
    pub(super) file: File,
    pub(super) device: Header,
    pub(super) same: bool,
    pub(super) read_only: bool,
}

impl Beside {
    fn durable_at(&self, zone: usize) -> u64 {
        durable_at(self.device.zones, zone)
    }

    fn write(&self, at: u64, state: State) -> Result<(), Errno> {
        let word = encode(state).to_le_bytes();
        self.file
            .write_all_at(&word, at)
            .map_err(|e| Errno::from_io(&e))
    }

    /// Makes the file that of this device in this boot: if the machine was started anew, what is durable counts.
    fn adopt(&self, found: &Header) -> std::io::Result<()> {
        if found.boot != self.device.boot {
            let mut words = vec![0; self.device.zones * 8];
            self.file.read_exact_at(&mut words, self.durable_at(0))?;
            self.file.write_all_at(&words, live_at(0))?;
            self.file.sync_data()?;
        }
        self.file.write_all_at(&self.device.encode(), 0)?;
        self.file.sync_data()
    }
}

impl Store for Beside {
    fn load(&self) -> Result<Vec<State>, Error> {
        // A read-only server does not adopt the file of an earlier boot.
        let at = match Header::read(&self.file)?.boot == self.device.boot {
            true => live_at(0),
            false => self.durable_at(0),
        };
        let mut words = vec![0; self.device.zones * 8];
        let read = self.file.read_exact_at(&mut words, at);
        read.map_err(|e| failed("read the write pointers", &e))?;
        let words = words.as_chunks::<8>().0.iter();
        let states: Option<Vec<State>> = words
            .map(|word| decode(u64::from_le_bytes(*word), self.device.layout.capacity))
            .collect();
        states.ok_or_else(|| ZonesFileError::Damaged.into())
    }

    fn note(&self, zone: usize, state: State) -> Result<(), Errno> {
        self.write(live_at(zone), state)
    }

    fn settle(&self, states: &[(usize, State)]) -> Result<(), Errno> {
        for (zone, state) in states {
            self.write(self.durable_at(*zone), *state)?;
        }
        self.file.sync_data().map_err(|e| Errno::from_io(&e))
    }

    fn start(&self, wait: Duration) -> Result<(), Error> {
        let until = Instant::now() + wait;
        while !lock(&self.file, self.read_only) {
            if Instant::now() >= until {
                return Err(ZonesFileError::Locked.into());
            }
            std::thread::sleep(AGAIN);
        }
        if self.file.metadata().is_ok_and(|meta| meta.nlink() == 0) {
            return Err(ZonesFileError::Missing.into());
        }
        // It may have changed before it was locked.
        let found = Header::read(&self.file)?;
        found.fits(&self.device, self.same)?;
        if found != self.device && !self.read_only {
            self.adopt(&found)
                .map_err(|e| failed("write the write pointers", &e))?;
        }
        Ok(())
    }
}

/// Bits of a word that hold the pointer, in sectors.
const POINTER: u64 = (1 << 48) - 1;

/// A state in a word, which a disk writes whole: the pointer in sectors, the condition in a byte, and a checksum in the top
/// byte.
pub(super) fn encode(state: State) -> u64 {
    let word = ((state.pointer / 512) & POINTER) | u64::from(state.condition as u8) << 48;
    word | check(word) << 56
}

/// The checksum of a word's other bytes; not 0 for a word of zeroes, as a hole in a file has.
const fn check(word: u64) -> u64 {
    ((word & (u64::MAX >> 8)) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56
}

pub(super) fn decode(word: u64, capacity: u64) -> Option<State> {
    let condition = u8::try_from(word >> 48 & 0xff).ok()?;
    let all = [
        ZoneCondition::Empty,
        ZoneCondition::ImplicitlyOpen,
        ZoneCondition::ExplicitlyOpen,
        ZoneCondition::Closed,
        ZoneCondition::Full,
    ];
    let state = State {
        pointer: (word & POINTER) * 512,
        condition: all.into_iter().find(|c| *c as u8 == condition)?,
    };
    let is_empty = state.condition == ZoneCondition::Empty;
    let is_sound =
        word >> 56 == check(word) && state.pointer <= capacity && (state.pointer == 0 || !is_empty);
    is_sound.then_some(state)
}
