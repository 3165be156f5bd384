//! A backend whose content is memory of its own: the driver copies between a request and that memory, once, and
//! nothing is copied between.
//!
//! `mapped [SIZE_IN_BYTES]`, as root with the ublk driver loaded; Ctrl-C stops it and tells what was served.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use ublk::backends::Memory;
use ublk::core::{DataMode, Mode};
use ublk::queue::{Mapped, MemRef};
use ublk::{Backend, Builder, Errno, Limits};

/// Memory that counts what is asked of it. Memory of another kind is given out by `MemRef::new`, with the proof
/// that it stays where it is and that nobody looks at it through a Rust reference.
struct Counted {
    memory: Memory,
    regions: Arc<AtomicU64>,
}

impl Mapped for Counted {
    /// Where a range lies: asked for each request in the modes user copy and get-data, and for no byte more.
    fn region(&self, offset: u64, len: usize) -> MemRef<'_> {
        self.regions.fetch_add(1, Ordering::Relaxed);
        self.memory.region(offset, len)
    }
}

/// What is not data, and data where the mode is another.
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
