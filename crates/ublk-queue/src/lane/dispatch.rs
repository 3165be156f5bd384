//! The way of a request: from the completion of its tag's command to its handler, and from there to the commit.

use std::cell::Cell;

use ublk_core::iod::{Io, IoBounds};
use ublk_core::{Action, Answer, DataMode, Errno, Input, Tag, TagState};

use super::ending::{DataLocation, PATIENCE};
use super::{Lane, LaneError, MAX_RETRIES, NOBODY, TagSlot};
use crate::batch::Batch;
use crate::handler::Handler;
use crate::port::{Descriptors, Port};
use crate::request::{Known, Outcome, Request};
use crate::shared::LaneShared;

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Takes the completion of a tag's command and carries out what follows: the way of every request of a
    /// [quick](Self::quick) lane.
    #[inline(always)]
    pub(crate) fn completed(&mut self, port: &mut P, tag: u16, res: i32) -> Result<(), LaneError> {
        self.dispatch::<true, false>(port, tag, res)
    }

    /// `PLAIN`: see [`Lane::quick`]; `BATCHED`, which only matters then: the answer goes into a batch. What is
    /// known here need not be asked for each request.
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
        if !PLAIN && self.leaving {
            // Not `self.came_back()`, which would end the borrow of the place.
            self.patience = PATIENCE;
            let expected = std::mem::take(&mut self.expected[tag.index()]);
            self.outstanding -= u32::from(expected);
        }
        if !PLAIN && let Some(buffers) = &mut self.buffers {
            buffers.lend(tag);
        }
        let io = match Self::decode(&self.descriptors, &self.shared, self.max_io_bytes, tag) {
            Ok(io) => io,
            Err(errno) => {
                place.state = TagState::InHand;
                self.refuse(port, tag, errno);
                return Ok(());
            }
        };
        if Self::REGISTERS && self.registrations.wants(tag, &io) {
            place.state = TagState::InHand;
            self.register_first(port, tag);
            return Ok(());
        }
        self.shared.meters.count(&io);
        let get_data = !PLAIN && self.data == DataMode::GetData;
        let lies = get_data.then(|| std::mem::take(&mut self.placed[tag.index()]));
        let lies = lies.unwrap_or_default();
        if !PLAIN && lies == DataLocation::Panicked {
            place.state = TagState::InHand;
            self.answered_from(port, tag, Answer::failed(Errno::EIO), 0);
            return Ok(());
        }
        self.current = tag.get();
        // On the stack, so that an inlined handler's answer stays in registers.
        let outcome = Cell::new(Outcome::Held);
        let known = Self::known(PLAIN, get_data, lies);
        let request = Request::new(&self.local, &outcome, &self.detached, tag, io, known);
        self.handler.handle(request);
        self.current = NOBODY;
        let Outcome::Answered(answer, source) = outcome.get() else {
            place.state = TagState::InHand;
            self.not_answered(port, tag, io, outcome.get());
            return Ok(());
        };
        if !PLAIN {
            place.state = TagState::InHand;
            self.answered_from(port, tag, answer, source);
            return Ok(());
        }
        let batch = BATCHED.then_some(&mut self.batch);
        if !place.commit_to(port, batch, answer, (&self.shared, &self.descriptors)) {
            self.push_failed(tag);
        }
        Ok(())
    }

    /// What a request knows of its lane.
    #[inline(always)]
    fn known(plain: bool, get_data: bool, lies: DataLocation) -> Known {
        Known {
            ready: plain && !H::SHARED,
            any_source: get_data,
            placed: lies == DataLocation::Handler,
            backed: H::BACKING.is_some(),
            closed: H::CLOSED.is_closed(),
        }
    }

    /// The request of a tag, by its descriptor.
    ///
    /// # Errors
    /// What a request that no driver should send is refused with.
    #[inline(always)]
    fn decode(
        descriptors: &D,
        shared: &LaneShared,
        max_io_bytes: u32,
        tag: Tag,
    ) -> Result<Io, Errno> {
        let desc = descriptors.load(tag);
        let bounds = IoBounds::new(shared.size(), max_io_bytes);
        let io = match H::ZONES {
            true => desc.decode(&bounds)?,
            false => desc.decode_unzoned(&bounds)?,
        };
        if H::SHARED {
            shared.locate(tag, &desc, &io)?;
        }
        Ok(io)
    }

    /// The handler has not answered: it took the request along, or it goes to a file.
    #[inline(always)]
    fn not_answered(&mut self, port: &mut P, tag: Tag, io: Io, outcome: Outcome) {
        match outcome {
            Outcome::Forwarded(to) if H::FORWARDS => self.forward(port, tag, io, to),
            Outcome::Forwarded(_) => {
                self.answered_from(port, tag, Answer::failed(Errno::EOPNOTSUPP), 0);
            }
            _ => self.taken_along(),
        }
    }

    pub(super) fn taken_along(&mut self) {
        self.detached.set(false);
        self.away += 1;
    }

    /// The same of any lane, where it need not be as quick.
    #[inline(never)]
    pub(crate) fn completed_seldom(
        &mut self,
        port: &mut P,
        tag: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        self.dispatch::<false, false>(port, tag, res)
    }

    /// The rare outcomes of a command.
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

    /// A descriptor that no driver should write.
    #[cold]
    #[inline(never)]
    pub(super) fn refuse(&mut self, port: &mut P, tag: Tag, errno: Errno) {
        self.shared.meters.refused.add(1);
        self.answered_from(port, tag, Answer::failed(errno), 0);
    }
}

impl<C> TagSlot<C> {
    /// Commits the answer of a request in hand by a command, or an element of the batch. False if there is no room.
    #[inline(always)]
    fn commit_to<P: Port<Command = C>>(
        &mut self,
        port: &mut P,
        batch: Option<&mut Batch>,
        answer: Answer,
        (shared, descriptors): (&LaneShared, &impl Descriptors),
    ) -> bool {
        let tag = self.tag;
        let failed = |result| shared.failed(descriptors, tag, result);
        match self.commit(TagState::InHand, answer, shared, failed) {
            None => true,
            Some(result) => match batch {
                Some(batch) => batch.add(self.header, result, self.addr),
                None => port.push(&self.commit, result, self.addr).is_ok(),
            },
        }
    }
}
