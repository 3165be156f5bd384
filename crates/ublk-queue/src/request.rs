//! A request of the block layer, as an owned token.
//!
//! Completing only records the answer; the worker turns records into commands. There is no length
//! in an answer: the engine commits the full count or an errno (L11). A token dropped without an
//! answer is answered with EIO and counted. Soundness never depends on that `Drop`: a leaked token
//! leaves its tag uncommitted, and its buffer untouched by anybody.
#![expect(
    unsafe_code,
    reason = "the one token of a tag gives out the tag's buffer"
)]

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use ublk_core::iod::Io;
use ublk_core::{Answer, Errno, IoFlags, Op, QueueId, Tag};

use crate::shared::LaneShared;

/// What became of the request that the worker gave to its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The handler holds the token.
    Held,
    /// Answered on the worker's own thread.
    Answered(Answer),
    /// Taken along: the answer will come through [`LaneShared::answer`].
    Detached,
}

/// The answer the driver gets for a handler's result.
#[inline]
fn answer_of(io: &Io, result: Result<(), Errno>) -> Answer {
    match result {
        // Data is at most 32 MiB, so the conversion holds; without data the count is 0.
        Ok(()) if io.op.has_data() => Answer::full(u32::try_from(io.len).unwrap_or(0)),
        Ok(()) => Answer::full(0),
        Err(errno) => Answer::failed(errno),
    }
}

macro_rules! accessors {
    () => {
        /// The operation.
        #[inline]
        #[must_use]
        pub const fn op(&self) -> Op {
            self.io.op
        }

        /// The flags of the request.
        #[inline]
        #[must_use]
        pub const fn flags(&self) -> IoFlags {
            self.io.flags
        }

        /// First byte; 0 for FLUSH.
        #[inline]
        #[must_use]
        pub const fn offset(&self) -> u64 {
            self.io.offset
        }

        /// Bytes; 0 for FLUSH.
        #[inline]
        #[must_use]
        pub const fn len(&self) -> u64 {
            self.io.len
        }

        /// True for a FLUSH, which has no range.
        #[inline]
        #[must_use]
        pub const fn is_empty(&self) -> bool {
            self.io.len == 0
        }

        /// The hw queue the request came from.
        #[inline]
        #[must_use]
        pub fn qid(&self) -> QueueId {
            self.lane.qid
        }

        /// The tag of the request.
        #[inline]
        #[must_use]
        pub const fn tag(&self) -> Tag {
            self.tag
        }

        /// The data of a WRITE; empty for other operations.
        #[inline]
        #[must_use]
        pub fn data(&self) -> &[u8] {
            let len = if matches!(self.io.op, Op::Write) {
                self.data_len()
            } else {
                0
            };
            // SAFETY: `self` is the tag's only token and is borrowed for the life of the slice; it
            // holds (or borrows from what holds) the lane's shared part and so the arena.
            unsafe { self.lane.arena.slice(self.tag, len) }
        }

        /// Where the data of a READ goes; empty for other operations. Zeroes, or old data of this
        /// device, at entry: fill all of it or fail (L05).
        #[inline]
        #[must_use]
        pub fn data_mut(&mut self) -> &mut [u8] {
            let len = if matches!(self.io.op, Op::Read) {
                self.data_len()
            } else {
                0
            };
            // SAFETY: as in `data`, and `self` is borrowed exclusively.
            unsafe { self.lane.arena.slice_mut(self.tag, len) }
        }

        #[inline]
        fn data_len(&self) -> usize {
            // Checked against the buffer's size by the decoder; the arena checks again.
            usize::try_from(self.io.len).unwrap_or(usize::MAX)
        }
    };
}

/// A request on its worker's thread. Not `Send`: [`Request::detach`] makes one that is.
pub struct Request<'a> {
    lane: &'a Arc<LaneShared>,
    slot: &'a Cell<Slot>,
    tag: Tag,
    io: Io,
}

impl<'a> Request<'a> {
    /// The only token of `tag`, which the driver has just handed over.
    #[inline]
    pub(crate) fn new(lane: &'a Arc<LaneShared>, slot: &'a Cell<Slot>, tag: Tag, io: Io) -> Self {
        slot.set(Slot::Held);
        Self {
            lane,
            slot,
            tag,
            io,
        }
    }

    accessors!();

    /// Answers the request: success of all of it, or an errno.
    #[inline]
    pub fn complete(self, result: Result<(), Errno>) {
        let this = ManuallyDrop::new(self);
        this.slot.set(Slot::Answered(answer_of(&this.io, result)));
    }

    /// Takes the request along, to be answered later and from any thread.
    #[must_use]
    pub fn detach(self) -> OwnedRequest {
        let this = ManuallyDrop::new(self);
        this.slot.set(Slot::Detached);
        OwnedRequest {
            lane: Arc::clone(this.lane),
            tag: this.tag,
            io: this.io,
        }
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.lane.meters.dropped.add_shared(1);
        self.slot.set(Slot::Answered(Answer::failed(Errno::EIO)));
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("tag", &self.tag)
            .field("io", &self.io)
            .finish()
    }
}

/// A request that any thread may hold and answer.
pub struct OwnedRequest {
    lane: Arc<LaneShared>,
    tag: Tag,
    io: Io,
}

impl OwnedRequest {
    accessors!();

    /// Answers the request and wakes its worker if that sleeps.
    pub fn complete(self, result: Result<(), Errno>) {
        let answer = answer_of(&self.io, result);
        self.record(answer);
    }

    /// Answers EIO for a handler that panicked, and counts it (L25).
    pub(crate) fn panicked(self) {
        self.lane.meters.panics.add_shared(1);
        self.record(Answer::failed(Errno::EIO));
    }

    fn record(self, answer: Answer) {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used again nor dropped, so the Arc is moved out exactly once.
        let lane = unsafe { std::ptr::read(&raw const this.lane) };
        lane.answer(this.tag, answer);
    }
}

impl Drop for OwnedRequest {
    fn drop(&mut self) {
        self.lane.meters.dropped.add_shared(1);
        self.lane.answer(self.tag, Answer::failed(Errno::EIO));
    }
}

impl fmt::Debug for OwnedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedRequest")
            .field("tag", &self.tag)
            .field("io", &self.io)
            .finish()
    }
}
