//! A lane as its worker's owner sees it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ublk_core::QueueId;

use crate::buffers::Pages;
use crate::health::{Counters, State};
use crate::shared::LaneShared;

/// State and counters of a lane, readable from any thread.
#[derive(Clone)]
pub struct LaneHandle(Arc<LaneShared>);

impl std::fmt::Debug for LaneHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneHandle")
            .field("qid", &self.0.qid)
            .field("state", &self.state())
            .finish()
    }
}

impl LaneHandle {
    pub(crate) const fn new(lane: Arc<LaneShared>) -> Self {
        Self(lane)
    }

    /// The hw queue.
    #[must_use]
    pub fn qid(&self) -> QueueId {
        self.0.qid
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.status.get()
    }

    /// Why it failed, if it did.
    #[must_use]
    pub fn first_error(&self) -> Option<String> {
        self.0.status.first_error()
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.meters.snapshot()
    }

    /// Sets the size of the device: requests beyond it are refused. Call it before the driver learns of a larger size.
    pub fn set_size(&self, size: u64) {
        self.0.set_size(size);
    }

    /// A detached lane of one tag, for tests.
    #[cfg(test)]
    pub(crate) fn in_state(state: State) -> Self {
        use crate::data_path::DataPath;
        use crate::port::{NoDevice, Wake};
        use crate::shared::TagValues;

        struct Silent;
        impl Wake for Silent {
            fn wake(&self) {}
        }
        let arena = crate::buffers::Arena::new(1, 4096).expect("memory");
        let path = DataPath::new(ublk_core::DataMode::Copy, Box::new(NoDevice));
        let wake = (Arc::new(Silent) as Arc<dyn Wake>, Arc::default());
        let shared = LaneShared::new(
            QueueId::ZERO,
            1,
            4096,
            arena,
            (path, TagValues::default()),
            wake,
        );
        shared.status.set(state);
        Self(shared)
    }

    /// Called when a thread ends: a lane that is neither empty nor failed lost its thread to a panic.
    pub(crate) fn ended_without_a_word(&self) {
        if !matches!(self.state(), State::Empty | State::Failed) {
            self.0.status.fail(format!(
                "queue {}: the worker's thread panicked",
                self.qid()
            ));
        }
    }

    /// Bytes of the buffers (mapped, not necessarily populated), and the kind of pages.
    #[must_use]
    pub fn buffers(&self) -> (u64, Pages) {
        let (bytes, pages) = self.0.arena.extent();
        (bytes as u64, pages)
    }

    /// Requests that handlers hold and have not answered, as of the last batch; at least one while the thread works on
    /// a batch.
    #[must_use]
    pub fn in_hand(&self) -> u64 {
        let at_work = self.0.at_work.load(Ordering::Relaxed);
        self.0.meters.in_hand.get().max(u64::from(at_work))
    }
}
