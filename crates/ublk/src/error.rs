//! Errors of the stages, and the state that they leave.

use std::fmt;

use ublk_core::{DevId, Errno, Misfit};

use crate::stages::Unsettled;

/// An error, by plane. Its `Debug` output is its text, so that a `main` that returns it prints what to do.
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
        /// The device, which keeps waiting.
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
    /// The backend cannot have the requested size, or cannot be resized.
    #[error(
        "device {id}: its backend cannot have {bytes} bytes: {errno}; grow the file first, or implement Backend::resize"
    )]
    Resize {
        /// The device, whose size is unchanged.
        id: DevId,
        /// The requested size in bytes.
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

/// A failed stage: the error, and what remains of the device.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure<S> {
    /// The error.
    pub error: Error,
    /// What remains of the device.
    pub left: Left<S>,
}

/// What remains after a failure.
#[derive(Debug)]
#[non_exhaustive]
pub enum Left<S> {
    /// The stage from which it started, unchanged.
    Same(Box<S>),
    /// A command timed out and may still take effect: the device's stage is unknown.
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
