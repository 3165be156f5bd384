//! The kinds of requests that are counted apart.

use std::fmt;

/// A kind of request. Zone management requests count as one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
#[repr(u8)]
pub enum Operation {
    /// READ.
    Read = 0,
    /// WRITE.
    Write = 1,
    /// FLUSH.
    Flush = 2,
    /// DISCARD.
    Discard = 3,
    /// WRITE_ZEROES.
    WriteZeroes = 4,
    /// ZONE_APPEND (6.6).
    ZoneAppend = 5,
    /// Zone report, open, close, finish and reset (6.6).
    ZoneAction = 6,
}

impl Operation {
    /// Number of kinds.
    pub const COUNT: usize = 7;

    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::ZoneAppend,
        Self::ZoneAction,
    ];

    /// The kind as one word, as label values and JSON have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::ZoneAppend => "zone-append",
            Self::ZoneAction => "zone-action",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
