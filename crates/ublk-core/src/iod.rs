//! The I/O descriptor, decoded: operation, flags, byte range.

use crate::{Errno, SECTOR_SIZE};

/// A descriptor as copied out of the driver's table (`struct ublksrv_io_desc`, linux/ublk_cmd.h).
#[doc(alias = "ublksrv_io_desc")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoDesc {
    /// Operation in the low 8 bits, `UBLK_IO_F_*` in the others.
    pub op_flags: u32,
    /// Sectors of 512 bytes.
    pub nr_sectors: u32,
    /// First sector; all ones for FLUSH.
    pub start_sector: u64,
    /// Buffer of the tag in copy mode; with [`IoFlags::SHMEM_ZC`] a place in registered memory.
    pub addr: u64,
}

/// What is asked of the backend. Operations of zoned devices are not offered, so never arrive.
#[doc(alias = "UBLK_IO_OP_READ")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// Read data (`UBLK_IO_OP_READ`).
    Read = 0,
    /// Write data (`UBLK_IO_OP_WRITE`).
    Write = 1,
    /// Make completed writes durable (`UBLK_IO_OP_FLUSH`).
    Flush = 2,
    /// Give storage back (`UBLK_IO_OP_DISCARD`).
    Discard = 3,
    /// Make a range read as zeroes (`UBLK_IO_OP_WRITE_ZEROES`).
    WriteZeroes = 5,
}

impl Op {
    /// True for the operations that carry data.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// The flag bits of a request, absolute bits of `op_flags` (L12: not shifted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoFlags(pub u32);

impl IoFlags {
    /// A failure of the device, of its transport or of its driver shall be told at once, not tried again
    /// (`UBLK_IO_F_FAILFAST_DEV`, `…_TRANSPORT`, `…_DRIVER`): somebody above has another way to the data.
    pub const FAILFAST: u32 = 7 << 8;
    /// Metadata of a file system (`UBLK_IO_F_META`): worth more than data to a cache.
    pub const META: u32 = 1 << 11;
    /// A page that goes to or comes from swap (`UBLK_IO_F_SWAP`).
    pub const SWAP: u32 = 1 << 16;

    /// Any of the three FAILFAST bits.
    #[must_use]
    pub const fn failfast(self) -> bool {
        self.0 & Self::FAILFAST != 0
    }

    /// The META bit.
    #[must_use]
    pub const fn meta(self) -> bool {
        self.0 & Self::META != 0
    }

    /// The SWAP bit.
    #[must_use]
    pub const fn swap(self) -> bool {
        self.0 & Self::SWAP != 0
    }

    /// Durable before it completes (`UBLK_IO_F_FUA`).
    pub const FUA: u32 = 1 << 13;
    /// WRITE_ZEROES must keep its storage allocated (`UBLK_IO_F_NOUNMAP`).
    pub const NOUNMAP: u32 = 1 << 15;

    /// The driver could not register the request's pages by itself (`UBLK_IO_F_NEED_REG_BUF`, 6.16).
    pub const NEED_REG_BUF: u32 = 1 << 17;

    /// The data lies in memory registered with the device, and `addr` says where (`UBLK_IO_F_SHMEM_ZC`, 7.1).
    pub const SHMEM_ZC: u32 = 1 << 19;

    /// The SHMEM_ZC bit.
    #[must_use]
    pub const fn in_shared_memory(self) -> bool {
        self.0 & Self::SHMEM_ZC != 0
    }

    /// The NEED_REG_BUF bit.
    #[must_use]
    pub const fn needs_registration(self) -> bool {
        self.0 & Self::NEED_REG_BUF != 0
    }

    /// The FUA bit.
    #[must_use]
    pub const fn fua(self) -> bool {
        self.0 & Self::FUA != 0
    }

    /// The NOUNMAP bit.
    #[must_use]
    pub const fn no_unmap(self) -> bool {
        self.0 & Self::NOUNMAP != 0
    }
}

/// A request of the block layer in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    /// The operation.
    pub op: Op,
    /// Its flags.
    pub flags: IoFlags,
    /// First byte; 0 for FLUSH.
    pub offset: u64,
    /// Bytes; 0 for FLUSH. For data at most the bounds' `max_io_bytes`.
    pub len: u64,
}

/// The bounds of a queue's requests: what a descriptor is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoBounds {
    /// Size of the device in bytes.
    pub size: u64,
    /// Bytes of the buffer behind each tag (L03).
    pub max_io_bytes: u32,
}

impl IoDesc {
    /// The request in bytes, checked against the device's bounds: nothing a driver could put into
    /// the table makes the server touch memory or storage outside them.
    ///
    /// # Errors
    /// EOPNOTSUPP for an operation this stack does not serve, EIO for a range outside the device or
    /// data larger than the tag's buffer.
    #[inline(always)]
    pub const fn decode(&self, bounds: &IoBounds) -> Result<Io, Errno> {
        let flags = IoFlags(self.op_flags & !0xff);
        let len = self.nr_sectors as u64 * SECTOR_SIZE;
        // Sectors, not bytes: the product could wrap (L13).
        let size = bounds.size / SECTOR_SIZE;
        let offset = self.start_sector.wrapping_mul(SECTOR_SIZE);
        let op = match self.op_flags & 0xff {
            // The common ones first, and without a jump table.
            op @ 0..=1 => {
                if self.start_sector > size
                    || self.nr_sectors as u64 > size - self.start_sector
                    || len > bounds.max_io_bytes as u64
                {
                    return Err(Errno::EIO);
                }
                let op = if op == 0 { Op::Read } else { Op::Write };
                return Ok(Io {
                    op,
                    flags,
                    offset,
                    len,
                });
            }
            2 => {
                return Ok(Io {
                    op: Op::Flush,
                    flags,
                    offset: 0,
                    len: 0,
                });
            }
            3 => Op::Discard,
            5 => Op::WriteZeroes,
            _ => return Err(Errno::EOPNOTSUPP),
        };
        if self.start_sector <= size && self.nr_sectors as u64 <= size - self.start_sector {
            Ok(Io {
                op,
                flags,
                offset,
                len,
            })
        } else {
            Err(Errno::EIO)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: IoBounds = IoBounds {
        size: 1 << 20,
        max_io_bytes: 64 << 10,
    };

    fn desc(op_flags: u32, start_sector: u64, nr_sectors: u32) -> IoDesc {
        IoDesc {
            op_flags,
            nr_sectors,
            start_sector,
            addr: 0,
        }
    }

    /// L02 Sectors of a descriptor are 512 bytes on a device of any block size.
    #[test]
    fn l02_descriptor_counts_512_byte_sectors() {
        let io = desc(0, 8, 16).decode(&BOUNDS).expect("inside the device");
        assert_eq!((io.op, io.offset, io.len), (Op::Read, 4096, 8192));
    }

    /// L03 Data larger than the buffer behind a tag is refused.
    #[test]
    fn l03_more_data_than_the_tags_buffer_is_refused() {
        assert!(desc(1, 0, 128).decode(&BOUNDS).is_ok());
        assert_eq!(desc(1, 0, 129).decode(&BOUNDS), Err(Errno::EIO));
        // A discard carries no data, so the buffer does not bound it.
        assert!(desc(3, 0, 2048).decode(&BOUNDS).is_ok());
    }

    /// L12 Flags are absolute bits, not shifted ones.
    #[test]
    fn l12_flags_are_absolute_bits() {
        let io = desc(1 | IoFlags::FUA, 0, 8).decode(&BOUNDS).expect("valid");
        assert!(io.flags.fua() && !io.flags.no_unmap());
        let io = desc(5 | IoFlags::NOUNMAP, 0, 8)
            .decode(&BOUNDS)
            .expect("valid");
        assert!(io.flags.no_unmap() && !io.flags.fua());
    }

    /// L12 The bits are those of the driver's header.
    #[test]
    fn l12_flags_are_the_drivers() {
        use ublk_sys as sys;
        let failfast = sys::UBLK_IO_F_FAILFAST_DEV
            | sys::UBLK_IO_F_FAILFAST_TRANSPORT
            | sys::UBLK_IO_F_FAILFAST_DRIVER;
        assert_eq!(IoFlags::FAILFAST, failfast);
        assert_eq!(IoFlags::META, sys::UBLK_IO_F_META);
        assert_eq!(IoFlags::SWAP, sys::UBLK_IO_F_SWAP);
        assert_eq!(IoFlags::FUA, sys::UBLK_IO_F_FUA);
        assert_eq!(IoFlags::NOUNMAP, sys::UBLK_IO_F_NOUNMAP);
        let flags = IoFlags(sys::UBLK_IO_F_FAILFAST_TRANSPORT | sys::UBLK_IO_F_META);
        assert!(flags.failfast() && flags.meta() && !flags.swap());
        assert!(IoFlags(sys::UBLK_IO_F_SWAP).swap());
    }

    /// L13 Ranges near and past the end never wrap.
    #[test]
    fn l13_ranges_past_the_end_do_not_wrap() {
        assert!(desc(0, 2047, 1).decode(&BOUNDS).is_ok());
        assert_eq!(desc(0, 2047, 2).decode(&BOUNDS), Err(Errno::EIO));
        assert_eq!(desc(0, u64::MAX, 1).decode(&BOUNDS), Err(Errno::EIO));
        assert_eq!(desc(0, (1 << 55) + 1, 8).decode(&BOUNDS), Err(Errno::EIO));
        let huge = IoBounds {
            size: u64::MAX - 511,
            max_io_bytes: 64 << 10,
        };
        let last = u64::MAX / 512 - 1;
        assert!(desc(0, last, 1).decode(&huge).is_ok());
        assert!(desc(0, last, 2).decode(&huge).is_err());
    }

    #[test]
    fn flush_has_no_range_and_unknown_ops_are_refused() {
        let io = desc(2, u64::MAX, 0)
            .decode(&BOUNDS)
            .expect("a flush has all ones as sector");
        assert_eq!((io.op, io.len), (Op::Flush, 0));
        for op in [4, 6, 10, 13, 18, 255] {
            assert_eq!(
                desc(op, 0, 1).decode(&BOUNDS),
                Err(Errno::EOPNOTSUPP),
                "op {op}"
            );
        }
    }
}
