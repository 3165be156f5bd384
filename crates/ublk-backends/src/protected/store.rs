//! Where metadata is kept.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::time::Duration;

use ublk_core::{Backend, Errno};

use super::in_memory::InMemory;
use crate::error::Error;
use crate::{File, Memory, Null};

/// The metadata of a block that has none: its application tag tells the block layer to verify nothing.
pub(super) const ESCAPE: u8 = 0xff;

/// What an opening after a crash found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Checked {
    /// Regions in which data and metadata could differ.
    pub regions: u64,
    /// Intervals in them whose metadata matches their data.
    pub kept: u64,
    /// Intervals whose metadata was taken, because it does not match, or their data cannot be read.
    pub dropped: u64,
}

/// Keeps metadata by its position; what was never stored is all ones. Callers of overlapping ranges take turns.
///
/// A `range` is an offset on the device and a length, in bytes; `at` and `len` are of its metadata.
pub trait Store: Debug + Send + Sync + 'static {
    /// Fills `to` from position `at`.
    fn load(&self, range: (u64, u64), at: u64, to: &mut [u8]) -> Result<(), Errno>;

    /// Stores `from` at position `at`.
    fn store(&self, at: u64, from: &[u8]) -> Result<(), Errno>;

    /// Makes `len` bytes at position `at` all ones.
    fn erase(&self, at: u64, len: u64) -> Result<(), Errno>;

    /// The same, durable on return, so that its data may change.
    fn erase_durably(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.erase(at, len)
    }

    /// Erases for data that has changed already: what cannot be erased is not loaded any more.
    fn forget(&self, range: (u64, u64), at: u64, len: u64);

    /// Prepares for a write to data and metadata, which a crash may tear apart.
    fn begin(&self, range: (u64, u64), data: &dyn Backend) -> Result<(), Errno> {
        let _ = (range, data);
        Ok(())
    }

    /// The write has ended, well or not.
    fn end(&self, range: (u64, u64)) {
        let _ = range;
    }

    /// Makes data and metadata durable.
    fn flush(&self, data: &dyn Backend) -> Result<(), Errno> {
        data.flush()
    }

    /// Begins to serve, once nobody else does; waits that long.
    fn start(&self, data: &dyn Backend, wait: Duration) -> Result<Checked, Error> {
        let _ = (data, wait);
        Ok(Checked::default())
    }

    /// Notes that nothing has to be checked at the next opening, if so.
    fn close(&self, data: &dyn Backend) -> Result<(), Errno> {
        let _ = data;
        Ok(())
    }

    /// Adapts to another size of the device.
    fn resize(&self, size: u64) -> Result<(), Errno> {
        let _ = size;
        Err(Errno::EOPNOTSUPP)
    }
}

/// A backend that can have metadata, and what keeps it.
pub trait Kept: Backend {
    /// Known where it is called, since a memory device calls it for each request.
    type Store: Store;
}

impl Kept for Null {
    type Store = Nowhere;
}

impl Kept for Memory {
    type Store = InMemory;
}

impl Kept for File {
    type Store = Box<dyn Store>;
}

/// For a device that keeps nothing.
#[derive(Debug)]
pub struct Nowhere;

impl Store for Nowhere {
    fn load(&self, _range: (u64, u64), _at: u64, to: &mut [u8]) -> Result<(), Errno> {
        to.fill(ESCAPE);
        Ok(())
    }

    fn store(&self, _at: u64, _from: &[u8]) -> Result<(), Errno> {
        Ok(())
    }

    fn erase(&self, _at: u64, _len: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn forget(&self, _range: (u64, u64), _at: u64, _len: u64) {}
}

impl Store for Box<dyn Store> {
    fn load(&self, range: (u64, u64), at: u64, to: &mut [u8]) -> Result<(), Errno> {
        (**self).load(range, at, to)
    }

    fn store(&self, at: u64, from: &[u8]) -> Result<(), Errno> {
        (**self).store(at, from)
    }

    fn erase(&self, at: u64, len: u64) -> Result<(), Errno> {
        (**self).erase(at, len)
    }

    fn erase_durably(&self, at: u64, len: u64) -> Result<(), Errno> {
        (**self).erase_durably(at, len)
    }

    fn forget(&self, range: (u64, u64), at: u64, len: u64) {
        (**self).forget(range, at, len);
    }

    fn begin(&self, range: (u64, u64), data: &dyn Backend) -> Result<(), Errno> {
        (**self).begin(range, data)
    }

    fn end(&self, range: (u64, u64)) {
        (**self).end(range);
    }

    fn flush(&self, data: &dyn Backend) -> Result<(), Errno> {
        (**self).flush(data)
    }

    fn start(&self, data: &dyn Backend, wait: Duration) -> Result<Checked, Error> {
        (**self).start(data, wait)
    }

    fn close(&self, data: &dyn Backend) -> Result<(), Errno> {
        (**self).close(data)
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        (**self).resize(size)
    }
}
