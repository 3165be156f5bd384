//! The end of a lane: the driver's aborts, a handler's panic, and memory that the kernel may still access.

use std::cell::Cell;

use ublk_core::{Answer, Errno, Input, Tag};

use super::{Lane, NOBODY};
use crate::handler::Handler;
use crate::health::State;
use crate::panics::caught;
use crate::port::{Descriptors, Port};
use crate::user_data::NO_OWNER;

/// What a handler was called for when it panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Panicked {
    /// A request.
    Handle(Tag),
    /// The address of a WRITE's data, in get-data mode.
    DataAddress(Tag),
    /// Its turn.
    Turn,
    /// The completion of an operation.
    Operation,
}

/// The location of a WRITE's data in get-data mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum DataLocation {
    /// In the tag's buffer.
    #[default]
    Buffer,
    /// In the handler's own memory.
    Handler,
    /// In the tag's buffer, since the handler panicked: the request fails.
    Panicked,
}

/// Records the current call while a panic unwinds; costs nothing otherwise.
pub(super) struct OnUnwind<'a> {
    record: &'a Cell<Option<Panicked>>,
    what: Panicked,
}

impl<'a> OnUnwind<'a> {
    #[inline(always)]
    pub(super) const fn new(record: &'a Cell<Option<Panicked>>, what: Panicked) -> Self {
        Self { record, what }
    }

    #[inline(always)]
    pub(super) const fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for OnUnwind<'_> {
    fn drop(&mut self) {
        self.record.set(Some(self.what));
    }
}

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    pub(super) fn leaving(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.quick = NO_OWNER;
            self.shared.status.set(State::Leaving);
            let tags = self.tags.iter();
            self.aborts.begin(tags.map(|slot| slot.state.with_driver()));
        }
    }

    /// True while more aborts are expected. Each call uses up one wait.
    pub(crate) fn waits_for_aborts(&mut self) -> bool {
        self.leaving && self.aborts.wait()
    }

    /// Recovers from a panic of the handler: answers its request unless it took the request along. `None` if another
    /// lane's handler panicked.
    #[cold]
    pub(crate) fn recover_from_panic(&mut self, port: &mut P) -> Option<Panicked> {
        let current = std::mem::replace(&mut self.current, NOBODY);
        let what = match (Tag::new(current), self.panicked.take()) {
            (Ok(tag), _) => Panicked::Handle(tag),
            (Err(_), what) => what?,
        };
        self.shared.meters.panics.add_shared(1);
        match what {
            Panicked::Handle(tag) => self.recover_request(port, tag),
            // The driver takes no answer before it has copied the data.
            Panicked::DataAddress(tag) => self.get_data_at(port, tag, DataLocation::Panicked, None),
            Panicked::Turn | Panicked::Operation => {}
        }
        Some(what)
    }

    fn recover_request(&mut self, port: &mut P, tag: Tag) {
        // The lane only updates a tag's state after its handler returns.
        let state = &mut self.tags[tag.index()].state;
        if state.with_driver() {
            (*state, _) = state.step(Input::Cqe(0));
        }
        if self.detached.get() {
            self.taken_along();
        } else {
            // Answered or not, the worker has not seen the answer.
            self.answered_from(port, tag, Answer::failed(Errno::EIO), 0);
        }
    }

    /// Calls the handler outside of a batch: a panic is counted and has no other effect.
    #[cold]
    pub(crate) fn contained<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let result = caught(|| call(self));
        if result.is_none() {
            self.panicked.take();
            self.shared.meters.panics.add_shared(1);
        }
        result
    }

    /// True if the turn of a later lane has answered requests of this one, or added operations to its handler.
    pub(crate) fn is_late(&self) -> bool {
        self.local.has_answers() || (H::OPERATIONS && self.is_due())
    }

    /// The handler's own answer; false for a handler without operations.
    fn is_due(&self) -> bool {
        let due = caught(|| self.handler.is_due());
        due.unwrap_or_else(|| {
            self.shared.meters.panics.add_shared(1);
            false
        })
    }

    /// Number of the handler's operations that the kernel has; 0 for a handler without operations.
    #[cold]
    pub(crate) fn in_flight(&self) -> usize {
        let count = caught(|| self.handler.in_flight());
        count.unwrap_or_else(|| {
            self.shared.meters.panics.add_shared(1);
            0
        })
    }

    /// True once the driver has aborted a tag, no request is in hand, and nothing is left to push. Commands that are
    /// still with the driver then never complete (in the kernel they end with the ring).
    pub(crate) fn is_empty(&self) -> bool {
        let sent = !self.batch.in_flight() && !self.batch.is_open();
        self.leaving
            && self.aborts.is_over()
            && sent
            && self.retry.is_empty()
            && !self.tags.iter().any(|tag| tag.state.in_hand())
            && (!H::OPERATIONS || self.in_flight() == 0)
    }
}

impl<P: Port, D, H> Lane<P, D, H> {
    /// True while the driver may access the buffers.
    fn driver_has_tags(&self) -> bool {
        self.batch.in_flight()
            || self.forwards.count > 0
            || (!self.leaving && self.tags.iter().any(|tag| tag.state.with_driver()))
    }
}

impl<P: Port, D, H> Drop for Lane<P, D, H> {
    /// Closing a ring is no barrier, so the kernel may still write to the buffers and read the elements of batch
    /// commands, however the worker ends (L09). These are leaked on purpose, and nothing else is (L63): the address
    /// range ends with the process.
    fn drop(&mut self) {
        self.shared.path.retire();
        if self.driver_has_tags() {
            std::mem::forget(self.shared.arena.clone());
            std::mem::forget(std::mem::take(&mut self.batch));
            // If the driver has an address of the handler's own memory, that memory's owner is leaked, too.
            std::mem::forget(self.backing.take());
        }
        if self.forwards.count > 0 {
            std::mem::forget(self.shared.path.client_memory());
        }
    }
}
