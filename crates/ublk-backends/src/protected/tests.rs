use ublk_core::{Backend, Checksum, Errno, Integrity};

use super::Protected;
use crate::{Error, Memory};

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
