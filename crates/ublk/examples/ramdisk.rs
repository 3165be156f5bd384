//! A custom device in safe code: a vector behind a lock.
//!
//! `ramdisk [SIZE_IN_BYTES]`, as root with the ublk driver loaded; Ctrl-C stops it.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets are inside the vector"
)]

use std::sync::RwLock;
use ublk::{Backend, Builder, Errno, Limits};

struct RamDisk(RwLock<Vec<u8>>);

impl Backend for RamDisk {
    fn limits(&self) -> Limits {
        Limits::new(self.0.read().unwrap().len() as u64)
            .volatile_cache(false)
            .quick(true)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        buf.copy_from_slice(&self.0.read().unwrap()[offset as usize..][..buf.len()]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        self.0.write().unwrap()[offset as usize..][..buf.len()].copy_from_slice(buf);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = std::env::args()
        .nth(1)
        .map_or(Ok(64 << 20), |arg| arg.parse())?;
    let disk = RamDisk(RwLock::new(vec![0; size]));
    Builder::new(disk).run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
