//! The state of a device as GET_DEV_INFO reports it.

use core::fmt;

/// State of a device (`ublksrv_ctrl_dev_info.state`, `UBLK_S_DEV_*` of linux/ublk_cmd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum DevState {
    /// Added and not started, or stopped: only the character device exists. `UBLK_S_DEV_DEAD`.
    Dead,
    /// Started: the block device exists and a server answers. `UBLK_S_DEV_LIVE`.
    Live,
    /// The server is gone and I/O is held for the next one. `UBLK_S_DEV_QUIESCED`, since Linux 6.1.
    Quiesced,
    /// The server is gone and I/O fails until the next one. `UBLK_S_DEV_FAIL_IO`, since Linux 6.13.
    FailIo,
    /// A state without a name here.
    Unknown(u16),
}

impl DevState {
    /// Converts the driver's number.
    #[must_use]
    pub const fn from_raw(state: u16) -> Self {
        match state {
            0 => Self::Dead,
            1 => Self::Live,
            2 => Self::Quiesced,
            3 => Self::FailIo,
            other => Self::Unknown(other),
        }
    }

    /// The driver's number.
    #[must_use]
    pub const fn to_raw(self) -> u16 {
        match self {
            Self::Dead => 0,
            Self::Live => 1,
            Self::Quiesced => 2,
            Self::FailIo => 3,
            Self::Unknown(other) => other,
        }
    }

    /// Whether START_USER_RECOVERY accepts the device in this state (L34).
    #[must_use]
    pub const fn is_recoverable(self) -> bool {
        matches!(self, Self::Quiesced | Self::FailIo)
    }
}

impl fmt::Display for DevState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead => f.write_str("dead"),
            Self::Live => f.write_str("live"),
            Self::Quiesced => f.write_str("quiesced"),
            Self::FailIo => f.write_str("fail-io"),
            Self::Unknown(state) => write!(f, "unknown ({state})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives() {
        for raw in 0..=u16::MAX {
            assert_eq!(DevState::from_raw(raw).to_raw(), raw);
        }
        assert_eq!(DevState::from_raw(2), DevState::Quiesced);
        assert_eq!(DevState::from_raw(9).to_string(), "unknown (9)");
        assert!(DevState::FailIo.is_recoverable() && DevState::Quiesced.is_recoverable());
        assert!(!DevState::Live.is_recoverable() && !DevState::Dead.is_recoverable());
    }
}
