//! One queue of one device on a worker: its tags, descriptors, handler.

mod aborts;
mod answering;
mod batching;
mod calls;
mod dispatch;
mod ending;
mod forward;
mod get_data;
mod handle;
mod registering;
mod spec;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use ublk_core::{Action, DataMode, Errno, Input, QueueId, Tag, TagState};
use ublk_sys::{UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_FETCH_REQ, ublk_auto_buf_reg};

pub(crate) use self::aborts::ABORT_WAIT;
use self::aborts::Aborts;
pub(crate) use self::ending::Panicked;
use self::ending::{DataLocation, OnUnwind};
use self::forward::Forwards;
pub use self::handle::LaneHandle;
use self::registering::Registrations;
pub use self::spec::{LaneSpec, Share};
use crate::backing::Keeper;
use crate::batch::{self, Batch};
use crate::buffers::BufferPool;
use crate::handler::{Handler, LaneContext};
use crate::operations::{Operation, Operations, RingId};
use crate::port::{Completion, Descriptors, IoCommand, Port};
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

impl<C> TagSlot<C> {
    /// The slot of a tag whose command nobody has pushed.
    fn new<P, D, H>(
        index: u16,
        spec: &LaneSpec<D, H>,
        shared: &LaneShared,
        tag: Tag,
        port: &P,
    ) -> Self
    where
        P: Port<Command = C>,
    {
        let (addr, buf_reg) = match spec.data {
            DataMode::Copy => (shared.arena.addr(tag), 0),
            // The tag's own slot of the ring's buffer table; a busy one comes back with NEED_REG_BUF.
            DataMode::ZeroCopy => {
                let slot = ublk_auto_buf_reg::new(spec.buf_base + tag.get(), true);
                (0, slot.to_sqe_addr())
            }
            _ => (0, 0),
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
        Self {
            state: TagState::Idle,
            tag,
            addr,
            header: batch::header(tag, spec.buf_base),
            commit: port.prepare(index, &command, word),
        }
    }
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
    aborts: Aborts,
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
        let slot = |tag| TagSlot::new(index, &spec, &shared, tag, port);
        let tags = (0..spec.depth).filter_map(|tag| Tag::new(tag).ok());
        let tags = tags.map(slot).collect();
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
            aborts: Aborts::new(depth),
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
