//! What the tasks of a lane share on its thread: the pool of operations, who is ready, and the requests that are not
//! answered.
#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::task::{Context, Waker};

use ublk_core::iod::Io;
use ublk_core::{Errno, IoFlags, Op, QueueId};

use super::pool::{Pool, Sink, WakeBy};
use super::ready::Ready;
use super::slots::Panicked;
use crate::buffers::Arena;
use crate::operations::{Operation, RingId};
use crate::port::Wake;
use crate::request::KeptRequest;
use crate::shared::Words;

/// How a task ended.
pub(super) type Ended = Result<Result<(), Errno>, Panicked>;

/// One tag's request, as far as its task's future is not concerned.
pub(super) struct Tag {
    io: Cell<Io>,
    /// Where the tag's buffer is; null before the first request, and where nobody reaches the bytes.
    memory: Cell<*mut u8>,
    /// How many hold on to the request: its `TaskRequest`, and its buffer where that was taken out. Until there are
    /// none it is not answered.
    leases: Cell<u8>,
    /// In the list of those to be polled.
    queued: Cell<bool>,
    /// The request, from the first poll that was not ready on.
    token: Cell<Option<KeptRequest>>,
    /// How the task ended, when the request could not be answered then.
    ended: Cell<Option<Ended>>,
}

impl Tag {
    const fn new() -> Self {
        const NONE: Io = Io::new(Op::Flush, IoFlags(0), 0, 0);
        Self {
            io: Cell::new(NONE),
            memory: Cell::new(std::ptr::null_mut()),
            leases: Cell::new(0),
            queued: Cell::new(false),
            token: Cell::new(None),
            ended: Cell::new(None),
        }
    }

    /// Whether somebody holds on to the request.
    #[inline(always)]
    pub(super) fn is_leased(&self) -> bool {
        self.leases.get() != 0
    }
}

pub(super) struct Core {
    pub(super) pool: Pool,
    pub(super) ready: Ready,
    pub(super) qid: QueueId,
    /// The ring that operations go to.
    pub(super) ring: RingId,
    /// Index of tag 0's buffer in the ring's table, in zero copy.
    pub(super) registered: Option<u16>,
    /// Where a tag's append has landed; of a zoned device.
    pub(super) words: Words,
    /// A tag's buffer is its own, so where it is need be asked only once.
    own_buffers: bool,
    tags: Box<[Tag]>,
    /// Tags to be polled, woken on this thread by operations.
    local: RefCell<Vec<u16>>,
    /// The requests' buffers, from the lane's end on: for whoever still holds one, the kernel included.
    buffers: Cell<Option<Arena>>,
}

impl Core {
    pub(super) fn new(
        tags: u16,
        operations: u16,
        wake: Arc<dyn Wake>,
        (qid, ring): (QueueId, RingId),
        registered: Option<u16>,
        own_buffers: bool,
        words: Words,
    ) -> Self {
        let depth = usize::from(tags);
        Self {
            pool: Pool::new(operations, 4 * depth),
            ready: Ready::new(tags, wake),
            qid,
            ring,
            registered,
            own_buffers,
            words,
            tags: (0..tags).map(|_| Tag::new()).collect(),
            local: RefCell::new(Vec::with_capacity(depth)),
            buffers: Cell::new(None),
        }
    }

    /// The lane ends: requests that are not answered are let go, and with them what the lane had, such as the character
    /// device. What operations under way, or buffers that somebody holds, still need stays: the buffers alone (L63).
    pub(super) fn end(&self) {
        for state in &self.tags {
            if let Some(token) = state.token.take() {
                self.buffers.set(Some(token.leave_unanswered()));
            }
        }
        self.pool.close_descriptors();
    }

    /// How the task of a poll is woken: by its tag where that will do.
    pub(super) fn wake_by(&self, waker: &Waker) -> WakeBy {
        match self.ready.tag_of(waker) {
            Some(tag) => WakeBy::Tag(tag),
            None => WakeBy::Other(waker.clone()),
        }
    }

    pub(super) fn wake(&self, by: WakeBy) {
        match by {
            WakeBy::Nobody => {}
            WakeBy::Tag(tag) => self.make_ready(tag),
            WakeBy::Other(waker) => waker.wake(),
        }
    }

    /// Puts a tag among those to be polled, once.
    pub(super) fn make_ready(&self, tag: u16) {
        let Some(state) = self.tags.get(usize::from(tag)) else {
            return;
        };
        if !state.queued.replace(true) {
            self.local.borrow_mut().push(tag);
        }
    }

    /// Takes those to be polled to `tags`, in place of what is there.
    #[inline]
    pub(super) fn take_ready(&self, tags: &mut Vec<u16>) {
        tags.clear();
        if !self.ready.is_empty() {
            self.ready.drain(|tag| self.make_ready(tag));
        }
        std::mem::swap(&mut *self.local.borrow_mut(), tags);
        for tag in tags.iter() {
            self.tags[usize::from(*tag)].queued.set(false);
        }
    }

    /// True if nobody is to be polled.
    #[inline(always)]
    pub(super) fn nobody_ready(&self) -> bool {
        self.ready.is_empty() && self.local.borrow().is_empty()
    }

    /// A request of a tag begins, with the one lease of its `TaskRequest`. `memory` says where its buffer is.
    #[inline(always)]
    pub(super) fn begin(&self, tag: usize, io: Io, memory: impl FnOnce() -> *mut u8) -> &Tag {
        let state = &self.tags[tag];
        state.io.set(io);
        state.leases.set(1);
        let ours = || self.registered.is_none() || io.flags.in_shared_memory();
        if (!self.own_buffers || state.memory.get().is_null()) && ours() {
            state.memory.set(memory());
        }
        state
    }

    /// What a tag's request is, while somebody has a lease of it.
    #[inline(always)]
    pub(super) fn io(&self, tag: usize) -> Io {
        self.tags[tag].io.get()
    }

    /// Where a tag's buffer is.
    pub(super) fn memory(&self, tag: usize) -> *mut u8 {
        self.tags[tag].memory.get()
    }

    /// How many hold on to a tag's request.
    pub(super) fn leases(&self, tag: usize) -> u8 {
        self.tags[tag].leases.get()
    }

    /// One more holds on to a tag's request.
    pub(super) fn lease(&self, tag: usize) {
        let leases = &self.tags[tag].leases;
        leases.set(leases.get() + 1);
    }

    /// One fewer does: a request whose task has ended is answered when there are none.
    #[inline(always)]
    pub(super) fn release(&self, tag: usize) {
        let state = &self.tags[tag];
        let left = state.leases.get() - 1;
        state.leases.set(left);
        if left == 0 && state.ended.get().is_some() {
            self.answer_ended(tag);
        }
    }

    #[cold]
    fn answer_ended(&self, tag: usize) {
        if let Some(ended) = self.tags[tag].ended.take() {
            self.answer(tag, ended);
        }
    }

    /// Keeps the request of a task that goes on.
    #[inline]
    pub(super) fn keep(&self, tag: usize, token: KeptRequest) {
        self.tags[tag].token.set(Some(token));
    }

    /// Answers the request of a task that has ended, or notes the answer while somebody holds on to it.
    pub(super) fn finish(&self, tag: usize, ended: Ended) {
        let state = &self.tags[tag];
        if state.leases.get() != 0 {
            state.ended.set(Some(ended));
        } else {
            self.answer(tag, ended);
        }
    }

    fn answer(&self, tag: usize, ended: Ended) {
        let Some(token) = self.tags[tag].token.take() else {
            return;
        };
        match ended {
            Ok(result) => token.complete(result),
            Err(Panicked) => token.panicked(),
        }
    }

    /// Takes a completion of an operation.
    pub(super) fn completed(&self, operation: Operation, res: i32, flags: u32) {
        let woken = self.pool.completed(operation, res, flags);
        self.wake(woken);
    }

    /// Gives the kernel what is queued. False if not all of it could go.
    #[inline]
    pub(super) fn flush(&self, sink: &mut impl Sink) -> bool {
        !self.pool.has_orders() || self.pool.flush(sink, |woken| self.wake(woken))
    }

    pub(super) fn abandon(
        &self,
        operation: Operation,
        buffer: impl FnOnce() -> Option<Box<dyn Any>>,
    ) {
        let woken = self.pool.abandon(operation, buffer);
        self.wake(woken);
    }

    pub(super) fn result(&self, operation: Operation, cx: &Context<'_>) -> Option<i32> {
        let (res, woken) = self.pool.result(operation, || self.wake_by(cx.waker()))?;
        self.wake(woken);
        Some(res)
    }
}
