//! Checked identifiers: device, hw queue, tag; and the sector, the driver's unit.

use core::fmt;

/// Bytes per sector, whatever the logical block size of the device (L02).
pub const SECTOR_SIZE: u64 = 512;

/// A number is outside the range of an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value} is out of range: at most {max}")]
#[non_exhaustive]
pub struct OutOfRange {
    /// The identifier, in the kernel's words.
    pub what: &'static str,
    /// The number.
    pub value: u64,
    /// The largest valid number.
    pub max: u64,
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident($raw:ident $serde:literal), $what:literal, max $max:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(
            feature = "serde",
            derive(serde::Serialize, serde::Deserialize),
            serde(try_from = $serde, into = $serde)
        )]
        pub struct $name($raw);

        impl $name {
            #[doc = concat!("The first ", $what, ".")]
            pub const ZERO: Self = Self(0);

            #[doc = concat!("The largest ", $what, ".")]
            pub const MAX: $raw = $max;

            #[doc = concat!("A ", $what, ", checked.")]
            ///
            /// # Errors
            /// [`OutOfRange`] if it is too large.
            pub const fn new(number: $raw) -> Result<Self, OutOfRange> {
                if number > Self::MAX {
                    let (value, max) = (number as u64, Self::MAX as u64);
                    return Err(OutOfRange { what: $what, value, max });
                }
                Ok(Self(number))
            }

            /// The number.
            #[must_use]
            #[inline]
            pub const fn get(self) -> $raw {
                self.0
            }
        }

        impl TryFrom<$raw> for $name {
            type Error = OutOfRange;

            fn try_from(number: $raw) -> Result<Self, OutOfRange> {
                Self::new(number)
            }
        }

        impl From<$name> for $raw {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}

ids! {
    /// A device number: the `N` of `/dev/ublkcN` and `/dev/ublkbN`, below 2^20.
    ///
    /// C: `ublksrv_ctrl_dev_info.dev_id` (linux/ublk_cmd.h), `UBLK_MINORS` (drivers/block/ublk_drv.c).
    DevId(u32 "u32"), "device id", max (1 << 20) - 1;

    /// The index of a hw queue of a device, below 4096.
    ///
    /// C: `q_id` of `ublksrv_io_cmd`, `UBLK_MAX_NR_QUEUES` (linux/ublk_cmd.h).
    QueueId(u16 "u16"), "queue id", max 4095;

    /// A tag of a hw queue: the slot of one request in flight, below 4096.
    ///
    /// C: `tag` of `ublksrv_io_cmd`, `UBLK_MAX_QUEUE_DEPTH` (linux/ublk_cmd.h).
    Tag(u16 "u16"), "tag", max 4095;
}

impl Tag {
    /// The number, as an index of a table with an entry per tag.
    #[must_use]
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A number of 512-byte sectors, or a position counted in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Sectors(pub u64);

impl Sectors {
    /// The same in bytes, or `None` if that exceeds 64 bits (L13).
    #[must_use]
    pub const fn bytes(self) -> Option<u64> {
        self.0.checked_mul(SECTOR_SIZE)
    }

    /// A number of bytes in sectors, or `None` if it is not a multiple of 512.
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

    /// L13 Conversion to bytes does not wrap.
    #[test]
    fn l13_sectors_do_not_wrap() {
        assert_eq!(Sectors(u64::MAX / 512).bytes(), Some(u64::MAX - 511));
        assert_eq!(Sectors(u64::MAX / 512 + 1).bytes(), None);
    }
}
