//! Errors of the control plane, by what the caller can do next.
#![forbid(unsafe_code)]

mod hint;
mod summary;

use crate::Operation;
use core::fmt;
use core::time::Duration;
use ublk_core::kernel::Fault;
use ublk_core::{DevId, DevState, Errno, Features, Missing, Recovery};

/// An error of the control plane. Its text says what happened and what to do next; [`Error::summary`] and
/// [`Error::hint`] return the two parts separately.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Error {
    /// There is no control node: the ublk driver is not loaded, or not in this kernel.
    MissingModule,
    /// The caller may not do this.
    NoPermission {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// EPERM or EACCES.
        errno: Errno,
    },
    /// io_uring is switched off for this caller (sysctl `kernel.io_uring_disabled`, or seccomp).
    IoUringDisabled {
        /// The sysctl's value, where it could be read.
        sysctl: Option<u8>,
    },
    /// The control ring could not be made, or broke.
    Ring {
        /// What the ring said, hint included.
        message: String,
    },
    /// The kernel has no GET_FEATURES: it is older than Linux 6.5 and is not served.
    TooOld {
        /// What the kernel answered.
        errno: Errno,
    },
    /// The kernel is known, by its release, for a fault in what was asked; nothing was sent to it.
    KernelFault {
        /// What was to be done.
        operation: Operation,
        /// The fault.
        fault: Fault,
        /// The kernel, as `uname -r` tells it.
        release: String,
    },
    /// Features were asked for that this kernel lacks.
    Unsupported(Missing),
    /// The driver made the device without features that were asked for, which it drops without an error.
    NotGranted {
        /// The device; it exists.
        dev: DevId,
        /// What was asked for.
        asked: Features,
        /// What was dropped of it.
        refused: Features,
    },
    /// Before Linux 7.3 a device in batch mode that was recovered may go on failing I/O.
    BatchNotRecoverable {
        /// The recovery policy that was asked for.
        recovery: Recovery,
    },
    /// The kernel does not know the command, or the device lacks the feature for it.
    UnknownCommand {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
    },
    /// The driver's limit of devices is reached (`ublks_max`).
    DeviceLimit,
    /// Every device number is taken.
    NoFreeId,
    /// The device number asked for is taken.
    IdInUse {
        /// The number.
        dev: Option<DevId>,
    },
    /// The device is in the way of this: already live, still open, or still served.
    Busy {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// EBUSY, EEXIST, or EACCES for parameters of a device that has a disk.
        errno: Errno,
    },
    /// The device is in a state in which this cannot be done; nothing was sent to the kernel.
    WrongState {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: DevId,
        /// Its state.
        state: DevState,
    },
    /// There is no such device.
    NoSuchDevice {
        /// What was tried.
        operation: Operation,
        /// The number that is not there.
        dev: Option<DevId>,
    },
    /// The deadline passed.
    TimedOut {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// How long it was waited for.
        after: Duration,
        /// The command could not be cancelled and is still in the kernel: its effect may come yet,
        /// and this process cannot exit before it ends.
        abandoned: bool,
    },
    /// Too many abandoned commands are still in the kernel for another.
    Exhausted {
        /// What was tried.
        operation: Operation,
        /// How many are pending.
        pending: usize,
    },
    /// The spec breaks a rule; nothing was sent to the kernel.
    Spec {
        /// The rule, the value, and what to do.
        message: String,
    },
    /// The kernel answered something no known driver would.
    BadReply {
        /// What was asked.
        operation: Operation,
        /// What is wrong with the answer.
        message: String,
    },
    /// The device exists in the kernel but has no node in this `/dev`, which is not a devtmpfs and gets no new nodes.
    NoNode {
        /// What was tried.
        operation: Operation,
        /// Which device.
        dev: DevId,
        /// The node that is not there.
        node: String,
    },
    /// The size of the block device differs from the one it was created with.
    WrongSize {
        /// Which device.
        dev: DevId,
        /// Bytes it should have.
        want: u64,
        /// Bytes it has.
        got: u64,
    },
    /// The kernel or a node refused for another reason.
    Refused {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// The reason given.
        errno: Errno,
    },
    /// The thread or process that issues the commands is gone.
    ControllerGone {
        /// What is known of its end.
        message: String,
    },
}

/// Kinds of errors, for exit codes and decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Kind {
    /// No such device.
    NoDevice,
    /// A deadline passed.
    TimedOut,
    /// What was asked for makes no sense.
    Usage,
    /// The caller may not.
    Permission,
    /// Something is in the way that may go away.
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

    /// The device concerned, where there is one.
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

    /// The errno the kernel gave, where it gave one and the variant does not say it all (L28).
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

    /// The error for the errno of a command: the only place where errnos become errors; none is retried, and none becomes a
    /// success (L28).
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
#[path = "error_tests.rs"]
mod tests;
