//! Integrity metadata of a device: the backend's declaration, and what protection information looks like.

use core::fmt;
use core::str::FromStr;

use ublk_sys::{
    LBMD_PI_CAP_INTEGRITY, LBMD_PI_CAP_REFTAG, LBMD_PI_CSUM_CRC16_T10DIF, LBMD_PI_CSUM_CRC64_NVME,
    LBMD_PI_CSUM_IP, LBMD_PI_CSUM_NONE, ublk_param_integrity,
};

/// The guard of protection information (`LBMD_PI_CSUM_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
#[repr(u8)]
pub enum Checksum {
    /// None: the metadata has no protection information, and belongs to the client alone.
    #[default]
    None = LBMD_PI_CSUM_NONE,
    /// The internet checksum.
    Ip = LBMD_PI_CSUM_IP,
    /// CRC16 of T10 DIF.
    Crc16 = LBMD_PI_CSUM_CRC16_T10DIF,
    /// CRC64 of NVMe.
    Crc64 = LBMD_PI_CSUM_CRC64_NVME,
}

impl Checksum {
    /// Bytes of the protection information: guard, application tag and reference tag.
    #[must_use]
    pub const fn tuple_bytes(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Ip | Self::Crc16 => 8,
            Self::Crc64 => 16,
        }
    }

    /// The word of the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Ip => "ip",
            Self::Crc16 => "crc16",
            Self::Crc64 => "crc64",
        }
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The metadata that a backend keeps beside each interval of data ([`Limits::integrity`](crate::Limits::integrity)). Linux
/// 7.0 with `CONFIG_BLK_DEV_INTEGRITY`, in user copy.
///
/// With a checksum the block layer makes protection information for each write and verifies that of each read, unless its
/// client brings its own: a client whose data does not match gets EILSEQ.
#[doc(alias = "ublk_param_integrity")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Integrity {
    /// The guard.
    pub checksum: Checksum,
    /// Bytes of metadata per interval: not 0, and enough for the protection information.
    pub metadata: u8,
    /// Bytes of data per interval: a power of two from 512 to the logical block size, or 0 for the logical block size.
    pub interval: u32,
    /// Position of the protection information in the metadata, in bytes.
    pub offset: u8,
    /// The protection information has a reference tag: the low bits of the interval's number. Only with a checksum.
    pub reference_tag: bool,
    /// Bytes of the application tag that clients may use. The kernel reports it, and does not look at it otherwise.
    pub tag_bytes: u8,
    /// Sysfs does not tell of a device that protection information is meant for (`device_is_integrity_capable` is 0), in
    /// spite of a checksum. The block layer makes and verifies it in any case.
    #[cfg_attr(feature = "serde", serde(default))]
    pub incapable: bool,
}

impl Integrity {
    /// Metadata of this many bytes per logical block, which begins with the protection information.
    #[must_use]
    pub const fn new(checksum: Checksum, metadata: u8) -> Self {
        Self {
            checksum,
            metadata,
            interval: 0,
            offset: 0,
            reference_tag: false,
            tag_bytes: 0,
            incapable: false,
        }
    }

    /// Adds a reference tag.
    #[must_use]
    pub const fn reference_tag(mut self, yes: bool) -> Self {
        self.reference_tag = yes;
        self
    }

    /// Sets the bytes of data that one tuple covers.
    #[must_use]
    pub const fn interval(mut self, bytes: u32) -> Self {
        self.interval = bytes;
        self
    }

    /// Sets the position of the protection information in the metadata.
    #[must_use]
    pub const fn offset(mut self, bytes: u8) -> Self {
        self.offset = bytes;
        self
    }

    /// Sets the bytes of the application tag.
    #[must_use]
    pub const fn tag_bytes(mut self, bytes: u8) -> Self {
        self.tag_bytes = bytes;
        self
    }

    /// Makes sysfs tell of no protection information.
    #[must_use]
    pub const fn incapable(mut self, yes: bool) -> Self {
        self.incapable = yes;
        self
    }

    /// The bytes of data that one tuple covers, for a logical block of `block` bytes.
    #[must_use]
    pub const fn interval_bytes(&self, block: u32) -> u32 {
        match self.interval {
            0 => block,
            bytes => bytes,
        }
    }

    /// Bytes of metadata for whole logical blocks of `block` bytes, `len` bytes in all; also the position of the metadata
    /// of the block at byte `len`.
    #[must_use]
    pub const fn bytes_for(&self, len: u64, block: u32) -> u64 {
        let interval = self.interval_bytes(block) as u64;
        match len.checked_div(interval) {
            Some(intervals) => intervals.saturating_mul(self.metadata as u64),
            None => 0,
        }
    }

    /// Checks the driver's rules, for a logical block of `block` bytes.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self, block: u32) -> Result<(), IntegrityRule> {
        let broken = |name, value, rule| Err(IntegrityRule { name, value, rule });
        if self.metadata == 0 {
            return broken("integrity metadata", 0, "at least one byte");
        }
        let tuple = self.checksum.tuple_bytes();
        if tuple > self.metadata {
            let rule =
                "enough for the protection information: 8 bytes with ip and crc16, 16 with crc64";
            return broken("integrity metadata", self.metadata.into(), rule);
        }
        if self.offset > self.metadata - tuple {
            let rule = "so small that the protection information ends inside the metadata";
            return broken(
                "position of the protection information",
                self.offset.into(),
                rule,
            );
        }
        let interval = self.interval_bytes(block);
        if !interval.is_power_of_two() || interval < 512 || interval > block {
            let rule = "a power of two from 512 to the logical block size";
            return broken("integrity interval", interval.into(), rule);
        }
        if self.reference_tag && self.checksum == Checksum::None {
            return broken("reference tag", 1, "left out, or used with a checksum");
        }
        // Unchecked by the driver; tools read it as a size inside the tuple.
        if self.tag_bytes > self.metadata {
            return broken(
                "application tag",
                self.tag_bytes.into(),
                "at most the metadata",
            );
        }
        Ok(())
    }

    /// The driver's form, for a logical block of `block` bytes.
    pub(crate) fn encode(&self, block: u32) -> ublk_param_integrity {
        let reference = if self.reference_tag {
            LBMD_PI_CAP_REFTAG
        } else {
            0
        };
        let capable = match self.checksum {
            Checksum::None => 0,
            _ if self.incapable => 0,
            _ => LBMD_PI_CAP_INTEGRITY,
        };
        let interval = self.interval_bytes(block);
        ublk_param_integrity {
            flags: capable | reference,
            interval_exp: u8::try_from(interval.trailing_zeros()).unwrap_or(0),
            metadata_size: self.metadata,
            pi_offset: self.offset,
            csum_type: self.checksum as u8,
            tag_size: self.tag_bytes,
            ..Default::default()
        }
    }
}

/// A rule of the driver, or of a backend, that integrity metadata breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{name} {value} is not valid: it must be {rule}")]
pub struct IntegrityRule {
    name: &'static str,
    value: u64,
    rule: &'static str,
}

impl IntegrityRule {
    /// A rule of a backend: the name of what breaks it, its value, and what it must be.
    #[must_use]
    pub const fn new(name: &'static str, value: u64, rule: &'static str) -> Self {
        Self { name, value, rule }
    }
}

impl fmt::Display for Integrity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.checksum, self.metadata)?;
        if self.reference_tag {
            f.write_str(":reftag")?;
        }
        for (name, value) in [
            ("interval", self.interval),
            ("offset", self.offset.into()),
            ("tag", self.tag_bytes.into()),
        ] {
            if value != 0 {
                write!(f, ":{name}={value}")?;
            }
        }
        if self.incapable {
            f.write_str(":incapable")?;
        }
        Ok(())
    }
}

/// Text that does not describe integrity metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "give CHECKSUM:BYTES[:reftag][:interval=BYTES][:offset=BYTES][:tag=BYTES][:incapable] with the checksum none, ip, crc16 or \
     crc64, for example crc16:8:reftag"
)]
pub struct BadIntegrity;

impl FromStr for Integrity {
    type Err = BadIntegrity;

    /// Reads `CHECKSUM:BYTES[:reftag][:interval=BYTES][:offset=BYTES][:tag=BYTES][:incapable]`, each word behind the bytes once
    /// and in any order.
    fn from_str(text: &str) -> Result<Self, BadIntegrity> {
        let mut words = text.split(':');
        let all = [
            Checksum::None,
            Checksum::Ip,
            Checksum::Crc16,
            Checksum::Crc64,
        ];
        let name = words.next().unwrap_or_default();
        let checksum = all.into_iter().find(|checksum| checksum.name() == name);
        let bytes = words.next().and_then(|bytes| bytes.parse().ok());
        let (Some(checksum), Some(bytes)) = (checksum, bytes) else {
            return Err(BadIntegrity);
        };
        let mut this = Self::new(checksum, bytes);
        for word in words {
            let before = this;
            match word.split_once('=') {
                None if word == "reftag" => this.reference_tag = true,
                None if word == "incapable" => this.incapable = true,
                Some(("interval", value)) => this.interval = number(value)?,
                Some(("offset", value)) => this.offset = number(value)?,
                Some(("tag", value)) => this.tag_bytes = number(value)?,
                _ => return Err(BadIntegrity),
            }
            // A word that changes nothing is said twice, or sets what is set anyway.
            if this == before {
                return Err(BadIntegrity);
            }
        }
        Ok(this)
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, BadIntegrity> {
    text.parse().map_err(|_| BadIntegrity)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the driver refuses with EINVAL is refused before, and what it would store unchecked, too.
    #[test]
    fn rules_are_those_of_the_driver() {
        let good = |integrity: Integrity| integrity.check(4096).is_ok();
        let crc16 = Integrity::new(Checksum::Crc16, 8);
        assert!(good(crc16) && good(crc16.interval(512)) && good(crc16.interval(4096)));
        assert!(good(Integrity::new(Checksum::None, 1)));
        assert!(good(Integrity::new(Checksum::Crc64, 16)));
        assert!(good(Integrity::new(Checksum::Ip, 64).offset(56)));
        assert!(!good(Integrity::new(Checksum::Ip, 64).offset(57)));
        assert!(!good(Integrity::new(Checksum::Crc64, 15)));
        assert!(!good(Integrity::new(Checksum::None, 0)));
        assert!(!good(Integrity::new(Checksum::None, 8).reference_tag(true)));
        assert!(!good(crc16.interval(256)) && !good(crc16.interval(8192)));
        assert!(!good(crc16.interval(768)));
        let tag = Integrity {
            tag_bytes: 9,
            ..crc16
        };
        assert!(!good(tag));
    }

    #[test]
    fn it_is_sent_in_the_drivers_form() {
        let sent = Integrity::new(Checksum::Crc64, 16)
            .reference_tag(true)
            .encode(4096);
        assert_eq!((sent.flags, sent.interval_exp), (3, 12));
        assert_eq!((sent.metadata_size, sent.csum_type), (16, 4));
        let sent = Integrity::new(Checksum::Ip, 8).incapable(true).encode(512);
        assert_eq!(sent.flags, 0);
        let sent = Integrity::new(Checksum::None, 3).interval(512).encode(4096);
        assert_eq!((sent.flags, sent.interval_exp, sent.csum_type), (0, 9, 0));
    }

    #[test]
    fn metadata_follows_the_intervals() {
        let crc16 = Integrity::new(Checksum::Crc16, 8);
        assert_eq!(crc16.bytes_for(1 << 20, 4096), 2048);
        assert_eq!(crc16.interval(512).bytes_for(1 << 20, 4096), 16384);
        assert_eq!(crc16.bytes_for(0, 512), 0);
    }

    #[test]
    fn text_is_read_as_it_is_written() {
        for text in [
            "none:64",
            "ip:8",
            "crc16:8",
            "crc16:16:reftag",
            "crc64:16",
            "ip:64:offset=56",
            "crc64:16:interval=512:tag=8",
            "crc16:8:reftag:incapable",
        ] {
            let read: Integrity = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        for text in [
            "",
            "crc16",
            "crc16:",
            "crc16:256",
            "crc32:8",
            "ip:8:",
            "ip:8:reftag:1",
            "ip:8:reftag:reftag",
            "ip:8:offset",
            "ip:8:offset=-1",
            "ip:8:offset=256",
            "ip:8:tag=2:tag=2",
            "ip:8:interval=",
        ] {
            assert_eq!(text.parse::<Integrity>(), Err(BadIntegrity), "{text}");
        }
    }
}
