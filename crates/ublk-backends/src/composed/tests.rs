use std::fs;
use std::path::{Path, PathBuf};

use super::*;

/// Files of these lengths, without O_DIRECT where the file system has none.
fn files(lengths: &[u64]) -> (tempfile::TempDir, Vec<PathBuf>) {
    let directory = tempfile::tempdir().unwrap();
    let paths = lengths.iter().enumerate().map(|(n, length)| {
        let path = directory.path().join(format!("{n}.img"));
        fs::File::create(&path).unwrap().set_len(*length).unwrap();
        path
    });
    let paths = paths.collect();
    (directory, paths)
}

fn open(path: &Path) -> File {
    let options = File::options(path).block_size(Some(512)).buffered(true);
    options.open().unwrap()
}

fn opened(paths: &[PathBuf]) -> Vec<File> {
    paths.iter().map(|path| open(path)).collect()
}

/// L02 What is written through the device is in the right place of the right member, and is read back.
#[test]
fn l02_data_is_in_its_member() {
    let (_directory, paths) = files(&[16 << 10, 20 << 10]);
    let size = 32 << 10;
    let device = Composed::stripe(opened(&paths), 8192).unwrap();
    assert_eq!(device.limits().size, size);
    let data: Vec<u8> = (1..=64_u8).flat_map(|n| [n; 512]).collect();
    device.write_at(&data, 0, true).unwrap();
    let mut back = vec![0; data.len()];
    device.read_at(&mut back, 0).unwrap();
    assert!(back == data);
    let members: Vec<Vec<u8>> = paths.iter().map(|p| fs::read(p).unwrap()).collect();
    let chunk = |n: usize| &data[n * 8192..(n + 1) * 8192];
    assert!(members[0][..] == [chunk(0), chunk(2)].concat());
    assert!(members[1][..16 << 10] == [chunk(1), chunk(3)].concat());
    assert!(members[1][16 << 10..].iter().all(|b| *b == 0));
    // Across a border, without the bytes around.
    device.write_at(&[0xee; 1024], 8192 - 512, false).unwrap();
    device.read_at(&mut back, 0).unwrap();
    assert!(back[8192 - 512..8192 + 512].iter().all(|b| *b == 0xee));
    assert_eq!((back[8192 - 513], back[8192 + 512]), (15, 18));
    device.write_zeroes(4096, 8192, false).unwrap();
    device.read_at(&mut back, 0).unwrap();
    assert!(back[4096..12_288].iter().all(|b| *b == 0) && back[4095] == 8 && back[12_288] == 25);
    assert_eq!(device.read_at(&mut [0; 512], size), Err(Errno::EIO));
    assert_eq!(
        device.write_at(&[0; 1024], size - 512, false),
        Err(Errno::EIO)
    );
}

/// Windows of one file, in another order, are a linear device.
#[test]
fn l13_windows_of_one_file_are_members() {
    let (_directory, paths) = files(&[64 << 10]);
    let window = |offset, length| {
        let options = File::options(&paths[0]).block_size(Some(512));
        let options = options.buffered(true).offset(offset).length(Some(length));
        options.open().unwrap()
    };
    let device = Composed::linear(vec![window(32 << 10, 8192), window(0, 4096)]).unwrap();
    assert_eq!(device.limits().size, 12_288);
    device.write_at(&[7; 1024], 8192 - 512, false).unwrap();
    let file = fs::read(&paths[0]).unwrap();
    let written: Vec<usize> = (0..file.len()).filter(|n| file[*n] == 7).collect();
    assert_eq!(written[..512], (0..512).collect::<Vec<_>>());
    assert_eq!(written[512], (32 << 10) + 8192 - 512);
    assert_eq!(device.members_of(0, 512), [0]);
    assert_eq!(device.members_of(8192 - 512, 1024), [0, 1]);
    assert_eq!(device.members_of(0, 0), [0, 1]);
    let overlap = Composed::linear(vec![window(0, 8192), window(4096, 8192)]);
    assert!(matches!(
        overlap,
        Err(Error::Overlap {
            first: 0,
            second: 1
        })
    ));
}

/// L07 A FLUSH syncs every member, a FUA write those that it touches.
#[test]
fn l07_every_member_is_synced() {
    let (_directory, paths) = files(&[8192; 3]);
    let device = Composed::stripe(opened(&paths), 4096).unwrap();
    let syncs = || {
        device
            .members()
            .iter()
            .map(|m| m.syncs().1)
            .collect::<Vec<_>>()
    };
    device.flush().unwrap();
    assert_eq!(syncs(), [1, 1, 1]);
    device.write_at(&[1; 512], 4096, true).unwrap();
    assert_eq!(syncs(), [1, 2, 1]);
    device.write_at(&[1; 8192], 4096, true).unwrap();
    assert_eq!(syncs(), [1, 3, 2]);
    assert_eq!(device.syncs(), (3, 6));
}

/// The limits are those that every member keeps; what cannot be is refused, saying what to do.
#[test]
fn limits_are_those_of_all_members() {
    let (_directory, paths) = files(&[64 << 10, 100 << 10, 512]);
    let device = Composed::stripe(opened(&paths[..2]), 16 << 10).unwrap();
    let limits = device.limits();
    assert_eq!((limits.size, limits.logical_block_size), (128 << 10, 512));
    assert_eq!(
        (limits.minimum_io_size, limits.optimal_io_size),
        (16 << 10, 32 << 10)
    );
    assert!(limits.volatile_cache && limits.fua && !limits.read_only);
    let read_only = File::options(&paths[0])
        .read_only(true)
        .block_size(Some(512));
    let members = vec![read_only.open().unwrap(), open(&paths[1])];
    assert!(Composed::linear(members).unwrap().limits().read_only);
    let refused = |layout, members| Composed::new(layout, members).unwrap_err().to_string();
    let stripe = |chunk| Layout::Stripe { chunk };
    assert!(refused(Layout::Linear, Vec::new()).contains("1 to 64"));
    for chunk in [0, 512, 12_288, 1 << 29] {
        assert!(refused(stripe(chunk), opened(&paths[..2])).contains("power of two"));
    }
    assert!(refused(stripe(4096), opened(&paths)).contains("member 3"));
    let blocks = File::options(&paths[0])
        .block_size(Some(4096))
        .buffered(true);
    let mixed = vec![blocks.open().unwrap(), open(&paths[2])];
    assert!(refused(Layout::Linear, mixed).contains("member 2"));
}
