//! Data and command modes: the axes of a plan that the driver's features decide.

use core::fmt;

use crate::Features;
use crate::by_name::by_name;

/// How the data of a request is transferred between the block layer and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum DataMode {
    /// The driver copies between the request's pages and a buffer that the server names with the tag.
    #[default]
    Copy,
    /// Like copy, but the server names the buffer of a WRITE only when the request arrives, and that of a READ only
    /// with the answer, so that both may be the backend's own memory. Takes a second command for each WRITE.
    GetData,
    /// The server reads and writes the character device at the request's position: one system call per request, and the
    /// data goes directly to the backend's memory.
    UserCopy,
    /// The fetch command registers the request's pages as a buffer of the server's ring.
    ZeroCopy,
    /// The server registers the request's pages with a command of its own, per request.
    ZeroCopyManual,
}

impl DataMode {
    /// Every mode.
    pub const ALL: [Self; 5] = [
        Self::Copy,
        Self::GetData,
        Self::UserCopy,
        Self::ZeroCopy,
        Self::ZeroCopyManual,
    ];

    /// The name, as for `--data`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::GetData => "get-data",
            Self::UserCopy => "user-copy",
            Self::ZeroCopy => "zero-copy",
            Self::ZeroCopyManual => "zero-copy-manual",
        }
    }

    /// Whether the request's pages are registered with the server's ring: no code of the server sees the data.
    #[must_use]
    pub const fn is_zero_copy(self) -> bool {
        matches!(self, Self::ZeroCopy | Self::ZeroCopyManual)
    }

    /// The features that a device of this mode needs.
    #[must_use]
    pub const fn features(self) -> Features {
        match self {
            Self::Copy => Features::NONE,
            Self::GetData => Features::NEED_GET_DATA,
            Self::UserCopy => Features::USER_COPY,
            // SUPPORT_ZERO_COPY allows manual registration as the fallback for a busy slot.
            Self::ZeroCopy => Features::AUTO_BUF_REG.with(Features::SUPPORT_ZERO_COPY),
            Self::ZeroCopyManual => Features::SUPPORT_ZERO_COPY,
        }
    }

    /// The mode of a device with these features, as the driver decides it.
    #[must_use]
    pub const fn of(features: Features) -> Self {
        if features.contains(Features::AUTO_BUF_REG) {
            Self::ZeroCopy
        } else if features.contains(Features::SUPPORT_ZERO_COPY) {
            Self::ZeroCopyManual
        } else if features.contains(Features::USER_COPY) {
            Self::UserCopy
        } else if features.contains(Features::NEED_GET_DATA) {
            Self::GetData
        } else {
            Self::Copy
        }
    }
}

by_name! {
    DataMode,
    /// There is no mode of this name.
    UnknownMode,
    "unknown data mode {0:?}; use copy, get-data, user-copy, zero-copy or zero-copy-manual"
}

/// The mode on all axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Mode {
    /// How data is transferred.
    pub data: DataMode,
    /// Whether commands carry many tags (BATCH_IO, 7.0).
    pub batch: bool,
}

impl Mode {
    /// This data mode, with a command per tag.
    #[must_use]
    pub const fn new(data: DataMode) -> Self {
        Self { data, batch: false }
    }

    /// Sets whether commands carry many tags.
    #[must_use]
    pub const fn batched(mut self, yes: bool) -> Self {
        self.batch = yes;
        self
    }

    /// The features that a device of this mode needs.
    #[must_use]
    pub const fn features(self) -> Features {
        let batch = if self.batch {
            Features::BATCH_IO
        } else {
            Features::NONE
        };
        self.data.features().with(batch)
    }

    /// All features that distinguish modes.
    pub const ALL_FEATURES: Features = Features::NEED_GET_DATA
        .with(Features::USER_COPY)
        .with(Features::SUPPORT_ZERO_COPY)
        .with(Features::AUTO_BUF_REG)
        .with(Features::BATCH_IO);

    /// The mode of a device with these features.
    #[must_use]
    pub const fn of(features: Features) -> Self {
        Self {
            data: DataMode::of(features),
            batch: features.contains(Features::BATCH_IO),
        }
    }

    /// Why no driver supports this combination, if none does.
    #[must_use]
    pub const fn impossible(self) -> Option<&'static str> {
        match (self.batch, self.data) {
            (true, DataMode::GetData) => {
                Some("batch mode has no get-data command; use copy or user-copy with batches")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}{}",
            self.data,
            if self.batch { ", batch" } else { "" }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_survives_the_way_through_the_driver() {
        for data in DataMode::ALL {
            for batch in [false, true] {
                let mode = Mode { data, batch };
                if mode.impossible().is_none() {
                    assert_eq!(Mode::of(mode.features()), mode);
                }
            }
            assert_eq!(data.name().parse(), Ok(data));
        }
        assert!("auto-magic".parse::<DataMode>().is_err());
        // Features that the driver forces on do not change the mode.
        let forced = Features::URING_CMD_COMP_IN_TASK | Features::CMD_IOCTL_ENCODE;
        assert_eq!(Mode::of(forced), Mode::default());
    }
}
