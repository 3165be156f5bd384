//! The header of a file of write pointers, and where its tables are.

#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use super::table::ZoneLayout;
use super::zones_file::failed;
use crate::error::{Error, ZonesFileError};
use crate::file::Identity;

/// What such a file begins with.
pub(super) const MAGIC: [u8; 8] = *b"ublkzone";
const VERSION: u64 = 2;
/// The header, and what the two tables begin at a multiple of.
pub(super) const PAGE: u64 = 4096;
/// Words of the header after the magic; a checksum follows.
const WORDS: usize = 13;

/// What the words of a header are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) layout: ZoneLayout,
    /// Number of sequential zones.
    pub(super) zones: usize,
    pub(super) block: u32,
    /// Where the device begins in its file, in bytes.
    pub(super) base: u64,
    /// Inode and time of birth of the file with the data.
    pub(super) data: [u64; 2],
    /// The boot in which the live words were written.
    pub(super) boot: [u64; 2],
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

    pub(super) fn encode(&self) -> Vec<u8> {
        let words = self.words();
        let sum = checksum(&words);
        let words = words.into_iter().chain([sum]).flat_map(u64::to_le_bytes);
        MAGIC.into_iter().chain(words).collect()
    }

    /// Reads a header, which may be anything.
    pub(super) fn read(file: &File) -> Result<Self, Error> {
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
    pub(super) fn fits(&self, device: &Self, same: bool) -> Result<(), ZonesFileError> {
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

/// Where the live word of a zone is.
pub(super) const fn live_at(zone: usize) -> u64 {
    PAGE + zone as u64 * 8
}

/// Where the durable word of a zone is.
pub(super) const fn durable_at(zones: usize, zone: usize) -> u64 {
    let begin = (PAGE + zones as u64 * 8).next_multiple_of(PAGE);
    begin + zone as u64 * 8
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
