//! How a lane ends: the driver's aborts, a handler's panic, and what the kernel may still touch.

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
    /// The place of a WRITE's data, in get-data mode.
    Place(Tag),
    /// Its turn.
    Turn,
    /// The completion of an operation.
    Operation,
}

/// Where the data of a WRITE lies in get-data mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum DataLocation {
    /// In the tag's buffer.
    #[default]
    Buffer,
    /// Where the handler said.
    Handler,
    /// In the tag's buffer, since the handler panicked: the request fails.
    Panicked,
}

/// Notes what was being done while a panic unwinds; costs nothing where none does.
pub(super) struct OnUnwind<'a> {
    place: &'a Cell<Option<Panicked>>,
    what: Panicked,
}

impl<'a> OnUnwind<'a> {
    #[inline(always)]
    pub(super) const fn new(place: &'a Cell<Option<Panicked>>, what: Panicked) -> Self {
        Self { place, what }
    }

    #[inline(always)]
    pub(super) const fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for OnUnwind<'_> {
    fn drop(&mut self) {
        self.place.set(Some(self.what));
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

    /// True while more aborts are to be expected. Each call spends some of the patience.
    pub(crate) fn waits_for_aborts(&mut self) -> bool {
        self.leaving && self.aborts.wait()
    }

    /// After a panic of the handler: answers the request it had, if it did not take it along. `None` if the
    /// panic was not this lane's handler's.
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
            // The driver takes no answer before it has brought the data.
            Panicked::Place(tag) => self.get_data_at(port, tag, DataLocation::Panicked, None),
            Panicked::Turn | Panicked::Operation => {}
        }
        Some(what)
    }

    fn recover_request(&mut self, port: &mut P, tag: Tag) {
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
    }

    /// A call of the handler outside of a batch: its panic is counted, and has no other consequence.
    #[cold]
    pub(crate) fn contained<T>(&mut self, call: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let result = caught(|| call(self));
        if result.is_none() {
            self.panicked.take();
            self.shared.meters.panics.add_shared(1);
        }
        result
    }

    /// True if a lane whose turn came later has answered requests of this one, or made operations of its handler.
    pub(crate) fn is_late(&self) -> bool {
        self.local.has_answers() || (H::OPERATIONS && self.is_due())
    }

    /// As the handler says; false of one that cannot.
    fn is_due(&self) -> bool {
        let due = caught(|| self.handler.is_due());
        due.unwrap_or_else(|| {
            self.shared.meters.panics.add_shared(1);
            false
        })
    }

    /// Operations of the handler that the kernel has; none of one that cannot say.
    #[cold]
    pub(crate) fn in_flight(&self) -> usize {
        let count = caught(|| self.handler.in_flight());
        count.unwrap_or_else(|| {
            self.shared.meters.panics.add_shared(1);
            0
        })
    }

    /// True once the driver has aborted a tag and the server has nothing in hand and nothing to say:
    /// the commands that are still with the driver then are silent ones (kernel-side they end with the
    /// ring).
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
    /// True while the driver may touch the buffers.
    fn driver_has_tags(&self) -> bool {
        self.batch.in_flight()
            || self.forwards.count > 0
            || (!self.leaving && self.tags.iter().any(|tag| tag.state.with_driver()))
    }
}

impl<P: Port, D, H> Drop for Lane<P, D, H> {
    /// However the worker ends: closing a ring is no barrier, so the kernel may still write to the buffers and read
    /// the elements of batch commands (L09). These are leaked on purpose, and nothing else is (L63): the address range
    /// ends with the process.
    fn drop(&mut self) {
        self.shared.path.retire();
        if self.driver_has_tags() {
            std::mem::forget(self.shared.arena.clone());
            std::mem::forget(std::mem::take(&mut self.batch));
            // Where the driver has an address of the handler's own memory, its owner stays as well.
            std::mem::forget(self.backing.take());
        }
        if self.forwards.count > 0 {
            std::mem::forget(self.shared.path.client_memory());
        }
    }
}
