//! The path from an answer to its commit.

use std::sync::Arc;

use ublk_core::{Action, Answer, DataMode, Errno, Input, Op, Tag, TagState};

use super::{Lane, TagSlot};
use crate::handler::Handler;
use crate::port::{Descriptors, Port};
use crate::shared::{ANYWHERE, LaneShared};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Answers a request whose data, in get-data mode, may be outside the tag's buffer.
    pub(super) fn answered_from(&mut self, port: &mut P, tag: Tag, answer: Answer, source: u64) {
        if self.data == DataMode::GetData {
            let addr = if source == 0 {
                self.shared.arena.addr(tag)
            } else {
                source
            };
            self.tags[tag.index()].addr = addr;
        }
        self.answered(port, tag, answer);
    }

    /// Answers a request that is in hand.
    #[inline(always)]
    pub(super) fn answered(&mut self, port: &mut P, tag: Tag, answer: Answer) {
        if self.before_commit && self.watched {
            self.take_stamp(tag, answer);
        }
        if self.before_commit
            && let Some(buffers) = &mut self.buffers
        {
            // In get-data mode the driver reads a READ's data from there when it takes the commit, however late that
            // is.
            let io = || self.descriptors.load(tag).decode(&ANYWHERE);
            let is_read = || io().is_ok_and(|io| io.op == Op::Read);
            if self.data != DataMode::GetData || !is_read() {
                buffers.take_back(tag);
            }
        }
        let slot = &mut self.tags[tag.index()];
        if H::ZONES && self.zoned {
            // Kept for a commit that has to be pushed again; 0 for all except appends, or the driver refuses it.
            slot.addr = self.shared.values.take(tag).unwrap_or(0);
        }
        let (shared, descriptors) = (&self.shared, &self.descriptors);
        let failed = |result| shared.failed(descriptors, tag, result);
        if let Some(result) = slot.commit(slot.state, answer, shared, failed) {
            self.push_commit(port, tag, result);
        }
    }

    /// Answers a request in hand for a tag with a fixed buffer, whose pages the server has not registered.
    #[inline(always)]
    pub(super) fn answered_plainly(&mut self, port: &mut P, tag: u16, answer: Answer) {
        let Some(slot) = self.tags.get_mut(usize::from(tag)) else {
            return self.stale();
        };
        let tag = slot.tag;
        debug_assert!(self.buffers.is_none() && !self.registrations.is_done(tag));
        let (shared, descriptors) = (&self.shared, &self.descriptors);
        let failed = |result| shared.failed(descriptors, tag, result);
        let Some(result) = slot.commit(slot.state, answer, shared, failed) else {
            return;
        };
        let pushed = if self.batched {
            self.batch.add(slot.header, result, slot.addr)
        } else {
            port.push(&slot.commit, result, slot.addr).is_ok()
        };
        if !pushed {
            self.push_failed(tag);
        }
    }

    /// Takes the answers that were recorded outside a call of the handler.
    #[inline]
    pub(crate) fn take_answers(&mut self, port: &mut P) {
        if self.away > 0 {
            self.take_answers_now(port);
        }
    }

    fn take_answers_now(&mut self, port: &mut P) {
        while let Some((tag, answer, source)) = self.local.next_answer() {
            self.away -= 1;
            self.answered_from(port, tag, answer, source);
        }
        if !self.shared.remote.is_empty() {
            self.take_remote(port);
        }
    }

    /// Takes the answers that other threads recorded.
    fn take_remote(&mut self, port: &mut P) {
        if self.data == DataMode::GetData {
            let values = self.shared.values.clone();
            return self.take_remote_from(port, |tag| values.take(tag).unwrap_or(0));
        }
        self.take_remote_from(port, |_| 0);
    }

    /// Takes the answers that other threads recorded, with the address of a READ's data.
    #[inline(always)]
    fn take_remote_from(&mut self, port: &mut P, source: impl Fn(Tag) -> u64) {
        let shared = Arc::clone(&self.shared);
        shared.remote.drain(|tag, result| {
            let answer = match result {
                Ok(bytes) => Answer::full(bytes),
                Err(errno) => Answer::failed(errno),
            };
            self.away -= 1;
            self.answered_from(port, tag, answer, source(tag));
        });
    }

    /// Pushes the commit of a tag, or in batch mode adds its element (also for PREP).
    #[inline(always)]
    pub(super) fn push_commit(&mut self, port: &mut P, tag: Tag, result: i32) {
        if (H::OPERATIONS || H::FORWARDS) && !self.unregister(port, tag) {
            return self.push_failed(tag);
        }
        let slot = &self.tags[tag.index()];
        let pushed = if self.batched {
            self.batch.add(slot.header, result, slot.addr)
        } else {
            port.push(&slot.commit, result, slot.addr).is_ok()
        };
        if !pushed {
            self.push_failed(tag);
        }
    }

    /// Keeps a tag's answer when its command could not be pushed; it is pushed again after the next enter (L54). The
    /// submission queue has an entry for each tag, so this only happens if other entries take the room.
    #[cold]
    pub(super) fn push_failed(&mut self, tag: Tag) {
        let slot = &mut self.tags[tag.index()];
        (slot.state, _) = slot.state.step(Input::Cqe(Errno::EAGAIN.to_result()));
        self.retry.push_back(tag);
    }
}

impl<C> TagSlot<C> {
    /// Answers the request in hand in this slot: returns the result for the driver, or `None` if no request is in hand.
    #[inline(always)]
    pub(super) fn commit(
        &mut self,
        in_hand: TagState,
        answer: Answer,
        shared: &LaneShared,
        failed: impl FnOnce(i32),
    ) -> Option<i32> {
        let (next, action) = in_hand.step(Input::Answer(answer));
        let Some(Action::Commit(answer)) = action else {
            shared.meters.stale.add(1);
            return None;
        };
        self.state = next;
        if answer.result() < 0 {
            failed(answer.result());
        }
        Some(answer.result())
    }
}
