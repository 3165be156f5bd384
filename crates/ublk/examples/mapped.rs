//! A backend whose data is in memory of this process: the driver copies directly between a client's pages and that
//! memory.
//!
//! `mapped [SIZE_IN_BYTES]`, as root with the ublk driver loaded; Ctrl-C stops it and prints what was served.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ublk::backends::Memory;
use ublk::core::{DataMode, Mode};
use ublk::queue::{Mapped, MemRef};
use ublk::{Backend, Builder, Errno, Limits};

/// Memory that counts its requests. For other kinds of memory, use `MemRef::new` and prove that the memory stays valid
/// and that no Rust reference to it exists.
struct Counted {
    memory: Memory,
    regions: Arc<AtomicU64>,
}

impl Mapped for Counted {
    /// The location of a range, called for each request in user copy and get-data modes.
    fn region(&self, offset: u64, len: usize) -> MemRef<'_> {
        self.regions.fetch_add(1, Ordering::Relaxed);
        self.memory.region(offset, len)
    }
}

/// Operations without data, and data in other modes.
impl Backend for Counted {
    fn limits(&self) -> Limits {
        self.memory.limits()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.memory.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.memory.write_at(buf, offset, fua)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.memory.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.memory.write_zeroes(offset, len, may_unmap)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = std::env::args()
        .nth(1)
        .map_or(Ok(64 << 20), |arg| arg.parse())?;
    let regions = Arc::new(AtomicU64::new(0));
    let backend = Counted {
        memory: Memory::new(size, 512)?,
        regions: Arc::clone(&regions),
    };
    let mode = Mode::new(DataMode::UserCopy);
    Builder::mapped(backend)
        .mode(mode)
        .run(|device| println!("{}", device.path().display()))?;
    println!("{} requests by one copy", regions.load(Ordering::Relaxed));
    Ok(())
}
