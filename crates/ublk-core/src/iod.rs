//! The I/O descriptor, decoded: operation, flags, byte range.

use crate::{Errno, SECTOR_SIZE, Zone};

/// A descriptor as copied out of the driver's table (`struct ublksrv_io_desc`, linux/ublk_cmd.h).
#[doc(alias = "ublksrv_io_desc")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct IoDesc {
    /// Operation in the low 8 bits, `UBLK_IO_F_*` in the others.
    pub op_flags: u32,
    /// Length in sectors of 512 bytes.
    pub nr_sectors: u32,
    /// First sector; all ones for FLUSH.
    pub start_sector: u64,
    /// Address of the tag's buffer in copy mode; with [`IoFlags::SHMEM_ZC`] a position in registered memory.
    pub addr: u64,
}

/// The operation of a request, by the driver's numbers. Zone operations are only sent to zoned devices
/// ([`Limits::zones`](crate::Limits::zones)). Answer EOPNOTSUPP to unknown operations.
#[doc(alias = "UBLK_IO_OP_READ")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Op {
    /// Read data (`UBLK_IO_OP_READ`).
    Read = 0,
    /// Write data (`UBLK_IO_OP_WRITE`).
    Write = 1,
    /// Make completed writes durable (`UBLK_IO_OP_FLUSH`).
    Flush = 2,
    /// Deallocate storage (`UBLK_IO_OP_DISCARD`).
    Discard = 3,
    /// Make a range read as zeroes (`UBLK_IO_OP_WRITE_ZEROES`).
    WriteZeroes = 5,
    /// Open the zone that begins at the offset (`UBLK_IO_OP_ZONE_OPEN`, 6.6).
    ZoneOpen = 10,
    /// Close the zone (`UBLK_IO_OP_ZONE_CLOSE`, 6.6).
    ZoneClose = 11,
    /// Finish the zone: make it full (`UBLK_IO_OP_ZONE_FINISH`, 6.6).
    ZoneFinish = 12,
    /// Write data at the zone's write pointer, and report its position (`UBLK_IO_OP_ZONE_APPEND`, 6.6). The offset is
    /// the zone's first byte.
    ZoneAppend = 13,
    /// Reset the write pointers of all zones (`UBLK_IO_OP_ZONE_RESET_ALL`, 6.6).
    ZoneResetAll = 14,
    /// Reset the zone's write pointer (`UBLK_IO_OP_ZONE_RESET`, 6.6).
    ZoneReset = 15,
    /// Report zones, starting with the one at the offset: 64 bytes each, as many as fit into the length
    /// (`UBLK_IO_OP_REPORT_ZONES`, 6.6). See [`ZoneReport`](crate::ZoneReport).
    ReportZones = 18,
}

impl Op {
    /// Upper bound of `Op as usize`.
    pub const NUMBERS: usize = 19;

    /// True for operations with data, in either direction.
    #[must_use]
    #[inline]
    pub const fn has_data(self) -> bool {
        self.brings_data() || self.wants_data()
    }

    /// True for operations that are only sent to zoned devices.
    #[must_use]
    #[inline]
    pub const fn is_of_zones(self) -> bool {
        self as u8 >= Self::ZoneOpen as u8
    }

    /// True for operations that bring data to the server: WRITE and ZONE_APPEND.
    #[must_use]
    #[inline]
    pub const fn brings_data(self) -> bool {
        matches!(self, Self::Write | Self::ZoneAppend)
    }

    /// True for operations that request data from the server: READ and REPORT_ZONES.
    #[must_use]
    #[inline]
    pub const fn wants_data(self) -> bool {
        matches!(self, Self::Read | Self::ReportZones)
    }
}

/// The flag bits of a request, absolute bits of `op_flags` (L12: not shifted).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoFlags(pub u32);

impl IoFlags {
    /// Failures of the device, its transport or its driver must be reported at once, without retries
    /// (`UBLK_IO_F_FAILFAST_DEV`, `…_TRANSPORT`, `…_DRIVER`): an upper layer has another path to the data.
    pub const FAILFAST: u32 = 7 << 8;
    /// File system metadata (`UBLK_IO_F_META`): worth more to a cache than data.
    pub const META: u32 = 1 << 11;
    /// Swap I/O (`UBLK_IO_F_SWAP`).
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

    /// The driver could not register the request's pages itself (`UBLK_IO_F_NEED_REG_BUF`, 6.16).
    pub const NEED_REG_BUF: u32 = 1 << 17;

    /// The request has metadata (`UBLK_IO_F_INTEGRITY`, 7.0).
    pub const INTEGRITY: u32 = 1 << 18;

    /// The INTEGRITY bit.
    #[must_use]
    pub const fn has_metadata(self) -> bool {
        self.0 & Self::INTEGRITY != 0
    }

    /// The data is in memory registered with the device, at the position in `addr` (`UBLK_IO_F_SHMEM_ZC`, 7.1).
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

/// A request of the block layer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Io {
    /// The operation.
    pub op: Op,
    /// Its flags.
    pub flags: IoFlags,
    /// Offset on the device; 0 for FLUSH. For zone operations the offset of the zone.
    pub offset: u64,
    /// Length; 0 for FLUSH and for operations on a zone as a whole. With data, at most the bounds' `max_io_bytes`.
    pub len: u64,
}

impl Io {
    /// A request of these parts.
    #[must_use]
    #[inline(always)]
    pub const fn new(op: Op, flags: IoFlags, offset: u64, len: u64) -> Self {
        Self {
            op,
            flags,
            offset,
            len,
        }
    }

    /// Converts the position at which the data of a ZONE_APPEND was written from bytes to sectors, for the driver.
    ///
    /// # Errors
    /// EOPNOTSUPP for another operation; EIO for a position before the zone, inside a sector, or too large.
    pub const fn landed(&self, at: u64) -> Result<u64, Errno> {
        if !matches!(self.op, Op::ZoneAppend) {
            return Err(Errno::EOPNOTSUPP);
        }
        if at < self.offset || !at.is_multiple_of(SECTOR_SIZE) || at.checked_add(self.len).is_none()
        {
            return Err(Errno::EIO);
        }
        Ok(at / SECTOR_SIZE)
    }
}

/// The bounds that a queue's descriptors are checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoBounds {
    /// Size of the device in bytes.
    pub size: u64,
    /// Size of each tag's buffer in bytes (L03).
    pub max_io_bytes: u32,
}

impl IoBounds {
    /// The bounds of a device of `size` bytes, with buffers of `max_io_bytes`.
    #[must_use]
    #[inline(always)]
    pub const fn new(size: u64, max_io_bytes: u32) -> Self {
        Self { size, max_io_bytes }
    }
}

impl IoDesc {
    /// A descriptor of these words; see the fields.
    #[must_use]
    #[inline(always)]
    pub const fn new(op_flags: u32, start_sector: u64, nr_sectors: u32, addr: u64) -> Self {
        Self {
            op_flags,
            nr_sectors,
            start_sector,
            addr,
        }
    }

    /// Decodes the request and checks it against the device's bounds: no content of the driver's table makes the server
    /// access memory or storage outside them.
    ///
    /// # Errors
    /// EOPNOTSUPP for an unsupported operation, EIO for a range outside the device or data larger than the tag's
    /// buffer.
    #[inline(always)]
    pub const fn decode(&self, bounds: &IoBounds) -> Result<Io, Errno> {
        self.decode_if(true, bounds)
    }

    /// [`decode`](Self::decode) for a device that is not zoned, which is cheaper: zone operations are refused.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode).
    #[inline(always)]
    pub const fn decode_unzoned(&self, bounds: &IoBounds) -> Result<Io, Errno> {
        self.decode_if(false, bounds)
    }

    #[inline(always)]
    const fn decode_if(&self, zoned: bool, bounds: &IoBounds) -> Result<Io, Errno> {
        let flags = IoFlags(self.op_flags & !0xff);
        let len = self.nr_sectors as u64 * SECTOR_SIZE;
        // In sectors, since the product in bytes could wrap (L13).
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
            _ if !zoned => return Err(Errno::EOPNOTSUPP),
            op => return self.decode_zoned(op, flags, bounds),
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

    /// Decodes the operations that are only valid for zoned devices.
    #[cold]
    #[inline(never)]
    const fn decode_zoned(self, op: u32, flags: IoFlags, bounds: &IoBounds) -> Result<Io, Errno> {
        let size = bounds.size / SECTOR_SIZE;
        let (op, len) = match op {
            10 => (Op::ZoneOpen, 0),
            11 => (Op::ZoneClose, 0),
            12 => (Op::ZoneFinish, 0),
            13 => (Op::ZoneAppend, self.nr_sectors as u64 * SECTOR_SIZE),
            14 => {
                return Ok(Io {
                    op: Op::ZoneResetAll,
                    flags,
                    offset: 0,
                    len: 0,
                });
            }
            15 => (Op::ZoneReset, 0),
            18 => (
                Op::ReportZones,
                self.nr_sectors as u64 * Zone::ENCODED as u64,
            ),
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let outside = self.start_sector >= size
            || (matches!(op, Op::ZoneAppend) && self.nr_sectors as u64 > size - self.start_sector);
        if outside || len > bounds.max_io_bytes as u64 {
            return Err(Errno::EIO);
        }
        Ok(Io {
            op,
            flags,
            offset: self.start_sector * SECTOR_SIZE,
            len,
        })
    }
}

#[cfg(test)]
mod tests;
