//! The path of a request: from the completion of its tag's command to the handler, and from its answer to the commit.

use std::cell::Cell;

use ublk_core::iod::IoBounds;
use ublk_core::{Action, Answer, DataMode, Errno, Input, Tag, TagState};

use super::ending::{DataLocation, PATIENCE};
use super::{Lane, LaneError, MAX_RETRIES, NOBODY};
use crate::handler::Handler;
use crate::port::{Descriptors, Port};
use crate::request::{Known, Outcome, Request};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Handles the completion of a tag's command on a [quick](Self::quick) lane: the hot path.
    #[inline(always)]
    pub(crate) fn completed(&mut self, port: &mut P, tag: u16, res: i32) -> Result<(), LaneError> {
        self.dispatch::<true, false>(port, tag, res)
    }

    /// Handles the completion of a tag's command: decodes the descriptor, calls the handler, commits its answer.
    ///
    /// `PLAIN`: the lane is [quick](Lane::quick). `BATCHED`, with `PLAIN` only: the answer goes into a batch. Both are
    /// constants, so that nothing is tested for each request that is known per lane.
    #[inline(always)]
    pub(super) fn dispatch<const PLAIN: bool, const BATCHED: bool>(
        &mut self,
        port: &mut P,
        tag: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let Some(place) = self.tags.get_mut(usize::from(tag)) else {
            self.stale();
            return Ok(());
        };
        let tag = place.tag;
        if !matches!(place.state.step(Input::Cqe(res)).1, Some(Action::Serve)) {
            return self.not_served(port, tag, res);
        }
        // The state of every tag whose request is to be served.
        let in_hand = TagState::InHand;
        if !PLAIN && self.leaving {
            // Not `self.came_back()`, which would borrow all of `self`.
            self.patience = PATIENCE;
            let expected = std::mem::take(&mut self.expected[tag.index()]);
            self.outstanding -= u32::from(expected);
        }
        if !PLAIN && let Some(buffers) = &mut self.buffers {
            buffers.lend(tag);
        }
        let desc = self.descriptors.load(tag);
        let bounds = IoBounds::new(self.shared.size(), self.max_io_bytes);
        let decoded = match H::ZONES {
            true => desc.decode(&bounds),
            false => desc.decode_unzoned(&bounds),
        };
        let io = match decoded {
            Ok(io) => io,
            Err(errno) => {
                place.state = in_hand;
                self.refuse(port, tag, errno);
                return Ok(());
            }
        };
        if H::SHARED
            && let Err(errno) = self.shared.locate(tag, &desc, &io)
        {
            place.state = in_hand;
            self.refuse(port, tag, errno);
            return Ok(());
        }
        if Self::REGISTERS && self.registrations.wants(tag, &io) {
            place.state = in_hand;
            self.register_first(port, tag);
            return Ok(());
        }
        self.shared.meters.count(&io);
        let get_data = !PLAIN && self.data == DataMode::GetData;
        let lies = match get_data {
            true => std::mem::take(&mut self.placed[tag.index()]),
            false => DataLocation::Buffer,
        };
        if !PLAIN && lies == DataLocation::Panicked {
            place.state = in_hand;
            self.answered_from(port, tag, Answer::failed(Errno::EIO), 0);
            return Ok(());
        }
        let placed = lies == DataLocation::Handler;
        self.current = tag.get();
        // On the stack, so that an inlined handler's answer stays in registers.
        let outcome = Cell::new(Outcome::Held);
        let request = Request::new(
            &self.local,
            &outcome,
            &self.detached,
            tag,
            io,
            Known {
                ready: PLAIN && !H::SHARED,
                any_source: get_data,
                placed,
                backed: H::BACKING.is_some(),
                closed: H::CLOSED.is_closed(),
            },
        );
        self.handler.handle(request);
        self.current = NOBODY;
        let (answer, source) = match outcome.get() {
            Outcome::Answered(answer, source) => (answer, source),
            Outcome::Forwarded(to) if H::FORWARDS => {
                place.state = in_hand;
                self.forward(port, tag, io, to);
                return Ok(());
            }
            Outcome::Forwarded(_) => (Answer::failed(Errno::EOPNOTSUPP), 0),
            Outcome::Held | Outcome::Detached => {
                place.state = in_hand;
                self.taken_along();
                return Ok(());
            }
        };
        if !PLAIN {
            place.state = in_hand;
            self.answered_from(port, tag, answer, source);
            return Ok(());
        }
        let (shared, descriptors) = (&self.shared, &self.descriptors);
        let failed = |result| shared.failed(descriptors, tag, result);
        let result = place.commit(in_hand, answer, shared, failed);
        let pushed = match result {
            Some(result) if BATCHED => self.batch.add(place.header, result, place.addr),
            Some(result) => port.push(&place.commit, result, place.addr).is_ok(),
            None => true,
        };
        if !pushed {
            self.push_failed(tag);
        }
        Ok(())
    }

    pub(super) fn taken_along(&mut self) {
        self.detached.set(false);
        self.away += 1;
    }

    /// The same for any lane, out of line.
    #[inline(never)]
    pub(crate) fn completed_seldom(
        &mut self,
        port: &mut P,
        tag: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        self.dispatch::<false, false>(port, tag, res)
    }

    /// Handles a completion after which there is nothing to serve: abort, refusal, retry, get-data, stale.
    #[cold]
    #[inline(never)]
    fn not_served(&mut self, port: &mut P, tag: Tag, res: i32) -> Result<(), LaneError> {
        let before = self.tags[tag.index()].state;
        let (next, action) = before.step(Input::Cqe(res));
        self.tags[tag.index()].state = next;
        let Some(action) = action else { return Ok(()) };
        if action == Action::Stale {
            self.stale();
            return Ok(());
        }
        if self.leaving {
            self.came_back(tag);
        }
        match action {
            Action::Ended => self.leaving(),
            Action::RetryLater(errno) => {
                self.retries += 1;
                if self.retries > MAX_RETRIES {
                    return Err(LaneError::Retries {
                        qid: self.qid,
                        tag,
                        errno,
                    });
                }
                self.retry.push_back(tag);
            }
            Action::Fault(errno) => {
                let batched = self.batched;
                let command = match before {
                    TagState::Fetching if batched => "PREP_IO_CMDS",
                    TagState::Fetching => "FETCH_REQ",
                    TagState::GettingData => "NEED_GET_DATA",
                    _ if batched => "COMMIT_IO_CMDS",
                    _ => "COMMIT_AND_FETCH_REQ",
                };
                return Err(LaneError::Refused {
                    qid: self.qid,
                    tag,
                    command,
                    errno,
                });
            }
            Action::GetData => self.get_data(port, tag),
            _ => {}
        }
        Ok(())
    }

    /// Answers a request whose descriptor is invalid.
    #[cold]
    #[inline(never)]
    pub(super) fn refuse(&mut self, port: &mut P, tag: Tag, errno: Errno) {
        self.shared.meters.refused.add(1);
        self.answered_from(port, tag, Answer::failed(errno), 0);
    }
}
