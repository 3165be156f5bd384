//! A memory device with limits of the case's choice, without the fault backend.

use std::sync::Arc;

use ublk::backends::Memory;
use ublk::queue::{Mapped, MemRef};
use ublk::{Backend, Errno, Limits};

/// Memory that the driver may copy to and from. The program keeps a handle to look behind the device.
#[derive(Debug)]
pub struct Plain {
    memory: Arc<Memory>,
    limits: Limits,
}

impl Plain {
    /// Creates a backend from this memory and these limits.
    pub const fn new(memory: Arc<Memory>, limits: Limits) -> Self {
        Self { memory, limits }
    }
}

impl Mapped for Plain {
    fn region(&self, offset: u64, len: usize) -> MemRef<'_> {
        self.memory.region(offset, len)
    }
}

impl Backend for Plain {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.memory.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.memory.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.memory.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.memory.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.memory.write_zeroes(offset, len, may_unmap)
    }
}
