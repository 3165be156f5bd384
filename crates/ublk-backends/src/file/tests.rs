//! Real files: on a disk's file system and in memory.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::Error;

const MIB: u64 = 1 << 20;

/// Test directories: below the build directory, which is usually on a disk, and in shared memory.
fn places() -> Vec<TempDir> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let inside = |place: &Path| {
        tempfile::Builder::new()
            .prefix("file-test-")
            .tempdir_in(place)
    };
    let mut places = vec![tempfile::tempdir().expect("a temporary directory")];
    for place in [built, Path::new("/dev/shm")] {
        // A checkout may be read-only, and a container may lack shared memory.
        places.extend(inside(place));
    }
    places
}

fn made(directory: &TempDir, size: u64) -> PathBuf {
    let path = directory.path().join("disk.img");
    Created::new(&path, size)
        .expect("room for a sparse file")
        .keep();
    path
}

/// Allocated bytes.
fn used(path: &Path) -> u64 {
    std::fs::metadata(path).expect("there").blocks() * 512
}

/// A device grows with its file, no further, and by whole blocks; a truncated part is lost.
#[test]
fn a_device_grows_with_its_file() {
    for place in places() {
        let path = made(&place, 2 * MIB);
        let options = File::options(&path).offset(MIB);
        let file = options.open().expect("ours");
        assert_eq!(file.resize(2 * MIB), Err(Errno::ENOSPC));
        let longer = OpenOptions::new().write(true).open(&path).expect("there");
        longer.set_len(3 * MIB).expect("sparse");
        assert_eq!(file.write_at(&[7; 4096], MIB, false), Err(Errno::EIO));
        assert_eq!(file.resize(2 * MIB - 1), Err(Errno::EINVAL));
        assert_eq!(file.resize(0), Err(Errno::EINVAL));
        assert_eq!(file.resize(2 * MIB), Ok(()));
        assert_eq!(file.write_at(&[7; 4096], 2 * MIB - 4096, false), Ok(()));
        let mut read = [0; 4096];
        let behind = OpenOptions::new().read(true).open(&path).expect("there");
        file.flush().expect("written");
        behind
            .read_exact_at(&mut read, 3 * MIB - 4096)
            .expect("all");
        assert_eq!(read, [7; 4096]);
        assert_eq!(file.resize(MIB), Ok(()));
        assert_eq!(file.read_at(&mut read, MIB), Err(Errno::EIO));
    }
}

#[test]
fn data_is_where_it_belongs() {
    for place in places() {
        let path = made(&place, 4 * MIB);
        for buffered in [false, true] {
            let options = File::options(&path).offset(MIB).length(Some(2 * MIB));
            let file = options.buffered(buffered).open().expect("ours");
            assert!(file.notes().is_empty(), "{:?}", file.notes());
            assert!(!(buffered && file.is_direct()));
            let limits = file.limits();
            assert_eq!((limits.size, file.base()), (2 * MIB, MIB));
            assert!(limits.volatile_cache && limits.fua && limits.max_write_zeroes > 0);
            assert_eq!(limits.quick, file.is_in_memory());
            let block = usize::try_from(limits.logical_block_size).unwrap();
            let last = 2 * MIB - block as u64;
            for (offset, len, byte) in [(0, block, 1), (last, block, 2), (MIB, 300 << 10, 3)] {
                file.write_at(&vec![byte; len], offset, byte == 3)
                    .expect("room");
                let mut back = vec![0; len];
                file.read_at(&mut back, offset).expect("there");
                assert_eq!(back, vec![byte; len]);
                file.flush().expect("a sync");
                let mut raw = vec![0; len];
                std::fs::File::open(&path)
                    .unwrap()
                    .read_exact_at(&mut raw, MIB + offset)
                    .unwrap();
                assert_eq!(raw, vec![byte; len], "at its place in the file");
            }
            assert_eq!(file.syncs(), (4, 4));
            // Nothing beyond the window is read or written, though the file continues (L13).
            assert_eq!(file.read_at(&mut vec![0; block], 2 * MIB), Err(Errno::EIO));
            assert_eq!(
                file.write_at(&vec![1; block], last + 1, false),
                Err(Errno::EIO)
            );
            let mut around = vec![1; 4096];
            let raw = std::fs::File::open(&path).unwrap();
            for at in [0, MIB - 4096, 3 * MIB, 4 * MIB - 4096] {
                raw.read_exact_at(&mut around, at).unwrap();
                assert_eq!(around, [0; 4096], "{at}");
            }
        }
    }
}

/// L12 Discard deallocates space and reads as zeroes; write-zeroes without unmapping keeps it.
#[test]
fn l12_storage_is_given_back_or_kept_as_asked() {
    for place in places() {
        let path = made(&place, 4 * MIB);
        let file = File::options(&path).open().expect("ours");
        assert_eq!(used(&path), 0, "sparse");
        let check = |offset: u64, zero: bool| {
            let mut back = vec![9; 4096];
            file.read_at(&mut back, offset).expect("there");
            let wanted = if zero { 0 } else { 5 };
            assert_eq!(back, vec![wanted; 4096], "{offset}");
        };
        let data = vec![5; usize::try_from(4 * MIB).unwrap()];
        for way in ["discard", "unmap", "keep"] {
            file.write_at(&data, 0, true).expect("room");
            assert!(used(&path) >= 4 * MIB);
            match way {
                "discard" if file.limits().max_discard == 0 => continue,
                "discard" => file.discard(MIB, 2 * MIB),
                _ => file.write_zeroes(MIB, 2 * MIB, way == "unmap"),
            }
            .unwrap_or_else(|e| panic!("{way}: {e}"));
            for (offset, zero) in [
                (MIB - 4096, false),
                (MIB, true),
                (3 * MIB - 4096, true),
                (3 * MIB, false),
            ] {
                check(offset, zero);
            }
            file.flush().expect("a sync");
            if way == "keep" {
                assert!(used(&path) >= 4 * MIB, "{} bytes left", used(&path));
            } else if file.limits().max_discard != 0 {
                assert!(
                    used(&path) <= 2 * MIB + 65_536,
                    "{way}: {} bytes left",
                    used(&path)
                );
            }
        }
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            4 * MIB,
            "no longer than before"
        );
    }
}

/// L05 Access to a part that was truncated behind the device's back is an error, not old data; the rest is served.
#[test]
fn l05_a_truncated_file_is_an_error() {
    for place in places() {
        for cut in [0, 8192, 8192 + 100] {
            let path = made(&place, MIB);
            let file = File::options(&path).open().expect("ours");
            file.write_at(&vec![6; 65_536], 0, true).expect("room");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(cut)
                .unwrap();
            let mut buf = vec![0; 65_536];
            assert_eq!(file.read_at(&mut buf, 0), Err(Errno::EIO));
            assert_eq!(file.read_at(&mut buf, MIB - 65_536), Err(Errno::EIO));
            if cut > 0 {
                assert_eq!(file.read_at(&mut buf[..8192], 0), Ok(()));
                assert_eq!(buf[..8192], [6; 8192]);
            }
            std::fs::remove_file(&path).unwrap();
        }
    }
}

/// L13 Windows that do not fit the file are refused with a specific error, near 8 EiB, too.
#[test]
fn l13_windows_are_checked() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = made(&place, MIB);
    let open = |offset, length| {
        File::options(&path)
            .offset(offset)
            .length(length)
            .open()
            .err()
    };
    for (offset, length) in [
        (0, MIB + 4096),
        (4096, MIB),
        (MIB, 4096),
        (u64::MAX - 4095, 8192),
        (1 << 63, 1 << 63),
        (4096, u64::MAX - 4095),
    ] {
        let found = open(offset, Some(length));
        assert!(
            matches!(found, Some(Error::Window { .. })),
            "{offset}+{length}: {found:?}"
        );
    }
    for (offset, length) in [(100, None), (0, Some(100)), (0, Some(0)), (u64::MAX, None)] {
        let found = open(offset, length);
        assert!(
            matches!(found, Some(Error::Unaligned { .. })),
            "{offset}+{length:?}: {found:?}"
        );
    }
    assert!(matches!(open(MIB, None), Some(Error::Empty { .. })));
    assert_eq!(open(MIB - 4096, Some(4096)), None);
    for block in [0, 256, 513, 8192] {
        let found = File::options(&path).block_size(Some(block)).open().err();
        assert_eq!(found, Some(Error::BlockSize(block)));
    }
    let file = File::options(&path)
        .block_size(Some(4096))
        .open()
        .expect("fits");
    assert_eq!(file.limits().logical_block_size, 4096);
    drop(file);
    // A file that ends inside a block: the rest is reported, not silently lost.
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(MIB + 700)
        .unwrap();
    let file = File::options(&path).open().expect("fits");
    assert_eq!(file.limits().size, MIB + 512);
    let cut = file.choices().iter().find(|n| n.contains("last 188 bytes"));
    assert!(cut.is_some(), "{:?}", file.choices());
    // Opened again with the chosen numbers, there is nothing to report.
    let again = File::options(&path).length(Some(file.limits().size));
    assert!(again.open().expect("fits").choices().is_empty());
}

#[test]
fn what_is_no_file_is_refused() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let open = |path: &Path| File::options(path).open().err();
    for (path, what) in [
        (place.path(), "directory"),
        (Path::new("/dev/null"), "character device"),
    ] {
        assert_eq!(open(path), Some(Error::NotStorage { what }));
    }
    let missing = open(&place.path().join("none"));
    assert!(missing.is_some_and(|e| e.to_string().contains("ENOENT")));
    let empty = place.path().join("empty");
    std::fs::write(&empty, []).unwrap();
    assert!(matches!(open(&empty), Some(Error::Empty { size: 0, .. })));
}

/// A new file is sparse and private, never replaces another, and is removed unless it is kept.
#[test]
fn creation_never_touches_what_is_there() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = place.path().join("disk.img");
    drop(Created::new(&path, 1 << 40).expect("sparse"));
    assert!(!path.exists(), "not kept, not left");
    Created::new(&path, MIB).expect("sparse").keep();
    let meta = std::fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.len(), meta.blocks(), meta.mode() & 0o777),
        (MIB, 0, 0o600)
    );
    std::fs::write(&path, b"precious").unwrap();
    let again = Created::new(&path, MIB).expect_err("it is there");
    assert!(
        matches!(
            again,
            Error::File {
                errno: Errno::EEXIST,
                ..
            }
        ),
        "{again}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    assert!(matches!(
        Created::new(place.path().join("x"), 100),
        Err(Error::Size { .. })
    ));
}

/// Read-only extends to the descriptor, and no writing operation is declared.
#[test]
fn read_only_declares_and_does_no_write() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = made(&place, MIB);
    let file = File::options(&path).read_only(true).open().expect("ours");
    let limits = file.limits();
    assert!(limits.read_only && !limits.volatile_cache && !limits.fua);
    assert_eq!((limits.max_discard, limits.max_write_zeroes), (0, 0));
    assert_eq!(file.write_at(&[1; 4096], 0, false), Err(Errno::EBADF));
    assert!(file.write_zeroes(0, 4096, false).is_err() && file.discard(0, 4096).is_err());
    assert_eq!(file.read_at(&mut [1; 4096], 0), Ok(()));
}

/// RWF_NOWAIT does not work on shared memory; this check decides which thread makes the calls.
#[test]
fn memory_in_disguise_is_served_at_once() {
    let Ok(place) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIP memory_in_disguise_is_served_at_once: no /dev/shm");
        return;
    };
    let file = File::options(made(&place, MIB)).open().expect("ours");
    assert!(file.is_in_memory() && file.limits().quick);
    assert_eq!(file.favoured_data(), DataMode::Copy);
}

/// L81 The way a file is served depends on whether it is in memory, not on whether its present content can be read with
/// RWF_NOWAIT: holes and data are served alike.
#[test]
fn l81_holes_and_data_are_served_alike() {
    for place in places() {
        let path = made(&place, MIB);
        let served = || {
            let file = File::options(&path).open().expect("ours");
            (
                file.is_in_memory(),
                file.limits().quick,
                file.favoured_data(),
            )
        };
        let sparse = served();
        std::fs::write(&path, vec![1; usize::try_from(MIB).unwrap()]).expect("room");
        assert_eq!(served(), sparse);
    }
}

/// L82 The block size is that of the disk's content, and a difference from today's default is reported; opened again
/// with the recorded number, the content is ignored.
#[test]
fn l82_what_is_on_it_has_its_block_size() {
    for place in places() {
        let path = made(&place, MIB);
        let blank = File::options(&path).open().expect("ours");
        let usual = blank.limits().logical_block_size;
        assert!(blank.choices().is_empty(), "{:?}", blank.choices());
        drop(blank);
        for size in [512_u32, 4096] {
            let disk = OpenOptions::new().write(true).open(&path).unwrap();
            disk.set_len(0).unwrap();
            disk.set_len(MIB).unwrap();
            disk.write_all_at(b"EFI PART", size.into()).unwrap();
            let file = File::options(&path).open().expect("ours");
            assert_eq!(file.limits().logical_block_size, size);
            let said = file.choices().iter().any(|c| c.contains("GPT"));
            assert_eq!(said, size != usual, "{:?}", file.choices());
            drop(file);
            let window = File::options(&path).offset(8192).open().expect("ours");
            assert_eq!(window.limits().logical_block_size, usual, "blank there");
            drop(window);
            let other = 4096 + 512 - size;
            let recorded = File::options(&path).block_size(Some(other)).open();
            let recorded = recorded.expect("as it was made");
            assert_eq!(recorded.limits().logical_block_size, other);
            assert!(recorded.choices().is_empty(), "{:?}", recorded.choices());
        }
    }
}

/// A loop device with blocks of 4096 bytes, removed on drop. `None` if there is none available.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Option<Self> {
        let words = ["--find", "--show", "--sector-size", "4096"];
        let made = std::process::Command::new("losetup")
            .args(words)
            .arg(path)
            .output()
            .ok()?;
        let node = String::from_utf8(made.stdout).ok()?.trim().to_owned();
        made.status.success().then_some(Self(node))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup")
            .args(["-d", &self.0])
            .status();
    }
}

/// L83 A device with smaller blocks than the underlying disk: zeroes at unaligned positions affect nothing else, and a
/// discard deallocates what it can.
#[test]
fn l83_small_blocks_over_large_ones() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let path = made(&place, MIB);
    let Some(disk) = Loop::over(&path) else {
        eprintln!(
            "SKIP l83_small_blocks_over_large_ones: no loop device with blocks of 4096 bytes"
        );
        return;
    };
    let file = File::options(&disk.0)
        .block_size(Some(512))
        .open()
        .expect("ours");
    assert_eq!(
        (file.limits().logical_block_size, file.is_direct()),
        (512, false)
    );
    for (at, len) in [
        (512, 512),
        (4096, 4096),
        (3584, 1024),
        (512, 16_384),
        (7680, 9216),
    ] {
        for how in ["zero", "unmap", "discard"] {
            file.write_at(&[5; 65_536], 0, false).expect("room");
            match how {
                "discard" => file.discard(at, len),
                _ => file.write_zeroes(at, len, how == "unmap"),
            }
            .unwrap_or_else(|e| panic!("{how} {at}+{len}: {e}"));
            let mut back = vec![0; 65_536];
            file.read_at(&mut back, 0).expect("there");
            for (sector, bytes) in (0..).zip(back.chunks(512)) {
                let inside = (at..at + len).contains(&(sector * 512));
                let is = |byte| bytes.iter().all(|b| *b == byte);
                let right = if inside {
                    is(0) || (how == "discard" && is(5))
                } else {
                    is(5)
                };
                assert!(right, "{how} {at}+{len}, sector {sector}");
            }
        }
    }
}

/// A dangling symbolic link is reported as such by every caller.
#[test]
fn links_that_lead_nowhere_are_named() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let link = place.path().join("link");
    std::os::unix::fs::symlink(place.path().join("none"), &link).expect("a link");
    let created = Created::new(&link, MIB).expect_err("never followed");
    let opened = File::options(&link).open().expect_err("nothing there");
    for error in [created, opened] {
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }
}
