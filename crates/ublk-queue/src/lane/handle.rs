//! A lane as its worker's owner sees it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ublk_core::{Op, QueueId, Tag};
use ublk_metrics::{Facts, Level, Operation, QueueSnapshot};

use crate::age::{Notes, Oldest, Place};
use crate::buffers::Pages;
use crate::data_path::DataPath;
use crate::health::{Counter, Counters, State};
use crate::measure::{KINDS, nanos_since};
use crate::recording::Recorder;
use crate::shared::LaneShared;

/// State and counters of a lane, readable from any thread.
#[derive(Clone)]
pub struct LaneHandle(Arc<LaneShared>);

impl std::fmt::Debug for LaneHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneHandle")
            .field("qid", &self.0.qid)
            .field("state", &self.state())
            .finish()
    }
}

impl LaneHandle {
    pub(crate) const fn new(lane: Arc<LaneShared>) -> Self {
        Self(lane)
    }

    /// The hw queue.
    #[must_use]
    pub fn qid(&self) -> QueueId {
        self.0.qid
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.status.get()
    }

    /// Why it failed, if it did.
    #[must_use]
    pub fn first_error(&self) -> Option<String> {
        self.0.status.first_error()
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.meters.snapshot()
    }

    /// Asks the lane's thread to measure this much from its next batch on. Other lanes of the thread follow as far as
    /// they are prepared.
    pub fn measure(&self, level: Level) {
        self.prepare_to_measure(level);
        self.0.measure(level);
    }

    /// Leaves a recorder of requests that end, and when the recording began, or takes it away; the next
    /// [`measure`](Self::measure) tells the lane. It records while latencies are measured.
    pub fn record(&self, to: Option<(Box<dyn Recorder>, Instant)>) {
        self.0.want_recorder(to);
    }

    /// Whether the lane has followed the last [`record`](Self::record), or its thread has ended. The recorder that it had
    /// is freed then.
    #[must_use]
    pub fn has_followed(&self) -> bool {
        let done =
            self.0.recorder.is_taken() || matches!(self.state(), State::Empty | State::Failed);
        if done {
            self.0.recorder.clear();
        }
        done
    }

    /// Allocates what [`measure`](Self::measure) needs.
    pub(crate) fn prepare_to_measure(&self, level: Level) {
        self.0.prepare_to_measure(level);
    }

    /// What the lane has done so far. Each value is as of a moment ago, but not all as of the same moment.
    #[must_use]
    pub fn metrics(&self, thread: u16) -> QueueSnapshot {
        let meters = &self.0.meters;
        let mut queue = QueueSnapshot::new(self.qid().get(), thread);
        let mut with_data = 0;
        for (number, kind) in KINDS.into_iter().enumerate() {
            let (requests, bytes) = (meters.ops[number].get(), meters.bytes[number].get());
            if requests != 0 {
                let op = queue.op_mut(kind);
                op.requests += requests;
                op.bytes += bytes;
            }
            let data = [Op::Read, Op::Write, Op::ZoneAppend, Op::ReportZones];
            if data.iter().any(|op| *op as usize == number) {
                with_data += requests;
            }
        }
        for kind in Operation::ALL {
            let errors = meters.failed[kind as usize].get();
            let latency = self.0.latencies.get().map(|all| all.of(kind));
            let latency = latency.filter(|(latency, _)| latency.count() != 0);
            if errors != 0 || latency.is_some() {
                let op = queue.op_mut(kind);
                op.errors = errors;
                (op.latency, op.backend_ns) = latency.unwrap_or_default();
            }
        }
        let errnos = (0_u16..).zip(meters.errnos.iter().map(Counter::get));
        queue.errnos = errnos.filter(|(_, n)| *n != 0).collect();
        queue.in_flight = meters.in_hand.get();
        for (to, n) in queue.batches.counts.iter_mut().zip(&meters.batches) {
            *to = n.get();
        }
        queue.batches.requests = meters.batched.get();
        queue.busy_ns = meters.busy.get();
        queue.facts = self.facts(with_data);
        queue
    }

    /// The events of a lane with this many requests that have data.
    fn facts(&self, with_data: u64) -> Facts {
        let meters = &self.0.meters;
        let mut facts = Facts::default();
        facts.shared_hits = meters.shared_hits.get();
        facts.shared_misses = meters.shared_misses.get();
        facts.zero_copy_fallbacks = meters.zero_copy_fallbacks.get();
        if matches!(self.0.path.below(), DataPath::Registered) {
            let others = facts.shared_hits + facts.zero_copy_fallbacks;
            facts.zero_copy_hits = with_data.saturating_sub(others);
        }
        facts.get_data_rounds = meters.get_data_rounds.get();
        facts.poll_hits = meters.poll_hits.get();
        facts.poll_misses = meters.poll_misses.get();
        facts.syncs = meters.syncs.get();
        facts.panics = meters.panics.get();
        facts.dropped = meters.dropped.get();
        facts.refused = meters.refused.get();
        facts.stale = meters.stale.get();
        facts.enters = meters.enters.get();
        facts
    }

    /// Sets the size of the device: requests beyond it are refused. Call it before the driver learns of a larger size.
    pub fn set_size(&self, size: u64) {
        self.0.set_size(size);
    }

    /// A detached lane of one tag, for tests.
    #[cfg(test)]
    pub(crate) fn in_state(state: State) -> Self {
        use crate::port::{NoDevice, Wake};
        use crate::shared::TagValues;

        struct Silent;
        impl Wake for Silent {
            fn wake(&self) {}
        }
        let arena = crate::buffers::Arena::new(1, 4096).expect("memory");
        let path = DataPath::new(ublk_core::DataMode::Copy, Box::new(NoDevice));
        let wake = (Arc::new(Silent) as Arc<dyn Wake>, Arc::default());
        let shared = LaneShared::new(
            QueueId::ZERO,
            1,
            4096,
            arena,
            (path, TagValues::default()),
            wake,
        );
        shared.status.set(state);
        Self(shared)
    }

    /// Called when a thread ends: a lane that is neither empty nor failed lost its thread to a panic.
    pub(crate) fn ended_without_a_word(&self) {
        if !matches!(self.state(), State::Empty | State::Failed) {
            self.0.status.fail(format!(
                "queue {}: the worker's thread panicked",
                self.qid()
            ));
        }
    }

    /// Bytes of the buffers (mapped, not necessarily populated), and the kind of pages.
    #[must_use]
    pub fn buffers(&self) -> (u64, Pages) {
        let (bytes, pages) = self.0.arena.extent();
        (bytes as u64, pages)
    }

    /// The request that has been in hand for longest, as far as earlier looks know, and where it is. Asks the lane's thread
    /// for the next look, if it has requests in hand; so call this again and again, not more than a few times per second.
    /// An idle thread is not woken, and one that is not looked at does nothing for it.
    #[must_use]
    pub fn look(&self) -> Option<Oldest> {
        self.look_at(|_, _| false)
    }

    /// As [`look`](Self::look); `waits` tells whether a tag's request waits for a pool's thread.
    pub(crate) fn look_at(&self, waits: impl Fn(&Arc<LaneShared>, Tag) -> bool) -> Option<Oldest> {
        if !matches!(self.state(), State::Serving | State::Leaving | State::Armed) {
            return None;
        }
        let shared = &self.0;
        let now = nanos_since(shared.flags.begun);
        let (away, at_work) = (
            shared.meters.in_hand.get() != 0,
            shared.flags.at_work.load(Ordering::Relaxed),
        );
        let notes = match away || at_work {
            true => shared.notes.get_or_init(|| Notes::new(shared.depth())),
            false => shared.notes.get()?,
        };
        let in_call = notes.at_work(at_work, shared.meters.enters.get(), now);
        let noted = notes.oldest();
        if away && notes.are_missing(shared.meters.taken()) {
            shared.want_notes();
        }
        let age = |since| Duration::from_nanos(now.saturating_sub(since));
        match (noted, in_call) {
            (Some((tag, since)), call) if call.is_none_or(|call| since <= call) => {
                let place = match () {
                    () if shared.remote.has(tag) => Place::Answer,
                    () if waits(shared, tag) => Place::Waiting,
                    () => Place::Backend,
                };
                let age = age(since);
                Some(Oldest { age, place })
            }
            (_, Some(call)) => Some(Oldest {
                age: age(call),
                place: Place::Backend,
            }),
            (_, None) => None,
        }
    }

    /// Asks the lane's thread to signal this eventfd once it has served something. The thread is not woken for it.
    pub(crate) fn tell_when_moving(&self, moved: &Arc<OwnedFd>) {
        self.0.flags.want_move(moved);
    }

    /// Requests that handlers hold and have not answered, as of the last batch; at least one while the thread works on
    /// a batch.
    #[must_use]
    pub fn in_hand(&self) -> u64 {
        let at_work = self.0.flags.at_work.load(Ordering::Relaxed);
        self.0.meters.in_hand.get().max(u64::from(at_work))
    }
}
