//! Metadata beside the data: the kernel makes protection information for each write and verifies that of each read.
//!
//! `integrity [SIZE_IN_BYTES]`, as root with the ublk driver loaded, Linux 7.0; Ctrl-C stops it.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets are inside the vectors"
)]

use std::sync::RwLock;
use ublk::core::{Checksum, Integrity};
use ublk::{Backend, Builder, Errno, Limits};

/// Eight bytes of metadata for each block of 512.
const BYTES: u8 = 8;
const SHARE: usize = 512 / BYTES as usize;

struct Kept {
    data: Vec<u8>,
    metadata: Vec<u8>,
}

struct Disk(RwLock<Kept>);

impl Backend for Disk {
    fn limits(&self) -> Limits {
        let integrity = Integrity::new(Checksum::Crc16, BYTES).reference_tag(true);
        Limits::new(self.0.read().unwrap().data.len() as u64)
            .integrity(integrity)
            .volatile_cache(false)
            .quick(true)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        buf.copy_from_slice(&self.0.read().unwrap().data[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        // Nobody verifies blocks whose metadata is all ones.
        self.write_with_metadata(buf, &vec![0xff; buf.len() / SHARE], offset, fua)
    }
    fn read_with_metadata(
        &self,
        buf: &mut [u8],
        metadata: &mut [u8],
        offset: u64,
    ) -> Result<(), Errno> {
        let (offset, kept) = (offset as usize, self.0.read().unwrap());
        buf.copy_from_slice(&kept.data[offset..][..buf.len()]);
        metadata.copy_from_slice(&kept.metadata[offset / SHARE..][..metadata.len()]);
        Ok(())
    }
    fn write_with_metadata(
        &self,
        buf: &[u8],
        metadata: &[u8],
        offset: u64,
        _fua: bool,
    ) -> Result<(), Errno> {
        // Both under one lock: a reader must not get the data of one write with the metadata of another.
        let (offset, mut kept) = (offset as usize, self.0.write().unwrap());
        kept.data[offset..][..buf.len()].copy_from_slice(buf);
        kept.metadata[offset / SHARE..][..metadata.len()].copy_from_slice(metadata);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = std::env::args()
        .nth(1)
        .map_or(Ok(64 << 20), |arg| arg.parse())?;
    let disk = Disk(RwLock::new(Kept {
        data: vec![0; size],
        metadata: vec![0xff; size / SHARE],
    }));
    Builder::new(disk).run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
