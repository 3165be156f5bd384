//! Where write pointers are kept.
//!
//! A file has two words for each zone. The *live* one is written when a write completes, before it is answered: it
//! survives the server's death, in the page cache. The *durable* one is written by a sync, after the data: it survives a
//! crash of the machine, where the live one may be ahead of the data. The header says in which boot the live words were
//! written; in another boot the durable ones count.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ublk_core::{Errno, ZoneCondition};

use super::table::{State, ZoneLayout};
use crate::error::{Error, ZonesFileError};
use crate::file::{Identity, begins_with, beside, lock, remove_unused};

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

const MAGIC: [u8; 8] = *b"ublkzone";
const VERSION: u64 = 2;
/// The header, and what the two tables begin at a multiple of.
const PAGE: u64 = 4096;
/// Interval between attempts to lock the file.
const AGAIN: Duration = Duration::from_millis(10);

/// Words of the header after the magic; a checksum follows.
const WORDS: usize = 13;

/// What the words of a header are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    layout: ZoneLayout,
    /// Number of sequential zones.
    zones: usize,
    block: u32,
    /// Where the device begins in its file, in bytes.
    base: u64,
    /// Inode and time of birth of the file with the data.
    data: [u64; 2],
    /// The boot in which the live words were written.
    boot: [u64; 2],
}

impl Header {
    /// The header of a device in this boot.
    pub(super) fn new(
        layout: ZoneLayout,
        (zones, block): (usize, u32),
        base: u64,
        data: Identity,
    ) -> Self {
        let data = match data {
            Identity::File { inode, born, .. } => [inode, born.unwrap_or(0)],
            Identity::Disk { .. } => [0; 2],
        };
        Self {
            layout,
            zones,
            block,
            base,
            data,
            boot: boot(),
        }
    }

    fn words(&self) -> [u64; WORDS] {
        let layout = &self.layout;
        [
            VERSION,
            layout.size,
            layout.capacity,
            layout.conventional.into(),
            layout.max_open.into(),
            layout.max_active.into(),
            self.zones as u64,
            self.block.into(),
            self.base,
            self.data[0],
            self.data[1],
            self.boot[0],
            self.boot[1],
        ]
    }

    fn encode(&self) -> Vec<u8> {
        let words = self.words();
        let sum = checksum(&words);
        let words = words.into_iter().chain([sum]).flat_map(u64::to_le_bytes);
        MAGIC.into_iter().chain(words).collect()
    }

    /// Reads a header, which may be anything.
    fn read(file: &File) -> Result<Self, Error> {
        let mut bytes = [0; 8 + 8 * (WORDS + 1)];
        let length = file.metadata().map_or(0, |meta| meta.len());
        if length < bytes.len() as u64 {
            return Err(match length {
                0 => ZonesFileError::Empty.into(),
                _ => ZonesFileError::Foreign.into(),
            });
        }
        file.read_exact_at(&mut bytes, 0)
            .map_err(|e| failed("read the write pointers", &e))?;
        if bytes[..8] != MAGIC {
            return Err(ZonesFileError::Foreign.into());
        }
        let mut words = [0; WORDS + 1];
        for (word, bytes) in words.iter_mut().zip(bytes[8..].as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let [words @ .., sum] = words;
        if words[0] != VERSION {
            return Err(ZonesFileError::Version.into());
        }
        let header = Self::of(&words).filter(|_| sum == checksum(&words));
        header.ok_or_else(|| ZonesFileError::Damaged.into())
    }

    fn of(words: &[u64; WORDS]) -> Option<Self> {
        let number = |word: u64| u32::try_from(word).ok();
        Some(Self {
            layout: ZoneLayout {
                size: words[1],
                capacity: words[2],
                conventional: number(words[3])?,
                max_open: number(words[4])?,
                max_active: number(words[5])?,
            },
            zones: usize::try_from(words[6]).ok()?,
            block: number(words[7])?,
            base: words[8],
            data: [words[9], words[10]],
            boot: [words[11], words[12]],
        })
    }

    /// Refuses a file of another device.
    fn fits(&self, device: &Self, same: bool) -> Result<(), ZonesFileError> {
        if (self.layout, self.block) != (device.layout, device.block) {
            return Err(ZonesFileError::Layout {
                layout: self.layout,
                block_size: self.block,
            });
        }
        if self.base != device.base {
            let (found, offset) = (self.base, device.base);
            return Err(ZonesFileError::Offset { found, offset });
        }
        if self.zones != device.zones {
            let bytes = |zones: usize| {
                (zones as u64 + u64::from(self.layout.conventional))
                    .saturating_mul(self.layout.size)
            };
            let (found, size) = (bytes(self.zones), bytes(device.zones));
            return Err(ZonesFileError::Size { found, size });
        }
        if same && self.data != device.data {
            return Err(ZonesFileError::Other);
        }
        Ok(())
    }
}

/// The file with the write pointers of a zoned file device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZonesFile {
    path: PathBuf,
    create: bool,
    same: bool,
}

impl ZonesFile {
    /// The file at this path, which must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            create: false,
            same: false,
        }
    }

    /// The usual place: `.zones` after the name of the file with the data, or of the file that a link leads to.
    #[must_use]
    pub fn beside(data: &Path) -> Self {
        Self::new(beside(data, ".zones"))
    }

    /// Makes the file if there is none: all zones are then empty, whatever the file with the data holds.
    #[must_use]
    pub const fn create(mut self, yes: bool) -> Self {
        self.create = yes;
        self
    }

    /// Refuses the write pointers of another file with data, as for a device whose server is replaced. Without it they become
    /// those of this file, which may be a copy.
    #[must_use]
    pub const fn same_data(mut self, yes: bool) -> Self {
        self.same = yes;
        self
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is a file of write pointers, of whatever device. One that cannot be read is none.
    #[must_use]
    pub fn exists(&self) -> bool {
        begins_with(&self.path, MAGIC)
    }

    /// Whether the file is made when it is opened.
    pub(super) fn is_to_be_made(&self, read_only: bool) -> bool {
        self.create && !read_only && fs::symlink_metadata(&self.path).is_err()
    }

    /// Opens the file for a device, or makes it. It is not locked yet.
    ///
    /// # Errors
    /// What the file system says; [`ZonesFileError`] for what does not fit.
    pub(super) fn open(&self, device: Header, read_only: bool) -> Result<Beside, Error> {
        if self.is_to_be_made(read_only) {
            self.make(&device)
                .map_err(|e| failed("make the file of write pointers", &e))?;
        }
        match fs::metadata(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Err(ZonesFileError::Missing.into()),
            Err(e) => return Err(failed("find the write pointers", &e)),
            // Opening a pipe could block.
            Ok(meta) if !meta.is_file() => return Err(ZonesFileError::Foreign.into()),
            Ok(_) => {}
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(!read_only).open(&self.path);
        let file = file.map_err(|e| failed("open the write pointers", &e))?;
        Header::read(&file)?.fits(&device, self.same)?;
        let beside = Beside {
            file,
            device,
            same: self.same,
            read_only,
        };
        let needed = beside.durable_at(device.zones);
        let length = beside.file.metadata().map_or(0, |meta| meta.len());
        if length < needed {
            return Err(ZonesFileError::Truncated { length, needed }.into());
        }
        Ok(beside)
    }

    /// Removes the file, unless a server has it: for a caller whose device failed after the file was made.
    pub fn remove_unused(&self) {
        remove_unused(&self.path);
    }

    /// Makes the file under another name first, so that it has its name only when it is whole. Every word is written: a full
    /// disk then keeps no zone from being reset.
    fn make(&self, device: &Header) -> std::io::Result<()> {
        let mut unfinished = self.path.as_os_str().to_owned();
        unfinished.push(".new");
        let unfinished = PathBuf::from(unfinished);
        // What an interrupted attempt left, or somebody's link: it is never written through.
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)?;
        let made = (|| {
            let words = encode(State::EMPTY).to_le_bytes().repeat(device.zones);
            file.write_all_at(&words, PAGE)?;
            file.write_all_at(&words, durable_at(device.zones, 0))?;
            file.write_all_at(&device.encode(), 0)?;
            file.sync_all()?;
            // Another server that was faster keeps its file.
            match fs::hard_link(&unfinished, &self.path) {
                Err(e) if e.kind() != ErrorKind::AlreadyExists => {
                    fs::rename(&unfinished, &self.path)
                }
                _ => fs::remove_file(&unfinished),
            }
        })();
        if made.is_err() {
            let _ = fs::remove_file(&unfinished);
            return made;
        }
        let parent = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        File::open(parent)?.sync_all()
    }
}

/// A file beside the data.
#[derive(Debug)]
pub(super) struct Beside {
    file: File,
    device: Header,
    same: bool,
    read_only: bool,
}

fn failed(doing: &'static str, error: &std::io::Error) -> Error {
    let errno = Errno::from_io(error);
    let hint = match errno {
        Errno::EACCES | Errno::EPERM => "make it accessible to the user who serves the device",
        Errno::EROFS => "serve the device read-only",
        Errno::ENOSPC => "make room",
        _ => "the write pointers are beside the data, with `.zones` after its name",
    };
    Error::File { doing, errno, hint }
}

fn durable_at(zones: usize, zone: usize) -> u64 {
    let begin = (PAGE + zones as u64 * 8).next_multiple_of(PAGE);
    begin + zone as u64 * 8
}

impl Beside {
    fn live_at(zone: usize) -> u64 {
        PAGE + zone as u64 * 8
    }

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
            self.file.write_all_at(&words, PAGE)?;
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
            true => Self::live_at(0),
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
        self.write(Self::live_at(zone), state)
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
fn encode(state: State) -> u64 {
    let word = ((state.pointer / 512) & POINTER) | u64::from(state.condition as u8) << 48;
    word | check(word) << 56
}

/// The checksum of a word's other bytes; not 0 for a word of zeroes, as a hole in a file has.
const fn check(word: u64) -> u64 {
    ((word & (u64::MAX >> 8)) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56
}

fn decode(word: u64, capacity: u64) -> Option<State> {
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

    const DATA: Identity = Identity::File {
        device: 1,
        inode: 2,
        born: Some(3),
    };

    fn written(pointer: u64) -> State {
        State {
            pointer,
            condition: ZoneCondition::Closed,
        }
    }

    fn header(layout: ZoneLayout, zones: usize) -> Header {
        Header::new(layout, (zones, 512), 0, DATA)
    }

    fn started(file: &ZonesFile, device: Header) -> Result<Beside, Error> {
        let beside = file.open(device, false)?;
        beside.start(Duration::ZERO)?;
        Ok(beside)
    }

    /// In the same boot the pointers of answered writes count, after another one those of the last sync.
    #[test]
    fn a_crash_keeps_what_was_synced() {
        let directory = tempfile::tempdir().unwrap();
        let file = ZonesFile::new(directory.path().join("disk.zones")).create(true);
        let open = || started(&file, header(LAYOUT, 3)).unwrap();
        let store = open();
        assert_eq!(store.load(), Ok(vec![State::EMPTY; 3]));
        store.note(1, written(4096)).unwrap();
        store.settle(&[(1, written(4096))]).unwrap();
        store.note(1, written(8192)).unwrap();
        store.note(2, written(512)).unwrap();
        drop(store);
        let wanted = vec![State::EMPTY, written(8192), written(512)];
        assert_eq!(open().load(), Ok(wanted));
        // As another boot finds it: also a read-only server, which changes nothing.
        let store = open();
        let mut before = header(LAYOUT, 3);
        before.boot[0] ^= 1;
        store.file.write_all_at(&before.encode(), 0).unwrap();
        drop(store);
        let wanted = vec![State::EMPTY, written(4096), State::EMPTY];
        let reader = file.open(header(LAYOUT, 3), true).unwrap();
        reader.start(Duration::ZERO).unwrap();
        assert_eq!(reader.load(), Ok(wanted.clone()));
        drop(reader);
        assert_eq!(open().load(), Ok(wanted.clone()));
        assert_eq!(open().load(), Ok(wanted));
    }

    /// A file of another device, or none at all, is refused with what it is.
    #[test]
    fn another_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.zones");
        let file = ZonesFile::new(&path);
        let device = header(LAYOUT, 3);
        let refused = |device: Header| file.open(device, false).map(drop);
        assert_eq!(refused(device), Err(ZonesFileError::Missing.into()));
        assert!(!path.exists(), "it is made for a new device only");
        drop(started(&file.clone().create(true), device).unwrap());
        let (found, size) = (4 * LAYOUT.size, 5 * LAYOUT.size);
        let grown = ZonesFileError::Size { found, size };
        assert_eq!(refused(header(LAYOUT, 4)), Err(grown.into()));
        let capacity = 4096;
        let other = header(ZoneLayout { capacity, ..LAYOUT }, 3);
        let (layout, block_size) = (LAYOUT, 512);
        let layout = ZonesFileError::Layout { layout, block_size };
        assert_eq!(refused(other), Err(layout.into()));
        let (found, offset) = (0, 4096);
        let moved = ZonesFileError::Offset { found, offset };
        assert_eq!(
            refused(Header {
                base: 4096,
                ..device
            }),
            Err(moved.into())
        );
        // A copy becomes that of its own file, but not while a device is served on.
        let data = [9, 3];
        let copy = Header { data, ..device };
        let same = file.clone().same_data(true);
        assert_eq!(
            same.open(copy, false).map(drop),
            Err(ZonesFileError::Other.into())
        );
        drop(started(&file, copy).unwrap());
        assert!(same.open(copy, false).is_ok());
        assert!(same.open(device, false).is_err());
    }

    /// A file has one server that writes, or several that read.
    #[test]
    fn a_file_has_one_server() {
        let directory = tempfile::tempdir().unwrap();
        let file = ZonesFile::new(directory.path().join("disk.zones")).create(true);
        let device = header(LAYOUT, 3);
        let first = started(&file, device).unwrap();
        let locked = Err(ZonesFileError::Locked.into());
        assert_eq!(started(&file, device).map(drop), locked);
        let reader = file.open(device, true).unwrap();
        assert_eq!(reader.start(Duration::ZERO), locked);
        drop(first);
        reader.start(Duration::ZERO).unwrap();
        let another = file.open(device, true).unwrap();
        another.start(Duration::ZERO).unwrap();
        assert_eq!(started(&file, device).map(drop), locked);
    }

    /// No byte of a word can change, nor a hole come into the file, without the pointers being told as damaged.
    #[test]
    fn damage_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.zones");
        let file = ZonesFile::new(&path).create(true);
        let device = header(LAYOUT, 3);
        let store = started(&file, device).unwrap();
        store.note(1, written(4096)).unwrap();
        drop(store);
        let whole = fs::read(&path).unwrap();
        let load = || started(&file, device).and_then(|store| store.load());
        let damaged = Err(ZonesFileError::Damaged.into());
        assert!(load().is_ok());
        let word = usize::try_from(Beside::live_at(1)).unwrap();
        for at in word..word + 8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert_eq!(load(), damaged, "byte {at}");
        }
        let mut bytes = whole.clone();
        bytes[word..word + 8].fill(0);
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(), damaged, "a hole");
        let mut bytes = whole.clone();
        bytes[70] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert_eq!(load(), damaged, "a torn header");
        fs::write(&path, &whole[..4100]).unwrap();
        assert!(matches!(
            load(),
            Err(Error::ZonesFile(ZonesFileError::Truncated {
                length: 4100,
                ..
            }))
        ));
        for (content, error) in [
            (&[][..], ZonesFileError::Empty),
            (&[7; 4096], ZonesFileError::Foreign),
        ] {
            fs::write(&path, content).unwrap();
            assert_eq!(load(), Err(error.into()));
        }
        // A pointer beyond the capacity, and an empty zone with one.
        let condition = ZoneCondition::Empty;
        let empty = State {
            pointer: 512,
            condition,
        };
        for state in [written(LAYOUT.capacity + 512), empty] {
            assert_eq!(decode(encode(state), LAYOUT.capacity), None);
        }
    }

    /// A new file has all of its blocks, so that a full disk keeps no zone from being reset.
    #[test]
    fn a_new_file_has_no_holes() {
        let directory = tempfile::tempdir().unwrap();
        let file = ZonesFile::new(directory.path().join("disk.zones")).create(true);
        let device = header(LAYOUT, 1024);
        let store = started(&file, device).unwrap();
        let meta = store.file.metadata().unwrap();
        assert_eq!(meta.len(), 4096 + 2 * 8192);
        assert!(meta.blocks() * 512 >= meta.len(), "{}", meta.blocks());
    }
}
