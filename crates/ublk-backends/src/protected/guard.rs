//! Guards of protection information, computed as the block layer computes them (block/t10-pi.c).

#![forbid(unsafe_code)]

use crc::{CRC_16_T10_DIF, CRC_64_NVME, Crc, Table};
use ublk_core::{Checksum, Integrity};

static CRC16: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_T10_DIF);
static CRC64: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_NVME);

/// The checksum of a header.
pub(super) fn crc64(bytes: &[u8]) -> u64 {
    CRC64.checksum(bytes)
}

/// The internet checksum (RFC 1071); a last odd byte counts as the high one of a word.
fn internet(data: &[u8]) -> u16 {
    let (words, last) = data.as_chunks::<2>();
    let sum: u64 = words
        .iter()
        .map(|w| u64::from(u16::from_be_bytes(*w)))
        .sum();
    let mut sum = sum + last.first().map_or(0, |byte| u64::from(*byte) << 8);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// What a crash of the machine may leave of the metadata of one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It says that nobody verifies the interval.
    Escaped,
    /// Its guard is that of the data.
    Right,
    /// Its guard is that of other data.
    Wrong,
}

/// Whether the tags tell the block layer not to verify the interval: the application tag with reference tags, else both.
fn is_escaped(integrity: &Integrity, tags: &[u8]) -> bool {
    let (application, _) = tags.split_at(tags.len().min(2));
    let those = if integrity.reference_tag {
        application
    } else {
        tags
    };
    those.iter().all(|byte| *byte == 0xff)
}

/// Compares the metadata of one interval with its data. Metadata without a checksum is right.
pub(super) fn judge(integrity: &Integrity, data: &[u8], metadata: &[u8]) -> Verdict {
    let tuple = usize::from(integrity.checksum.tuple_bytes());
    let begin = usize::from(integrity.offset);
    let Some(pi) = metadata.get(begin..begin + tuple) else {
        return Verdict::Wrong;
    };
    if metadata.iter().all(|byte| *byte == 0xff) {
        return Verdict::Escaped;
    }
    let (guard, tags) = pi.split_at(if tuple == 16 { 8 } else { tuple.min(2) });
    // A guard of a CRC covers the metadata before it, too.
    let before = &metadata[..begin];
    let right = match integrity.checksum {
        Checksum::None => return Verdict::Right,
        Checksum::Ip => guard == internet(data).to_be_bytes(),
        Checksum::Crc16 => {
            let mut sum = CRC16.digest();
            sum.update(data);
            sum.update(before);
            guard == sum.finalize().to_be_bytes()
        }
        Checksum::Crc64 => {
            let mut sum = CRC64.digest();
            sum.update(data);
            sum.update(before);
            guard == sum.finalize().to_be_bytes()
        }
        // A checksum of a later release.
        _ => false,
    };
    match right {
        true => Verdict::Right,
        false if is_escaped(integrity, tags) => Verdict::Escaped,
        false => Verdict::Wrong,
    }
}

/// Makes the metadata of one interval as the block layer makes it, with reference tag 0.
#[cfg(test)]
pub(super) fn make(integrity: &Integrity, data: &[u8], fill: u8) -> Vec<u8> {
    let mut metadata = vec![fill; integrity.metadata.into()];
    let begin = usize::from(integrity.offset);
    let (before, rest) = metadata.split_at_mut(begin);
    match integrity.checksum {
        Checksum::Ip => rest[..2].copy_from_slice(&internet(data).to_be_bytes()),
        Checksum::Crc16 => {
            let mut sum = CRC16.digest();
            sum.update(data);
            sum.update(before);
            rest[..2].copy_from_slice(&sum.finalize().to_be_bytes());
        }
        Checksum::Crc64 => {
            let mut sum = CRC64.digest();
            sum.update(data);
            sum.update(before);
            rest[..8].copy_from_slice(&sum.finalize().to_be_bytes());
        }
        _ => {}
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of the catalogue of parametrised CRC algorithms, of the NVMe NVM command set specification, and of
    /// RFC 1071, section 3.
    #[test]
    fn sums_have_their_published_values() {
        assert_eq!(CRC16.checksum(b"123456789"), 0xd0db);
        assert_eq!(CRC64.checksum(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(CRC64.checksum(&[0; 4096]), 0x6482_d367_eb22_b64e);
        assert_eq!(CRC64.checksum(&[0xff; 4096]), 0xc0dd_ba73_02ec_a3ac);
        let words = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet(&words), !0xddf2);
        assert_eq!(internet(&[0; 512]), 0xffff);
        assert_eq!(internet(&[0x12]), !0x1200);
    }

    /// Metadata belongs to its data and to no other; tags of all ones switch the check off, as in the block layer.
    #[test]
    fn metadata_is_judged_as_the_block_layer_judges_it() {
        let formats = [
            Integrity::new(Checksum::Ip, 8),
            Integrity::new(Checksum::Crc16, 8).reference_tag(true),
            Integrity::new(Checksum::Crc16, 64).offset(56),
            Integrity::new(Checksum::Crc64, 16),
            Integrity::new(Checksum::Crc64, 32).offset(9),
        ];
        let (data, other) = ([7; 512], [8; 512]);
        for format in formats {
            let mut metadata = make(&format, &data, 1);
            assert_eq!(judge(&format, &data, &metadata), Verdict::Right);
            assert_eq!(judge(&format, &other, &metadata), Verdict::Wrong);
            let tuple = usize::from(format.checksum.tuple_bytes());
            let tags = usize::from(format.offset) + if tuple == 16 { 8 } else { 2 };
            metadata[tags..tags + 2].fill(0xff);
            let wanted = match format.reference_tag {
                true => Verdict::Escaped,
                false => Verdict::Wrong,
            };
            assert_eq!(judge(&format, &other, &metadata), wanted);
            metadata[tags..usize::from(format.offset) + tuple].fill(0xff);
            assert_eq!(judge(&format, &other, &metadata), Verdict::Escaped);
            if format.offset != 0 {
                let mut metadata = make(&format, &data, 1);
                metadata[0] ^= 1;
                assert_eq!(judge(&format, &data, &metadata), Verdict::Wrong);
            }
        }
        let none = Integrity::new(Checksum::None, 4);
        assert_eq!(judge(&none, &data, &[1; 4]), Verdict::Right);
        assert_eq!(judge(&none, &data, &[0xff; 4]), Verdict::Escaped);
        let short = Integrity::new(Checksum::Crc64, 16);
        assert_eq!(judge(&short, &data, &[1; 8]), Verdict::Wrong);
    }
}
