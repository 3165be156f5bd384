//! How much is measured.

use std::fmt;
use std::str::FromStr;

/// How much a device measures. It can be changed while the device serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
#[repr(u8)]
pub enum Level {
    /// Requests, bytes, errors and the facts of the data mode, which every device counts anyway.
    #[default]
    Off = 0,
    /// Also the sizes of batches and the hits of polling.
    Counters = 1,
    /// Also latencies, and the time that the queues' threads are busy. Reads the clock twice per batch.
    Latencies = 2,
}

impl Level {
    /// All levels, the lowest first.
    pub const ALL: [Self; 3] = [Self::Off, Self::Counters, Self::Latencies];

    /// The level as one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Counters => "counters",
            Self::Latencies => "latencies",
        }
    }

    /// The level of a number made by `as u8`; [`Level::Off`] for any other.
    #[must_use]
    pub const fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::Counters,
            2 => Self::Latencies,
            _ => Self::Off,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No level has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown level {0:?}; use off, counters or latencies")]
pub struct UnknownLevel(String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(text: &str) -> Result<Self, UnknownLevel> {
        let found = Self::ALL.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| UnknownLevel(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read_as_written() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
            assert_eq!(Level::from_u8(level as u8), level);
        }
        assert_eq!(Level::from_u8(7), Level::Off);
        let error = "all".parse::<Level>().expect_err("no such level");
        assert!(error.to_string().contains("off, counters or latencies"));
    }
}
