//! Errors of the stages, and the state that they leave.

use std::fmt;

use ublk_core::{DevId, Errno, Misfit};

use crate::stages::Unsettled;

/// What went wrong, by plane. Its `Debug` is its text, so that a `main` that returns it tells what to do.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The control plane: the driver, permissions, the spec, a deadline.
    #[error(transparent)]
    Control(#[from] ublk_ctrl::Error),
    /// The data plane: threads, rings, buffers, a queue that failed.
    #[error(transparent)]
    Server(#[from] ublk_queue::Error),
    /// A queue of a running device failed, and with it the device.
    #[error("the device failed: {cause}")]
    Failed {
        /// The first error of any queue.
        cause: String,
    },
    /// The backend cannot serve the device that was to be recovered.
    #[error("device {id}: {misfit}")]
    Misfit {
        /// The device, which waits on.
        id: DevId,
        /// What does not fit.
        misfit: Misfit,
    },
    /// The device was created without recovery, so it cannot be left to another server.
    #[error(
        "device {id} was created without recovery: no other server can take it over; stop and delete it, or detach it"
    )]
    NotRecoverable {
        /// The device.
        id: DevId,
    },
    /// This kernel cannot hold the device's I/O while this process lives.
    #[error(
        "device {id}: this kernel cannot hold I/O (QUIESCE needs Linux 6.16); end the process instead, which leaves the device to the next server"
    )]
    CannotHold {
        /// The device.
        id: DevId,
    },
    /// The backend has no room for another size, or only ever the one it has.
    #[error(
        "device {id}: its backend cannot have {bytes} bytes: {errno}; grow the file first, or implement Backend::resize"
    )]
    Resize {
        /// The device, of the size it had.
        id: DevId,
        /// The size that was asked for.
        bytes: u64,
        /// The error of the backend.
        errno: Errno,
    },
    /// The memory shared with clients could not be mapped.
    #[error("cannot map the memory shared with clients: {0}; was its file truncated?")]
    SharedMemory(#[source] std::io::Error),
    /// Signal handlers could not be installed.
    #[error("cannot install signal handlers: {0}")]
    Signals(#[source] std::io::Error),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<ublk_core::SpecError> for Error {
    fn from(error: ublk_core::SpecError) -> Self {
        Self::Control(ublk_ctrl::Error::Spec {
            message: error.to_string(),
        })
    }
}

/// A stage failed: the error, and what is left.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure<S> {
    /// Why.
    pub error: Error,
    /// What is left of the device.
    pub left: Left<S>,
}

/// What is left after a failure.
#[derive(Debug)]
#[non_exhaustive]
pub enum Left<S> {
    /// The stage it began with, as it was.
    Same(Box<S>),
    /// A command passed its deadline and may yet have its effect: the device's stage is not known.
    Unsettled(Box<Unsettled>),
}

/// For `?`. Drops the remaining stage: a [`Device`](crate::Device) is then stopped and deleted; a device that does not
/// serve yet, or no longer serves, stays listed until it is deleted.
impl<S> From<Failure<S>> for Error {
    fn from(failure: Failure<S>) -> Self {
        failure.error
    }
}

impl<S> fmt::Display for Failure<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<S: fmt::Debug> std::error::Error for Failure<S> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
