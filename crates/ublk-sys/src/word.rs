//! Words with several packed values.

use crate::error::in_range;
use crate::{
    Error, UBLK_AUTO_BUF_REG_F_MASK, UBLK_SHMEM_ZC_IDX_MASK, UBLK_SHMEM_ZC_IDX_OFF,
    UBLK_SHMEM_ZC_OFF_MASK, ublk_auto_buf_reg, ublksrv_io_desc,
};

/// Mask of the operation in `op_flags`.
pub const OP_MASK: u32 = 0xff;

/// Packs an operation and `UBLK_IO_F_*` bits.
///
/// # Errors
/// [`Error::Range`] if `flags` overlaps the operation's byte: flags are absolute bits of the word.
pub const fn join_op_flags(op: u8, flags: u32) -> Result<u32, Error> {
    let low = (flags & OP_MASK) as u64;
    if let Err(error) = in_range("flags in the operation's byte", low, 0, 0) {
        return Err(error);
    }
    Ok(op as u32 | flags)
}

/// Splits `op_flags` into the operation and the `UBLK_IO_F_*` bits, including unknown ones.
///
/// The bits keep their positions: C's `ublksrv_get_flags` shifts them down by 8, after which they cannot be compared
/// with the constants.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the operation is the low byte"
)]
pub const fn split_op_flags(op_flags: u32) -> (u8, u32) {
    (op_flags as u8, op_flags & !OP_MASK)
}

impl ublksrv_io_desc {
    /// The operation, `UBLK_IO_OP_*`.
    #[doc(alias = "ublksrv_get_op")]
    #[inline]
    #[must_use]
    pub const fn op(&self) -> u8 {
        split_op_flags(self.op_flags).0
    }

    /// The `UBLK_IO_F_*` bits in their absolute positions, including unknown ones.
    #[doc(alias = "ublksrv_get_flags")]
    #[inline]
    #[must_use]
    pub const fn flags(&self) -> u32 {
        split_op_flags(self.op_flags).1
    }

    /// Number of zones to report; another name of `nr_sectors`.
    #[inline]
    #[must_use]
    pub const fn nr_zones(&self) -> u32 {
        self.nr_sectors
    }
}

impl ublk_auto_buf_reg {
    /// A registration in slot `index`, with or without the fallback.
    #[must_use]
    pub const fn new(index: u16, fallback: bool) -> Self {
        let flags = if fallback {
            crate::UBLK_AUTO_BUF_REG_FALLBACK
        } else {
            0
        };
        Self {
            index,
            flags,
            ..Self::ZERO
        }
    }

    /// The word for `sqe.addr`.
    #[doc(alias = "ublk_auto_buf_reg_to_sqe_addr")]
    #[inline]
    #[must_use]
    pub const fn to_sqe_addr(&self) -> u64 {
        self.index as u64
            | (self.flags as u64) << 16
            | (self.reserved0 as u64) << 24
            | (self.reserved1 as u64) << 32
    }

    /// Decodes a word from `sqe.addr` without loss.
    #[doc(alias = "ublk_sqe_addr_to_auto_buf_reg")]
    #[inline]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "each field is a part of the word"
    )]
    pub const fn from_sqe_addr(addr: u64) -> Self {
        Self {
            index: addr as u16,
            flags: (addr >> 16) as u8,
            reserved0: (addr >> 24) as u8,
            reserved1: (addr >> 32) as u32,
        }
    }

    /// Checks what the driver of 7.3 checks: only known flags, reserved fields zero.
    ///
    /// # Errors
    /// [`Error::Reserved`] with the offending bits of the word.
    pub const fn check(&self) -> Result<(), Error> {
        let known = u16::MAX as u64 | (UBLK_AUTO_BUF_REG_F_MASK as u64) << 16;
        let bits = self.to_sqe_addr() & !known;
        if bits != 0 {
            return Err(Error::Reserved {
                what: "auto buffer registration",
                bits,
            });
        }
        Ok(())
    }
}

/// A position in registered shared memory: the meaning of a descriptor's `addr` if [`crate::UBLK_IO_F_SHMEM_ZC`] is
/// set. Since 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemAddr {
    /// Index of the buffer, from REG_BUF.
    pub index: u16,
    /// Offset in the buffer in bytes.
    pub offset: u32,
}

impl ShmemAddr {
    /// Encodes the position.
    #[doc(alias = "ublk_shmem_zc_addr")]
    #[must_use]
    pub const fn encode(self) -> u64 {
        (self.index as u64) << UBLK_SHMEM_ZC_IDX_OFF | self.offset as u64
    }

    /// Decodes a descriptor's `addr`.
    ///
    /// # Errors
    /// [`Error::Reserved`] if the reserved bits 48 to 63 are set.
    #[doc(alias = "ublk_shmem_zc_index")]
    #[doc(alias = "ublk_shmem_zc_offset")]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "masked to the width of the field"
    )]
    pub const fn decode(addr: u64) -> Result<Self, Error> {
        let known = UBLK_SHMEM_ZC_IDX_MASK << UBLK_SHMEM_ZC_IDX_OFF | UBLK_SHMEM_ZC_OFF_MASK;
        if addr & !known != 0 {
            return Err(Error::Reserved {
                what: "shared-memory address",
                bits: addr & !known,
            });
        }
        Ok(Self {
            index: (addr >> UBLK_SHMEM_ZC_IDX_OFF) as u16,
            offset: (addr & UBLK_SHMEM_ZC_OFF_MASK) as u32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{UBLK_IO_F_FUA, UBLK_IO_F_NOUNMAP, UBLK_IO_OP_WRITE_ZEROES};

    /// L12 Flags are absolute bits of `op_flags`: NOUNMAP is bit 15, not bit 7 of a shifted word.
    #[test]
    fn l12_flags_are_compared_in_their_place() {
        let iod = ublksrv_io_desc {
            op_flags: 0x0000_8005,
            ..ublksrv_io_desc::ZERO
        };
        assert_eq!(iod.op(), UBLK_IO_OP_WRITE_ZEROES);
        assert_eq!(iod.flags(), UBLK_IO_F_NOUNMAP);
        assert_eq!(iod.flags() & UBLK_IO_F_FUA, 0);
        assert_eq!(join_op_flags(5, UBLK_IO_F_NOUNMAP), Ok(0x8005));
        assert!(
            join_op_flags(5, UBLK_IO_F_NOUNMAP >> 8).is_err(),
            "a shifted flag is refused"
        );
        // Unknown bits survive.
        assert_eq!(split_op_flags(0xfff0_0001), (1, 0xfff0_0000));
    }

    #[test]
    fn registration_word() {
        let reg = ublk_auto_buf_reg::new(0x1234, true);
        assert_eq!(reg.to_sqe_addr(), 0x0001_1234);
        assert_eq!(reg.check(), Ok(()));
        for bit in 17..64 {
            let odd = ublk_auto_buf_reg::from_sqe_addr(1 << bit);
            assert_eq!(odd.to_sqe_addr(), 1 << bit);
            assert!(odd.check().is_err(), "bit {bit} is accepted");
        }
    }

    #[test]
    fn shared_memory_address() {
        let place = ShmemAddr {
            index: 65_535,
            offset: u32::MAX,
        };
        assert_eq!(place.encode(), 0x0000_ffff_ffff_ffff);
        assert_eq!(ShmemAddr::decode(place.encode()), Ok(place));
        assert_eq!(
            ShmemAddr::decode(7 << 32 | 9),
            Ok(ShmemAddr {
                index: 7,
                offset: 9
            })
        );
        assert!(ShmemAddr::decode(1 << 48).is_err());
    }
}
