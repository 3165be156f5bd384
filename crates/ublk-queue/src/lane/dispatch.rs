//! The path of a request: from the completion of its tag's command to the handler, and from its answer to the commit.

use std::cell::Cell;

use ublk_core::iod::{Io, IoBounds};
use ublk_core::{Action, Answer, DataMode, Errno, Input, IoDesc, Tag, TagState};

use super::ending::DataLocation;
use super::{Lane, LaneError, MAX_RETRIES, NOBODY};
use crate::handler::Handler;
use crate::port::{Descriptors, Port};
use crate::request::{Known, Outcome, Request};
use crate::shared::LaneShared;

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Handles the completion of a tag's command on a [quick](Self::quick) lane: the hot path.
    #[inline(always)]
    pub(crate) fn completed(&mut self, port: &mut P, tag: u16, res: i32) -> Result<(), LaneError> {
        self.dispatch::<true, false>(port, tag, res)
    }

    /// Handles the completion of a tag's command: decodes the descriptor, calls the handler, commits its answer.
    ///
    /// `PLAIN`: the lane is [quick](Lane::quick). `BATCHED`, with `PLAIN` only: the answer goes into a batch. Both are
    /// constants, so that nothing known per lane is tested per request.
    #[inline(always)]
    pub(super) fn dispatch<const PLAIN: bool, const BATCHED: bool>(
        &mut self,
        port: &mut P,
        tag: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let Some(slot) = self.tags.get_mut(usize::from(tag)) else {
            self.stale();
            return Ok(());
        };
        let tag = slot.tag;
        if !matches!(slot.state.step(Input::Cqe(res)).1, Some(Action::Serve)) {
            return self.not_served(port, tag, res);
        }
        if !PLAIN && self.leaving {
            self.aborts.came_back(tag);
        }
        if !PLAIN && let Some(buffers) = &mut self.buffers {
            buffers.lend(tag);
        }
        let desc = self.descriptors.load(tag);
        let io = match decode::<H>(&self.shared, self.max_io_bytes, tag, &desc) {
            Ok(io) => io,
            Err(errno) => {
                self.refuse(port, tag, errno);
                return Ok(());
            }
        };
        if Self::REGISTERS && self.registrations.wants(tag, &io) {
            self.stamp_early(tag, io.op);
            self.register_first(port, tag);
            return Ok(());
        }
        self.shared.meters.count(&io);
        let get_data = !PLAIN && self.data == DataMode::GetData;
        let location = get_data.then(|| std::mem::take(&mut self.placed[tag.index()]));
        let location = location.unwrap_or_default();
        if !PLAIN && location == DataLocation::Panicked {
            slot.state = TagState::InHand;
            self.answered_from(port, tag, Answer::failed(Errno::EIO), 0);
            return Ok(());
        }
        self.current = tag.get();
        // On the stack, so that an inlined handler's answer stays in registers.
        let outcome = Cell::new(Outcome::Held);
        let known = Known::of::<H>(PLAIN, get_data, location == DataLocation::Handler);
        let request = Request::new(&self.local, &outcome, &self.detached, tag, io, known);
        self.handler.handle(request);
        self.current = NOBODY;
        let outcome = outcome.get();
        if PLAIN && let Outcome::Answered(answer, _) = outcome {
            let failed = |result| self.shared.failed(&self.descriptors, tag, result);
            let pushed = match slot.commit(TagState::InHand, answer, &self.shared, failed) {
                Some(result) if BATCHED => self.batch.add(slot.header, result, slot.addr),
                Some(result) => port.push(&slot.commit, result, slot.addr).is_ok(),
                None => true,
            };
            if !pushed {
                self.push_failed(tag);
            }
            return Ok(());
        }
        slot.state = TagState::InHand;
        if !PLAIN && self.timed && !matches!(outcome, Outcome::Answered(..)) {
            self.stamp(tag, io.op);
        }
        match outcome {
            Outcome::Answered(answer, source) => self.answered_from(port, tag, answer, source),
            Outcome::Forwarded(to) => self.forward(port, tag, io, to),
            Outcome::Held | Outcome::Detached => self.taken_along(),
        }
        Ok(())
    }

    pub(super) fn taken_along(&mut self) {
        self.detached.set(false);
        self.away += 1;
    }

    /// [`completed`](Self::completed) for any lane, out of line.
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
            self.aborts.came_back(tag);
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
        self.tags[tag.index()].state = TagState::InHand;
        self.shared.meters.refused.add(1);
        self.drop_stamp(tag);
        self.answered_from(port, tag, Answer::failed(errno), 0);
    }
}

/// Decodes a request's descriptor, and locates data in memory that the client shares.
#[inline(always)]
fn decode<H: Handler>(
    shared: &LaneShared,
    max_io_bytes: u32,
    tag: Tag,
    desc: &IoDesc,
) -> Result<Io, Errno> {
    let bounds = IoBounds::new(shared.size(), max_io_bytes);
    let io = match H::ZONES {
        true => desc.decode(&bounds),
        false => desc.decode_unzoned(&bounds),
    };
    if H::CLIENT_MEMORY
        && let Ok(io) = &io
    {
        shared.locate(tag, desc, io)?;
    }
    io
}
