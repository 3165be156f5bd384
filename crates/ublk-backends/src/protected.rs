//! A device with integrity metadata over another backend.

#![forbid(unsafe_code)]

mod beside;
#[cfg(all(test, not(miri)))]
mod fake;
mod guard;
mod handler;
mod header;
mod in_memory;
mod locks;
#[cfg(all(test, not(miri)))]
mod model;
mod regions;
mod side;
mod store;
#[cfg(all(test, not(miri)))]
mod syncs;
#[cfg(all(test, not(miri)))]
mod tests;

use std::time::Duration;

use ublk_core::{Backend, Checksum, Errno, Integrity, IntegrityRule, Limits};

use crate::error::Error;
use crate::{File, Memory, Null};
use header::Header;
use in_memory::InMemory;
use locks::Locks;
use store::{Kept, Nowhere, Store};

#[cfg(any(test, feature = "fuzzing"))]
pub use header::fuzzed;
pub use side::SideFile;
pub use store::Checked;

/// Keeps integrity metadata beside the data of a backend (Linux 7.0, user copy): protection information that the block layer
/// makes and verifies, or what its clients bring.
///
/// * **Content**: metadata is kept as it comes, and returned with the data that it came with; nothing here verifies it, except
///   after a crash. A block written without metadata, zeroed, discarded, or never written has metadata of all ones, which
///   passes every check.
/// * **Order**: requests for the same blocks wait for each other, so that a reader never gets the data of one write with the
///   metadata of another.
/// * **Durability**: with memory, none. With a file, the metadata is in a second file ([`SideFile`]). A FLUSH, or a write with
///   FUA, makes both durable. Before the first write to a region of 1 MiB its bit in a bitmap is made durable, by one
///   fdatasync for concurrent writers; bits of regions at rest are cleared after a FLUSH, and all by a clean end. After a crash
///   the metadata of regions with a bit is compared with the data, and what does not match is taken away: writes that were
///   flushed have their own metadata, and no other block is reported as corrupt. A checksum of 16 bits matches other data
///   once in 65536 times, and metadata without a checksum cannot be compared: it may then be that of another unflushed write.
/// * **A full disk**: a write whose metadata has no room fails with ENOSPC, and its block has no metadata.
#[derive(Debug)]
pub struct Protected<B: Kept> {
    data: B,
    limits: Limits,
    integrity: Integrity,
    /// Binary logarithm of the bytes of data that a piece of metadata belongs to.
    interval_shift: u32,
    locks: Locks,
    store: B::Store,
}

impl Protected<Null> {
    /// A device that keeps neither data nor metadata: what is read passes every check.
    ///
    /// # Errors
    /// [`Error::Integrity`] for metadata that the driver does not allow.
    pub fn null(null: Null, integrity: Integrity) -> Result<Self, Error> {
        Self::new(null, integrity, Nowhere)
    }
}

impl Protected<Memory> {
    /// A memory device with metadata, which takes memory only for blocks that have some. Both are lost with the server.
    ///
    /// # Errors
    /// [`Error::Integrity`] for metadata that the driver does not allow; [`Error::Reserve`] if the kernel refuses that much
    /// address space.
    pub fn memory(memory: Memory, integrity: Integrity) -> Result<Self, Error> {
        let limits = memory.limits();
        integrity.check(limits.logical_block_size)?;
        let bytes = integrity.bytes_for(limits.size, limits.logical_block_size);
        let store = InMemory::new(bytes).map_err(|errno| Error::Reserve { size: bytes, errno })?;
        Self::new(memory, integrity, store)
    }
}

impl Protected<File> {
    /// A file device with metadata in a second file, ready to serve.
    ///
    /// # Errors
    /// As for [`prepared`](Self::prepared) and [`start`](Self::start).
    pub fn file(file: File, integrity: Integrity, side: &SideFile) -> Result<Self, Error> {
        let device = Self::prepared(file, integrity, side)?;
        device.start(Duration::ZERO)?;
        Ok(device)
    }

    /// The same, before [`start`](Self::start): another server may still use both files. Writes fail with EIO.
    ///
    /// # Errors
    /// [`Error::Integrity`] for metadata that the driver does not allow, and an internet checksum behind other metadata, which
    /// the block layer computes without the data; [`Error::SideFile`] if the second file is not this device's;
    /// [`Error::File`] if the kernel refuses.
    pub fn prepared(file: File, integrity: Integrity, side: &SideFile) -> Result<Self, Error> {
        let (header, read_only) = described(&file, integrity)?;
        let (beside, in_memory) = side.open(header, read_only)?;
        let mut device = Self::new(file, integrity, Box::new(beside))?;
        device.limits.quick &= in_memory;
        Ok(device)
    }

    /// A device whose limits are those of [`prepared`](Self::prepared), without making a second file that is not there yet.
    ///
    /// # Errors
    /// As for [`prepared`](Self::prepared).
    pub fn looked_at(file: File, integrity: Integrity, side: &SideFile) -> Result<Self, Error> {
        let (_, read_only) = described(&file, integrity)?;
        match side.is_to_be_made(read_only) {
            true => Self::new(file, integrity, Box::new(Nowhere)),
            false => Self::prepared(file, integrity, side),
        }
    }
}

/// The header of a file's metadata, and whether the device is read-only.
fn described(file: &File, integrity: Integrity) -> Result<(Header, bool), Error> {
    let limits = file.limits();
    integrity.check(limits.logical_block_size)?;
    if integrity.checksum == Checksum::Ip && integrity.offset != 0 {
        let rule = "0 with the checksum ip: the block layer's guard then does not cover the data";
        let offset = integrity.offset.into();
        return Err(
            IntegrityRule::new("position of the protection information", offset, rule).into(),
        );
    }
    let header = Header::new(
        limits.size,
        file.base(),
        limits.logical_block_size,
        integrity,
    )
    .of_data(file.identity());
    Ok((header, limits.read_only))
}

/// A write in progress.
struct Begun<'a, B: Kept> {
    device: &'a Protected<B>,
    range: (u64, u64),
}

impl<B: Kept> Drop for Begun<'_, B> {
    fn drop(&mut self) {
        self.device.store.end(self.range);
    }
}

impl<B: Kept> Protected<B> {
    fn new(data: B, integrity: Integrity, store: B::Store) -> Result<Self, Error> {
        let limits = data.limits().integrity(integrity);
        integrity.check(limits.logical_block_size)?;
        Ok(Self {
            data,
            limits,
            integrity,
            interval_shift: integrity
                .interval_bytes(limits.logical_block_size)
                .trailing_zeros(),
            locks: Locks::new(),
            store,
        })
    }

    /// The backend with the data.
    #[must_use]
    pub const fn data(&self) -> &B {
        &self.data
    }

    /// Begins to serve: locks the metadata, waiting up to `wait` for its previous server to end, compares it with the data where a
    /// crash may have torn them apart, and adapts it to the device's size. Call it once, before the first request. Does
    /// nothing for memory.
    ///
    /// # Errors
    /// [`Error::SideFile`] with `Locked` if another server uses the metadata, and as for opening it, since it may have changed;
    /// [`Error::File`] if the kernel refuses.
    pub fn start(&self, wait: Duration) -> Result<Checked, Error> {
        self.store.start(&self.data, wait)
    }

    /// Ends cleanly: makes everything durable and notes that nothing has to be checked at the next opening, except where
    /// writes are in progress. Requests may follow. Also called when the device is dropped.
    ///
    /// # Errors
    /// The errno of a flush: what it should have made durable is checked at the next opening.
    pub fn close(&self) -> Result<(), Errno> {
        self.store.close(&self.data)
    }

    /// Where the metadata of the block at byte `offset` is, or how much belongs to `offset` bytes.
    #[inline]
    const fn place(&self, offset: u64) -> u64 {
        (offset >> self.interval_shift).saturating_mul(self.integrity.metadata as u64)
    }

    fn begin(&self, range: (u64, u64)) -> Result<Begun<'_, B>, Errno> {
        self.store.begin(range, &self.data)?;
        Ok(Begun {
            device: self,
            range,
        })
    }

    /// Changes data and metadata together. If that fails half-way, the range has no metadata.
    fn change(
        &self,
        (offset, len): (u64, u64),
        fua: bool,
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let held = self.locks.write(offset, len);
        let begun = self.begin((offset, len))?;
        let result = change();
        if result.is_err() {
            // Parts of it may be written.
            self.store
                .forget((offset, len), self.place(offset), self.place(len));
        }
        drop(begun);
        // Others may write while this becomes durable, and share the sync.
        drop(held);
        result?;
        if fua { self.flush() } else { Ok(()) }
    }

    /// Takes the metadata from a range, and then changes its data.
    fn erase_with(
        &self,
        (offset, len): (u64, u64),
        change: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let _held = self.locks.write(offset, len);
        // Before the data: if that fails half-way, or the machine crashes, no block has the metadata of other data.
        self.store
            .erase_durably(self.place(offset), self.place(len))?;
        change()
    }
}

impl<B: Kept> Drop for Protected<B> {
    fn drop(&mut self) {
        // If it fails, the next opening checks.
        let _ = self.close();
    }
}

impl<B: Kept> Backend for Protected<B> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let _held = self.locks.read(offset, buf.len() as u64);
        self.data.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        let len = buf.len() as u64;
        self.change((offset, len), fua, || {
            self.store.erase(self.place(offset), self.place(len))?;
            self.data.write_at(buf, offset, false)
        })
    }

    fn read_with_metadata(
        &self,
        buf: &mut [u8],
        metadata: &mut [u8],
        offset: u64,
    ) -> Result<(), Errno> {
        let len = buf.len() as u64;
        if metadata.len() as u64 != self.place(len) {
            return Err(Errno::EINVAL);
        }
        let _held = self.locks.read(offset, len);
        self.data.read_at(buf, offset)?;
        self.store.load((offset, len), self.place(offset), metadata)
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
        self.change((offset, len), fua, || {
            self.data.write_at(buf, offset, false)?;
            self.store.store(self.place(offset), metadata)
        })
    }

    fn flush(&self) -> Result<(), Errno> {
        self.store.flush(&self.data)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.erase_with((offset, len), || self.data.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.erase_with((offset, len), || {
            self.data.write_zeroes(offset, len, may_unmap)
        })
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        // Metadata of data that is not there would be of other data later.
        self.data.resize(size)?;
        self.store.resize(size)
    }
}
