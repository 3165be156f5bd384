//! Memory shared with the clients of a device: the ranges registered with the driver, and their indices.

use core::ops::Range;
use std::sync::Arc;

use crate::{Errno, IoDesc, Op};
use ublk_sys::word::ShmemAddr;

/// A range of memory that the control plane registered with a device (REG_BUF, Linux 7.1): requests whose pages lie in
/// it are not copied, and their descriptors carry index and offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SharedBuffer {
    /// The index, assigned by the driver.
    pub index: u16,
    /// Offset of the range in the memory's file, in bytes.
    pub offset: u64,
    /// Length in bytes, at most 4 GiB.
    pub len: u64,
    /// Registered for reading only: the server reads what clients write, and READ requests take the device's mode.
    #[cfg_attr(feature = "serde", serde(default))]
    pub read_only: bool,
}

impl SharedBuffer {
    /// A registered range of a file.
    #[must_use]
    pub const fn new(index: u16, offset: u64, len: u64) -> Self {
        Self {
            index,
            offset,
            len,
            read_only: false,
        }
    }

    /// Sets whether it is registered for reading only.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }
}

/// All registered ranges of one file.
///
/// # Invariants
/// The end of no range wraps.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SharedTable(Arc<[SharedBuffer]>);

impl SharedTable {
    /// Creates a table of these ranges, without those whose end exceeds 64 bits.
    #[must_use]
    pub fn new(buffers: &[SharedBuffer]) -> Self {
        let whole = |b: &&SharedBuffer| b.offset.checked_add(b.len).is_some();
        Self(buffers.iter().filter(whole).copied().collect())
    }

    /// The ranges.
    #[must_use]
    pub fn buffers(&self) -> &[SharedBuffer] {
        &self.0
    }

    /// End of the last range in the file, in bytes.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.iter().map(|b| b.offset + b.len).max().unwrap_or(0)
    }

    /// Whether the server never writes to any of them.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.0.iter().all(|b| b.read_only)
    }

    /// Finds the range of the file that holds the `len` bytes of a request whose descriptor has the bit
    /// [`SHMEM_ZC`](crate::IoFlags::SHMEM_ZC). Whatever the driver wrote, the result is inside a registered range.
    ///
    /// # Errors
    /// EIO for an unknown index, a range that leaves its buffer, or a request other than a WRITE in a read-only buffer.
    pub fn place(&self, desc: &IoDesc, len: u64) -> Result<Range<u64>, Errno> {
        let at = ShmemAddr::decode(desc.addr).map_err(|_| Errno::EIO)?;
        let buffer = self.0.iter().find(|b| b.index == at.index);
        let buffer = buffer.ok_or(Errno::EIO)?;
        let from = u64::from(at.offset);
        if from > buffer.len || len > buffer.len - from {
            return Err(Errno::EIO);
        }
        if buffer.read_only && desc.op_flags & 0xff != Op::Write as u32 {
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

    /// L03 No descriptor can name memory outside the registered ranges.
    #[test]
    fn l03_places_are_inside_their_buffer() {
        let buffer = SharedBuffer::new;
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

    /// L03 The server, which maps read-only memory for reading only, gets no place to write to in it.
    #[test]
    fn l03_read_only_memory_is_for_writes() {
        let table = SharedTable::new(&[SharedBuffer::new(2, 0, 8192).read_only(true)]);
        let of = |op: Op| IoDesc {
            op_flags: op as u32 | 1 << 19,
            ..at(2, 4096)
        };
        assert!(table.is_read_only());
        assert_eq!(table.place(&of(Op::Write), 4096), Ok(4096..8192));
        assert_eq!(table.place(&of(Op::Read), 4096), Err(Errno::EIO));
        let both = [SharedBuffer::new(0, 0, 512), table.buffers()[0]];
        assert!(!SharedTable::new(&both).is_read_only());
    }
}
