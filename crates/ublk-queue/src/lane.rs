//! A lane: one queue of one device on a worker, with its tags, descriptors and handler.

mod aborts;
mod answering;
mod batching;
mod calls;
mod dispatch;
mod ending;
mod forward;
mod get_data;
mod handle;
mod measuring;
mod registering;
mod spec;
mod split;

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
use self::measuring::Round;
use self::registering::Registrations;
pub use self::spec::{LaneSpec, Share};
pub(crate) use self::split::width;
use crate::backing::Keeper;
use crate::batch::{self, Batch};
use crate::buffers::BufferPool;
use crate::handler::{Handler, LaneContext};
use crate::operations::{Operation, Operations, RingId};
use crate::port::{Completion, Descriptors, IoCommand, Port};
use crate::recording::Attached;
use crate::shared::{LaneLocal, LaneShared};
use crate::user_data::{Kind, NO_OWNER, UserData};

/// How often a command that io_uring itself refuses (no memory, cancelled) is pushed again before the queue fails.
const MAX_RETRIES: u32 = 1000;

/// No tag.
const NOBODY: u16 = u16::MAX;

/// Why a lane ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaneError {
    /// The driver refused a command.
    #[error("queue {qid}, tag {tag}: the driver refused {command}: {errno}")]
    Refused {
        /// The hw queue.
        qid: QueueId,
        /// Tag.
        tag: Tag,
        /// The command, in the kernel's words.
        command: &'static str,
        /// The driver's errno.
        errno: Errno,
    },
    /// io_uring repeatedly failed to take a command.
    #[error(
        "queue {qid}, tag {tag}: io_uring could not take a command {MAX_RETRIES} times: {errno}"
    )]
    Retries {
        /// The hw queue.
        qid: QueueId,
        /// Tag.
        tag: Tag,
        /// The last errno.
        errno: Errno,
    },
}

/// A lane's state for one tag.
pub(crate) struct TagSlot<C> {
    state: TagState,
    /// The tag, so that the number in a completion, which finds the slot, need not be checked again.
    tag: Tag,
    /// The `addr` of the tag's next command: in copy mode the tag's buffer, in get-data mode the address of a READ's
    /// data, else 0.
    addr: u64,
    /// Batch mode: the header of this tag's answer.
    header: u64,
    /// The commit-and-fetch command of this tag.
    commit: C,
}

impl<C> TagSlot<C> {
    /// The slot of a tag for which no command has been pushed.
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
            // The tag's own slot of the ring's buffer table; if it is in use, the request comes with NEED_REG_BUF.
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

/// One queue, owned by its worker.
pub(crate) struct Lane<P: Port, D, H> {
    /// Index of this lane on its worker, and its generation.
    index: u16,
    generation: u16,
    /// The owner in the words of this generation; see [`UserData::owner_of`].
    pub(crate) owner: u64,
    tags: Box<[TagSlot<P::Command>]>,
    pub(crate) descriptors: D,
    max_io_bytes: u32,
    pub(crate) handler: H,
    /// Keeps alive the memory that the handler names to the driver.
    backing: Option<Keeper>,
    local: Rc<LaneLocal>,
    pub(crate) shared: Arc<LaneShared>,
    /// The handler took the current request along; read after a panic.
    detached: Cell<bool>,
    /// The tag whose request the handler has on this thread, or [`NOBODY`]; read after a panic.
    current: u16,
    /// What else the handler was doing when it panicked.
    panicked: Cell<Option<Panicked>>,
    data: DataMode,
    /// User copy and get-data: buffers that tags get for the duration of a request.
    buffers: Option<BufferPool>,
    /// The owner whose tags take the fast path: the lane's own while data is in the tag's buffer or absent, the device
    /// is not zoned, and the lane is not ending; else nobody.
    pub(crate) quick: u64,
    /// The value of `quick` of a lane that is not ending and takes no latencies.
    plain_owner: u64,
    /// The owner in the words of operations that take the fast path ([`Lane::forward_owner`]).
    forward_word: u64,
    /// Requests that outlive their round are stamped: latencies are measured.
    timed: bool,
    /// Requests in hand that are noted.
    noted: u32,
    /// Answers take stamps and notes: there may be some.
    watched: bool,
    /// There is something to do for a tag before its commit, besides the commit: one flag for all of it.
    before_commit: bool,
    round: Round,
    /// Takes the requests that end, while latencies are measured.
    recorder: Option<Box<Attached>>,
    /// The device is zoned: an answer may carry the sector of an append.
    zoned: bool,
    leaving: bool,
    /// Number of requests that handlers took along and have not answered.
    away: u32,
    /// Tags to be armed again after the next enter; at most one entry per tag.
    retry: VecDeque<Tag>,
    retries: u32,
    aborts: Aborts,
    pub(crate) qid: QueueId,
    /// Index of this lane's first buffer in the ring's buffer table.
    buf_base: u16,
    /// First slot of the plan's files in the ring's file table.
    files: u32,
    ring: RingId,
    /// The commands of batch mode; unused in other plans.
    batch: Batch,
    batched: bool,
    /// Batch mode: `user_data` of the fetch; matches nothing in other plans.
    fetch_word: u64,
    /// Batch mode: the driver has taken PREP.
    prepared: bool,
    /// Tags of the current fetch completion.
    fetched: Vec<u16>,
    next_fetched: usize,
    /// Get-data: the location of each tag's WRITE data.
    placed: Box<[DataLocation]>,
    /// Requests that the engine forwards to files.
    forwards: Forwards,
    /// Requests that wait for a slot of the buffer table, or have one, for a handler with operations.
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
        let plain_owner = match spec.data {
            DataMode::GetData | DataMode::UserCopy => NO_OWNER,
            _ if spec.zoned => NO_OWNER,
            _ => owner,
        };
        Self {
            index,
            generation: spec.generation,
            owner,
            quick: plain_owner,
            plain_owner,
            forward_word: owner | (Kind::Forward as u64) << 48,
            timed: false,
            noted: 0,
            watched: false,
            before_commit: buffers.is_some(),
            round: Round::NONE,
            recorder: None,
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
                true => Forwards::new(spec.depth, spec.file_count, H::SPLITS),
                false => Forwards::default(),
            },
            registrations: match H::OPERATIONS || H::FORWARDS {
                true => Registrations::new(spec.depth, spec.data),
                false => Registrations::default(),
            },
        }
    }

    /// The handler's operations may use the pages of its requests. Forwarded requests are registered with their
    /// operation.
    const REGISTERS: bool = H::OPERATIONS && !H::FORWARDS;

    /// True if a completion's word belongs to this generation of the lane.
    #[inline]
    pub(crate) fn is_own(&self, word: u64) -> bool {
        UserData::owner_of(word) == self.owner
    }

    /// Gives every tag to the driver: with a fetch each, or with one PREP and a multishot fetch.
    pub(crate) fn fetch_all(&mut self, port: &mut P) {
        for n in 0..self.tags.len() {
            let Some(tag) = u16::try_from(n).ok().and_then(|n| Tag::new(n).ok()) else {
                continue;
            };
            if tag.get() % self.share.step == self.share.first {
                self.arm(port, tag);
            } else if self.batched {
                // Another lane prepares it, and this one's fetch may deliver it.
                (self.tags[n].state, _) = self.tags[n].state.step(Input::Arm);
            }
        }
        self.flush(port);
    }

    /// Handles the completion of anything except a tag's command.
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
                    slot: number,
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
            // The completion that was pushed with it reports the failure: the commit's, or the file operation's.
            Kind::Unregister => Ok(()),
        }
    }

    /// Lets a handler with operations push them. True if it has more to do.
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
        if self.leaving && self.away == 0 {
            self.handler.drain();
        }
        let more = self.handler.turn(&mut ring);
        guard.disarm();
        more
    }

    /// Counts a completion without a command in flight, which is ignored (L53).
    #[cold]
    pub(crate) fn stale(&self) {
        self.shared.meters.stale.add(1);
    }

    /// Pushes failed commands again.
    pub(crate) fn take_retries(&mut self, port: &mut P) {
        self.push_stalled(port);
        self.push_stalled_registers(port);
        // Those that fail again are appended.
        for _ in 0..self.retry.len() {
            if let Some(tag) = self.retry.pop_front() {
                self.arm(port, tag);
            }
        }
    }

    /// True while the lane is ending, or has commands to push again.
    #[inline]
    pub(crate) fn is_unusual(&self) -> bool {
        // Not `||`: both are evaluated anyway, and this needs no branch.
        self.leaving | self.has_retries()
    }

    /// True if a command waits to be pushed again.
    #[inline]
    pub(crate) fn has_retries(&self) -> bool {
        !self.retry.is_empty()
            || (H::FORWARDS && self.forwards.is_stalled())
            || (Self::REGISTERS && self.registrations.is_stalled())
            || (self.batched && self.batch.is_due(self.prepared))
    }

    fn arm(&mut self, port: &mut P, tag: Tag) {
        let slot = &mut self.tags[tag.index()];
        let (next, action) = slot.state.step(Input::Arm);
        match action {
            Some(Action::GetData) => self.get_data(port, tag),
            Some(Action::Fetch) => {
                slot.state = next;
                if self.batched {
                    return self.push_commit(port, tag, 0);
                }
                self.push_other(port, tag, UBLK_U_IO_FETCH_REQ);
            }
            Some(Action::Commit(answer)) => {
                slot.state = next;
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

    /// Number of unanswered requests that handlers took along or the engine forwarded.
    pub(crate) fn away(&self) -> u32 {
        self.away + self.forwards.count
    }
}
