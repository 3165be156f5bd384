//! Errors of the control plane, classified by what the caller can do next.
#![forbid(unsafe_code)]

mod hint;
mod summary;

use crate::Operation;
use core::fmt;
use core::time::Duration;
use ublk_core::kernel::Fault;
use ublk_core::{DevId, DevState, Errno, Features, Missing, Recovery};

/// An error of the control plane. The text says what happened and what to do next; [`Error::summary`] and
/// [`Error::hint`] return the two parts separately.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Error {
    /// The control node does not exist: the ublk driver is not loaded or not in this kernel.
    MissingModule,
    /// The caller lacks permission.
    NoPermission {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: Option<DevId>,
        /// EPERM or EACCES.
        errno: Errno,
    },
    /// io_uring is disabled for this caller (sysctl `kernel.io_uring_disabled`, or seccomp).
    IoUringDisabled {
        /// The sysctl's value, if it is readable.
        sysctl: Option<u8>,
    },
    /// The control ring could not be created, or failed.
    Ring {
        /// The ring's error, hint included.
        message: String,
    },
    /// The kernel has no GET_FEATURES: it is older than Linux 6.5, which is not supported.
    TooOld {
        /// The kernel's errno.
        errno: Errno,
    },
    /// The kernel's release has a known fault in this operation; nothing was sent to it.
    KernelFault {
        /// The operation.
        operation: Operation,
        /// The fault.
        fault: Fault,
        /// The kernel's release (`uname -r`).
        release: String,
    },
    /// Requested features that this kernel lacks.
    Unsupported(Missing),
    /// The driver created the device without some requested features, which it drops without an error.
    NotGranted {
        /// The device, which exists.
        dev: DevId,
        /// The requested features.
        asked: Features,
        /// The features that were dropped.
        refused: Features,
    },
    /// Before Linux 7.3 a device in batch mode may keep failing I/O after a recovery.
    BatchNotRecoverable {
        /// The requested recovery policy.
        recovery: Recovery,
    },
    /// The kernel does not know the command, or the device lacks the feature for it.
    UnknownCommand {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: Option<DevId>,
    },
    /// The driver's device limit is reached (`ublks_max`).
    DeviceLimit,
    /// Every device number is taken.
    NoFreeId,
    /// The requested device number is in use.
    IdInUse {
        /// The number.
        dev: Option<DevId>,
    },
    /// The device prevents the operation: it is already live, still open, or still served.
    Busy {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: Option<DevId>,
        /// EBUSY, EEXIST, or EACCES for parameters of a device that has a disk.
        errno: Errno,
    },
    /// The operation is not possible in the device's state; nothing was sent to the kernel.
    WrongState {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: DevId,
        /// The state.
        state: DevState,
    },
    /// There is no such device.
    NoSuchDevice {
        /// The operation.
        operation: Operation,
        /// The device number.
        dev: Option<DevId>,
    },
    /// The deadline passed.
    TimedOut {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: Option<DevId>,
        /// The time limit.
        after: Duration,
        /// The command could not be cancelled and is still in the kernel: it may still take effect, and this process
        /// cannot exit before it ends.
        abandoned: bool,
    },
    /// Too many abandoned commands are still in the kernel.
    Exhausted {
        /// The operation.
        operation: Operation,
        /// Number of pending commands.
        pending: usize,
    },
    /// The spec violates a rule; nothing was sent to the kernel.
    Spec {
        /// The rule, the value, and what to do.
        message: String,
    },
    /// The kernel's reply is one that no known driver sends.
    BadReply {
        /// The operation.
        operation: Operation,
        /// What is wrong with the reply.
        message: String,
    },
    /// The device exists in the kernel but has no node in this `/dev`, which is not a devtmpfs and gets no new nodes.
    NoNode {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: DevId,
        /// Path of the missing node.
        node: String,
    },
    /// The size of the block device differs from the one that it was created with.
    WrongSize {
        /// The device.
        dev: DevId,
        /// Expected size in bytes.
        want: u64,
        /// Actual size in bytes.
        got: u64,
    },
    /// The kernel refused the operation, or a node could not be used, for another reason.
    Refused {
        /// The operation.
        operation: Operation,
        /// The device.
        dev: Option<DevId>,
        /// The errno.
        errno: Errno,
    },
    /// The thread or process that issues the commands is gone.
    ControllerGone {
        /// How it ended, as far as known.
        message: String,
    },
}

/// Kinds of errors, for exit codes and decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Kind {
    /// The device does not exist.
    NoDevice,
    /// A deadline passed.
    TimedOut,
    /// The request is invalid.
    Usage,
    /// The caller lacks permission.
    Permission,
    /// A temporary obstacle.
    Busy,
    /// Anything else.
    Other,
}

impl Error {
    /// The kind of error.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::NoSuchDevice { .. } => Kind::NoDevice,
            Self::TimedOut { .. } => Kind::TimedOut,
            Self::Spec { .. } => Kind::Usage,
            Self::NoPermission { .. } | Self::IoUringDisabled { .. } => Kind::Permission,
            Self::Busy { .. }
            | Self::IdInUse { .. }
            | Self::Exhausted { .. }
            | Self::WrongState { .. } => Kind::Busy,
            _ => Kind::Other,
        }
    }

    /// The device concerned, if any.
    #[must_use]
    pub const fn dev(&self) -> Option<DevId> {
        match self {
            Self::NoPermission { dev, .. }
            | Self::UnknownCommand { dev, .. }
            | Self::IdInUse { dev }
            | Self::Busy { dev, .. }
            | Self::NoSuchDevice { dev, .. }
            | Self::TimedOut { dev, .. }
            | Self::Refused { dev, .. } => *dev,
            Self::NoNode { dev, .. }
            | Self::NotGranted { dev, .. }
            | Self::WrongSize { dev, .. }
            | Self::WrongState { dev, .. } => Some(*dev),
            _ => None,
        }
    }

    /// The kernel's errno, if there is one and the variant does not imply it (L28).
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::NoPermission { errno, .. }
            | Self::TooOld { errno }
            | Self::Busy { errno, .. }
            | Self::Refused { errno, .. } => Some(*errno),
            Self::NoSuchDevice { .. } => Some(Errno::ENODEV),
            Self::IdInUse { .. } => Some(Errno::EEXIST),
            Self::UnknownCommand { .. } => Some(Errno::EOPNOTSUPP),
            Self::NoFreeId => Some(Errno::ENOSPC),
            Self::DeviceLimit => Some(Errno::EACCES),
            Self::MissingModule | Self::NoNode { .. } => Some(Errno::ENOENT),
            _ => None,
        }
    }

    /// Converts a command's errno. All conversions are here; no errno is retried, and none becomes a success (L28).
    #[must_use]
    pub fn of_command(operation: Operation, dev: Option<DevId>, errno: Errno) -> Self {
        use Operation as Op;
        match (operation, errno) {
            // Before 6.5 there is no GET_FEATURES, and before 6.4 no encoded ADD_DEV.
            (Op::Features, Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EPERM)
            | (Op::Add, Errno::ENODEV | Errno::EOPNOTSUPP) => Self::TooOld { errno },
            (Op::Add, Errno::EEXIST) => Self::IdInUse { dev },
            (Op::Add, Errno::ENOSPC) => Self::NoFreeId,
            (Op::Add, Errno::EACCES) => Self::DeviceLimit,
            (Op::SetParams, Errno::EACCES) | (_, Errno::EBUSY | Errno::EEXIST) => Self::Busy {
                operation,
                dev,
                errno,
            },
            (_, Errno::EPERM | Errno::EACCES) => Self::NoPermission {
                operation,
                dev,
                errno,
            },
            (_, Errno::ENODEV) => Self::NoSuchDevice { operation, dev },
            (_, Errno::EOPNOTSUPP) => Self::UnknownCommand { operation, dev },
            _ => Self::Refused {
                operation,
                dev,
                errno,
            },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.summary(), self.hint())
    }
}

impl std::error::Error for Error {}

impl From<ublk_core::SpecError> for Error {
    fn from(error: ublk_core::SpecError) -> Self {
        Self::Spec {
            message: error.to_string(),
        }
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Self::Unsupported(missing)
    }
}

#[cfg(test)]
mod tests;
