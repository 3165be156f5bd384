//! Bodies of fuzz targets, also replayed by `cargo test`: each takes any bytes and panics when a promise is broken.

use crate::format::{Header, MAGIC, Reader, Writer};
use crate::{Record, Source};

/// The records of a source, each of them sound, and whether it ended without an error.
fn records(bytes: &[u8]) -> (Vec<Record>, bool) {
    let Ok(mut source) = Source::new(bytes) else {
        return (Vec::new(), false);
    };
    let mut records = Vec::new();
    loop {
        match source.next_record() {
            Ok(Some(record)) => {
                assert!(record.is_sound(), "{record:?}");
                records.push(record);
                assert!(records.len() <= bytes.len(), "records out of nothing");
            }
            Ok(None) => break,
            Err(_) => return (records, false),
        }
    }
    assert!(source.next_record().is_ok_and(|r| r.is_none()));
    assert!(source.warnings().len() < 4);
    (records, true)
}

/// A ublk trace of any bytes behind a sound header: blocks are checked, records are sound, and what was read can be
/// written and read again.
///
/// # Panics
/// When a promise is broken.
pub fn trace(bytes: &[u8]) {
    let writer = Writer::new(Vec::new(), &Header::default());
    let mut whole = writer.and_then(Writer::finish).unwrap_or_default();
    assert!(whole.starts_with(&MAGIC));
    whole.truncate(whole.len() - 36);
    // A block whose checksum is right, around the first bytes, then the rest as it is.
    let (payload, rest) = bytes.split_at(bytes.len().min(2048));
    let mut block = b"UTBK".to_vec();
    let count = payload.first().copied().unwrap_or(0).into();
    block.extend(u32::try_from(payload.len()).unwrap_or(0).to_le_bytes());
    block.extend(u32::to_le_bytes(count));
    block.extend(u32::from(payload.len() % 2 == 1).to_le_bytes());
    block.extend([0; 16]);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&block);
    crc.update(payload);
    block.extend(crc.finalize().to_le_bytes());
    let whole = [&whole[..], &block, payload, rest].concat();
    let (found, ended) = records(&whole);
    assert!(ended, "damage is no error");
    let mut writer = Writer::new(Vec::new(), &Header::default()).expect("memory");
    for record in &found {
        writer.push(record).expect("sound");
    }
    let again = writer.finish().expect("memory");
    assert_eq!(records(&again), (found, true));
    // Without the sound header.
    let _ = Reader::new(bytes);
}

/// Any file: whatever format it is taken for, records are sound, and there are no more than bytes.
///
/// # Panics
/// When a promise is broken.
pub fn source(bytes: &[u8]) {
    let (records, _) = records(bytes);
    let mut sorter = crate::Sorter::new(8);
    let mut last = 0;
    for record in records {
        if let Some(record) = sorter.push(record) {
            assert!(record.time >= last);
            last = record.time;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_trace() {
        bolero::check!().for_each(super::trace);
    }

    /// Bytes that begin as each of the formats, so that all parsers are reached.
    #[test]
    fn any_source() {
        let begins: [&[u8]; 6] = [
            b"",
            b"ublktrc\n",
            b"fio version 3 iolog\n0 f add\n1 f ",
            b"fio version 2 iolog\nf ",
            b"1,h,0,Read,0,512,1\n2,h,0,",
            b"\x07\x74\x61\x65",
        ];
        bolero::check!().for_each(|bytes: &[u8]| {
            for begin in begins {
                super::source(&[begin, bytes].concat());
            }
        });
    }
}
