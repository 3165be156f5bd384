//! The observable state of a running server: state, first error, counters.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ublk_core::iod::Io;
use ublk_core::{CpuMask, Errno, Op, QueueId};
use ublk_metrics::{Batches, Operation};

use crate::age::Oldest;
use crate::buffers::Pages;
use crate::measure::kind_of;

/// Life-cycle state of a lane or of a whole server. Ordered: the state of a server is that of its worst lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum State {
    /// Threads are being set up; the driver has not taken every fetch.
    Arming,
    /// Every fetch is with the driver; START_DEV may be sent.
    Armed,
    /// At least one request has arrived.
    Serving,
    /// Aborts have arrived; requests in hand are being finished.
    Leaving,
    /// Nothing is in hand or with the driver: the normal end.
    Empty,
    /// The lane ended with an error.
    Failed,
}

impl State {
    const ALL: [Self; 6] = [
        Self::Arming,
        Self::Armed,
        Self::Serving,
        Self::Leaving,
        Self::Empty,
        Self::Failed,
    ];

    /// The state as one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arming => "arming",
            Self::Armed => "armed",
            Self::Serving => "serving",
            Self::Leaving => "leaving",
            Self::Empty => "empty",
            Self::Failed => "failed",
        }
    }
}

/// Counters of a lane, or their sum over lanes, since the start of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// READ requests.
    pub reads: u64,
    /// WRITE requests.
    pub writes: u64,
    /// FLUSH requests.
    pub flushes: u64,
    /// DISCARD requests.
    pub discards: u64,
    /// WRITE_ZEROES requests.
    pub write_zeroes: u64,
    /// ZONE_APPEND requests.
    pub zone_appends: u64,
    /// Other zone requests: report, open, close, finish and reset.
    pub zone_actions: u64,
    /// Bytes of READ requests.
    pub read_bytes: u64,
    /// Bytes of WRITE requests.
    pub write_bytes: u64,
    /// Bytes of ZONE_APPEND requests.
    pub zone_append_bytes: u64,
    /// Requests answered with an errno.
    pub errors: u64,
    /// Contained panics of a handler (L25).
    pub panics: u64,
    /// Requests that their handler dropped without an answer; answered with EIO.
    pub dropped: u64,
    /// Requests refused for an invalid descriptor, before a handler saw them.
    pub refused: u64,
    /// Completions that belonged to no command in flight (L53).
    pub stale: u64,
    /// Calls of `io_uring_enter`.
    pub enters: u64,
    /// Syncs of files; each serves one or more FLUSH and FUA requests.
    pub syncs: u64,
    /// Requests whose data was in memory shared with the client, so that it was not copied (7.1).
    pub shared_hits: u64,
    /// Requests whose data was not in that memory, on a device that shares memory.
    pub shared_misses: u64,
}

impl Counters {
    /// Adds the counters of another lane.
    pub fn add(&mut self, other: &Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.discards += other.discards;
        self.write_zeroes += other.write_zeroes;
        self.zone_appends += other.zone_appends;
        self.zone_actions += other.zone_actions;
        self.zone_append_bytes += other.zone_append_bytes;
        self.read_bytes += other.read_bytes;
        self.write_bytes += other.write_bytes;
        self.errors += other.errors;
        self.panics += other.panics;
        self.dropped += other.dropped;
        self.refused += other.refused;
        self.stale += other.stale;
        self.enters += other.enters;
        self.syncs += other.syncs;
        self.shared_hits += other.shared_hits;
        self.shared_misses += other.shared_misses;
    }
}

/// Health of one queue.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct QueueHealth {
    /// The hw queue.
    pub qid: QueueId,
    /// Which of the queue's threads, if it has several.
    pub thread: u16,
    /// Its state.
    pub state: State,
    /// Requests that handlers hold and have not answered, as of the last batch; at least one while the thread works on
    /// a batch. Together with `counters.enters`, which moves after each batch, it tells a stuck queue from an idle one.
    pub in_hand: u64,
    /// The request that has been in hand for longest, as far as earlier snapshots know ([`LaneHandle::look`]).
    ///
    /// [`LaneHandle::look`]: crate::LaneHandle::look
    pub oldest: Option<Oldest>,
    /// CPUs that its thread was pinned to; `None` if pinning was not requested or not permitted.
    pub pinned: Option<CpuMask>,
    /// Whether PR_SET_IO_FLUSHER is set for the thread, as read back (L37). Setting it needs CAP_SYS_RESOURCE.
    pub io_flusher: bool,
    /// The features that the thread's ring was granted.
    pub ring: String,
    /// Size of the queue's buffers in bytes: mapped, but populated page by page as requests arrive.
    pub buffer_bytes: u64,
    /// Page size of the buffers.
    pub pages: Pages,
    /// Its counters.
    pub counters: Counters,
}

/// A snapshot of a server's health.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Health {
    /// The worst state of its queues.
    pub state: State,
    /// The first error of any queue, with its cause.
    pub first_error: Option<String>,
    /// Sum over the queues.
    pub counters: Counters,
    /// Each queue.
    pub queues: Vec<QueueHealth>,
}

/// A counter with a single writer: a plain load and store, no locked instruction.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        // Relaxed, and no read-modify-write: the worker is the only writer, and readers need no ordering.
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }

    #[inline]
    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Adds from any thread.
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Errnos that are counted apart: all of Linux; 0 takes any other.
pub(crate) const ERRNOS: usize = 134;

/// The live values of [`Counters`] and of a queue's snapshot for one lane. Only `dropped` and `panics` have several
/// writers.
pub(crate) struct Meters {
    /// Requests by op (index `Op as usize`).
    pub(crate) ops: [Counter; Op::NUMBERS],
    /// Bytes by op.
    pub(crate) bytes: [Counter; Op::NUMBERS],
    /// Requests answered with an errno, by kind. Those with an invalid descriptor are in `errnos` only.
    pub(crate) failed: [Counter; Operation::COUNT],
    /// The same, by errno.
    pub(crate) errnos: [Counter; ERRNOS],
    /// Requests whose pages the driver could not register.
    pub(crate) zero_copy_fallbacks: Counter,
    /// NEED_GET_DATA commands.
    pub(crate) get_data_rounds: Counter,
    /// Batches by size, and the requests in them; from [`Level::Counters`](ublk_metrics::Level) on.
    pub(crate) batches: [Counter; Batches::SIZES],
    pub(crate) batched: Counter,
    /// The thread's polls that found work, and those that did not.
    pub(crate) poll_hits: Counter,
    pub(crate) poll_misses: Counter,
    /// Nanoseconds that the thread worked; with latencies.
    pub(crate) busy: Counter,
    pub(crate) errors: Counter,
    pub(crate) panics: Counter,
    pub(crate) dropped: Counter,
    pub(crate) refused: Counter,
    pub(crate) stale: Counter,
    pub(crate) enters: Counter,
    pub(crate) syncs: Counter,
    pub(crate) shared_hits: Counter,
    pub(crate) shared_misses: Counter,
    pub(crate) in_hand: Counter,
}

impl Default for Meters {
    fn default() -> Self {
        fn none<const N: usize>() -> [Counter; N] {
            std::array::from_fn(|_| Counter::default())
        }
        Self {
            ops: none(),
            bytes: none(),
            failed: none(),
            errnos: none(),
            zero_copy_fallbacks: Counter::default(),
            get_data_rounds: Counter::default(),
            batches: none(),
            batched: Counter::default(),
            poll_hits: Counter::default(),
            poll_misses: Counter::default(),
            busy: Counter::default(),
            errors: Counter::default(),
            panics: Counter::default(),
            dropped: Counter::default(),
            refused: Counter::default(),
            stale: Counter::default(),
            enters: Counter::default(),
            syncs: Counter::default(),
            shared_hits: Counter::default(),
            shared_misses: Counter::default(),
            in_hand: Counter::default(),
        }
    }
}

impl Meters {
    /// Counts a request that was answered with an errno. Its op is not known if its descriptor is invalid.
    pub(crate) fn count_error(&self, op: Option<Op>, errno: Errno) {
        self.errors.add(1);
        if let Some(op) = op {
            self.failed[kind_of(op) as usize].add(1);
        }
        let number = usize::try_from(errno.get()).ok();
        let known = number.and_then(|number| self.errnos.get(number));
        known.unwrap_or(&self.errnos[0]).add(1);
    }

    #[inline]
    pub(crate) fn count(&self, io: &Io) {
        self.ops[io.op as usize].add(1);
        self.bytes[io.op as usize].add(io.len);
    }

    /// Number of requests so far.
    pub(crate) fn taken(&self) -> u64 {
        self.ops.iter().map(Counter::get).sum()
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let op = |op: Op| self.ops[op as usize].get();
        Counters {
            reads: op(Op::Read),
            writes: op(Op::Write),
            flushes: op(Op::Flush),
            discards: op(Op::Discard),
            write_zeroes: op(Op::WriteZeroes),
            zone_appends: op(Op::ZoneAppend),
            zone_actions: [
                Op::ZoneOpen,
                Op::ZoneClose,
                Op::ZoneFinish,
                Op::ZoneReset,
                Op::ZoneResetAll,
                Op::ReportZones,
            ]
            .into_iter()
            .map(op)
            .sum(),
            zone_append_bytes: self.bytes[Op::ZoneAppend as usize].get(),
            read_bytes: self.bytes[Op::Read as usize].get(),
            write_bytes: self.bytes[Op::Write as usize].get(),
            errors: self.errors.get(),
            panics: self.panics.get(),
            dropped: self.dropped.get(),
            refused: self.refused.get(),
            stale: self.stale.get(),
            enters: self.enters.get(),
            syncs: self.syncs.get(),
            shared_hits: self.shared_hits.get(),
            shared_misses: self.shared_misses.get(),
        }
    }
}

/// State and first error of a lane.
pub(crate) struct Status {
    state: AtomicU8,
    first_error: Mutex<Option<String>>,
}

impl Status {
    pub(crate) const fn new() -> Self {
        Self {
            state: AtomicU8::new(State::Arming as u8),
            first_error: Mutex::new(None),
        }
    }

    pub(crate) fn get(&self) -> State {
        let at = usize::from(self.state.load(Ordering::Acquire));
        State::ALL.get(at).copied().unwrap_or(State::Failed)
    }

    pub(crate) fn set(&self, state: State) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Records an error unless there is one: later ones usually follow from the first.
    pub(crate) fn fail(&self, cause: String) {
        let mut first = self
            .first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(cause);
        drop(first);
        self.set(State::Failed);
    }

    pub(crate) fn first_error(&self) -> Option<String> {
        self.first_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
