//! Memory shared with the clients of a device: which part of it the driver knows by which index.

use core::ops::Range;
use std::sync::Arc;

use crate::{Errno, IoDesc};
use ublk_sys::word::ShmemAddr;

/// Memory that the control plane registered with a device (REG_BUF, Linux 7.1): requests whose pages lie in it are
/// not copied, and their descriptors name the place by index and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SharedBuffer {
    /// The index, as the driver gave it.
    pub index: u16,
    /// Where it begins in the file that is the memory, in bytes.
    pub offset: u64,
    /// Its bytes, at most 4 GiB.
    pub len: u64,
}

impl SharedBuffer {
    /// What was registered of a file: the driver's index, and the range.
    #[must_use]
    pub const fn new(index: u16, offset: u64, len: u64) -> Self {
        Self { index, offset, len }
    }
}

/// All that is registered of one file.
///
/// # Invariants
/// No end of a buffer wraps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SharedTable(Arc<[SharedBuffer]>);

impl SharedTable {
    /// The table of these buffers. One whose end is beyond any file is left out.
    #[must_use]
    pub fn new(buffers: &[SharedBuffer]) -> Self {
        let whole = |b: &&SharedBuffer| b.offset.checked_add(b.len).is_some();
        Self(buffers.iter().filter(whole).copied().collect())
    }

    /// The buffers.
    #[must_use]
    pub fn buffers(&self) -> &[SharedBuffer] {
        &self.0
    }

    /// Bytes of the file that lie before the end of the last buffer.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.iter().map(|b| b.offset + b.len).max().unwrap_or(0)
    }

    /// Where in the file the `len` bytes of a request are whose descriptor has the bit
    /// [`SHMEM_ZC`](crate::IoFlags::SHMEM_ZC). Whatever the driver wrote, the range is inside a buffer.
    ///
    /// # Errors
    /// EIO for an index that is not there, or a range that leaves its buffer.
    pub fn place(&self, desc: &IoDesc, len: u64) -> Result<Range<u64>, Errno> {
        let at = ShmemAddr::decode(desc.addr).map_err(|_| Errno::EIO)?;
        let buffer = self.0.iter().find(|b| b.index == at.index);
        let buffer = buffer.ok_or(Errno::EIO)?;
        let from = u64::from(at.offset);
        if from > buffer.len || len > buffer.len - from {
            return Err(Errno::EIO);
        }
        let start = buffer.offset + from;
        Ok(start..start + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u16, offset: u32) -> IoDesc {
        IoDesc {
            addr: ShmemAddr { index, offset }.encode(),
            ..IoDesc::default()
        }
    }

    /// L03 Nothing that a descriptor could name is outside the memory that was registered.
    #[test]
    fn l03_places_are_inside_their_buffer() {
        let buffer = |index, offset, len| SharedBuffer { index, offset, len };
        let table = SharedTable::new(&[
            buffer(0, 0, 4 << 30),
            buffer(7, 4 << 30, 8192),
            buffer(9, u64::MAX, 2),
        ]);
        assert_eq!(table.buffers().len(), 2);
        assert_eq!(table.end(), (4 << 30) + 8192);
        assert_eq!(table.place(&at(0, 4096), 512), Ok(4096..4608));
        let last = u32::MAX - 511;
        assert!(table.place(&at(0, last), 512).is_ok());
        assert_eq!(table.place(&at(0, last), 1024), Err(Errno::EIO));
        let start = (4 << 30) + 4096;
        assert_eq!(table.place(&at(7, 4096), 4096), Ok(start..start + 4096));
        for (desc, len) in [
            (at(7, 4096), 4097),
            (at(7, 8193), 0),
            (at(7, 0), u64::MAX),
            (at(1, 0), 512),
            (at(9, 0), 1),
        ] {
            assert_eq!(table.place(&desc, len), Err(Errno::EIO), "{desc:?}");
        }
        let odd = IoDesc {
            addr: 1 << 48,
            ..IoDesc::default()
        };
        assert_eq!(table.place(&odd, 512), Err(Errno::EIO));
    }
}
