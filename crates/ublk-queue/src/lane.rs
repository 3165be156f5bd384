//! One queue of one device on a worker: its tags, descriptors, handler.

mod batching;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use ublk_core::iod::IoBounds;
use ublk_core::{Action, Answer, DataMode, Errno, Input, QueueId, Tag, TagState};
use ublk_sys::{
    UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_FETCH_REQ, UBLK_U_IO_NEED_GET_DATA, ublk_auto_buf_reg,
};

use crate::batch::Batch;
use crate::handler::Handler;
use crate::health::State;
use crate::memref::MemRef;
use crate::request::{Request, Slot};
use crate::seam::{Descriptors, IoCommand, Port};
use crate::shared::LaneShared;
use crate::user_data::UserData;
use crate::worker::LaneSpec;

/// How often a command that io_uring itself refuses (no memory, cancelled) is pushed again before
/// the queue gives up.
const MAX_RETRIES: u32 = 1000;

/// How many waits of [`ABORT_WAIT`] an ending queue grants the aborts that have not come yet.
const PATIENCE: u32 = 20;

/// How long one of them is.
pub(crate) const ABORT_WAIT: Duration = Duration::from_millis(5);

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

/// One queue as its worker holds it.
pub(crate) struct Lane<D, H> {
    /// The worker's number for this lane, and the lane's life.
    index: u16,
    generation: u16,
    /// What [`UserData::owner_of`] says of this life's words.
    owner: u64,
    pub(crate) qid: QueueId,
    pub(crate) bounds: IoBounds,
    pub(crate) descriptors: D,
    pub(crate) handler: H,
    pub(crate) shared: Arc<LaneShared>,
    tags: Box<[TagState]>,
    /// The handler took the request at hand along; for the time after a panic.
    detached: Cell<bool>,
    /// The tag whose request the handler has on this thread, for the time after a panic.
    current: Option<Tag>,
    /// Tags to be armed again after the next enter; never more than there are tags.
    retry: Vec<Tag>,
    retries: u32,
    /// Requests that handlers took along and have not answered.
    away: u32,
    leaving: bool,
    /// Tags that were with the driver when the first abort came, and have not come back since.
    outstanding: u32,
    /// How many more short waits those are worth.
    patience: u32,
    batched: bool,
    /// Batch: the driver has taken PREP.
    prepared: bool,
    data: DataMode,
    /// First index of this lane's buffers in the ring's table.
    buf_base: u16,
    /// The `addr` of each tag's next command: in copy mode always the tag's buffer, in get-data where a
    /// READ's data is, else 0.
    addrs: Box<[u64]>,
    /// The commands of batch mode, where that is the plan.
    batch: Option<Batch>,
    /// Tags of the fetch completion at hand.
    fetched: Vec<u16>,
    next_fetched: usize,
    /// Get-data: the tag's WRITE lies where the handler said.
    placed: Box<[bool]>,
}

impl<D: Descriptors, H: Handler> Lane<D, H> {
    pub(crate) fn new(index: u16, spec: LaneSpec<D, H>, shared: Arc<LaneShared>) -> Self {
        let depth = usize::from(spec.depth);
        let shared_qid = shared.qid.get();
        let addr = |tag| match (spec.data, Tag::new(tag)) {
            (DataMode::Copy, Ok(tag)) => shared.arena.addr(tag),
            _ => 0,
        };
        Self {
            index,
            generation: spec.generation,
            owner: UserData::owner_of(UserData::new(index, spec.generation, Tag::ZERO).pack()),
            qid: spec.qid,
            bounds: spec.bounds,
            descriptors: spec.descriptors,
            handler: spec.handler,
            addrs: (0..spec.depth).map(addr).collect(),
            shared,
            tags: vec![TagState::Idle; depth].into_boxed_slice(),
            detached: Cell::new(false),
            current: None,
            retry: Vec::with_capacity(depth),
            retries: 0,
            away: 0,
            leaving: false,
            outstanding: 0,
            patience: 0,
            batched: spec.batch,
            prepared: false,
            batch: spec
                .batch
                .then(|| Batch::new(shared_qid, spec.depth, spec.data, spec.buf_base)),
            fetched: Vec::with_capacity(usize::from(spec.depth)),
            next_fetched: 0,
            data: spec.data,
            buf_base: spec.buf_base,
            placed: vec![false; depth].into_boxed_slice(),
        }
    }

    /// True if a completion's word belongs to this life of the lane.
    #[inline]
    pub(crate) fn is_own(&self, word: u64) -> bool {
        UserData::owner_of(word) == self.owner
    }

    /// Gives every tag to the driver: by a fetch each, or by one PREP and a multishot fetch.
    pub(crate) fn fetch_all(&mut self, port: &mut impl Port) {
        for n in 0..self.tags.len() {
            if let Some(tag) = u16::try_from(n).ok().and_then(|n| Tag::new(n).ok()) {
                self.arm(port, tag);
            }
        }
        self.flush(port);
    }

    /// Takes the completion of a tag's command and carries out what follows.
    #[inline(always)]
    pub(crate) fn completed(
        &mut self,
        port: &mut impl Port,
        tag: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let Some(state) = self.tags.get_mut(usize::from(tag)) else {
            self.shared.meters.stale.add(1);
            return Ok(());
        };
        let (next, action) = state.step(Input::Cqe(res));
        let before = std::mem::replace(state, next);
        let Ok(tag) = Tag::new(tag) else {
            return Ok(());
        };
        if let Some(Action::Serve) = action {
            if self.leaving {
                self.came_back();
            }
            self.serve(port, tag);
            return Ok(());
        }
        self.not_served(port, before, tag, action)
    }

    /// The same, where it need not be quick.
    #[inline(never)]
    fn completed_seldom(
        &mut self,
        port: &mut impl Port,
        tag: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        self.completed(port, tag, res)
    }

    /// The rare outcomes of a command.
    #[cold]
    fn not_served(
        &mut self,
        port: &mut impl Port,
        before: TagState,
        tag: Tag,
        action: Option<Action>,
    ) -> Result<(), LaneError> {
        let Some(action) = action else { return Ok(()) };
        if action == Action::Stale {
            self.shared.meters.stale.add(1);
            return Ok(());
        }
        if self.leaving {
            self.came_back();
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
                self.retry.push(tag);
            }
            Action::Fault(errno) => {
                let command = match before {
                    TagState::Fetching if self.batched => "PREP_IO_CMDS",
                    TagState::Fetching => "FETCH_REQ",
                    TagState::GettingData => "NEED_GET_DATA",
                    _ if self.batched => "COMMIT_IO_CMDS",
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
            Action::Fetch | Action::Serve | Action::Commit(_) | Action::Stale => {}
        }
        Ok(())
    }

    #[inline(always)]
    fn serve(&mut self, port: &mut impl Port, tag: Tag) {
        let io = match self.descriptors.load(tag).decode(&self.bounds) {
            Ok(io) => io,
            Err(errno) => {
                return self.refuse(port, tag, errno);
            }
        };
        self.shared.meters.count(&io);
        self.current = Some(tag);
        let get_data = self.data == DataMode::GetData;
        let placed = get_data && std::mem::take(&mut self.placed[tag.index()]);
        // On the stack, so that an inlined handler's answer stays in registers.
        let slot = Cell::new(Slot::Held);
        let request = Request::new(
            &self.shared,
            &slot,
            &self.detached,
            tag,
            io,
            get_data,
            placed,
        );
        self.handler.handle(request);
        self.current = None;
        match slot.get() {
            Slot::Answered(answer, source) => self.answered_from(port, tag, answer, source),
            Slot::Held | Slot::Detached => self.taken_along(),
        }
    }

    /// A descriptor that no driver should write.
    #[cold]
    #[inline(never)]
    fn refuse(&mut self, port: &mut impl Port, tag: Tag, errno: Errno) {
        self.shared.meters.refused.add(1);
        self.answered_from(port, tag, Answer::failed(errno), 0);
    }

    #[cold]
    fn taken_along(&mut self) {
        self.detached.set(false);
        self.away += 1;
    }

    /// Get-data: names the place of a WRITE's data, the handler's choice or the tag's buffer.
    fn get_data(&mut self, port: &mut impl Port, tag: Tag) {
        let io = self.descriptors.load(tag).decode(&self.bounds);
        let place = io.ok().and_then(|io| {
            let fits = |place: &MemRef| u64::try_from(place.len()).is_ok_and(|len| len >= io.len);
            self.handler.place(&io).filter(fits)
        });
        self.placed[tag.index()] = place.is_some();
        self.addrs[tag.index()] =
            place.map_or_else(|| self.shared.arena.addr(tag), |place| place.addr());
        (self.tags[tag.index()], _) = self.tags[tag.index()].step(Input::Buffer);
        self.push(port, tag, UBLK_U_IO_NEED_GET_DATA, 0);
    }

    /// Answers a request whose data, in get-data mode, may be elsewhere than in the tag's buffer.
    #[inline(always)]
    fn answered_from(&mut self, port: &mut impl Port, tag: Tag, answer: Answer, source: u64) {
        if self.data == DataMode::GetData {
            let addr = if source == 0 {
                self.shared.arena.addr(tag)
            } else {
                source
            };
            self.addrs[tag.index()] = addr;
        }
        self.answered(port, tag, answer);
    }

    /// Answers a request that is in hand.
    #[inline(always)]
    fn answered(&mut self, port: &mut impl Port, tag: Tag, answer: Answer) {
        let state = &mut self.tags[tag.index()];
        let (next, action) = state.step(Input::Answer(answer));
        let Some(Action::Commit(answer)) = action else {
            self.shared.meters.stale.add(1);
            return;
        };
        *state = next;
        if answer.result() < 0 {
            self.shared.meters.errors.add(1);
        }
        self.push(port, tag, UBLK_U_IO_COMMIT_AND_FETCH_REQ, answer.result());
    }

    /// Takes the answers that other threads recorded.
    #[inline]
    pub(crate) fn take_remote(&mut self, port: &mut impl Port) {
        if !self.shared.remote.is_empty() {
            self.take_remote_now(port);
        }
    }

    fn take_remote_now(&mut self, port: &mut impl Port) {
        let shared = Arc::clone(&self.shared);
        shared.remote.drain(|tag, result| {
            let answer = match result {
                Ok(bytes) => Answer::full(bytes),
                Err(errno) => Answer::failed(errno),
            };
            self.away -= 1;
            self.answered_from(port, tag, answer, 0);
        });
    }

    /// Pushes again what failed and may now work.
    pub(crate) fn take_retries(&mut self, port: &mut impl Port) {
        for _ in 0..self.retry.len() {
            let tag = self.retry.remove(0);
            self.arm(port, tag);
        }
    }

    /// True if something waits to be pushed again.
    pub(crate) fn has_retries(&self) -> bool {
        !self.retry.is_empty()
            || self
                .batch
                .as_ref()
                .is_some_and(|batch| batch.is_due(self.prepared))
    }

    fn arm(&mut self, port: &mut impl Port, tag: Tag) {
        let (next, action) = self.tags[tag.index()].step(Input::Arm);
        if action == Some(Action::GetData) {
            return self.get_data(port, tag);
        }
        let (cmd_op, result) = match action {
            Some(Action::Fetch) => (UBLK_U_IO_FETCH_REQ, 0),
            Some(Action::Commit(answer)) => (UBLK_U_IO_COMMIT_AND_FETCH_REQ, answer.result()),
            _ => return,
        };
        self.tags[tag.index()] = next;
        self.push(port, tag, cmd_op, result);
    }

    #[inline(always)]
    fn push(&mut self, port: &mut impl Port, tag: Tag, cmd_op: u32, result: i32) {
        let addr = self.addrs[tag.index()];
        if let Some(batch) = &mut self.batch {
            if !batch.add(tag, result, addr) {
                self.push_failed(tag);
            }
            return;
        }
        let buf_reg = match self.data {
            // The tag's own slot of the ring's buffer table; a busy one comes back with NEED_REG_BUF.
            DataMode::ZeroCopy => {
                ublk_auto_buf_reg::new(self.buf_base + tag.get(), true).to_sqe_addr()
            }
            _ => 0,
        };
        let command = IoCommand {
            cmd_op,
            qid: self.qid,
            tag,
            result,
            addr,
            buf_reg,
        };
        let user_data = UserData::new(self.index, self.generation, tag).pack();
        if port.push(self.index, &command, user_data).is_err() {
            self.push_failed(tag);
        }
    }

    /// The submission queue has an entry for each tag, so this happens only when an entry is taken by
    /// something else; the tag is pushed again after the next enter, its answer kept (L54).
    #[cold]
    fn push_failed(&mut self, tag: Tag) {
        let (next, _) = self.tags[tag.index()].step(Input::Cqe(Errno::EAGAIN.to_result()));
        self.tags[tag.index()] = next;
        self.retry.push(tag);
    }

    fn leaving(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.shared.status.set(State::Leaving);
            let with_driver = self.tags.iter().filter(|tag| tag.with_driver()).count();
            self.outstanding = u32::try_from(with_driver).unwrap_or(u32::MAX);
            self.patience = PATIENCE;
        }
    }

    /// A tag came back from the driver after the first abort.
    #[cold]
    fn came_back(&mut self) {
        self.outstanding = self.outstanding.saturating_sub(1);
        self.patience = PATIENCE;
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
    pub(crate) fn recover_from_panic(&mut self, port: &mut impl Port) -> bool {
        let Some(tag) = self.current.take() else {
            return false;
        };
        self.shared.meters.panics.add_shared(1);
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
        let sent = self
            .batch
            .as_ref()
            .is_none_or(|batch| !batch.in_flight() && !batch.is_open());
        let aborted = self.outstanding == 0 || self.patience == 0;
        self.leaving
            && aborted
            && sent
            && self.retry.is_empty()
            && !self.tags.iter().any(|tag| tag.in_hand())
    }

    /// Requests that handlers took along and have not answered.
    pub(crate) fn away(&self) -> u32 {
        self.away
    }
}

impl<D, H> Lane<D, H> {
    /// True while the driver may touch the buffers.
    fn driver_has_tags(&self) -> bool {
        let elems = self.batch.as_ref().is_some_and(Batch::in_flight);
        elems || (!self.leaving && self.tags.iter().any(|tag| tag.with_driver()))
    }
}

impl<D, H> Drop for Lane<D, H> {
    /// However the worker ends: closing a ring is no barrier, so the driver may still write to the buffers and read
    /// the elements of batch commands (L09). They are leaked on purpose; the address range ends with the process.
    fn drop(&mut self) {
        if self.driver_has_tags() {
            std::mem::forget(Arc::clone(&self.shared));
            std::mem::forget(self.batch.take());
        }
    }
}
