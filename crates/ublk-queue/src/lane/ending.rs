//! How a lane ends: the driver's aborts, a handler's panic, and what the kernel may still touch.

use std::sync::Arc;
use std::time::Duration;

use ublk_core::{Answer, Errno, Input, Tag};

use super::{Lane, NOBODY};
use crate::handler::Handler;
use crate::health::State;
use crate::seam::{Descriptors, Port};

/// How many waits of [`ABORT_WAIT`] an ending queue grants the aborts that have not come yet.
const PATIENCE: u32 = 20;

/// How long one of them is.
pub(crate) const ABORT_WAIT: Duration = Duration::from_millis(5);

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    pub(super) fn leaving(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.plain = false;
            self.shared.status.set(State::Leaving);
            let with_driver = self
                .tags
                .iter()
                .filter(|tag| tag.state.with_driver())
                .count();
            self.outstanding = u32::try_from(with_driver).unwrap_or(u32::MAX);
            self.patience = PATIENCE;
        }
    }

    /// A tag came back from the driver after the first abort.
    #[cold]
    pub(super) fn came_back(&mut self) {
        (self.outstanding, self.patience) = came_back(self.outstanding);
    }

    /// True while more aborts are to be expected. The driver aborts tag by tag, so a ring that is closed at the
    /// first one is torn down in the midst of it. But a commit that crossed the abort is never answered:
    /// each call spends some of the patience.
    pub(crate) fn waits_for_aborts(&mut self) -> bool {
        let waits = self.leaving && self.outstanding > 0 && self.patience > 0;
        self.patience -= u32::from(waits);
        waits
    }

    /// After a panic of the handler: answers the request it had, if it did not take it along. False if the
    /// panic was not this lane's handler's.
    #[cold]
    pub(crate) fn recover_from_panic(&mut self, port: &mut P) -> bool {
        let current = std::mem::replace(&mut self.current, NOBODY);
        let Ok(tag) = Tag::new(current) else {
            return false;
        };
        self.shared.meters.panics.add_shared(1);
        // The lane writes down where a tag is when its handler returns.
        let state = &mut self.tags[tag.index()].state;
        if state.with_driver() {
            (*state, _) = state.step(Input::Cqe(0));
        }
        if self.detached.get() {
            self.taken_along();
        } else {
            // Answered or not, the worker has not seen it.
            self.answered_from(port, tag, Answer::failed(Errno::EIO), 0);
        }
        true
    }

    /// True once the driver has aborted a tag and the server has nothing in hand and nothing to say:
    /// the commands that are still with the driver then are silent ones (kernel-side they end with the
    /// ring).
    pub(crate) fn is_empty(&self) -> bool {
        let sent = !self.batch.in_flight() && !self.batch.is_open();
        let aborted = self.outstanding == 0 || self.patience == 0;
        self.leaving
            && aborted
            && sent
            && self.retry.is_empty()
            && !self.tags.iter().any(|tag| tag.state.in_hand())
            && (!H::OPERATIONS || self.handler.in_flight() == 0)
    }
}

/// One tag fewer is outstanding, and the rest is worth waiting for.
pub(super) const fn came_back(outstanding: u32) -> (u32, u32) {
    (outstanding.saturating_sub(1), PATIENCE)
}

impl<P: Port, D, H> Lane<P, D, H> {
    /// True while the driver may touch the buffers.
    fn driver_has_tags(&self) -> bool {
        self.batch.in_flight()
            || self.forwards.count > 0
            || (!self.leaving && self.tags.iter().any(|tag| tag.state.with_driver()))
    }
}

impl<P: Port, D, H> Drop for Lane<P, D, H> {
    /// However the worker ends: closing a ring is no barrier, so the driver may still write to the buffers and read
    /// the elements of batch commands (L09). They are leaked on purpose; the address range ends with the process.
    fn drop(&mut self) {
        if self.driver_has_tags() {
            std::mem::forget(Arc::clone(&self.shared));
            std::mem::forget(std::mem::take(&mut self.batch));
            // Where the driver has an address of the handler's own memory, its owner stays as well.
            std::mem::forget(self.backing.take());
        }
    }
}
