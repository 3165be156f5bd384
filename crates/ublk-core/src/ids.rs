//! Checked identifiers: device, hw queue, tag; and the sector, the driver's unit of everything.

use core::fmt;

/// Bytes in a sector, whatever the logical block size of the device (L02).
pub const SECTOR_SIZE: u64 = 512;

/// Returned when a number is outside the range an identifier allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is out of range: at most {max}")]
pub struct OutOfRange {
    /// What was to be made, in the kernel's words.
    pub what: &'static str,
    /// The number given.
    pub value: u64,
    /// The largest number allowed.
    pub max: u64,
}

/// A device's number: the `N` of `/dev/ublkcN` and `/dev/ublkbN`, below 2^20.
///
/// C: `ublksrv_ctrl_dev_info.dev_id` (linux/ublk_cmd.h), `UBLK_MINORS` (drivers/block/ublk_drv.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "u32", into = "u32")
)]
pub struct DevId(u32);

impl TryFrom<u32> for DevId {
    type Error = OutOfRange;

    fn try_from(value: u32) -> Result<Self, OutOfRange> {
        Self::new(value)
    }
}

impl From<DevId> for u32 {
    fn from(value: DevId) -> Self {
        value.0
    }
}

impl DevId {
    /// The largest device number.
    pub const MAX: u32 = (1 << 20) - 1;

    /// A device number, checked.
    ///
    /// # Errors
    /// [`OutOfRange`] above [`DevId::MAX`].
    pub const fn new(id: u32) -> Result<Self, OutOfRange> {
        if id > Self::MAX {
            return Err(OutOfRange {
                what: "device id",
                value: id as u64,
                max: Self::MAX as u64,
            });
        }
        Ok(Self(id))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DevId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A hw queue of a device, below 4096.
///
/// C: `q_id` of `ublksrv_io_cmd`, `UBLK_MAX_NR_QUEUES` (linux/ublk_cmd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "u16", into = "u16")
)]
pub struct QueueId(u16);

impl TryFrom<u16> for QueueId {
    type Error = OutOfRange;

    fn try_from(value: u16) -> Result<Self, OutOfRange> {
        Self::new(value)
    }
}

impl From<QueueId> for u16 {
    fn from(value: QueueId) -> Self {
        value.0
    }
}

impl QueueId {
    /// The first queue, which every device has.
    pub const ZERO: Self = Self(0);

    /// The largest queue number.
    pub const MAX: u16 = 4095;

    /// A queue number, checked.
    ///
    /// # Errors
    /// [`OutOfRange`] above [`QueueId::MAX`].
    pub const fn new(qid: u16) -> Result<Self, OutOfRange> {
        if qid > Self::MAX {
            return Err(OutOfRange {
                what: "queue id",
                value: qid as u64,
                max: Self::MAX as u64,
            });
        }
        Ok(Self(qid))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tag of a hw queue: the place of one request in flight, below 4096.
///
/// C: `tag` of `ublksrv_io_cmd`, `UBLK_MAX_QUEUE_DEPTH` (linux/ublk_cmd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "u16", into = "u16")
)]
pub struct Tag(u16);

impl TryFrom<u16> for Tag {
    type Error = OutOfRange;

    fn try_from(value: u16) -> Result<Self, OutOfRange> {
        Self::new(value)
    }
}

impl From<Tag> for u16 {
    fn from(value: Tag) -> Self {
        value.0
    }
}

impl Tag {
    /// The first tag, which every queue has.
    pub const ZERO: Self = Self(0);

    /// The largest tag.
    pub const MAX: u16 = 4095;

    /// A tag, checked.
    ///
    /// # Errors
    /// [`OutOfRange`] above [`Tag::MAX`].
    pub const fn new(tag: u16) -> Result<Self, OutOfRange> {
        if tag > Self::MAX {
            return Err(OutOfRange {
                what: "tag",
                value: tag as u64,
                max: Self::MAX as u64,
            });
        }
        Ok(Self(tag))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The number, as an index of a table with an entry per tag.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A count of sectors of 512 bytes, or a place counted in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sectors(pub u64);

impl Sectors {
    /// The same in bytes, or `None` where that does not fit 64 bits (L13).
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(SECTOR_SIZE)
    }

    /// The sectors of a byte count, or `None` if it is no multiple of 512.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(SECTOR_SIZE) {
            Some(Self(bytes / SECTOR_SIZE))
        } else {
            None
        }
    }
}

impl fmt::Display for Sectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sectors", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_end_where_the_driver_ends() {
        assert_eq!(DevId::new(DevId::MAX).map(DevId::get), Ok(1_048_575));
        assert!(DevId::new(DevId::MAX + 1).is_err());
        assert!(QueueId::new(4095).is_ok() && QueueId::new(4096).is_err());
        assert!(Tag::new(4095).is_ok() && Tag::new(4096).is_err());
    }

    /// L02 Sectors are 512 bytes whatever the block size.
    #[test]
    fn l02_sector_is_512_bytes() {
        assert_eq!(Sectors(8).bytes(), Some(4096));
        assert_eq!(Sectors::from_bytes(4096), Some(Sectors(8)));
        assert_eq!(Sectors::from_bytes(513), None);
    }

    /// L13 No wrap-around in bytes.
    #[test]
    fn l13_sectors_do_not_wrap() {
        assert_eq!(Sectors(u64::MAX / 512).bytes(), Some(u64::MAX - 511));
        assert_eq!(Sectors(u64::MAX / 512 + 1).bytes(), None);
    }
}
