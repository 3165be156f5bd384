//! The part of a lane that outlives its worker's stack: buffers, answers of other threads, meters.

use std::sync::Arc;

use ublk_core::{Answer, DataMode, QueueId, Tag};

use crate::buffers::Arena;
use crate::health::{Meters, Status};
use crate::remote::RemoteAnswers;
use crate::seam::{UserCopyPort, Wake};

/// Shared between the worker, the requests other threads hold, and the server's health report.
///
/// Buffers live here: the last request that another thread holds frees them, whenever that is.
pub(crate) struct LaneShared {
    pub(crate) qid: QueueId,
    pub(crate) arena: Arena,
    pub(crate) remote: RemoteAnswers,
    pub(crate) meters: Meters,
    pub(crate) status: Status,
    pub(crate) path: DataPath,
    wake: Box<dyn Wake>,
}

/// How the data of this lane's requests travels.
pub(crate) enum DataPath {
    /// In the tag's buffer: copy and get-data.
    Buffer,
    /// By the character device: user copy.
    Device(Box<dyn UserCopyPort>),
    /// As a registered buffer that only forwarding operations reach; nobody sees bytes.
    Registered,
}

impl DataPath {
    pub(crate) fn new(mode: DataMode, device: Box<dyn UserCopyPort>) -> Self {
        match mode {
            DataMode::UserCopy => Self::Device(device),
            DataMode::ZeroCopy | DataMode::ZeroCopyManual => Self::Registered,
            _ => Self::Buffer,
        }
    }
}

impl LaneShared {
    pub(crate) fn new(
        qid: QueueId,
        depth: u16,
        arena: Arena,
        path: DataPath,
        wake: Box<dyn Wake>,
    ) -> Arc<Self> {
        Arc::new(Self {
            qid,
            arena,
            remote: RemoteAnswers::new(depth),
            meters: Meters::default(),
            status: Status::new(),
            path,
            wake,
        })
    }

    /// Records an answer from another thread and wakes the worker if it sleeps.
    pub(crate) fn answer(&self, tag: Tag, answer: Answer) {
        self.remote.push(tag, answer);
        self.wake.wake();
    }
}
