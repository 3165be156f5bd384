//! The parts of a lane that outlive its worker's stack: buffers, answers, meters.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ublk_core::iod::Io;
use ublk_core::iod::IoBounds;
use ublk_core::{Answer, Errno, IoDesc, QueueId, Tag};

use crate::buffers::Arena;
use crate::data_path::DataPath;
use crate::failures::{Failed, OnFailure};
use crate::health::{Meters, Status};
use crate::port::{Descriptors, Wake};
use crate::remote::RemoteAnswers;

/// For what is asked of a request that was taken: the device may be smaller by now.
pub(crate) const ANYWHERE: IoBounds = IoBounds::new(u64::MAX, u32::MAX);

/// Shared between the worker, the requests other threads hold, and the server's health report.
///
/// Buffers live here: the last request that another thread holds frees them, whenever that is.
pub(crate) struct LaneShared {
    pub(crate) qid: QueueId,
    pub(crate) arena: Arena,
    pub(crate) remote: RemoteAnswers,
    pub(crate) meters: Meters,
    pub(crate) status: Status,
    pub(crate) path: DataPath,
    on_failure: OnceLock<OnFailure>,
    /// The worker's thread is awake, with a batch.
    pub(crate) at_work: Arc<AtomicBool>,
    wake: Arc<dyn Wake>,
    /// Bytes of the device.
    size: AtomicU64,
    /// Where the data of an answer is, or has landed.
    pub(crate) words: Words,
}

/// A word that goes with a tag's answer, written by whoever has its request and taken by the worker: in get-data the
/// address of a READ's data that another thread named, in a zoned device the sector where an append landed. Lanes that
/// need none have none.
#[derive(Clone, Default)]
pub(crate) struct Words(Arc<[AtomicU64]>);

impl Words {
    /// Nobody has written it.
    const NONE: u64 = u64::MAX;

    pub(crate) fn new(depth: u16) -> Self {
        Self((0..depth).map(|_| AtomicU64::new(Self::NONE)).collect())
    }

    /// Writes a tag's word. False where there is no place for it.
    pub(crate) fn set(&self, tag: Tag, word: u64) -> bool {
        let place = self.0.get(tag.index());
        // Relaxed: the answer that follows is handed on by whatever orders that.
        place.is_some_and(|place| {
            place.store(word, Ordering::Relaxed);
            true
        })
    }

    /// Whether a tag's word is written.
    pub(crate) fn is_set(&self, tag: Tag) -> bool {
        let place = self.0.get(tag.index());
        place.is_some_and(|place| place.load(Ordering::Relaxed) != Self::NONE)
    }

    /// Takes a tag's word, if it is written.
    pub(crate) fn take(&self, tag: Tag) -> Option<u64> {
        let place = self.0.get(tag.index())?;
        let word = place.swap(Self::NONE, Ordering::Relaxed);
        (word != Self::NONE).then_some(word)
    }
}

impl LaneShared {
    pub(crate) fn new(
        qid: QueueId,
        depth: u16,
        size: u64,
        arena: Arena,
        (path, words): (DataPath, Words),
        (wake, at_work): (Arc<dyn Wake>, Arc<AtomicBool>),
    ) -> Arc<Self> {
        Arc::new(Self {
            qid,
            arena,
            remote: RemoteAnswers::new(depth),
            meters: Meters::default(),
            status: Status::new(),
            path,
            on_failure: OnceLock::new(),
            at_work,
            wake,
            size: AtomicU64::new(size),
            words,
        })
    }

    /// Bytes of the device, beyond which no request is taken.
    #[inline(always)]
    pub(crate) fn size(&self) -> u64 {
        // A larger size was stored before the driver was told of it, and it is by the driver that a request beyond the
        // smaller one came: the system call there and the acquire of its completion here order the two.
        self.size.load(Ordering::Relaxed)
    }

    pub(crate) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Release);
    }

    /// Notes where the data of a request is, and counts it. For devices that share memory.
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

    /// Has failures told, from now on.
    pub(crate) fn tell_failures(&self, to: OnFailure) {
        // Set once, when the lane is made.
        let _ = self.on_failure.set(to);
    }

    /// Counts a request that was answered with an errno, and tells of it. Nothing of that, the look at the descriptor
    /// included, is to be in the code of those that were answered well.
    #[cold]
    #[inline(never)]
    pub(crate) fn failed(&self, descriptors: &impl Descriptors, tag: Tag, result: i32) {
        self.meters.errors.add(1);
        let Some(on_failure) = self.on_failure.get() else {
            return;
        };
        let io = descriptors.load(tag).decode(&ANYWHERE).ok();
        on_failure.tell(Failed {
            qid: self.qid,
            op: io.map(|io| io.op),
            offset: io.map_or(0, |io| io.offset),
            len: io.map_or(0, |io| io.len),
            errno: Errno::new(result.saturating_neg()),
        });
    }

    /// Records an answer from another thread and wakes the worker if it sleeps.
    pub(crate) fn answer(&self, tag: Tag, answer: Answer) {
        self.remote.push(tag, answer);
        self.wake.wake();
    }
}

/// What a request that stays on its worker's thread holds: the shared part, and a list of answers without
/// atomics.
pub(crate) struct LaneLocal {
    pub(crate) shared: Arc<LaneShared>,
    /// Answers of kept requests; each tag is in it at most once, so its first allocation is its last.
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

    /// An answer that was recorded, the last one first.
    #[inline]
    pub(crate) fn next_answer(&self) -> Option<LocalAnswer> {
        self.answers.borrow_mut().pop()
    }
}
