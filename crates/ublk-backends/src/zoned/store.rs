//! Where write pointers are kept.
//!
//! A file has two words for each zone. The *live* one is written when a write completes, before it is answered: it
//! survives the server's death, in the page cache. The *durable* one is written by a sync, after the data: it survives a
//! crash of the machine, where the live one may be ahead of the data. The header says in which boot the live words were
//! written; in another boot the durable ones count.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use ublk_core::{Errno, ZoneCondition};

use super::table::{State, ZoneLayout};
use crate::error::Error;

/// Keeps the states of a device's sequential zones.
pub(super) trait Store: Send + Sync + 'static {
    /// The states as a new server finds them.
    fn load(&self) -> Result<Vec<State>, Errno>;

    /// Keeps a state beyond the end of this process.
    fn note(&self, zone: usize, state: State) -> Result<(), Errno>;

    /// Keeps states beyond a crash of the machine; the data before their pointers is durable already.
    fn settle(&self, states: &[(usize, State)]) -> Result<(), Errno>;
}

/// For memory, which ends with the process.
#[derive(Debug)]
pub(super) struct Nowhere(pub(super) usize);

impl Store for Nowhere {
    fn load(&self) -> Result<Vec<State>, Errno> {
        Ok(vec![State::EMPTY; self.0])
    }

    fn note(&self, _zone: usize, _state: State) -> Result<(), Errno> {
        Ok(())
    }

    fn settle(&self, _states: &[(usize, State)]) -> Result<(), Errno> {
        Ok(())
    }
}

const MAGIC: [u8; 8] = *b"ublkzone";
const VERSION: u64 = 1;
/// The header, and what the two tables begin at a multiple of.
const PAGE: u64 = 4096;

/// A file beside the data.
#[derive(Debug)]
pub(super) struct Beside {
    file: File,
    zones: usize,
    /// No pointer is beyond it.
    capacity: u64,
}

/// The header's words after the magic: version, layout, zones, block size, boot.
type Header = [u64; 10];

fn failed(doing: &'static str, error: &std::io::Error) -> Error {
    Error::File {
        doing,
        errno: Errno::from_io(error),
        hint: "the file with the write pointers is beside the data, with `.zones` after its name",
    }
}

impl Beside {
    /// Opens the file of write pointers; with `make`, makes it if there is none.
    ///
    /// # Errors
    /// What the file system says; [`Error::Zones`] for a file of other zones.
    pub(super) fn open(
        path: &Path,
        layout: &ZoneLayout,
        (zones, block): (usize, u32),
        make: bool,
        read_only: bool,
    ) -> Result<Self, Error> {
        let make = make && !read_only;
        let mut options = OpenOptions::new();
        options.read(true).write(!read_only).create(make);
        let file = options
            .open(path)
            .map_err(|e| failed("open the write pointers", &e))?;
        let this = Self {
            file,
            zones,
            capacity: layout.capacity,
        };
        let boot = boot();
        let header = header(layout, (zones, block), boot);
        let empty = this.file.metadata().is_ok_and(|meta| meta.len() == 0);
        if empty && make {
            this.make(&header, path)
                .map_err(|e| failed("make the write pointers", &e))?;
            return Ok(this);
        }
        let found = this
            .read_header()
            .map_err(|e| failed("read the write pointers", &e))?;
        let Some(found) = found else {
            return Err(Error::Zones("it is no file of write pointers"));
        };
        if found[..8] != header[..8] {
            return Err(Error::Zones("it is of a device with other zones"));
        }
        if found[8..] != header[8..] && !read_only {
            this.begin_boot(&header)
                .map_err(|e| failed("write the write pointers", &e))?;
        }
        Ok(this)
    }

    fn make(&self, header: &Header, path: &Path) -> std::io::Result<()> {
        self.file.set_len(self.durable_at(self.zones))?;
        self.file.sync_all()?;
        self.write_header(header)?;
        if let Some(directory) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }

    /// The machine was started anew: what is durable counts.
    fn begin_boot(&self, header: &Header) -> std::io::Result<()> {
        let mut words = vec![0; self.zones * 8];
        self.file.read_exact_at(&mut words, self.durable_at(0))?;
        self.file.write_all_at(&words, PAGE)?;
        self.file.sync_data()?;
        self.write_header(header)
    }

    fn read_header(&self) -> std::io::Result<Option<Header>> {
        let mut bytes = [0; 96];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut header = Header::default();
        let words = bytes[8..88].as_chunks::<8>().0;
        for (word, bytes) in header.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        let sum = u64::from_le_bytes(*bytes.last_chunk().unwrap_or(&[0; 8]));
        Ok((bytes[..8] == MAGIC && sum == checksum(&header)).then_some(header))
    }

    fn write_header(&self, header: &Header) -> std::io::Result<()> {
        let mut bytes = MAGIC.to_vec();
        let words = header
            .iter()
            .copied()
            .chain([checksum(header)])
            .map(u64::to_le_bytes);
        bytes.extend(words.flatten());
        self.file.write_all_at(&bytes, 0)?;
        self.file.sync_data()
    }

    fn live_at(zone: usize) -> u64 {
        PAGE + zone as u64 * 8
    }

    fn durable_at(&self, zone: usize) -> u64 {
        let begin = (PAGE + self.zones as u64 * 8).next_multiple_of(PAGE);
        begin + zone as u64 * 8
    }

    fn write(&self, at: u64, state: State) -> Result<(), Errno> {
        let word = encode(state).to_le_bytes();
        self.file
            .write_all_at(&word, at)
            .map_err(|e| Errno::from_io(&e))
    }
}

impl Store for Beside {
    fn load(&self) -> Result<Vec<State>, Errno> {
        let mut words = vec![0; self.zones * 8];
        let read = self.file.read_exact_at(&mut words, PAGE);
        read.map_err(|e| Errno::from_io(&e))?;
        let words = words.as_chunks::<8>().0.iter();
        words
            .map(|word| decode(u64::from_le_bytes(*word), self.capacity))
            .collect()
    }

    fn note(&self, zone: usize, state: State) -> Result<(), Errno> {
        self.write(Self::live_at(zone), state)
    }

    fn settle(&self, states: &[(usize, State)]) -> Result<(), Errno> {
        for (zone, state) in states {
            self.write(self.durable_at(*zone), *state)?;
        }
        self.file.sync_data().map_err(|e| Errno::from_io(&e))
    }
}

/// A state in a word, which a disk writes whole: the pointer in sectors, and the condition in the top byte.
fn encode(state: State) -> u64 {
    (state.pointer / 512) | ((state.condition as u64) << 56)
}

fn decode(word: u64, capacity: u64) -> Result<State, Errno> {
    let pointer = (word & ((1 << 56) - 1)).checked_mul(512);
    let pointer = pointer.filter(|pointer| *pointer <= capacity);
    let pointer = pointer.ok_or(Errno::EUCLEAN)?;
    let all = [
        ZoneCondition::Empty,
        ZoneCondition::ImplicitlyOpen,
        ZoneCondition::ExplicitlyOpen,
        ZoneCondition::Closed,
        ZoneCondition::Full,
    ];
    match word >> 56 {
        // A new file is zeroes.
        0 if pointer == 0 => Ok(State::EMPTY),
        byte => {
            let condition = all.into_iter().find(|c| u64::from(*c as u8) == byte);
            let condition = condition.ok_or(Errno::EUCLEAN)?;
            Ok(State { pointer, condition })
        }
    }
}

fn header(layout: &ZoneLayout, (zones, block): (usize, u32), boot: [u64; 2]) -> Header {
    [
        VERSION,
        layout.size,
        layout.capacity,
        layout.conventional.into(),
        layout.max_open.into(),
        layout.max_active.into(),
        zones as u64,
        block.into(),
        boot[0],
        boot[1],
    ]
}

/// FNV-1a: tells a torn header from a whole one.
fn checksum(words: &[u64]) -> u64 {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Which boot of the machine this is.
fn boot() -> [u64; 2] {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let half = |range: std::ops::Range<usize>| {
        let digits = digits.get(range).unwrap_or_default();
        u64::from_str_radix(digits, 16).unwrap_or(0)
    };
    [half(0..16), half(16..32)]
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    const LAYOUT: ZoneLayout = ZoneLayout {
        size: 64 << 10,
        capacity: 64 << 10,
        conventional: 1,
        max_open: 0,
        max_active: 0,
    };

    fn written(pointer: u64) -> State {
        State {
            pointer,
            condition: ZoneCondition::Closed,
        }
    }

    /// In the same boot the pointers of answered writes count, after another one those of the last sync.
    #[test]
    fn a_crash_keeps_what_was_synced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.zones");
        let open = || Beside::open(&path, &LAYOUT, (3, 512), true, false).unwrap();
        let store = open();
        assert_eq!(store.load(), Ok(vec![State::EMPTY; 3]));
        store.note(1, written(4096)).unwrap();
        store.settle(&[(1, written(4096))]).unwrap();
        store.note(1, written(8192)).unwrap();
        store.note(2, written(512)).unwrap();
        drop(store);
        let wanted = vec![State::EMPTY, written(8192), written(512)];
        assert_eq!(open().load(), Ok(wanted));
        // As another boot finds it.
        let store = open();
        let mut before = store.read_header().unwrap().unwrap();
        before[8] ^= 1;
        store.write_header(&before).unwrap();
        let wanted = vec![State::EMPTY, written(4096), State::EMPTY];
        assert_eq!(open().load(), Ok(wanted.clone()));
        assert_eq!(open().load(), Ok(wanted));
    }

    /// A file of other zones, or none at all, is refused, and what is no state is an error.
    #[test]
    fn another_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.zones");
        let open =
            |layout: &ZoneLayout, zones| Beside::open(&path, layout, (zones, 512), true, false);
        let missing = Beside::open(&path, &LAYOUT, (3, 512), false, false);
        assert!(
            missing.is_err() && !path.exists(),
            "it is made for a new device only"
        );
        drop(open(&LAYOUT, 3).unwrap());
        assert!(open(&LAYOUT, 4).is_err());
        let other = ZoneLayout {
            capacity: 4096,
            ..LAYOUT
        };
        assert!(open(&other, 3).is_err());
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 8], PAGE).unwrap();
        assert_eq!(open(&LAYOUT, 3).unwrap().load(), Err(Errno::EUCLEAN));
        // A condition that is none, and a pointer beyond the capacity.
        for word in [9_u64 << 56, (4 << 56) | 129] {
            file.write_all_at(&word.to_le_bytes(), PAGE).unwrap();
            assert_eq!(open(&LAYOUT, 3).unwrap().load(), Err(Errno::EUCLEAN));
        }
        file.write_all_at(&[1], 9).unwrap();
        assert!(open(&LAYOUT, 3).is_err(), "a torn header");
    }
}
