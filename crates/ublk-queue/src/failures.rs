//! Reports requests that were answered with an errno.

use std::fmt;
use std::sync::Arc;

use ublk_core::{Errno, Op, QueueId};

/// A request that was answered with an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failed {
    /// The hw queue.
    pub qid: QueueId,
    /// The op; `None` if the descriptor is invalid.
    pub op: Option<Op>,
    /// Offset on the device in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// The errno.
    pub errno: Errno,
    /// For a request that was forwarded: the file of [`Plan::files`](crate::Plan::files) that failed last.
    pub file: Option<u16>,
}

/// A callback for each request that is answered with an errno: [`Plan::on_failure`](crate::Plan::on_failure).
///
/// It is called on the queue's thread, for failed requests only. It must neither block nor panic: leave logging to
/// another thread, since the log may be on the device itself.
#[derive(Clone)]
pub struct OnFailure(Arc<dyn Fn(Failed) + Send + Sync>);

impl OnFailure {
    /// Wraps a callback.
    pub fn new(tell: impl Fn(Failed) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn call(&self, failed: Failed) {
        (self.0)(failed);
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure")
    }
}
