//! The parts of measurement that a lane's thread writes and others read, and the switch that others set.
//!
//! Everything here has one writer, the lane's thread, unless a field says otherwise; readers see each value as it was a
//! moment ago, but not all of them as of the same moment.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ublk_core::{Op, Tag};
use ublk_metrics::{Level, LiveHistogram, Operation};

/// Note which requests are in hand.
const NOTE: u8 = 1;

/// Signal that the thread has ended a round.
const TELL: u8 = 2;

/// What a worker's thread and others tell each other.
pub(crate) struct ThreadFlags {
    /// The thread is awake and works on a batch. It lies next to `watchful`, so that reading that costs a round nothing.
    pub(crate) at_work: AtomicBool,
    /// Rounds take the slow path ([`Worker::unusual`](crate::Worker)): no batch has been served yet, there are several
    /// lanes, which may leave work to each other, the level was changed, or something is measured. Others only set it.
    pub(crate) watchful: AtomicBool,
    /// The level that is wanted, in the low two bits, and a number that tells one request from the next.
    level: AtomicU8,
    /// What the thread is to do once, at the end of its next round: `NOTE`, `TELL`.
    errands: AtomicU8,
    /// Signalled for `TELL`.
    moved: OnceLock<Arc<OwnedFd>>,
    /// The zero of the thread's clock.
    pub(crate) begun: Instant,
}

impl Default for ThreadFlags {
    fn default() -> Self {
        Self {
            at_work: AtomicBool::new(false),
            watchful: AtomicBool::new(true),
            level: AtomicU8::new(0),
            errands: AtomicU8::new(0),
            moved: OnceLock::new(),
            begun: Instant::now(),
        }
    }
}

impl ThreadFlags {
    /// Asks for a level from the thread's next round on.
    pub(crate) fn want(&self, level: Level) {
        let next = |word: u8| Some((word & !3).wrapping_add(4) | level as u8);
        // SeqCst, both: the thread clears the flag and then reads the level ([`ThreadFlags::calm`]).
        let _ = self
            .level
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        self.watchful.store(true, Ordering::SeqCst);
    }

    /// The request of [`ThreadFlags::want`] as one word, another for each.
    pub(crate) fn wanted(&self) -> u8 {
        self.level.load(Ordering::Acquire)
    }

    /// The level of that word.
    pub(crate) const fn level_of(word: u8) -> Level {
        Level::from_u8(word & 3)
    }

    /// Asks for notes of what is in hand ([`crate::age`]).
    pub(crate) fn want_notes(&self) {
        self.want_errand(NOTE);
    }

    /// Asks the thread to signal this eventfd at the end of its next round; of several, the first.
    pub(crate) fn want_move(&self, moved: &Arc<OwnedFd>) {
        self.moved.get_or_init(|| Arc::clone(moved));
        self.want_errand(TELL);
    }

    /// Sends the thread's next round over the slow path. SeqCst, both: a thread that is about to leave the slow path clears
    /// the flag and then looks for errands ([`ThreadFlags::calm`]).
    fn want_errand(&self, errand: u8) {
        self.errands.fetch_or(errand, Ordering::SeqCst);
        self.watchful.store(true, Ordering::SeqCst);
    }

    /// True if there is something to do at the end of this round.
    pub(crate) fn has_errands(&self) -> bool {
        self.errands.load(Ordering::SeqCst) != 0
    }

    /// Signals that the thread has ended a round, if somebody waits for that. True if it is to note what is in hand.
    pub(crate) fn do_errands(&self) -> bool {
        let errands = self.errands.swap(0, Ordering::SeqCst);
        if errands & TELL != 0
            && let Some(moved) = self.moved.get()
        {
            crate::thread::signal_event(moved.as_fd());
        }
        errands & NOTE != 0
    }

    /// Ends the slow path, unless something other than `seen` was asked for meanwhile, or is still to be done.
    pub(crate) fn calm(&self, seen: u8) {
        if self.watchful.swap(false, Ordering::SeqCst)
            && (self.level.load(Ordering::SeqCst) != seen || self.has_errands())
        {
            self.watchful.store(true, Ordering::Relaxed);
        }
    }
}

/// The kind that requests with this op count as.
pub(crate) const fn kind_of(op: Op) -> Operation {
    match op {
        Op::Read => Operation::Read,
        Op::Write => Operation::Write,
        Op::Flush => Operation::Flush,
        Op::Discard => Operation::Discard,
        Op::WriteZeroes => Operation::WriteZeroes,
        Op::ZoneAppend => Operation::ZoneAppend,
        _ => Operation::ZoneAction,
    }
}

/// The kind by number of the op. Numbers that are no op have no requests.
pub(crate) const KINDS: [Operation; Op::NUMBERS] = {
    let mut kinds = [Operation::ZoneAction; Op::NUMBERS];
    kinds[Op::Read as usize] = kind_of(Op::Read);
    kinds[Op::Write as usize] = kind_of(Op::Write);
    kinds[Op::Flush as usize] = kind_of(Op::Flush);
    kinds[Op::Discard as usize] = kind_of(Op::Discard);
    kinds[Op::WriteZeroes as usize] = kind_of(Op::WriteZeroes);
    kinds[Op::ZoneAppend as usize] = kind_of(Op::ZoneAppend);
    kinds
};

/// Latencies of a lane. Made by whoever first asks for them, not by the lane's thread, which must not allocate (L37).
pub(crate) struct Latencies {
    by_kind: [LiveHistogram; Operation::COUNT],
    /// Nanoseconds in the backend by kind, as far as the lane's thread knows.
    backend: [AtomicU64; Operation::COUNT],
    /// The same, measured by the threads of a pool. Several writers.
    in_pool: [AtomicU64; Operation::COUNT],
    /// The threads of a pool measure.
    pooled: AtomicBool,
    /// When the request of each tag arrived; 0 for those that are answered in the round that brings them.
    stamps: Box<[AtomicU64]>,
    /// Stamps of requests answered in this round.
    answered: Box<[AtomicU64]>,
    count: AtomicU32,
}

/// A moment, the kind of the request that arrived then, and whether it has been counted as one that is not answered in
/// its own round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

impl Stamp {
    const KIND: u64 = 7;
    const COUNTED: u64 = 8;

    pub(crate) const fn new(nanos: u64, kind: Operation) -> Self {
        // Never 0, which is no stamp.
        let nanos = if nanos == 0 { 1 } else { nanos };
        Self(nanos << 4 | kind as u64)
    }

    pub(crate) const fn counted(self) -> Self {
        Self(self.0 | Self::COUNTED)
    }

    pub(crate) const fn is_counted(self) -> bool {
        self.0 & Self::COUNTED != 0
    }

    pub(crate) const fn kind(self) -> usize {
        (self.0 & Self::KIND) as usize
    }

    pub(crate) const fn nanos(self) -> u64 {
        self.0 >> 4
    }
}

impl Latencies {
    pub(crate) fn new(depth: u16) -> Self {
        let words = || (0..depth).map(|_| AtomicU64::new(0)).collect();
        Self {
            by_kind: std::array::from_fn(|_| LiveHistogram::default()),
            backend: Default::default(),
            in_pool: Default::default(),
            pooled: AtomicBool::new(false),
            stamps: words(),
            answered: words(),
            count: AtomicU32::new(0),
        }
    }

    /// Forgets when requests arrived: those in hand are not measured.
    pub(crate) fn forget_all(&self) {
        for stamp in &self.stamps {
            stamp.store(0, Ordering::Relaxed);
        }
        self.count.store(0, Ordering::Relaxed);
    }

    /// The stamp of a tag's request.
    pub(crate) fn stamp(&self, tag: Tag) -> Option<Stamp> {
        let word = self.stamps.get(tag.index())?.load(Ordering::Relaxed);
        (word != 0).then_some(Stamp(word))
    }

    pub(crate) fn set_stamp(&self, tag: Tag, stamp: Option<Stamp>) {
        if let Some(place) = self.stamps.get(tag.index()) {
            place.store(stamp.map_or(0, |stamp| stamp.0), Ordering::Relaxed);
        }
    }

    /// Keeps the stamp of a request that was answered until the end of the round.
    pub(crate) fn keep(&self, stamp: Stamp) {
        let count = self.count.load(Ordering::Relaxed);
        let place = usize::try_from(count).ok();
        if let Some(place) = place.and_then(|at| self.answered.get(at)) {
            place.store(stamp.0, Ordering::Relaxed);
            self.count.store(count + 1, Ordering::Relaxed);
        }
    }

    /// Records the requests of the stamps kept in this round, which ends now.
    pub(crate) fn record_kept(&self, now: u64) {
        let count = self.count.load(Ordering::Relaxed);
        let count = usize::try_from(count).unwrap_or(0);
        // Acquire: set by the thread that answered the first request of a pool, before it did.
        let pooled = self.pooled.load(Ordering::Acquire);
        for stamp in self.answered.iter().take(count) {
            let stamp = Stamp(stamp.load(Ordering::Relaxed));
            let took = now.saturating_sub(stamp.nanos());
            self.record(stamp.kind(), took, 1);
            if !pooled {
                self.add_backend(stamp.kind(), took);
            }
        }
        self.count.store(0, Ordering::Relaxed);
    }

    /// Records requests of a kind, by its number.
    #[inline]
    pub(crate) fn record(&self, kind: usize, nanos: u64, requests: u64) {
        if let Some(histogram) = self.by_kind.get(kind) {
            histogram.record(nanos, requests);
        }
    }

    /// Records requests of a kind that the lane's thread answered in the round that brought them, one after the other.
    /// `share`: how many of the round's requests of all kinds are answered so. Each latency is the whole round, but only
    /// one of the requests is in the backend at a time.
    #[inline]
    pub(crate) fn record_at_once(&self, kind: usize, round: u64, requests: u64, share: u64) {
        self.record(kind, round, requests);
        let backend = match requests == share {
            true => round,
            false => round.wrapping_mul(requests) / share.max(1),
        };
        self.add_backend(kind, backend);
    }

    /// Adds to the time in the backend. Lane's thread only.
    #[inline]
    fn add_backend(&self, kind: usize, nanos: u64) {
        if let Some(sum) = self.backend.get(kind) {
            // No read-modify-write: there is one writer.
            let nanos = sum.load(Ordering::Relaxed).wrapping_add(nanos);
            sum.store(nanos, Ordering::Relaxed);
        }
    }

    /// Adds the time that a thread of a pool spent in the backend, before it answers the request.
    pub(crate) fn add_in_pool(&self, kind: Operation, nanos: u64) {
        self.in_pool[kind as usize].fetch_add(nanos, Ordering::Relaxed);
        if !self.pooled.load(Ordering::Relaxed) {
            self.pooled.store(true, Ordering::Release);
        }
    }

    /// Latencies of a kind, and the nanoseconds that its requests spent in the backend.
    pub(crate) fn of(&self, kind: Operation) -> (ublk_metrics::Histogram, u64) {
        let sum = |of: &[AtomicU64]| of[kind as usize].load(Ordering::Relaxed);
        let backend = sum(&self.backend).wrapping_add(sum(&self.in_pool));
        (self.by_kind[kind as usize].snapshot(), backend)
    }
}

/// Nanoseconds since `begun`.
pub(crate) fn nanos_since(begun: Instant) -> u64 {
    let time = begun.elapsed();
    time.as_secs()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::from(time.subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A level that is asked for while the thread ends its slow path is not missed, nor is the same level asked for
    /// twice.
    #[test]
    fn no_change_of_the_level_is_missed() {
        let flags = ThreadFlags::default();
        let seen = flags.wanted();
        flags.calm(seen);
        assert!(!flags.watchful.load(Ordering::Relaxed));
        flags.want(Level::Latencies);
        let wanted = flags.wanted();
        assert_eq!(ThreadFlags::level_of(wanted), Level::Latencies);
        // As if it had been asked for between the thread's look at the level and the end of its slow path.
        flags.calm(seen);
        assert!(flags.watchful.load(Ordering::Relaxed));
        flags.want(Level::Latencies);
        assert_ne!(flags.wanted(), wanted);
        for _ in 0..1000 {
            flags.want(Level::Counters);
            assert_eq!(ThreadFlags::level_of(flags.wanted()), Level::Counters);
        }
    }

    /// What is asked of a thread while it ends its slow path is not missed either, and does not change the level.
    #[test]
    fn no_errand_is_missed() {
        let flags = ThreadFlags::default();
        flags.want(Level::Counters);
        let seen = flags.wanted();
        assert!(!flags.do_errands());
        flags.want_notes();
        // As if it had been asked after the thread did its errands.
        flags.calm(seen);
        flags.calm(flags.wanted());
        assert!(flags.watchful.load(Ordering::Relaxed));
        assert!(flags.do_errands() && !flags.do_errands());
        let moved = Arc::new(crate::thread::event_fd().expect("an eventfd"));
        flags.want_move(&moved);
        flags.calm(flags.wanted());
        assert!(flags.watchful.load(Ordering::Relaxed));
        assert!(!flags.do_errands());
        let mut count = [0; 8];
        let file = std::fs::File::from(moved.try_clone().expect("a descriptor"));
        let read = |count: &mut [u8; 8]| std::io::Read::read(&mut &file, count).is_ok();
        assert!(read(&mut count) && !read(&mut count), "signalled once");
        flags.calm(flags.wanted());
        assert!(!flags.watchful.load(Ordering::Relaxed));
        assert_eq!(ThreadFlags::level_of(flags.wanted()), Level::Counters);
    }

    #[test]
    fn stamps_keep_kind_and_moment() {
        for kind in Operation::ALL {
            let stamp = Stamp::new(123_456_789, kind);
            assert_eq!((stamp.kind(), stamp.nanos()), (kind as usize, 123_456_789));
            assert!(!stamp.is_counted() && stamp.counted().is_counted());
            assert_eq!(stamp.counted().kind(), kind as usize);
        }
        assert_ne!(Stamp::new(0, Operation::Read).0, 0);
    }

    /// Each op has a kind, and the table agrees.
    #[test]
    fn every_op_counts_as_a_kind() {
        let ops = [
            Op::Read,
            Op::Write,
            Op::Flush,
            Op::Discard,
            Op::WriteZeroes,
            Op::ZoneOpen,
            Op::ZoneAppend,
            Op::ReportZones,
        ];
        for op in ops {
            assert_eq!(KINDS[op as usize], kind_of(op), "{op:?}");
        }
    }
}
