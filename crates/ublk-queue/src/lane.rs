//! One queue of one device on a worker: its tags, descriptors, handler.

mod answering;
mod batching;
mod calls;
mod ending;
mod forward;
mod handle;
mod registering;
mod spec;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use ublk_core::iod::IoBounds;
use ublk_core::{Action, Answer, DataMode, Errno, Input, QueueId, Tag, TagState};
use ublk_sys::{
    UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_FETCH_REQ, UBLK_U_IO_NEED_GET_DATA, ublk_auto_buf_reg,
};

pub(crate) use self::ending::{ABORT_WAIT, Panicked};
use self::ending::{DataLocation, OnUnwind, PATIENCE};
use self::forward::Forwards;
pub use self::handle::LaneHandle;
use self::registering::Registrations;
pub use self::spec::{LaneSpec, Share};
use crate::backing::Keeper;
use crate::batch::{self, Batch};
use crate::buffers::BufferPool;
use crate::handler::{Handler, LaneContext};
use crate::memref::MemRef;
use crate::operations::{Operation, Operations, RingId};
use crate::port::{Completion, Descriptors, IoCommand, Port};
use crate::request::{Known, Outcome, Request};
use crate::shared::{LaneLocal, LaneShared};
use crate::user_data::{Kind, NO_OWNER, UserData};

/// How often a command that io_uring itself refuses (no memory, cancelled) is pushed again before
/// the queue gives up.
const MAX_RETRIES: u32 = 1000;

/// No tag.
const NOBODY: u16 = u16::MAX;

/// Why a lane ended before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The driver refused a command.
    #[error("queue {qid}, tag {tag}: the driver refused {command}: {errno}")]
    Refused {
        /// Hw queue.
        qid: QueueId,
        /// Tag.
        tag: Tag,
        /// Which command, in the kernel's words.
        command: &'static str,
        /// The driver's errno.
        errno: Errno,
    },
    /// io_uring could not take a command, again and again.
    #[error(
        "queue {qid}, tag {tag}: io_uring could not take a command {MAX_RETRIES} times: {errno}"
    )]
    Retries {
        /// Hw queue.
        qid: QueueId,
        /// Tag.
        tag: Tag,
        /// The last errno.
        errno: Errno,
    },
}

/// What a lane keeps of a tag.
pub(crate) struct TagSlot<C> {
    state: TagState,
    /// Which tag it is: so the number in a completion, which finds the place, need not be checked once more.
    tag: Tag,
    /// The `addr` of the tag's next command: in copy mode always the tag's buffer, in get-data where a READ's
    /// data is, else 0.
    addr: u64,
    /// Batch: the header of this tag's answer.
    header: u64,
    /// The commit-and-fetch of this tag.
    commit: C,
}

/// One queue as its worker holds it.
pub(crate) struct Lane<P: Port, D, H> {
    /// The worker's number for this lane, and the lane's life.
    index: u16,
    generation: u16,
    /// What [`UserData::owner_of`] says of this life's words.
    pub(crate) owner: u64,
    tags: Box<[TagSlot<P::Command>]>,
    pub(crate) descriptors: D,
    max_io_bytes: u32,
    pub(crate) handler: H,
    /// Keeps the memory that the handler names to the driver.
    backing: Option<Keeper>,
    local: Rc<LaneLocal>,
    pub(crate) shared: Arc<LaneShared>,
    /// The handler took the request at hand along; for the time after a panic.
    detached: Cell<bool>,
    /// The tag whose request the handler has on this thread, or [`NOBODY`]; for the time after a panic.
    current: u16,
    /// What else the handler was doing when it panicked.
    panicked: Cell<Option<Panicked>>,
    data: DataMode,
    /// User copy, get-data: the tags have their buffers for the length of a request.
    buffers: Option<BufferPool>,
    /// The owner whose tags go the quick way: the lane's own while data is in the tag's buffer or nowhere, no zones are to
    /// be thought of, and the lane is not ending; else nobody.
    pub(crate) quick: u64,
    /// The device is zoned: an answer may carry where an append landed.
    zoned: bool,
    leaving: bool,
    /// Requests that handlers took along and have not answered.
    away: u32,
    /// Tags to be armed again after the next enter; never more than there are tags.
    retry: VecDeque<Tag>,
    retries: u32,
    /// Which tags were with the driver when the first abort came, and have not come back since; and how many.
    expected: Box<[bool]>,
    outstanding: u32,
    /// How many more short waits those are worth.
    patience: u32,
    pub(crate) qid: QueueId,
    /// First index of this lane's buffers in the ring's table.
    buf_base: u16,
    /// First slot of the plan's files in the ring's table.
    files: u32,
    ring: RingId,
    /// The commands of batch mode; nothing is added where that is not the plan.
    batch: Batch,
    batched: bool,
    /// Batch: the user data of the fetch; of nothing elsewhere.
    fetch_word: u64,
    /// Batch: the driver has taken PREP.
    prepared: bool,
    /// Tags of the fetch completion at hand.
    fetched: Vec<u16>,
    next_fetched: usize,
    /// Get-data: where the tag's WRITE lies.
    placed: Box<[DataLocation]>,
    /// Requests that the engine takes to files.
    forwards: Forwards,
    /// Requests that wait for a slot of the ring's table, or have one, on behalf of a handler with operations.
    registrations: Registrations,
    share: Share,
}

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    pub(crate) fn new(
        index: u16,
        mut spec: LaneSpec<D, H>,
        shared: Arc<LaneShared>,
        buffers: Option<BufferPool>,
        port: &P,
        context: &LaneContext,
    ) -> Self {
        let depth = usize::from(spec.depth);
        let shared_qid = shared.qid.get();
        let place = |tag| {
            let addr = match spec.data {
                DataMode::Copy => shared.arena.addr(tag),
                _ => 0,
            };
            let buf_reg = match spec.data {
                // The tag's own slot of the ring's buffer table; a busy one comes back with NEED_REG_BUF.
                DataMode::ZeroCopy => {
                    ublk_auto_buf_reg::new(spec.buf_base + tag.get(), true).to_sqe_addr()
                }
                _ => 0,
            };
            let command = IoCommand {
                cmd_op: UBLK_U_IO_COMMIT_AND_FETCH_REQ,
                qid: spec.qid,
                tag,
                result: 0,
                addr,
                buf_reg,
            };
            let word = UserData::new(index, spec.generation, tag).pack();
            TagSlot {
                state: TagState::Idle,
                tag,
                addr,
                header: batch::header(tag, spec.buf_base),
                commit: port.prepare(index, &command, word),
            }
        };
        let tags = (0..spec.depth).filter_map(|tag| Tag::new(tag).ok());
        let tags = tags.map(place).collect();
        spec.handler.attach(context);
        let owner = UserData::owner_of(UserData::new(index, spec.generation, Tag::ZERO).pack());
        Self {
            index,
            generation: spec.generation,
            owner,
            quick: match spec.data {
                DataMode::GetData | DataMode::UserCopy => NO_OWNER,
                _ if spec.zoned => NO_OWNER,
                _ => owner,
            },
            tags,
            share: spec.share,
            qid: spec.qid,
            max_io_bytes: spec.bounds.max_io_bytes,
            descriptors: spec.descriptors,
            backing: H::BACKING.keeper(&spec.handler),
            handler: spec.handler,
            local: Rc::new(LaneLocal::new(Arc::clone(&shared), spec.depth)),
            shared,
            detached: Cell::new(false),
            current: NOBODY,
            panicked: Cell::new(None),
            retry: VecDeque::with_capacity(depth),
            retries: 0,
            away: 0,
            leaving: false,
            expected: vec![false; depth].into_boxed_slice(),
            outstanding: 0,
            patience: 0,
            prepared: false,
            batched: spec.batch,
            fetch_word: UserData::batch(index, spec.generation, Kind::Fetch, 0).pack(),
            batch: match spec.batch {
                true => Batch::new(shared_qid, spec.depth, spec.data, spec.zoned),
                false => Batch::default(),
            },
            fetched: Vec::with_capacity(usize::from(spec.depth)),
            next_fetched: 0,
            data: spec.data,
            buffers,
            zoned: spec.zoned,
            buf_base: spec.buf_base,
            files: spec.files,
            ring: context.ring,
            placed: vec![DataLocation::Buffer; depth].into_boxed_slice(),
            forwards: match H::FORWARDS {
                true => Forwards::new(spec.depth, spec.file_count),
                false => Forwards::default(),
            },
            registrations: match H::OPERATIONS || H::FORWARDS {
                true => Registrations::new(spec.depth, spec.data),
                false => Registrations::default(),
            },
        }
    }

    /// The handler's operations may name the pages of its requests. What is forwarded is registered by that.
    const REGISTERS: bool = H::OPERATIONS && !H::FORWARDS;

    /// True if a completion's word belongs to this life of the lane.
    #[inline]
    pub(crate) fn is_own(&self, word: u64) -> bool {
        UserData::owner_of(word) == self.owner
    }

    /// Gives every tag to the driver: by a fetch each, or by one PREP and a multishot fetch.
    pub(crate) fn fetch_all(&mut self, port: &mut P) {
        for n in 0..self.tags.len() {
            let Some(tag) = u16::try_from(n).ok().and_then(|n| Tag::new(n).ok()) else {
                continue;
            };
            if tag.get() % self.share.step == self.share.first {
                self.arm(port, tag);
            } else if self.batched {
                // Another lane prepares it, and this one's fetch may bring it.
                (self.tags[n].state, _) = self.tags[n].state.step(Input::Arm);
            }
        }
        self.flush(port);
    }

    /// Takes the completion of a tag's command and carries out what follows: the way of every request of a
    /// [quick](Self::quick) lane.
    #[inline(always)]
    pub(crate) fn completed(&mut self, port: &mut P, tag: u16, res: i32) -> Result<(), LaneError> {
        self.dispatch::<true, false>(port, tag, res)
    }

    /// `PLAIN`: see [`Lane::quick`]; `BATCHED`, which only matters then: the answer goes into a batch. What is
    /// known here need not be asked for each request.
    #[inline(always)]
    fn dispatch<const PLAIN: bool, const BATCHED: bool>(
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
        // Where every tag is that is to be served.
        let in_hand = TagState::InHand;
        if !PLAIN && self.leaving {
            // Not `self.came_back()`, which would end the borrow of the place.
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

    /// Takes the completion of anything but a tag's command.
    #[inline(never)]
    pub(crate) fn other_completed(
        &mut self,
        port: &mut P,
        completion: &Completion,
    ) -> Result<(), LaneError> {
        let Some(word) = UserData::unpack(completion.user_data) else {
            return Ok(());
        };
        let number = word.tag;
        match word.kind {
            Kind::Tag => self.completed_seldom(port, number, completion.res),
            Kind::Fetch => self.fetch_completed(port, completion),
            Kind::Prep => self.elems_completed(port, true, number, completion.res),
            Kind::Commit => self.elems_completed(port, false, number, completion.res),
            Kind::Operation => {
                let operation = Operation {
                    place: number,
                    turn: word.turn,
                };
                self.operation_completed(operation, completion.res, completion.flags);
                Ok(())
            }
            Kind::Forward if Self::REGISTERS => {
                self.register_completed(port, number, completion.res)
            }
            Kind::Forward => self.forward_completed(port, number, word.turn, completion.res),
            Kind::Sync => {
                self.sync_completed(port, number, completion.res);
                Ok(())
            }
            // What it was pushed with tells: the commit behind it, or the file's operation.
            Kind::Unregister => Ok(()),
        }
    }

    /// Lets a handler with operations of its own push them. True if it has more to do.
    #[inline]
    pub(crate) fn turn(&mut self, port: &mut P) -> bool {
        if !H::OPERATIONS {
            return false;
        }
        let mut ring = Operations {
            port,
            lane: self.index,
            generation: self.generation,
            files: self.files,
            ring: self.ring,
        };
        let guard = OnUnwind::new(&self.panicked, Panicked::Turn);
        let more = self.handler.turn(&mut ring);
        guard.disarm();
        more
    }

    /// A completion of no command in flight: counted and ignored (L53).
    #[cold]
    pub(crate) fn stale(&self) {
        self.shared.meters.stale.add(1);
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
    fn refuse(&mut self, port: &mut P, tag: Tag, errno: Errno) {
        self.shared.meters.refused.add(1);
        self.answered_from(port, tag, Answer::failed(errno), 0);
    }

    fn taken_along(&mut self) {
        self.detached.set(false);
        self.away += 1;
    }

    /// Get-data: names the place of a WRITE's data, the handler's choice or the tag's buffer.
    fn get_data(&mut self, port: &mut P, tag: Tag) {
        let bounds = IoBounds::new(self.shared.size(), self.max_io_bytes);
        let io = self.descriptors.load(tag).decode(&bounds);
        let place = io.ok().and_then(|io| self.place_of(tag, &io));
        let lies = match place {
            Some(_) => DataLocation::Handler,
            None => DataLocation::Buffer,
        };
        self.get_data_at(port, tag, lies, place);
    }

    fn get_data_at(
        &mut self,
        port: &mut P,
        tag: Tag,
        lies: DataLocation,
        place: Option<MemRef<'static>>,
    ) {
        self.placed[tag.index()] = lies;
        if let Some(buffers) = &mut self.buffers {
            buffers.lend(tag);
        }
        let addr = place.map_or_else(|| self.shared.arena.addr(tag), |place| place.addr());
        let place = &mut self.tags[tag.index()];
        place.addr = addr;
        (place.state, _) = place.state.step(Input::Buffer);
        self.push_other(port, tag, UBLK_U_IO_NEED_GET_DATA);
    }

    /// Pushes again what failed and may now work.
    pub(crate) fn take_retries(&mut self, port: &mut P) {
        self.push_stalled(port);
        self.push_stalled_registers(port);
        // Those that fail once more come behind.
        for _ in 0..self.retry.len() {
            if let Some(tag) = self.retry.pop_front() {
                self.arm(port, tag);
            }
        }
    }

    /// True while the lane ends, or has commands to push again.
    #[inline]
    pub(crate) fn is_unusual(&self) -> bool {
        // Not `||`: all of it is looked at anyway, and without branches.
        self.leaving | self.has_retries()
    }

    /// True if something waits to be pushed again.
    #[inline]
    pub(crate) fn has_retries(&self) -> bool {
        !self.retry.is_empty()
            || (H::FORWARDS && self.forwards.is_stalled())
            || (Self::REGISTERS && self.registrations.is_stalled())
            || (self.batched && self.batch.is_due(self.prepared))
    }

    fn arm(&mut self, port: &mut P, tag: Tag) {
        let place = &mut self.tags[tag.index()];
        let (next, action) = place.state.step(Input::Arm);
        match action {
            Some(Action::GetData) => self.get_data(port, tag),
            Some(Action::Fetch) => {
                place.state = next;
                if self.batched {
                    return self.push_commit(port, tag, 0);
                }
                self.push_other(port, tag, UBLK_U_IO_FETCH_REQ);
            }
            Some(Action::Commit(answer)) => {
                place.state = next;
                self.push_commit(port, tag, answer.result());
            }
            _ => {}
        }
    }

    /// Pushes another command of a tag.
    fn push_other(&mut self, port: &mut P, tag: Tag, cmd_op: u32) {
        let addr = self.tags[tag.index()].addr;
        let buf_reg = match self.data {
            DataMode::ZeroCopy => {
                ublk_auto_buf_reg::new(self.buf_base + tag.get(), true).to_sqe_addr()
            }
            _ => 0,
        };
        let command = IoCommand {
            cmd_op,
            qid: self.qid,
            tag,
            result: 0,
            addr,
            buf_reg,
        };
        let word = UserData::new(self.index, self.generation, tag).pack();
        let command = port.prepare(self.index, &command, word);
        if port.push(&command, 0, addr).is_err() {
            self.push_failed(tag);
        }
    }

    /// Requests that handlers took along, or the engine to a file, and that are not answered.
    pub(crate) fn away(&self) -> u32 {
        self.away + self.forwards.count
    }
}
