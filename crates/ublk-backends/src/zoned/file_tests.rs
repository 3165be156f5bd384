//! Files of write pointers: crashes, other files, damage, servers at once.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use ublk_core::ZoneCondition;

use super::header::{Header, live_at};
use super::store::{Beside, Store, decode, encode};
use super::table::{State, ZoneLayout};
use super::zones_file::ZonesFile;
use crate::error::{Error, ZonesFileError};
use crate::file::Identity;

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
    let word = usize::try_from(live_at(1)).unwrap();
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

/// Whoever makes a file takes none that another server makes or has, and writes through nothing that lies in its way.
#[test]
fn a_file_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = ZonesFile::new(directory.path().join("disk.zones")).create(true);
    let unfinished = directory.path().join("disk.zones.new");
    let device = header(LAYOUT, 3);
    // Another server makes it.
    let other = fs::File::create(&unfinished).unwrap();
    other.lock().unwrap();
    let locked = Err(ZonesFileError::Locked.into());
    assert_eq!(started(&file, device).map(drop), locked);
    assert!(!file.exists() && unfinished.exists());
    // It died, and somebody put a link in its place.
    drop(other);
    fs::remove_file(&unfinished).unwrap();
    let precious = directory.path().join("precious");
    fs::write(&precious, b"precious").unwrap();
    std::os::unix::fs::symlink(&precious, &unfinished).unwrap();
    drop(started(&file, device).unwrap());
    assert!(file.exists() && !unfinished.is_symlink());
    assert_eq!(fs::read(&precious).unwrap(), b"precious");
    // Many at once: all that come through have the same file.
    fs::remove_file(file.path()).unwrap();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let all = [(); 8].map(|()| scope.spawn(|| file.open(device, false)));
        all.map(|one| one.join().unwrap())
            .into_iter()
            .flatten()
            .collect()
    });
    let inode = fs::metadata(file.path()).unwrap().ino();
    let inodes = opened.iter().map(|one| one.file.metadata().unwrap().ino());
    assert!(!opened.is_empty() && inodes.into_iter().all(|one| one == inode));
    assert!(!unfinished.exists());
}
