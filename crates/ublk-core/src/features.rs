//! The feature flags of a device or a kernel: known bits by name, unknown bits kept.

use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign, Sub};

/// A set of `UBLK_F_*` flags (linux/ublk_cmd.h), as GET_FEATURES, ADD_DEV and GET_DEV_INFO carry it.
///
/// Bits without a name here are kept: a newer kernel must not break an older program.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Features(u64);

/// Description of one feature flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FeatureInfo {
    /// The name, without the prefix `UBLK_F_`.
    pub name: &'static str,
    /// The flag.
    pub flag: Features,
    /// First kernel that supports the flag, as major and minor number. For messages only: to find out what the running
    /// kernel supports, ask it.
    pub since: (u16, u16),
    /// Its meaning in one line.
    pub meaning: &'static str,
}

impl FeatureInfo {
    /// The bit number.
    #[must_use]
    pub const fn bit(&self) -> u32 {
        self.flag.0.trailing_zeros()
    }
}

macro_rules! features {
    ($($name:ident = $c:ident $alias:literal, ($major:literal, $minor:literal), $meaning:literal;)*) => {
        impl Features {
            $(
                #[doc = concat!($meaning, " (Linux ", stringify!($major), ".", stringify!($minor), ").")]
                #[doc(alias = $alias)]
                pub const $name: Self = Self(ublk_sys::$c);
            )*

            /// All flags that have a name here, lowest bit first.
            pub const TABLE: &'static [FeatureInfo] = &[$(FeatureInfo {
                name: stringify!($name),
                flag: Self::$name,
                since: ($major, $minor),
                meaning: $meaning,
            },)*];
        }
    };
}

features! {
    SUPPORT_ZERO_COPY = UBLK_F_SUPPORT_ZERO_COPY "UBLK_F_SUPPORT_ZERO_COPY", (6, 15), "request pages as registered buffers of the server's ring";
    URING_CMD_COMP_IN_TASK = UBLK_F_URING_CMD_COMP_IN_TASK "UBLK_F_URING_CMD_COMP_IN_TASK", (6, 0), "commands complete in the server's task; always on";
    NEED_GET_DATA = UBLK_F_NEED_GET_DATA "UBLK_F_NEED_GET_DATA", (6, 0), "the server names the buffer of a write only when the write arrives";
    USER_RECOVERY = UBLK_F_USER_RECOVERY "UBLK_F_USER_RECOVERY", (6, 1), "the device outlives its server and can be given to another";
    USER_RECOVERY_REISSUE = UBLK_F_USER_RECOVERY_REISSUE "UBLK_F_USER_RECOVERY_REISSUE", (6, 1), "recovery sends requests again that the dead server held";
    UNPRIVILEGED_DEV = UBLK_F_UNPRIVILEGED_DEV "UBLK_F_UNPRIVILEGED_DEV", (6, 3), "a device created and owned by an unprivileged user";
    CMD_IOCTL_ENCODE = UBLK_F_CMD_IOCTL_ENCODE "UBLK_F_CMD_IOCTL_ENCODE", (6, 4), "ioctl-encoded commands; always on";
    USER_COPY = UBLK_F_USER_COPY "UBLK_F_USER_COPY", (6, 5), "the server transfers data by reading and writing the character device";
    ZONED = UBLK_F_ZONED "UBLK_F_ZONED", (6, 6), "a zoned device";
    USER_RECOVERY_FAIL_IO = UBLK_F_USER_RECOVERY_FAIL_IO "UBLK_F_USER_RECOVERY_FAIL_IO", (6, 13), "I/O fails at once while the device has no server";
    UPDATE_SIZE = UBLK_F_UPDATE_SIZE "UBLK_F_UPDATE_SIZE", (6, 16), "the size of a live device can be changed";
    AUTO_BUF_REG = UBLK_F_AUTO_BUF_REG "UBLK_F_AUTO_BUF_REG", (6, 16), "request pages are registered as buffers by the fetch itself";
    QUIESCE = UBLK_F_QUIESCE "UBLK_F_QUIESCE", (6, 16), "I/O of a live device can be held for a new server";
    PER_IO_DAEMON = UBLK_F_PER_IO_DAEMON "UBLK_F_PER_IO_DAEMON", (6, 16), "each tag may have its own thread; always on, except in batch mode";
    BUF_REG_OFF_DAEMON = UBLK_F_BUF_REG_OFF_DAEMON "UBLK_F_BUF_REG_OFF_DAEMON", (6, 17), "any thread may register request buffers; always on";
    BATCH_IO = UBLK_F_BATCH_IO "UBLK_F_BATCH_IO", (7, 0), "commands carry many tags, from any thread";
    INTEGRITY = UBLK_F_INTEGRITY "UBLK_F_INTEGRITY", (7, 0), "metadata and protection information";
    SAFE_STOP_DEV = UBLK_F_SAFE_STOP_DEV "UBLK_F_SAFE_STOP_DEV", (7, 0), "a stop that fails while the device is open; always on";
    NO_AUTO_PART_SCAN = UBLK_F_NO_AUTO_PART_SCAN "UBLK_F_NO_AUTO_PART_SCAN", (7, 0), "no partition scan at start";
    SHMEM_ZC = UBLK_F_SHMEM_ZC "UBLK_F_SHMEM_ZC", (7, 1), "no copy for requests in memory shared with the server";
    IO_DESC_SIZE = UBLK_F_IO_DESC_SIZE "UBLK_F_IO_DESC_SIZE", (7, 3), "I/O descriptors of a size chosen by the server";
}

impl Features {
    /// The empty set.
    pub const NONE: Self = Self(0);

    /// All flags of the table.
    #[must_use]
    pub const fn known() -> Self {
        let mut all = 0;
        let mut i = 0;
        while i < Self::TABLE.len() {
            all |= Self::TABLE[i].flag.0;
            i += 1;
        }
        Self(all)
    }

    /// Creates a set from a feature word, unknown bits included.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The feature word.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// True if no flag is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if every flag of `other` is set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// True if any flag of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The union of both sets: `|` as a const fn.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags in this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The bits that have no name here.
    #[must_use]
    pub const fn unknown(self) -> Self {
        self.without(Self::known())
    }

    /// The named flags in this set, lowest bit first.
    pub fn iter(self) -> impl Iterator<Item = &'static FeatureInfo> {
        Self::TABLE.iter().filter(move |f| self.contains(f.flag))
    }

    /// Looks up a flag by name, in upper or lower case, with or without the prefix `UBLK_F_`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        let name = match name.get(..7) {
            Some(prefix) if prefix.eq_ignore_ascii_case("UBLK_F_") => &name[7..],
            _ => name,
        };
        let found = |f: &&FeatureInfo| f.name.eq_ignore_ascii_case(name);
        Self::TABLE.iter().find(found).map(|f| f.flag)
    }
}

/// Checks that the kernel supports everything in `asked`, and returns it.
///
/// The driver silently drops bits that it does not know, so without this check it could create a device other than the
/// one requested.
///
/// # Errors
/// [`Missing`], which names every flag that the kernel lacks and the release that introduced it.
pub fn require_features(asked: Features, kernel: Features) -> Result<Features, Missing> {
    let features = asked.without(kernel);
    if features.is_empty() {
        Ok(asked)
    } else {
        Err(Missing { features })
    }
}

/// Requested features that the kernel lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Missing {
    /// The flags that the kernel lacks.
    pub features: Features,
}

impl Missing {
    /// The names of the flags that have one.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.features.iter().map(|f| f.name)
    }

    /// The first kernel that supports all of them, or `None` if a flag has no name here.
    #[must_use]
    pub fn since(&self) -> Option<(u16, u16)> {
        if !self.features.unknown().is_empty() {
            return None;
        }
        self.features.iter().map(|f| f.since).max()
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this kernel lacks ")?;
        let mut comma = "";
        for feature in self.features.iter() {
            let (major, minor) = feature.since;
            write!(f, "{comma}{} (since Linux {major}.{minor})", feature.name)?;
            comma = ", ";
        }
        let unknown = self.features.unknown();
        if !unknown.is_empty() {
            write!(f, "{comma}unknown feature bits {:#x}", unknown.0)?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

impl BitOr for Features {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Features {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Sub for Features {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.without(other)
    }
}

impl FromIterator<Features> for Features {
    fn from_iter<I: IntoIterator<Item = Features>>(flags: I) -> Self {
        flags.into_iter().fold(Self::NONE, |all, f| all | f)
    }
}

/// The names, joined by ` | `; unknown bits as one hexadecimal number; `none` for the empty set.
impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut bar = "";
        for feature in self.iter() {
            write!(f, "{bar}{}", feature.name)?;
            bar = " | ";
        }
        let unknown = self.unknown();
        if !unknown.is_empty() {
            write!(f, "{bar}{:#x}", unknown.0)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replies to GET_FEATURES of 6.12 and 7.3.
    const V6_12: Features = Features::from_bits(0x1fe);
    const V7_3: Features = Features::from_bits(0x1f_ffff);

    #[test]
    fn table_is_the_kernels() {
        for (bit, f) in (0u32..).zip(Features::TABLE) {
            assert_eq!(f.bit(), bit, "{}", f.name);
            assert_eq!(f.flag.bits(), 1 << bit, "{}", f.name);
        }
        assert_eq!(Features::known(), V7_3);
        for f in V6_12.iter() {
            assert!(f.since <= (6, 12), "{}", f.name);
        }
        for f in V7_3.without(V6_12).iter() {
            assert!(f.since > (6, 12), "{}", f.name);
        }
    }

    #[test]
    fn unknown_bits_survive() {
        let word = Features::from_bits(1 << 40 | 1 << 7);
        assert_eq!(word.bits(), 1 << 40 | 1 << 7);
        assert_eq!(word.unknown().bits(), 1 << 40);
        assert_eq!(word.to_string(), "USER_COPY | 0x10000000000");
        assert_eq!((word | Features::ZONED).unknown().bits(), 1 << 40);
    }

    #[test]
    fn what_is_missing_is_named_with_its_kernel() {
        let asked = Features::USER_COPY | Features::BATCH_IO | Features::QUIESCE;
        assert_eq!(require_features(asked, V7_3), Ok(asked));
        let missing = require_features(asked, V6_12).unwrap_err();
        assert_eq!(missing.names().collect::<Vec<_>>(), ["QUIESCE", "BATCH_IO"]);
        assert_eq!(missing.since(), Some((7, 0)));
        assert_eq!(
            missing.to_string(),
            "this kernel lacks QUIESCE (since Linux 6.16), BATCH_IO (since Linux 7.0)"
        );
        let missing = require_features(Features::from_bits(1 << 50), V7_3).unwrap_err();
        assert_eq!(missing.since(), None);
        assert!(missing.to_string().contains("0x4000000000000"));
    }

    #[test]
    fn names_go_both_ways() {
        for f in Features::TABLE {
            assert_eq!(Features::by_name(f.name), Some(f.flag));
            assert_eq!(
                Features::by_name(&format!("ublk_f_{}", f.name.to_lowercase())),
                Some(f.flag)
            );
        }
        assert_eq!(Features::by_name("WARP"), None);
        assert_eq!(Features::by_name("é"), None);
        assert_eq!(Features::NONE.to_string(), "none");
    }
}
