//! Why a load ended early.

use std::time::Duration;
use ublk_core::Errno;

/// Why a load ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no ring, or it cannot be used any more.
    #[error("io_uring: {0}")]
    Ring(String),
    /// A request did not complete in time. Its buffer is left to the kernel.
    #[error("a {what} at offset {offset} has not completed within {} s", .within.as_secs())]
    Stuck {
        /// What it is.
        what: &'static str,
        /// Where it begins, in bytes.
        offset: u64,
        /// How long was waited.
        within: Duration,
    },
    /// A request failed where none may.
    #[error("a {what} of {len} bytes at offset {offset} failed: {errno}")]
    Failed {
        /// What it is.
        what: &'static str,
        /// Where it begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        len: u32,
        /// The kernel's errno.
        errno: Errno,
    },
    /// The caller ended it before there was a figure.
    #[error("interrupted before any figure")]
    Ended,
    /// The plan makes no sense for this target.
    #[error("{0}")]
    Plan(String),
    /// The trace cannot be read any further.
    #[error(transparent)]
    Trace(#[from] ublk_trace::Error),
}
