use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use ublk_core::{Backend, Checksum, Errno, Integrity};

use super::in_memory::{InMemory, Source};
use super::store::Store;
use super::{Checked, Protected, SideFile};
use crate::{Error, File, Memory, SideFileError};

const CRC16: Integrity = Integrity::new(Checksum::Crc16, 8);

fn device(size: u64, block: u32, integrity: Integrity) -> Protected<Memory> {
    let memory = Memory::new(size, block).expect("valid");
    Protected::memory(memory, integrity).expect("valid")
}

fn metadata(device: &Protected<Memory>, offset: u64, blocks: usize) -> Vec<u8> {
    let mut data = vec![0; blocks * 512];
    let mut metadata = vec![0; blocks * 8];
    device
        .read_with_metadata(&mut data, &mut metadata, offset)
        .expect("inside");
    metadata
}

/// Each block has the metadata that came with its data, also across the pieces in which it is kept.
#[test]
fn metadata_stays_with_its_data() {
    let device = device(4 << 20, 512, CRC16);
    assert_eq!(device.limits().integrity, Some(CRC16));
    // 512 blocks of metadata are a piece.
    let begin = 510 * 512;
    let sent: Vec<u8> = (0..32).collect();
    device
        .write_with_metadata(&[7; 2048], &sent, begin, false)
        .unwrap();
    assert_eq!(metadata(&device, begin, 4), sent);
    assert_eq!(metadata(&device, begin + 1024, 1), sent[16..24]);
    assert_eq!(
        metadata(&device, begin - 512, 1),
        [0xff; 8],
        "never written"
    );
    let mut data = [0; 512];
    device.read_at(&mut data, begin + 1536).unwrap();
    assert_eq!(data, [7; 512]);
}

/// Where the driver gets metadata from: the memory that has it, ones where nothing is stored, and a copy for anything else.
#[test]
fn the_driver_gets_what_is_loaded() {
    let (page, all) = (4096, 4 * 4096);
    let store = InMemory::new(all).unwrap();
    let source = |at: u64, len: usize| match store.source(at, len).unwrap() {
        Source::Here(memory) => Some(memory.len()),
        Source::Nowhere(ones) => {
            assert_eq!(ones, vec![0xff; len]);
            None
        }
        Source::Mixed => Some(0),
    };
    let mut loaded = vec![0; 8192];
    store.store(page + 8, &[1; 16]).unwrap();
    assert_eq!(source(page, 64), Some(64));
    assert_eq!(source(0, 4096), None, "nothing is stored there");
    assert_eq!(source(page - 8, 16), Some(0), "one page of two is in use");
    assert_eq!(source(2 * page, 8192), Some(0), "longer than the ones");
    store.load((0, 0), page - 8, &mut loaded[..40]).unwrap();
    let wanted = [&[0xff; 16][..], &[1; 16], &[0xff; 8]].concat();
    assert_eq!(loaded[..40], wanted);
    store.destination(0, 8192).unwrap();
    assert_eq!(source(page - 8, 16), Some(16));
    store.erase(page + 8, page - 8).unwrap();
    assert_eq!(source(page, 64), Some(64), "its first block is kept");
    store.erase(page, page).unwrap();
    assert_eq!(source(page, 64), None);
    assert_eq!(store.source(all - 8, 16).err(), Some(Errno::EIO));
}

/// A block loses its metadata with the data that it belongs to, and no other block does.
#[test]
fn changed_data_has_no_old_metadata() {
    type Change = fn(&Protected<Memory>, u64) -> Result<(), Errno>;
    let changes: [Change; 4] = [
        |device, at| device.write_at(&[1; 512], at, false),
        |device, at| device.discard(at, 512),
        |device, at| device.write_zeroes(at, 512, true),
        |device, at| device.write_zeroes(at, 512, false),
    ];
    for change in changes {
        let device = device(1 << 20, 512, CRC16);
        let sent: Vec<u8> = (0..24).collect();
        device
            .write_with_metadata(&[7; 1536], &sent, 0, false)
            .unwrap();
        change(&device, 512).unwrap();
        let wanted = [&sent[..8], &[0xff; 8], &sent[16..]].concat();
        assert_eq!(metadata(&device, 0, 3), wanted);
    }
}

/// A discard of everything frees every piece, in one look at those that exist.
#[test]
fn a_large_discard_erases_everything() {
    let device = device(1 << 30, 512, CRC16);
    for at in [0, 512 << 20, (1 << 30) - 512] {
        device
            .write_with_metadata(&[7; 512], &[3; 8], at, false)
            .unwrap();
    }
    device.discard(512, (1 << 30) - 512).unwrap();
    assert_eq!(metadata(&device, 0, 1), [3; 8]);
    assert_eq!(metadata(&device, 512 << 20, 1), [0xff; 8]);
    assert_eq!(metadata(&device, (1 << 30) - 512, 1), [0xff; 8]);
}

/// Data and metadata of another length are refused, and so is metadata that the driver does not allow.
#[test]
fn wrong_sizes_are_refused() {
    let device = device(1 << 20, 4096, CRC16.interval(512));
    let write = |metadata: &[u8]| device.write_with_metadata(&[0; 4096], metadata, 0, false);
    assert_eq!(write(&[0; 8]), Err(Errno::EINVAL));
    assert_eq!(write(&[0; 64]), Ok(()));
    let mut data = vec![0; 4096];
    let read = device.read_with_metadata(&mut data, &mut [0; 63], 0);
    assert_eq!(read, Err(Errno::EINVAL));
    let refused = |integrity| {
        let memory = Memory::new(1 << 20, 512).expect("valid");
        Protected::memory(memory, integrity).expect_err("the driver refuses it")
    };
    let small = refused(Integrity::new(Checksum::Crc64, 8));
    assert!(matches!(small, Error::Integrity(_)) && small.is_usage());
    refused(CRC16.interval(4096));
}

fn on_file(path: &Path, create: bool) -> Result<Protected<File>, Error> {
    let file = File::options(path).block_size(Some(512)).open()?;
    Protected::file(file, CRC16, &SideFile::beside(path).create(create))
}

/// Metadata in a file is there when the device is opened again: after a clean end without a look, after a kill with one, which
/// takes what does not match, and only that.
#[test]
fn metadata_in_a_file_outlives_its_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, vec![0; 8 << 20]).unwrap();
    let missing = on_file(&path, false).expect_err("it is made if that is asked for");
    assert_eq!(missing, SideFileError::Missing.into());
    assert!(!SideFile::beside(&path).exists());
    let device = on_file(&path, true).unwrap();
    assert!(SideFile::beside(&path).exists());
    let block = [7; 512];
    let good = super::guard::make(&CRC16, &block, 5);
    for at in [0, 512, 3 << 20] {
        device
            .write_with_metadata(&block, &good, at, at == 0)
            .unwrap();
    }
    let second = on_file(&path, false).expect_err("its server still has it");
    assert_eq!(second, SideFileError::Locked.into());
    drop(device);
    let open = || {
        let file = File::options(&path).block_size(Some(512)).open().unwrap();
        let device = Protected::prepared(file, CRC16, &SideFile::beside(&path)).unwrap();
        let checked = device.start(Duration::ZERO).unwrap();
        (device, checked)
    };
    let (device, checked) = open();
    assert_eq!(checked, Checked::default());
    let read = |device: &Protected<File>, at| {
        let (mut data, mut metadata) = ([0; 512], vec![0; 8]);
        device
            .read_with_metadata(&mut data, &mut metadata, at)
            .unwrap();
        metadata
    };
    assert_eq!(read(&device, 512), good);
    device
        .write_with_metadata(&block, &good, 1024, false)
        .unwrap();
    // As after a kill: another file with its state.
    let copy = directory.path().join("copy");
    fs::copy(SideFile::beside(&path).path(), &copy).unwrap();
    drop(device);
    fs::rename(&copy, SideFile::beside(&path).path()).unwrap();
    let data = OpenOptions::new().write(true).open(&path).unwrap();
    data.write_all_at(&[9; 512], 512).unwrap();
    let (device, checked) = open();
    assert_eq!((checked.regions, checked.kept, checked.dropped), (1, 2, 1));
    assert_eq!(read(&device, 0), good);
    assert_eq!(read(&device, 512), [0xff; 8]);
    assert_eq!(read(&device, 3 << 20), good);
    drop(device);
    // What is read-only cannot be repaired.
    let reader = |path: &Path| {
        let file = File::options(path).read_only(true).block_size(Some(512));
        let file = file.open().unwrap();
        Protected::file(file, CRC16, &SideFile::beside(path).create(true))
    };
    assert_eq!(read(&reader(&path).unwrap(), 0), good);
    let side = OpenOptions::new()
        .write(true)
        .open(SideFile::beside(&path).path());
    side.unwrap().write_all_at(&[1], 4096).unwrap();
    let refused = reader(&path).expect_err("a region is dirty");
    assert_eq!(refused, SideFileError::Unclean.into());
}

/// Whoever makes a file takes none that another server makes or has, and writes through nothing that lies in its way.
#[test]
fn a_file_is_made_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    let side = SideFile::beside(&path);
    let unfinished = directory.path().join("disk.img.integrity.new");
    // Another server makes it.
    let other = fs::File::create(&unfinished).unwrap();
    other.lock().unwrap();
    let refused = on_file(&path, true).expect_err("it is being made");
    assert_eq!(refused, SideFileError::Locked.into());
    assert!(!side.exists() && unfinished.exists());
    // It died, and somebody put a link in its place.
    drop(other);
    fs::remove_file(&unfinished).unwrap();
    std::os::unix::fs::symlink(&path, &unfinished).unwrap();
    let device = on_file(&path, true).unwrap();
    assert!(side.exists() && !unfinished.is_symlink());
    assert_eq!(fs::read(&path).unwrap(), vec![0; 1 << 20]);
    // The caller of an attempt that failed removes no file of a device that lives.
    side.remove_unused();
    assert!(side.exists(), "it is in use");
    drop(device);
    // A file that loses its name between its opening and its lock keeps nothing.
    let file = File::options(&path).block_size(Some(512)).open().unwrap();
    let late = Protected::prepared(file, CRC16, &side).unwrap();
    side.remove_unused();
    assert!(!side.exists());
    let refused = late.start(Duration::ZERO);
    assert_eq!(refused, Err(SideFileError::Missing.into()));
}

/// A discard of everything gives the metadata's storage back.
#[test]
fn a_discard_punches_the_metadata_out() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    fs::write(&path, vec![0; 8 << 20]).unwrap();
    let device = on_file(&path, true).unwrap();
    let used = || {
        let meta = fs::metadata(SideFile::beside(&path).path()).unwrap();
        meta.blocks() * 512
    };
    let before = used();
    let data = vec![7; 1 << 20];
    for at in 0..8 {
        device
            .write_with_metadata(&data, &vec![3; 16 << 10], at << 20, false)
            .unwrap();
    }
    assert!(used() >= before + (128 << 10));
    device.write_zeroes(0, 8 << 20, true).unwrap();
    assert_eq!(used(), before);
    assert_eq!(device.resize((8 << 20) + 512), Err(Errno::ENOSPC));
    device.resize(4 << 20).unwrap();
    drop(device);
    let other = on_file(&path, true).expect_err("a smaller device");
    assert!(matches!(
        other,
        Error::SideFile(SideFileError::Size { found, .. }) if found == 4 << 20
    ));
}

/// A reader never gets the data of one write with the metadata of another.
#[test]
fn data_and_metadata_change_together() {
    let device = &device(2 << 20, 512, CRC16);
    let begin = (1 << 20) - 1024;
    std::thread::scope(|scope| {
        for n in 1..=2_u8 {
            scope.spawn(move || {
                for _ in 0..500 {
                    device
                        .write_with_metadata(&[n; 2048], &[n; 32], begin, false)
                        .unwrap();
                }
            });
        }
        for _ in 0..500 {
            let (mut data, mut metadata) = ([0; 2048], [0; 32]);
            device
                .read_with_metadata(&mut data, &mut metadata, begin)
                .unwrap();
            let first = data[0];
            assert!(data.iter().all(|byte| *byte == first));
            let wanted = if first == 0 { 0xff } else { first };
            assert_eq!(metadata, [wanted; 32]);
        }
    });
}
