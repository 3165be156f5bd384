//! The part of a lane that outlives its worker's stack: buffers, answers of other threads, meters.

use std::sync::Arc;

use ublk_core::{Answer, QueueId, Tag};

use crate::buffers::Arena;
use crate::health::{Meters, Status};
use crate::remote::RemoteAnswers;
use crate::seam::Wake;

/// Shared between the worker, the requests other threads hold, and the server's health report.
///
/// Buffers live here: the last request that another thread holds frees them, whenever that is.
pub(crate) struct LaneShared {
    pub(crate) qid: QueueId,
    pub(crate) arena: Arena,
    pub(crate) remote: RemoteAnswers,
    pub(crate) meters: Meters,
    pub(crate) status: Status,
    wake: Box<dyn Wake>,
}

impl LaneShared {
    pub(crate) fn new(qid: QueueId, depth: u16, arena: Arena, wake: Box<dyn Wake>) -> Arc<Self> {
        Arc::new(Self {
            qid,
            arena,
            remote: RemoteAnswers::new(depth),
            meters: Meters::default(),
            status: Status::new(),
            wake,
        })
    }

    /// Records an answer from another thread and wakes the worker if it sleeps.
    pub(crate) fn answer(&self, tag: Tag, answer: Answer) {
        self.remote.push(tag, answer);
        self.wake.wake();
    }
}
