//! Recovery policies: what happens to a device whose server dies.

use crate::by_name::by_name;
use crate::{DeviceParams, Features, Limits};

/// What happens to new requests while a device has no server, and to those that its server held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Recovery {
    /// The device dies with its server: requests fail with EIO and the disk is removed.
    #[default]
    None,
    /// New requests wait for the next server; those that the dead server held fail with EIO.
    Queue,
    /// New requests wait; those that the dead server held are sent again to the next one, so a request may be carried
    /// out twice (L14).
    Reissue,
    /// All requests fail at once until there is a next server (Linux 6.13).
    Fail,
}

impl Recovery {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::None, Self::Queue, Self::Reissue, Self::Fail];

    /// The name, as for `--recovery`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Queue => "queue",
            Self::Reissue => "reissue",
            Self::Fail => "fail",
        }
    }

    /// The features that a device with this policy needs.
    #[must_use]
    pub const fn features(self) -> Features {
        match self {
            Self::None => Features::NONE,
            Self::Queue => Features::USER_RECOVERY,
            Self::Reissue => Features::USER_RECOVERY.with(Features::USER_RECOVERY_REISSUE),
            Self::Fail => Features::USER_RECOVERY.with(Features::USER_RECOVERY_FAIL_IO),
        }
    }

    /// All features that distinguish policies.
    pub const ALL_FEATURES: Features = Features::USER_RECOVERY
        .with(Features::USER_RECOVERY_REISSUE)
        .with(Features::USER_RECOVERY_FAIL_IO);

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

    /// Whether the driver fails the writeback that STOP_DEV itself causes, although the server is healthy: sync such a
    /// device before it is stopped (L22).
    #[must_use]
    pub const fn stop_loses_dirty_data(self) -> bool {
        matches!(self, Self::Queue | Self::Reissue)
    }
}

by_name! {
    Recovery,
    /// There is no policy of this name.
    UnknownRecovery,
    "unknown recovery policy {0:?}; use none, queue, reissue or fail"
}

/// Why a backend cannot serve an existing device, whose parameters cannot be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misfit {
    /// The backend is too small.
    #[error("the backend has {backend} bytes, the device {device}; restore the backend's size")]
    Size {
        /// Bytes of the backend.
        backend: u64,
        /// Bytes of the device.
        device: u64,
    },
    /// The backend's blocks are too large.
    #[error(
        "the backend's blocks have {backend} bytes, the device's {device}; delete the device and add it again"
    )]
    BlockSize {
        /// Bytes of a block of the backend.
        backend: u32,
        /// Bytes of a block of the device.
        device: u32,
    },
    /// The backend is read-only and the device is not.
    #[error("the backend is read-only, the device is not; make the backend writable again")]
    ReadOnly,
    /// The backend has a volatile cache and the device was created without one.
    #[error(
        "the device was created without a write cache, the backend has one now; delete the device and add it again"
    )]
    WriteCache,
}

/// Checks whether a backend can serve an existing device. A larger backend can: the space beyond the device's end is
/// not used.
///
/// # Errors
/// The mismatch.
pub const fn fits(limits: &Limits, params: &DeviceParams) -> Result<(), Misfit> {
    if limits.size < params.size {
        let (backend, device) = (limits.size, params.size);
        return Err(Misfit::Size { backend, device });
    }
    if limits.logical_block_size > params.logical_block_size {
        let (backend, device) = (limits.logical_block_size, params.logical_block_size);
        return Err(Misfit::BlockSize { backend, device });
    }
    if limits.read_only && !params.read_only {
        return Err(Misfit::ReadOnly);
    }
    // Without the attribute the block layer sends no FLUSH, so the cache would never be flushed (L06).
    if limits.volatile_cache && !params.volatile_cache {
        return Err(Misfit::WriteCache);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L34 A device continues with its parameters, or not at all.
    #[test]
    fn l34_a_backend_must_fit_the_device() {
        let limits = Limits::new(1 << 20).volatile_cache(false);
        let spec = crate::DeviceSpec::new(limits).check(4096).unwrap();
        let geometry = crate::Geometry::from_reply(&ublk_sys::ublksrv_ctrl_dev_info {
            dev_id: 1,
            ..spec.dev_info()
        });
        let params = spec.params(&geometry.unwrap()).unwrap();
        let params = DeviceParams::decode(&params).unwrap();
        assert_eq!(fits(&limits, &params), Ok(()));
        let grown = Limits {
            size: 2 << 20,
            ..limits
        };
        assert_eq!(fits(&grown, &params), Ok(()));
        type Change = fn(&mut Limits);
        let broken: [(Change, &str); 4] = [
            (|l| l.size -= 512, "1048064 bytes"),
            (|l| l.logical_block_size = 4096, "blocks have 4096"),
            (|l| l.read_only = true, "read-only"),
            (|l| l.volatile_cache = true, "write cache"),
        ];
        for (change, text) in broken {
            let mut other = limits;
            change(&mut other);
            let misfit = fits(&other, &params).unwrap_err().to_string();
            assert!(misfit.contains(text), "{misfit}");
        }
    }

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
