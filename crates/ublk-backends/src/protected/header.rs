//! The first sector of a side file: what its metadata belongs to.

#![forbid(unsafe_code)]

use ublk_core::{Checksum, Integrity};

use super::guard;
use crate::file::Identity;

/// A sector, which a disk writes whole.
pub(super) const SECTOR: usize = 512;

/// Where the bitmap begins, in bytes.
pub(super) const BITMAP_AT: u64 = 4096;

/// Where the metadata begins, in bytes.
pub(super) const METADATA_AT: u64 = 1 << 20;

/// Regions that the bitmap has room for.
const MOST_REGIONS: u64 = (METADATA_AT - BITMAP_AT) * 8;

/// The smallest region, in bytes of data.
pub(super) const REGION: u64 = 1 << 20;

pub(super) const MAGIC: [u8; 8] = *b"ublkmeta";
const VERSION: u64 = 1;

/// Words after the magic; the sector ends with the checksum of all that is before.
const WORDS: usize = 13;

/// The device that a side file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the device.
    pub(super) size: u64,
    /// Where it begins in its file, in bytes.
    pub(super) base: u64,
    /// Logical block size in bytes.
    pub(super) block: u32,
    /// The metadata; its interval is never 0.
    pub(super) integrity: Integrity,
    /// Bytes of data for one bit of the bitmap.
    pub(super) region: u64,
    /// Inode and time of birth of the file with the data; zeroes if it is none, or was made before this was kept.
    pub(super) data: [u64; 2],
}

/// Why a sector is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// It belongs to another kind of file.
    Magic,
    /// It was written by a later release.
    Version,
    /// Its checksum, or a number in it, is wrong.
    Damaged,
}

/// The size of regions with which the bitmap covers a device.
pub(super) fn region_for(size: u64) -> u64 {
    let mut region = REGION;
    while size.div_ceil(region) > MOST_REGIONS {
        region *= 2;
    }
    region
}

impl Header {
    /// The header of a new side file.
    pub(super) fn new(size: u64, base: u64, block: u32, integrity: Integrity) -> Self {
        // What sysfs tells changes nothing in the file.
        let integrity = integrity
            .interval(integrity.interval_bytes(block))
            .incapable(false);
        let region = region_for(size);
        Self {
            size,
            base,
            block,
            integrity,
            region,
            data: [0; 2],
        }
    }

    /// The same for a device on this file.
    pub(super) fn of_data(mut self, data: Identity) -> Self {
        if let Identity::File { inode, born, .. } = data {
            self.data = [inode, born.unwrap_or(0)];
        }
        self
    }

    /// Whether it may be that of a device on the same file.
    pub(super) fn may_be_of(&self, device: &Self) -> bool {
        self.data == [0; 2] || self.data == device.data
    }

    /// Number of regions.
    pub(super) const fn regions(&self) -> u64 {
        self.size.div_ceil(self.region)
    }

    /// Bytes of metadata for `len` bytes of data, and the position of the metadata of byte `len`.
    pub(super) const fn place(&self, len: u64) -> u64 {
        self.integrity.bytes_for(len, self.block)
    }

    /// Bytes of the side file.
    pub(super) const fn file_bytes(&self) -> u64 {
        METADATA_AT.saturating_add(self.place(self.size))
    }

    /// The header of the same file for a device of another size.
    pub(super) fn resized(mut self, size: u64) -> Self {
        self.size = size;
        while self.regions() > MOST_REGIONS {
            self.region *= 2;
        }
        self
    }

    pub(super) fn encode(&self) -> [u8; SECTOR] {
        let integrity = &self.integrity;
        let words: [u64; WORDS] = [
            VERSION,
            self.size,
            self.base,
            self.block.into(),
            self.region,
            u64::from(integrity.checksum as u8),
            integrity.metadata.into(),
            integrity.interval.into(),
            integrity.offset.into(),
            integrity.reference_tag.into(),
            integrity.tag_bytes.into(),
            self.data[0],
            self.data[1],
        ];
        let mut sector = [0; SECTOR];
        sector[..8].copy_from_slice(&MAGIC);
        for (to, word) in sector[8..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let sum = guard::crc64(&sector[..SECTOR - 8]);
        sector[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
        sector
    }

    /// Reads a header that may be damaged, or made to harm.
    ///
    /// # Errors
    /// What it is instead.
    pub(super) fn decode(sector: &[u8; SECTOR]) -> Result<Self, Bad> {
        if sector[..8] != MAGIC {
            return Err(Bad::Magic);
        }
        let mut all = [0; SECTOR / 8];
        for (word, bytes) in all.iter_mut().zip(sector.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        if all.last() != Some(&guard::crc64(&sector[..SECTOR - 8])) {
            return Err(Bad::Damaged);
        }
        let mut words = [0; WORDS];
        words.copy_from_slice(&all[1..=WORDS]);
        if words[0] != VERSION {
            return Err(Bad::Version);
        }
        Self::of(&words).filter(Self::is_sound).ok_or(Bad::Damaged)
    }

    fn of(words: &[u64; WORDS]) -> Option<Self> {
        let byte = |word: u64| u8::try_from(word).ok();
        let [
            _,
            size,
            base,
            block,
            region,
            sum,
            metadata,
            interval,
            offset,
            reference,
            tag,
            inode,
            born,
        ] = *words;
        let all = [
            Checksum::None,
            Checksum::Ip,
            Checksum::Crc16,
            Checksum::Crc64,
        ];
        let checksum = all.into_iter().find(|c| u64::from(*c as u8) == sum)?;
        let mut integrity = Integrity::new(checksum, byte(metadata)?)
            .interval(u32::try_from(interval).ok()?)
            .offset(byte(offset)?)
            .reference_tag(reference == 1);
        integrity.tag_bytes = byte(tag)?;
        Some(Self {
            size,
            base,
            block: u32::try_from(block).ok()?,
            integrity,
            region,
            data: [inode, born],
        })
    }

    /// Whether the numbers can be those of a device, so that what is computed from them does not wrap.
    fn is_sound(&self) -> bool {
        let block = u64::from(self.block);
        (512..=4096).contains(&block)
            && block.is_power_of_two()
            && self.size != 0
            && self.size.is_multiple_of(block)
            && i64::try_from(self.size).is_ok()
            && i64::try_from(self.base).is_ok()
            && self.integrity.interval != 0
            && self.integrity.check(self.block).is_ok()
            && self.region.is_power_of_two()
            && self.region >= block
            && self.regions() <= MOST_REGIONS
    }
}

/// Headers of side files that are damaged or made to harm: what is accepted has numbers from which nothing wraps, regions that
/// the bitmap covers, and is written as it was read. With a right checksum, too.
///
/// # Panics
/// If a header is wrongly accepted, or changes.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzzed(bytes: &[u8]) {
    let mut sector = [0; SECTOR];
    for (to, byte) in sector.iter_mut().zip(bytes) {
        *to = *byte;
    }
    let plain = Header::decode(&sector);
    sector[..8].copy_from_slice(&MAGIC);
    let sum = guard::crc64(&sector[..SECTOR - 8]);
    sector[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
    let Ok(header) = Header::decode(&sector) else {
        assert!(plain.is_err(), "a checksum changes nothing else");
        return;
    };
    let block = u128::from(header.block);
    assert!(matches!(block, 512 | 1024 | 2048 | 4096));
    let (size, region) = (u128::from(header.size), u128::from(header.region));
    assert!(size != 0 && size.is_multiple_of(block) && size < 1 << 63);
    assert!(u128::from(header.regions()) * region >= size);
    assert!(header.regions().div_ceil(64) * 8 <= METADATA_AT - BITMAP_AT);
    let integrity = header.integrity;
    assert_eq!(integrity.check(header.block), Ok(()));
    let intervals = size / u128::from(integrity.interval);
    let bytes = u128::from(METADATA_AT) + intervals * u128::from(integrity.metadata);
    assert_eq!(u128::from(header.file_bytes()), bytes);
    assert_eq!(Header::decode(&header.encode()), Ok(header));
    for size in [
        header.size / 2 + 512,
        header.size,
        i64::MAX as u64 / 4096 * 4096,
    ] {
        let size = size / u64::from(header.block) * u64::from(header.block);
        if size != 0 {
            let resized = header.resized(size);
            assert_eq!(Header::decode(&resized.encode()), Ok(resized));
        }
    }
    let (data, metadata) = ([0; 4096], [0xa5; 255]);
    let tuple = &metadata[..integrity.metadata.into()];
    guard::judge(&integrity, &data[..at(integrity.interval)], tuple);
}

#[cfg(any(test, feature = "fuzzing"))]
fn at(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        let integrity = Integrity::new(Checksum::Crc16, 16).reference_tag(true);
        Header::new(1 << 30, 4096, 512, integrity)
    }

    fn signed(mut sector: [u8; SECTOR]) -> [u8; SECTOR] {
        let sum = guard::crc64(&sector[..SECTOR - 8]);
        sector[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
        sector
    }

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let header = header();
        let sector = header.encode();
        assert_eq!(Header::decode(&sector), Ok(header));
        assert_eq!(header.regions(), 1024);
        assert_eq!(header.file_bytes(), (1 << 20) + (32 << 20));
        // Every flipped bit is found.
        for bit in 0..SECTOR * 8 {
            let mut torn = sector;
            torn[bit / 8] ^= 1 << (bit % 8);
            let wanted = if bit < 64 { Bad::Magic } else { Bad::Damaged };
            assert_eq!(Header::decode(&torn), Err(wanted), "bit {bit}");
        }
    }

    /// A header with a right checksum may still be made to harm: sizes that wrap, regions by the billion.
    #[test]
    fn hostile_numbers_are_refused() {
        let word = |number: usize, value: u64| {
            let mut sector = header().encode();
            sector[8 + number * 8..][..8].copy_from_slice(&value.to_le_bytes());
            Header::decode(&signed(sector))
        };
        assert_eq!(word(0, 2), Err(Bad::Version));
        for (number, value) in [
            (1, 0),
            (1, 513),
            (1, u64::MAX - 511),
            (1, 1 << 62),
            (2, u64::MAX),
            (3, 0),
            (3, 1 << 32),
            (3, 8192),
            (4, 0),
            (4, 256),
            (4, 3 << 20),
            (5, 3),
            (5, 9),
            (6, 0),
            (6, 7),
            (6, 256),
            (7, 0),
            (7, 1024),
            (8, 9),
            (10, 17),
        ] {
            assert_eq!(word(number, value), Err(Bad::Damaged), "{number} {value}");
        }
        assert!(word(1, 1 << 40).is_ok());
    }

    /// The bitmap stays small: its bits stand for more bytes on large devices.
    #[test]
    fn regions_grow_with_the_device() {
        assert_eq!(region_for(512), REGION);
        assert_eq!(region_for(4 << 40), REGION);
        assert_eq!(region_for(64 << 40), 16 * REGION);
        for size in [1 << 50, i64::MAX as u64 / 4096 * 4096] {
            let header = Header::new(size, 0, 4096, Integrity::new(Checksum::Ip, 8));
            assert!(header.regions() <= MOST_REGIONS);
            assert_eq!(Header::decode(&header.encode()), Ok(header));
        }
        let grown = header().resized(64 << 40);
        assert_eq!((grown.size, grown.region), (64 << 40, 16 * REGION));
    }
}
