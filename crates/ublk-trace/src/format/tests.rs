use super::*;
use crate::error::Error;
use crate::record::{MAX_END, MAX_TIME, Op, Record};
use std::io::{self, Write};
use std::num::NonZeroU16;

const DEVICE: Header = Header {
    began: 1_700_000_000_000_000_000,
    size: 1 << 30,
    block_size: 512,
};

/// A trace that uses every field, in blocks of 1024.
fn sample(n: u64) -> Vec<Record> {
    let record = |i: u64| Record {
        time: i * 10_000 + (i % 7) * 123,
        op: Op::ALL[usize::try_from(i % 8).unwrap()],
        offset: (i * 7919 % 4096) * 4096 + u64::from(i.is_multiple_of(50)),
        len: 4096 << (i % 3),
        queue: u16::try_from(i % 4).unwrap(),
        latency: (!i.is_multiple_of(5)).then_some(50_000 + i * 13 % 9000),
        error: NonZeroU16::new(u16::from(i.is_multiple_of(11)) * 5),
    };
    (0..n).map(record).collect()
}

fn written(records: &[Record]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &DEVICE).unwrap();
    for record in records {
        writer.push(record).unwrap();
    }
    writer.lost(3);
    writer.finish().unwrap()
}

fn read(bytes: &[u8]) -> (Vec<Record>, Option<Damage>, u64) {
    let mut reader = Reader::new(bytes).unwrap();
    assert_eq!(*reader.header(), DEVICE);
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    (records, reader.damage().cloned(), reader.lost())
}

#[test]
fn a_trace_survives() {
    for n in [0, 1, 1023, 1024, 1025, 5000] {
        let records = sample(n);
        assert_eq!(read(&written(&records)), (records, None, 3), "{n}");
    }
}

#[test]
fn the_largest_numbers_survive() {
    let records = [
        Record {
            time: MAX_TIME,
            op: Op::Discard,
            offset: 0,
            len: MAX_END,
            queue: u16::MAX,
            latency: Some(MAX_TIME),
            error: NonZeroU16::new(u16::MAX),
        },
        Record {
            time: 0,
            op: Op::Read,
            offset: MAX_END,
            len: 0,
            queue: 0,
            latency: Some(0),
            error: None,
        },
    ];
    assert_eq!(read(&written(&records)).0, records);
    let mut beyond = records[0];
    beyond.offset = 1;
    let mut writer = Writer::new(Vec::new(), &DEVICE).unwrap();
    assert!(matches!(writer.push(&beyond), Err(Error::Limits(_))));
}

/// A sequential stream of equal requests costs few bytes each.
#[test]
fn sequential_requests_are_short() {
    let record = |i: u64| Record {
        time: i * 1000,
        op: Op::Read,
        offset: i * 4096,
        len: 4096,
        queue: 0,
        latency: Some(9000),
        error: None,
    };
    let records: Vec<_> = (0..1024).map(record).collect();
    let len = written(&records).len();
    assert!(len < 1024 * 6, "{len}");
}

/// Cut anywhere, a trace is read up to its last whole block, and says that it was cut.
#[test]
fn a_cut_trace_is_read_up_to_its_last_whole_block() {
    let records = sample(2500);
    let whole = written(&records);
    for cut in (HEADER..whole.len()).step_by(7).chain([whole.len() - 1]) {
        let (found, damage, _) = read(&whole[..cut]);
        assert_eq!(
            found.len() % 1024,
            usize::from(found.len() == 2500) * 452,
            "{cut}"
        );
        assert_eq!(found, records[..found.len()]);
        assert!(damage.is_some(), "{cut}");
    }
    let headless = Reader::new(&whole[..HEADER - 1]);
    assert!(matches!(headless, Err(Error::Header(_))));
}

/// A bit that flipped anywhere behind the header ends the trace there; one in the header is an error.
#[test]
fn flipped_bits_are_found() {
    let records = sample(1100);
    let whole = written(&records);
    for at in (0..whole.len()).step_by(13) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        if at < HEADER {
            assert!(Reader::new(&bytes[..]).is_err(), "{at}");
            continue;
        }
        let (found, damage, _) = read(&bytes);
        assert_eq!(found, records[..found.len()]);
        assert!(
            damage.is_some_and(|d| d.at <= u64::try_from(at).unwrap()),
            "{at}"
        );
    }
}

#[test]
fn other_files_and_versions_are_refused() {
    assert!(matches!(
        Reader::new(&b"hello"[..]),
        Err(Error::UnknownFormat)
    ));
    let mut bytes = written(&[]);
    bytes[8] = 2;
    let error = Reader::new(&bytes[..]).unwrap_err();
    assert!(
        matches!(error, Error::Version { version: 2, .. }),
        "{error}"
    );
}

/// A full disk is an error of the writer, and what is on the disk is a trace that was cut off.
#[test]
fn a_full_disk_leaves_a_trace_that_can_be_read() {
    struct Disk(Vec<u8>, usize);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.1 - self.0.len();
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let now = bytes.len().min(room);
            self.0.extend(&bytes[..now]);
            Ok(now)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let records = sample(4000);
    let whole = written(&records).len();
    let mut disk = Disk(Vec::new(), whole / 2);
    let mut failed = false;
    {
        let mut writer = Writer::new(&mut disk, &DEVICE).unwrap();
        for record in &records {
            failed |= writer.push(record).is_err();
        }
    }
    assert!(failed);
    let (found, damage, _) = read(&disk.0);
    assert_eq!(found, records[..found.len()]);
    assert!(!found.is_empty() && damage.is_some());
}
