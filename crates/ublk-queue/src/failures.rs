//! Requests that were answered with an errno, told to whoever wants to know.

use std::fmt;
use std::sync::Arc;

use ublk_core::{Errno, Op, QueueId};

/// A request that was answered with an errno.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failed {
    /// Its queue.
    pub qid: QueueId,
    /// What it was; `None` for a descriptor that cannot be read.
    pub op: Option<Op>,
    /// Where on the device, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u64,
    /// What it was answered with.
    pub errno: Errno,
}

/// Is told of each request that is answered with an errno: [`Plan::on_failure`](crate::Plan::on_failure).
///
/// It is called on the queue's thread, on the way of a failure only. It must neither wait nor panic: what is to be
/// written somewhere is handed to another thread, since that somewhere may be on the device itself.
#[derive(Clone)]
pub struct OnFailure(Arc<dyn Fn(Failed) + Send + Sync>);

impl OnFailure {
    /// Has `tell` called.
    pub fn new(tell: impl Fn(Failed) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, failed: Failed) {
        (self.0)(failed);
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure")
    }
}
