//! Recording: every request that ends, passed to a recorder of its lane.
//!
//! A recorder is attached and detached between two rounds of the lane's thread, by exchange: the thread neither allocates
//! nor frees. Lanes record only while they measure latencies, whose path knows when each request arrived; without a
//! recorder that path costs nothing.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ublk_core::{Errno, Op, QueueId};

/// A request that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// The hw queue.
    pub qid: QueueId,
    /// Its op.
    pub op: Op,
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes; 0 for a flush.
    pub len: u64,
    /// When the batch that brought it began: nanoseconds since the recording began.
    pub began: u64,
    /// Nanoseconds from then to its answer.
    pub took: u64,
    /// The errno it was answered with.
    pub errno: Option<Errno>,
}

/// Takes the requests of a lane.
pub trait Recorder: Send {
    /// Takes a request, on the thread that serves the lane: the call must not block, allocate or panic.
    fn record(&mut self, request: &Recorded);
}

/// A recorder, and what a lane knows of the recording.
pub(crate) struct Attached {
    to: Box<dyn Recorder>,
    /// When the recording began.
    since: Instant,
    /// The zero of the lane's clock, and when the recording began by it, in nanoseconds.
    clock: Instant,
    zero: u64,
    /// Tags whose request arrived before the recorder: when is not known.
    before: Box<[bool]>,
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").finish_non_exhaustive()
    }
}

impl Attached {
    pub(crate) fn new(to: Box<dyn Recorder>, since: Instant, depth: u16) -> Box<Self> {
        Box::new(Self {
            to,
            since,
            clock: since,
            zero: 0,
            before: vec![false; usize::from(depth)].into_boxed_slice(),
        })
    }

    /// Begins to record on a lane with this clock, and these tags in hand.
    pub(crate) fn begin(&mut self, clock: Instant, in_hand: impl Iterator<Item = bool>) {
        let zero = self.since.saturating_duration_since(clock).as_nanos();
        (self.clock, self.zero) = (clock, u64::try_from(zero).unwrap_or(u64::MAX));
        for (before, now) in self.before.iter_mut().zip(in_hand) {
            *before = now;
        }
    }

    /// Whether the tag's request arrived before the recorder; asked once, when it is answered.
    pub(crate) fn came_before(&mut self, tag: usize) -> bool {
        let before = self.before.get_mut(tag);
        before.is_some_and(|before| std::mem::replace(before, false))
    }

    /// Records a request that began at this time of the lane's clock and ends now.
    pub(crate) fn record(&mut self, mut request: Recorded, began: u64) {
        let now = crate::measure::nanos_since(self.clock);
        request.began = began.saturating_sub(self.zero);
        request.took = now.saturating_sub(began);
        self.to.record(&request);
    }
}

/// Where a lane's thread finds the recorder that it shall have, and leaves the one that it had.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    wanted: AtomicBool,
    place: Mutex<Option<Box<Attached>>>,
}

impl Exchange {
    /// Leaves a recorder for the lane, or takes its recorder away. The lane is told by a request for a level.
    pub(crate) fn want(&self, attached: Option<Box<Attached>>) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        *place = attached;
        self.wanted.store(true, Ordering::Release);
    }

    /// The lane's side: takes what was left. True if that is new. Never waits for longer than a store takes.
    pub(crate) fn take(&self, current: &mut Option<Box<Attached>>) -> bool {
        if !self.wanted.load(Ordering::Acquire) {
            return false;
        }
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *place, current);
        self.wanted.store(false, Ordering::Release);
        true
    }

    /// Whether the lane has taken what was left; its earlier recorder can be freed then.
    pub(crate) fn is_taken(&self) -> bool {
        !self.wanted.load(Ordering::Acquire)
    }

    /// Frees what the lane has left, or has not taken.
    pub(crate) fn clear(&self) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
