//! Positions in the character device `/dev/ublkcN`.
//!
//! `pread`/`pwrite` access the data of requests (user copy), `mmap` the I/O descriptors of a queue.

use crate::error::in_range;
use crate::{
    Error, IO_DESC_SIZE_MAX, IO_DESC_SIZE_MIN, UBLK_IO_BUF_BITS_MASK, UBLK_MAX_NR_QUEUES,
    UBLK_MAX_QUEUE_DEPTH, UBLK_QID_BITS_MASK, UBLK_QID_OFF, UBLK_TAG_BITS_MASK, UBLK_TAG_OFF,
    UBLKSRV_CMD_BUF_OFFSET, UBLKSRV_IO_BUF_OFFSET, UBLKSRV_IO_BUF_TOTAL_SIZE,
    UBLKSRV_IO_INTEGRITY_FLAG,
};

/// A position in the data of a request, for `pread` and `pwrite` (6.5, [`crate::UBLK_F_USER_COPY`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserCopy {
    /// Queue, below 4096.
    pub qid: u16,
    /// Tag.
    pub tag: u16,
    /// Offset from the start of the request in bytes, below 32 MiB. The caller must limit the length: 6.12 reports more
    /// than it copied if more is requested than the request has.
    pub byte: u32,
    /// Selects the request's integrity buffer instead of its data (7.0; 6.12 ignores it and returns data).
    pub integrity: bool,
}

impl UserCopy {
    /// The file position.
    ///
    /// # Errors
    /// [`Error::Range`] if queue or offset do not fit their fields.
    pub const fn encode(self) -> Result<u64, Error> {
        if let Err(error) = in_range("queue id", self.qid as u64, 0, UBLK_QID_BITS_MASK) {
            return Err(error);
        }
        if let Err(error) = in_range("byte offset", self.byte as u64, 0, UBLK_IO_BUF_BITS_MASK) {
            return Err(error);
        }
        let place = (self.qid as u64) << UBLK_QID_OFF
            | (self.tag as u64) << UBLK_TAG_OFF
            | self.byte as u64;
        let integrity = if self.integrity {
            UBLKSRV_IO_INTEGRITY_FLAG
        } else {
            0
        };
        // Added, not ORed: the start of the buffers lies inside the tag's bits.
        Ok((UBLKSRV_IO_BUF_OFFSET + place) | integrity)
    }

    /// Decodes a file position like the driver.
    ///
    /// # Errors
    /// [`Error::Range`] if the position lies before or after the request buffers.
    pub const fn decode(position: u64) -> Result<Self, Error> {
        let integrity = position & UBLKSRV_IO_INTEGRITY_FLAG != 0;
        let plain = position & !UBLKSRV_IO_INTEGRITY_FLAG;
        let end = UBLKSRV_IO_BUF_OFFSET + UBLKSRV_IO_BUF_TOTAL_SIZE;
        if let Err(error) = in_range("user-copy position", plain, UBLKSRV_IO_BUF_OFFSET, end - 1) {
            return Err(error);
        }
        let place = plain - UBLKSRV_IO_BUF_OFFSET;
        Ok(Self {
            qid: (place >> UBLK_QID_OFF & UBLK_QID_BITS_MASK) as u16,
            tag: (place >> UBLK_TAG_OFF & UBLK_TAG_BITS_MASK) as u16,
            byte: (place & UBLK_IO_BUF_BITS_MASK) as u32,
            integrity,
        })
    }
}

/// The mapping of a queue's I/O descriptors: the arguments for `mmap`. Read-only, one per queue; the driver refuses any
/// other offset or length. Descriptor `tag` is at `tag * io_desc_size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescMap {
    /// Offset in the character device in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: usize,
}

impl DescMap {
    /// Computes the mapping of queue `qid` of a device with `depth` tags per queue and descriptors of `io_desc_size`
    /// bytes, on a machine with pages of `page` bytes.
    ///
    /// The distance between queues is the size of 4096 descriptors, whatever the depth; the length depends on the
    /// depth.
    ///
    /// # Errors
    /// [`Error::Range`] for an invalid queue, depth or descriptor size; [`Error::Rule`] for a page size that is not a
    /// power of two or a descriptor size that is not a multiple of 8.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most 1 MiB rounded to a checked page"
    )]
    pub const fn new(qid: u16, depth: u16, io_desc_size: u16, page: usize) -> Result<Self, Error> {
        if let Err(error) = in_range("queue id", qid as u64, 0, UBLK_MAX_NR_QUEUES as u64 - 1) {
            return Err(error);
        }
        if let Err(error) = in_range("queue depth", depth as u64, 1, UBLK_MAX_QUEUE_DEPTH as u64) {
            return Err(error);
        }
        let size = io_desc_size as u64;
        if let Err(error) = in_range(
            "descriptor size",
            size,
            IO_DESC_SIZE_MIN as u64,
            IO_DESC_SIZE_MAX as u64,
        ) {
            return Err(error);
        }
        if !size.is_multiple_of(8) {
            let rule = "a multiple of 8";
            return Err(Error::Rule {
                what: "descriptor size",
                value: size,
                rule,
            });
        }
        let page = page as u64;
        if !page.is_power_of_two() || page > 1 << 24 {
            let rule = "a power of two of at most 16 MiB";
            return Err(Error::Rule {
                what: "page size",
                value: page,
                rule,
            });
        }
        let stride = (UBLK_MAX_QUEUE_DEPTH as u64 * size).next_multiple_of(page);
        let len = (depth as u64 * size).next_multiple_of(page);
        Ok(Self {
            offset: UBLKSRV_CMD_BUF_OFFSET + qid as u64 * stride,
            len: len as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L01 The stride between queues is that of 4096 descriptors, rounded up to a page, not that of the depth.
    #[test]
    fn l01_descriptor_stride_is_that_of_the_maximum_depth() {
        let map = |qid, depth, size, page| DescMap::new(qid, depth, size, page).unwrap();
        for depth in [1, 64, 128, 4096] {
            assert_eq!(map(0, depth, 24, 4096).offset, 0);
            assert_eq!(map(1, depth, 24, 4096).offset, 98_304);
            assert_eq!(map(3, depth, 24, 4096).offset, 3 * 98_304);
            assert_eq!(map(1, depth, 64, 4096).offset, 262_144);
        }
        // 98304 is not a multiple of 64 KiB.
        assert_eq!(map(1, 128, 24, 65_536).offset, 131_072);
        // The length follows the depth exactly.
        assert_eq!(map(1, 1, 24, 4096).len, 4096);
        assert_eq!(map(1, 128, 24, 4096).len, 4096);
        assert_eq!(map(1, 171, 24, 4096).len, 8192);
        assert_eq!(map(0, 4096, 24, 4096).len, 98_304);
    }

    #[test]
    fn mappings_that_cannot_be_are_refused() {
        assert!(DescMap::new(4096, 1, 24, 4096).is_err());
        assert!(DescMap::new(0, 0, 24, 4096).is_err());
        assert!(DescMap::new(0, 4097, 24, 4096).is_err());
        assert!(DescMap::new(0, 1, 16, 4096).is_err());
        assert!(DescMap::new(0, 1, 28, 4096).is_err());
        assert!(DescMap::new(0, 1, 264, 4096).is_err());
        assert!(DescMap::new(0, 1, 24, 0).is_err());
        assert!(DescMap::new(0, 1, 24, 4095).is_err());
    }

    #[test]
    fn user_copy_positions_of_the_driver() {
        let at = |qid, tag, byte, integrity| {
            UserCopy {
                qid,
                tag,
                byte,
                integrity,
            }
            .encode()
        };
        assert_eq!(at(0, 0, 0, false), Ok(0x8000_0000));
        assert_eq!(at(0, 1, 0, false), Ok(0x8200_0000));
        assert_eq!(at(1, 0, 512, false), Ok(0x8000_0200 + (1 << 41)));
        // Tag 64 shares a bit with the start itself: an OR would lose it.
        assert_eq!(at(0, 64, 0, false), Ok(0x1_0000_0000));
        assert_eq!(at(0, 0, 8, true), Ok((1 << 62) + 0x8000_0008));
        assert!(at(4096, 0, 0, false).is_err());
        assert!(at(0, 0, 1 << 25, false).is_err());
        assert!(UserCopy::decode(0x7fff_ffff).is_err());
        assert!(UserCopy::decode(0x8000_0000 + (1 << 53)).is_err());
        let last = UserCopy {
            qid: 4095,
            tag: u16::MAX,
            byte: (1 << 25) - 1,
            integrity: true,
        };
        assert_eq!(UserCopy::decode(last.encode().unwrap()), Ok(last));
    }
}
