//! A device with integrity metadata over another backend.

#![forbid(unsafe_code)]

mod locks;
mod store;
#[cfg(all(test, not(miri)))]
mod tests;

use ublk_core::{Backend, Errno, Integrity, Limits};

use crate::Memory;
use crate::error::Error;
use locks::Locks;
use store::{InMemory, Store};

/// The metadata of a block that has none: its application tag tells the block layer to verify nothing.
const ESCAPE: u8 = 0xff;

/// Keeps integrity metadata beside the data of a backend (Linux 7.0, user copy): protection information that the block layer
/// makes and verifies, or what its clients bring.
///
/// * **Content**: metadata is kept as it comes, and returned with the data that it came with; nothing here verifies it. A block
///   written without metadata, zeroed, discarded, or never written has metadata of all ones, which passes every check.
/// * **Order**: requests for the same blocks wait for each other, so that a reader never gets the data of one write with the
///   metadata of another.
/// * **Durability**: that of memory, none.
#[derive(Debug)]
pub struct Protected<B> {
    data: B,
    limits: Limits,
    integrity: Integrity,
    locks: Locks,
    store: Box<dyn Store>,
}

impl std::fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Protected<Memory> {
    /// A memory device with metadata, which takes memory only for blocks that have some. Both are lost with the server.
    ///
    /// # Errors
    /// [`Error::Integrity`] for metadata that the driver does not allow.
    pub fn memory(memory: Memory, integrity: Integrity) -> Result<Self, Error> {
        Self::new(memory, integrity, Box::new(InMemory::new()))
    }
}

impl<B: Backend> Protected<B> {
    fn new(data: B, integrity: Integrity, store: Box<dyn Store>) -> Result<Self, Error> {
        let limits = data.limits().integrity(integrity);
        integrity.check(limits.logical_block_size)?;
        Ok(Self {
            data,
            limits,
            integrity,
            locks: Locks::new(),
            store,
        })
    }

    /// The backend with the data.
    #[must_use]
    pub const fn data(&self) -> &B {
        &self.data
    }

    /// Where the metadata of the block at byte `offset` is, or how much belongs to `offset` bytes.
    const fn place(&self, offset: u64) -> u64 {
        self.integrity
            .bytes_for(offset, self.limits.logical_block_size)
    }

    /// Takes the metadata from a range whose data this call changes.
    fn erase_with(
        &self,
        (offset, len): (u64, u64),
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let _held = self.locks.write(offset, len);
        // Before the data: if that fails half-way, no block has the metadata of other data.
        self.store.erase(self.place(offset), self.place(len))?;
        change()
    }
}

impl<B: Backend> Backend for Protected<B> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let _held = self.locks.read(offset, buf.len() as u64);
        self.data.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.erase_with((offset, buf.len() as u64), || {
            self.data.write_at(buf, offset, fua)
        })
    }

    fn read_with_metadata(
        &self,
        buf: &mut [u8],
        metadata: &mut [u8],
        offset: u64,
    ) -> Result<(), Errno> {
        if metadata.len() as u64 != self.place(buf.len() as u64) {
            return Err(Errno::EINVAL);
        }
        let _held = self.locks.read(offset, buf.len() as u64);
        self.data.read_at(buf, offset)?;
        self.store.load(self.place(offset), metadata)
    }

    fn write_with_metadata(
        &self,
        buf: &[u8],
        metadata: &[u8],
        offset: u64,
        fua: bool,
    ) -> Result<(), Errno> {
        let len = buf.len() as u64;
        if metadata.len() as u64 != self.place(len) {
            return Err(Errno::EINVAL);
        }
        let _held = self.locks.write(offset, len);
        if let Err(errno) = self.data.write_at(buf, offset, fua) {
            // Parts of it may be written.
            self.store.erase(self.place(offset), self.place(len))?;
            return Err(errno);
        }
        self.store.store(self.place(offset), metadata)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.data.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.erase_with((offset, len), || self.data.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.erase_with((offset, len), || {
            self.data.write_zeroes(offset, len, may_unmap)
        })
    }
}
