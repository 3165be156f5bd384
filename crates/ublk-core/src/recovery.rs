//! What becomes of a device whose server dies.

use core::fmt;
use core::str::FromStr;

use crate::Features;

/// The policy of a device for the time without a server, and for the requests its server held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Recovery {
    /// The device dies with its server: requests fail with EIO and the disk goes.
    #[default]
    None,
    /// New requests wait for the next server; those in the dead server's hands fail with EIO.
    Queue,
    /// New requests wait; those in the dead server's hands are sent again to the next one, so a request
    /// may be carried out twice (L14).
    Reissue,
    /// Everything fails at once until there is a next server (Linux 6.13).
    Fail,
}

impl Recovery {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::None, Self::Queue, Self::Reissue, Self::Fail];

    /// The name, as the tool's `--recovery` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Queue => "queue",
            Self::Reissue => "reissue",
            Self::Fail => "fail",
        }
    }

    /// The features a device of this policy must have.
    #[must_use]
    pub const fn features(self) -> Features {
        match self {
            Self::None => Features::NONE,
            Self::Queue => Features::USER_RECOVERY,
            Self::Reissue => Features::USER_RECOVERY.with(Features::USER_RECOVERY_REISSUE),
            Self::Fail => Features::USER_RECOVERY.with(Features::USER_RECOVERY_FAIL_IO),
        }
    }

    /// The policy of a device with these features.
    #[must_use]
    pub const fn of(features: Features) -> Self {
        if !features.contains(Features::USER_RECOVERY) {
            Self::None
        } else if features.contains(Features::USER_RECOVERY_FAIL_IO) {
            Self::Fail
        } else if features.contains(Features::USER_RECOVERY_REISSUE) {
            Self::Reissue
        } else {
            Self::Queue
        }
    }

    /// Whether the device outlives its server.
    #[must_use]
    pub const fn is_recoverable(self) -> bool {
        !matches!(self, Self::None)
    }

    /// Whether the driver fails what STOP_DEV itself writes back, although the server is healthy: such a
    /// device is synced before it is stopped (L22).
    #[must_use]
    pub const fn stop_loses_dirty_data(self) -> bool {
        matches!(self, Self::Queue | Self::Reissue)
    }
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no recovery policy {0:?}; there are none, queue, reissue and fail")]
pub struct UnknownRecovery(String);

impl FromStr for Recovery {
    type Err = UnknownRecovery;

    fn from_str(name: &str) -> Result<Self, UnknownRecovery> {
        let policy = Self::ALL.into_iter().find(|policy| policy.name() == name);
        policy.ok_or_else(|| UnknownRecovery(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_the_way_through_the_driver() {
        let forced = Features::URING_CMD_COMP_IN_TASK | Features::QUIESCE;
        for policy in Recovery::ALL {
            assert_eq!(Recovery::of(policy.features() | forced), policy);
            assert_eq!(policy.name().parse(), Ok(policy));
            assert_eq!(policy.is_recoverable(), policy != Recovery::None);
        }
        assert!("maybe".parse::<Recovery>().is_err());
    }
}
