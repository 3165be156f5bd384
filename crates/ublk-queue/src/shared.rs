//! The parts of a lane that outlive its worker: buffers, answers, meters.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use ublk_core::iod::Io;
use ublk_core::iod::IoBounds;
use ublk_core::{Answer, Errno, IoDesc, QueueId, Tag};
use ublk_metrics::Level;

use crate::age::Notes;
use crate::buffers::Arena;
use crate::data_path::DataPath;
use crate::failures::{Failed, OnFailure};
use crate::health::{Meters, Status};
use crate::measure::{Latencies, ThreadFlags};
use crate::port::{Descriptors, Wake};
use crate::recording::{Attached, Exchange, Recorder};
use crate::remote::RemoteAnswers;

/// Bounds for a request that was accepted already: the device may have shrunk since.
pub(crate) const ANYWHERE: IoBounds = IoBounds::new(u64::MAX, u32::MAX);

/// The part of a lane that is shared by the worker, requests on other threads, and the health report.
///
/// It owns the buffers: the last request that another thread holds frees them, however late.
pub(crate) struct LaneShared {
    pub(crate) qid: QueueId,
    pub(crate) arena: Arena,
    pub(crate) remote: RemoteAnswers,
    /// On cache lines of their own: the lane's thread writes them at every request, and others write other parts.
    pub(crate) meters: CachePadded<Meters>,
    /// Once somebody has asked for them.
    pub(crate) latencies: OnceLock<Latencies>,
    pub(crate) recorder: Exchange,
    /// Once somebody has looked.
    pub(crate) notes: OnceLock<Notes>,
    depth: u16,
    pub(crate) status: Status,
    pub(crate) path: DataPath,
    on_failure: OnceLock<OnFailure>,
    /// The file that fails the request about to be answered, plus one; 0 for none.
    blamed: AtomicU32,
    pub(crate) flags: Arc<ThreadFlags>,
    wake: Arc<dyn Wake>,
    /// Size of the device in bytes.
    size: AtomicU64,
    /// The position of an answer's data.
    pub(crate) values: TagValues,
}

/// A value for each tag that accompanies its answer, written by the holder of the request and taken by the worker: in
/// get-data mode the address of a READ's data that another thread named, on a zoned device the sector of an append.
/// Empty for lanes that need none.
#[derive(Clone, Default)]
pub(crate) struct TagValues(Arc<[AtomicU64]>);

impl TagValues {
    /// Not written.
    const NONE: u64 = u64::MAX;

    pub(crate) fn new(depth: u16) -> Self {
        Self((0..depth).map(|_| AtomicU64::new(Self::NONE)).collect())
    }

    /// Writes a tag's value. False if there are none.
    pub(crate) fn set(&self, tag: Tag, value: u64) -> bool {
        let cell = self.0.get(tag.index());
        // Relaxed: the answer follows, and whatever hands it on orders this store, too.
        cell.is_some_and(|cell| {
            cell.store(value, Ordering::Relaxed);
            true
        })
    }

    /// Whether a tag's value is written.
    pub(crate) fn is_set(&self, tag: Tag) -> bool {
        let cell = self.0.get(tag.index());
        cell.is_some_and(|cell| cell.load(Ordering::Relaxed) != Self::NONE)
    }

    /// Takes a tag's value, if it is written.
    pub(crate) fn take(&self, tag: Tag) -> Option<u64> {
        let cell = self.0.get(tag.index())?;
        let value = cell.swap(Self::NONE, Ordering::Relaxed);
        (value != Self::NONE).then_some(value)
    }
}

impl LaneShared {
    pub(crate) fn new(
        qid: QueueId,
        depth: u16,
        size: u64,
        arena: Arena,
        (path, values): (DataPath, TagValues),
        (wake, flags): (Arc<dyn Wake>, Arc<ThreadFlags>),
    ) -> Arc<Self> {
        Arc::new(Self {
            qid,
            arena,
            remote: RemoteAnswers::new(depth),
            meters: CachePadded::default(),
            latencies: OnceLock::new(),
            recorder: Exchange::default(),
            notes: OnceLock::new(),
            depth,
            status: Status::new(),
            path,
            on_failure: OnceLock::new(),
            blamed: AtomicU32::new(0),
            flags,
            wake,
            size: AtomicU64::new(size),
            values,
        })
    }

    /// Size of the device in bytes; requests beyond it are refused.
    #[inline(always)]
    pub(crate) fn size(&self) -> u64 {
        // Relaxed: a larger size was stored before the driver learnt of it, and a request beyond the smaller one comes
        // from the driver. The system call there and the acquire of the completion here order the two.
        self.size.load(Ordering::Relaxed)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Records the position of a request's data, and counts hits and misses. For devices that share memory.
    pub(crate) fn locate(&self, tag: Tag, desc: &IoDesc, io: &Io) -> Result<(), Errno> {
        let DataPath::Client(path) = &self.path else {
            return Ok(());
        };
        let hit = path.locate(tag, desc, io)?;
        if hit {
            self.meters.shared_hits.add(1);
        } else if io.op.has_data() {
            self.meters.shared_misses.add(1);
        }
        Ok(())
    }

    /// Sets the callback for failed requests.
    pub(crate) fn set_on_failure(&self, to: OnFailure) {
        // Set once, when the lane is made.
        let _ = self.on_failure.set(to);
    }

    /// Records which file fails the request that is answered next on the worker's thread.
    #[cold]
    pub(crate) fn blame(&self, file: u16) {
        self.blamed.store(u32::from(file) + 1, Ordering::Relaxed);
    }

    /// Counts a request that was answered with an errno, and reports it. Out of line: none of it, including the second
    /// look at the descriptor, may be in the path of successful requests.
    #[cold]
    #[inline(never)]
    pub(crate) fn failed(&self, descriptors: &impl Descriptors, tag: Tag, result: i32) {
        let errno = Errno::new(result.saturating_neg());
        let io = descriptors.load(tag).decode(&ANYWHERE).ok();
        self.meters.count_error(io.map(|io| io.op), errno);
        let file = self.blamed.swap(0, Ordering::Relaxed).checked_sub(1);
        let Some(on_failure) = self.on_failure.get() else {
            return;
        };
        on_failure.call(Failed {
            qid: self.qid,
            op: io.map(|io| io.op),
            offset: io.map_or(0, |io| io.offset),
            len: io.map_or(0, |io| io.len),
            errno,
            file: file.and_then(|file| u16::try_from(file).ok()),
        });
    }

    /// Asks the worker to measure from its next round on, on all of its lanes. Call
    /// [`prepare_to_measure`](Self::prepare_to_measure) for each of them before.
    pub(crate) fn measure(&self, level: Level) {
        self.flags.want(level);
        self.wake.wake();
    }

    /// Allocates what the lane's thread needs for this level.
    pub(crate) fn prepare_to_measure(&self, level: Level) {
        if level == Level::Latencies {
            self.latencies.get_or_init(|| Latencies::new(self.depth));
        }
    }

    /// Leaves a recorder for the lane's thread, which takes it at the next request for a level.
    pub(crate) fn want_recorder(&self, to: Option<(Box<dyn Recorder>, Instant)>) {
        let attached = to.map(|(to, since)| Attached::new(to, since, self.depth));
        self.recorder.want(attached);
    }

    /// Number of tags.
    pub(crate) const fn depth(&self) -> u16 {
        self.depth
    }

    /// Asks the lane's thread to note what it has in hand, and wakes it if it sleeps.
    pub(crate) fn want_notes(&self) {
        self.notes.get_or_init(|| Notes::new(self.depth));
        self.flags.want_notes();
        self.wake.wake();
    }

    /// Records an answer from another thread and wakes the worker if it sleeps.
    pub(crate) fn answer(&self, tag: Tag, answer: Answer) {
        self.remote.push(tag, answer);
        self.wake.wake();
    }
}

/// What a request on its worker's thread holds: the shared part, and a list of answers without atomics.
pub(crate) struct LaneLocal {
    pub(crate) shared: Arc<LaneShared>,
    /// Answers of kept requests. Each tag is in it at most once, so it is never reallocated.
    answers: RefCell<Vec<LocalAnswer>>,
}

/// An answer given on the worker's own thread, with the address of a READ's data, or 0 for the tag's buffer.
pub(crate) type LocalAnswer = (Tag, Answer, u64);

impl LaneLocal {
    pub(crate) fn new(shared: Arc<LaneShared>, depth: u16) -> Self {
        Self {
            shared,
            answers: RefCell::new(Vec::with_capacity(usize::from(depth))),
        }
    }

    /// Records an answer; the worker takes it before it sleeps.
    pub(crate) fn answer(&self, answer: LocalAnswer) {
        self.answers.borrow_mut().push(answer);
    }

    /// Whether answers wait to be taken.
    pub(crate) fn has_answers(&self) -> bool {
        !self.answers.borrow().is_empty()
    }

    /// Takes a recorded answer, the last one first.
    #[inline]
    pub(crate) fn next_answer(&self) -> Option<LocalAnswer> {
        self.answers.borrow_mut().pop()
    }
}
