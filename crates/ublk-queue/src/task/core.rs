//! State shared by the tasks of a lane on its thread: the pool of operations, the ready tasks, and the requests that
//! are not answered.
#![forbid(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Weak};
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
use crate::shared::{LaneShared, TagValues};

/// The result of a task.
pub(super) type Ended = Result<Result<(), Errno>, Panicked>;

/// A tag's request, apart from its future.
pub(super) struct Tag {
    io: Cell<Io>,
    /// Address of the tag's buffer; null before the first request, and in modes in which the server cannot access the
    /// bytes.
    memory: Cell<*mut u8>,
    /// Number of leases of the request: its `TaskRequest`, and its buffer if that was taken. The request is not
    /// answered before it is 0.
    leases: Cell<u8>,
    /// The tag is in the ready list.
    queued: Cell<bool>,
    /// The request's token, from its first pending poll on.
    token: Cell<Option<KeptRequest>>,
    /// The task's result, if the request could not be answered at its end.
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

    /// Whether somebody holds a lease of the request.
    #[inline(always)]
    pub(super) fn is_leased(&self) -> bool {
        self.leases.get() != 0
    }
}

pub(super) struct Core {
    pub(super) pool: Pool,
    pub(super) ready: Ready,
    pub(super) qid: QueueId,
    /// The ring of the operations.
    pub(super) ring: RingId,
    /// Index of tag 0's buffer in the ring's table, in zero-copy mode.
    pub(super) registered: Option<u16>,
    /// The sectors of appends, on a zoned device.
    pub(super) values: TagValues,
    /// Not held: a core that operations keep alive for ever must not keep the lane.
    pub(super) lane: Weak<LaneShared>,
    /// Each tag has a fixed buffer, whose address is looked up only once.
    own_buffers: bool,
    tags: Box<[Tag]>,
    /// Ready tags that operations woke on this thread.
    local: RefCell<Vec<u16>>,
    /// The requests' buffers once the lane has ended, for leases that still exist, including those of the kernel.
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
        (values, lane): (TagValues, Weak<LaneShared>),
    ) -> Self {
        let depth = usize::from(tags);
        Self {
            pool: Pool::new(operations, 4 * depth),
            ready: Ready::new(tags, wake),
            qid,
            ring,
            registered,
            own_buffers,
            values,
            lane,
            tags: (0..tags).map(|_| Tag::new()).collect(),
            local: RefCell::new(Vec::with_capacity(depth)),
            buffers: Cell::new(None),
        }
    }

    /// Ends the lane: drops unanswered requests, and with them the lane's resources such as the character device. Only
    /// the buffers stay, for operations in flight and for buffers that tasks still hold (L63).
    pub(super) fn end(&self) {
        for state in &self.tags {
            if let Some(token) = state.token.take() {
                self.buffers.set(Some(token.leave_unanswered()));
            }
        }
        self.pool.close_descriptors();
    }

    /// How to wake the task that is being polled: by its tag if possible.
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

    /// Marks a tag as ready, once.
    pub(super) fn make_ready(&self, tag: u16) {
        let Some(state) = self.tags.get(usize::from(tag)) else {
            return;
        };
        if !state.queued.replace(true) {
            self.local.borrow_mut().push(tag);
        }
    }

    /// Moves the ready tags to `tags`, replacing its content.
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

    /// True if no tag is ready.
    #[inline(always)]
    pub(super) fn nobody_ready(&self) -> bool {
        self.ready.is_empty() && self.local.borrow().is_empty()
    }

    /// Begins a tag's request, with the one lease of its `TaskRequest`. `memory` returns the address of its buffer.
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

    /// The descriptor of a tag's request, while somebody has a lease of it.
    #[inline(always)]
    pub(super) fn io(&self, tag: usize) -> Io {
        self.tags[tag].io.get()
    }

    /// The address of a tag's buffer.
    pub(super) fn memory(&self, tag: usize) -> *mut u8 {
        self.tags[tag].memory.get()
    }

    /// Number of leases of a tag's request.
    pub(super) fn leases(&self, tag: usize) -> u8 {
        self.tags[tag].leases.get()
    }

    /// Adds a lease of a tag's request.
    pub(super) fn lease(&self, tag: usize) {
        let leases = &self.tags[tag].leases;
        leases.set(leases.get() + 1);
    }

    /// Returns a lease. The request of a task that has ended is answered with the last one.
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

    /// Keeps the token of a pending task.
    #[inline]
    pub(super) fn keep(&self, tag: usize, token: KeptRequest) {
        self.tags[tag].token.set(Some(token));
    }

    /// Answers the request of a task that has ended, or records the answer while a lease exists.
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

    /// Handles the completion of an operation.
    pub(super) fn completed(&self, operation: Operation, res: i32, flags: u32) {
        let woken = self.pool.completed(operation, res, flags);
        self.wake(woken);
    }

    /// Submits queued entries. False if some did not fit.
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
