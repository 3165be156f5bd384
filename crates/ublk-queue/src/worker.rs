//! The unit that runs: one thread, one ring, the lanes it hosts.

mod driven;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ublk_core::{DataMode, Errno};

use crate::buffers::{Arena, BufferPool};
use crate::data_path::DataPath;
use crate::handler::{Handler, LaneContext};
use crate::health::State;
use crate::lane::{ABORT_WAIT, Lane, LaneError, Panicked};
use crate::operations::{Operation, RingId};
use crate::panics::{catch, discard};
use crate::port::{Completion, Descriptors, NoDevice, Port, Wake};
use crate::shared::{LaneShared, Words};
use crate::user_data::{Kind, UserData};

pub use self::driven::Next;
pub use crate::lane::{LaneHandle, LaneSpec, Share};

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A lane failed, and with it the device.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The ring cannot be used any more.
    #[error("io_uring_enter failed for good: {0}")]
    Ring(Errno),
    /// The owner told the worker to leave before the driver aborted its tags.
    #[error("told to leave with requests not aborted by the driver")]
    Left,
}

/// First wait before commands that io_uring refused are pushed again; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_micros(100);
const RETRY_MAX: Duration = Duration::from_millis(5);

/// How long an ending worker waits for operations that were cancelled.
const REAP: Duration = Duration::from_secs(1);

/// How long an enter that pushed batch commands waits for a request besides their completions: if the driver did not
/// take all elements, only their completions come.
const AT_ONCE: Duration = Duration::from_millis(5);

/// Panicked with by a handler, it ends the queue's thread as a defect of the engine would (L24). For tests.
#[cfg(feature = "kill-points")]
#[derive(Debug, Clone, Copy)]
pub struct EndThread;

/// A thread's worth of lanes on one ring. The thread that makes the ring arms and runs the worker.
pub struct Worker<P: Port, D, H> {
    // Dropped before the lanes: the ring is closed while their buffers are still there.
    port: P,
    lanes: Vec<Lane<P, D, H>>,
    leave: Arc<AtomicBool>,
    /// The thread is awake, with a batch.
    at_work: Arc<AtomicBool>,
    backoff: Duration,
    /// No batch has been served yet.
    starting: bool,
    /// Rounds take the slow path ([`Worker::unusual`]): no batch has been served yet, or there are several lanes, which may
    /// leave work to each other.
    watchful: bool,
    ring: RingId,
    /// The lane of the previous completion.
    recent: usize,
}

impl<P: Port, D: Descriptors, H: Handler> Worker<P, D, H> {
    /// A worker without lanes. Once `leave` is true and the worker is woken, it ends without waiting
    /// for the driver's aborts.
    pub fn new(port: P, leave: Arc<AtomicBool>) -> Self {
        Self {
            port,
            lanes: Vec::new(),
            leave,
            at_work: Arc::default(),
            backoff: RETRY_MIN,
            starting: true,
            watchful: true,
            ring: RingId::next(),
            recent: 0,
        }
    }

    /// Adds a lane and maps its buffers. The port reaches the lane's char device by the lane's number:
    /// 0 for the first one added.
    ///
    /// # Errors
    /// ENOMEM when the buffers cannot be mapped, EINVAL for a share of another depth or of smaller buffers, ENOSPC beyond
    /// 65,536 lanes, EOPNOTSUPP for memory shared with clients or zones of a handler that does not ask for them, for shared
    /// memory in get-data mode, and for zones where the driver copies.
    pub fn add_lane(&mut self, mut spec: LaneSpec<D, H>) -> Result<LaneHandle, Errno> {
        let index = u16::try_from(self.lanes.len()).map_err(|_| Errno::ENOSPC)?;
        if !spec.share.fits(spec.depth, spec.bounds.max_io_bytes) {
            return Err(Errno::EINVAL);
        }
        // Where the driver is not told of them, a lane has all its buffers to itself.
        let dealt = BufferPool::is_for(spec.data);
        let mut arena = match spec.share.arena.take().filter(|_| !dealt) {
            Some(arena) => arena,
            None => Arena::with(spec.depth, spec.bounds.max_io_bytes, spec.huge_pages)?,
        };
        let buffers = dealt.then(|| arena.deal(spec.depth));
        let wake: Arc<dyn Wake> = Arc::new(self.port.wake_handle());
        let device = std::mem::replace(&mut spec.device, Box::new(NoDevice));
        let client = spec.shared.take();
        if client.is_some() && (!H::SHARED || spec.data == DataMode::GetData) {
            return Err(Errno::EOPNOTSUPP);
        }
        let copied = matches!(spec.data, DataMode::Copy | DataMode::GetData);
        if spec.zoned && (!H::ZONES || copied) {
            return Err(Errno::EOPNOTSUPP);
        }
        let words = match spec.zoned || spec.data == DataMode::GetData {
            true => Words::new(spec.depth),
            false => Words::default(),
        };
        let shares = client.is_some();
        let path = DataPath::new(spec.data, device).shared_with(client, spec.depth);
        let shared = LaneShared::new(
            spec.qid,
            spec.depth,
            spec.bounds.size,
            arena,
            (path, words),
            (Arc::clone(&wake), Arc::clone(&self.at_work)),
        );
        if let Some(on_failure) = spec.on_failure.clone() {
            shared.tell_failures(on_failure);
        }
        let context = LaneContext {
            qid: spec.qid,
            depth: spec.depth,
            data: spec.data,
            max_io_bytes: spec.bounds.max_io_bytes,
            buf_base: spec.buf_base,
            shares_memory: shares,
            wake,
            ring: self.ring,
            lane: Arc::clone(&shared),
        };
        let lane = Lane::new(
            index,
            spec,
            Arc::clone(&shared),
            buffers,
            &self.port,
            &context,
        );
        self.lanes.push(lane);
        self.watchful |= self.lanes.len() > 1;
        Ok(LaneHandle::new(shared))
    }

    /// Gives every tag to the driver, with one submission, and sees that it was taken (L20).
    ///
    /// # Errors
    /// The driver's refusal, with queue and tag.
    pub fn arm(&mut self) -> Result<(), WorkerError> {
        for lane in &mut self.lanes {
            lane.fetch_all(&mut self.port);
        }
        while self.guarded(Self::see_armed)?.is_none() {}
        for lane in &self.lanes {
            if lane.shared.status.get() == State::Arming {
                lane.shared.status.set(State::Armed);
            }
        }
        Ok(())
    }

    fn see_armed(&mut self) -> Result<(), WorkerError> {
        self.port.enter(0, None).map_err(WorkerError::Ring)?;
        self.take_completions_seldom()?;
        while self.has_retries() || !self.lanes.iter().all(Lane::is_armed) {
            if self.leave.load(Ordering::Relaxed) {
                // Another thread of the queue failed, for which this one would wait.
                return Err(WorkerError::Left);
            }
            self.flush();
            self.port
                .enter(1, Some(self.backoff))
                .map_err(WorkerError::Ring)?;
            self.take_completions_seldom()?;
            self.take_retries();
        }
        self.flush();
        self.port.enter(0, None).map_err(WorkerError::Ring)
    }

    /// Serves until every lane is empty: the driver has aborted, and nothing is in hand.
    ///
    /// # Errors
    /// Why the worker ended before that.
    pub fn run(&mut self) -> Result<(), WorkerError> {
        while self.guarded(Self::serve)?.is_none() {
            // A handler whose `turn` panics may have more to do, and shall not keep the thread from sleeping.
            if self.unusual(1, Some(ABORT_WAIT))? {
                break;
            }
        }
        Ok(())
    }

    /// One catch for a whole batch: the token's own drop has recorded EIO by the time it is reached, and the
    /// step begins again with the completion behind. `None` if a handler's [`turn`](Handler::turn) has panicked: what
    /// the other lanes had to do has been done, and the step is for the caller to begin again.
    fn guarded<T>(
        &mut self,
        step: fn(&mut Self) -> Result<T, WorkerError>,
    ) -> Result<Option<T>, WorkerError> {
        loop {
            match catch(|| step(self)) {
                Ok(result) => return result.map(Some),
                Err(panic) => {
                    #[cfg(feature = "kill-points")]
                    if panic.is::<EndThread>() {
                        std::panic::resume_unwind(panic);
                    }
                    match self.recover_from_panic() {
                        // Not a handler's: a defect of the engine, which ends the thread and is told so.
                        None => std::panic::resume_unwind(panic),
                        Some((lane, Panicked::Turn)) => {
                            discard(panic);
                            self.finish_round(lane);
                            return Ok(None);
                        }
                        Some(_) => discard(panic),
                    }
                }
            }
        }
    }

    /// Finds the lane whose handler panicked, tells what it was doing, and lets the lane go on.
    #[cold]
    fn recover_from_panic(&mut self) -> Option<(usize, Panicked)> {
        let mut lanes = self.lanes.iter_mut().enumerate();
        lanes.find_map(|(n, lane)| Some((n, lane.recover_from_panic(&mut self.port)?)))
    }

    /// Finishes a round in which the `turn` of lane `from` panicked.
    #[cold]
    fn finish_round(&mut self, from: usize) {
        for (n, lane) in self.lanes.iter_mut().enumerate().skip(from) {
            if n > from {
                lane.contained(|lane| lane.turn(&mut self.port));
            }
            lane.take_answers(&mut self.port);
            lane.flush(&mut self.port);
        }
        self.at_work.store(false, Ordering::Relaxed);
    }

    /// Takes what is there, then submits and sleeps, until all lanes are empty.
    fn serve(&mut self) -> Result<(), WorkerError> {
        for lane in &mut self.lanes {
            lane.serve_fetched(&mut self.port)?;
        }
        loop {
            // Set before handlers run: one that hangs is seen to be at work.
            self.at_work.store(true, Ordering::Relaxed);
            self.take_completions()?;
            let mut again = false;
            let mut want = 1;
            let mut unusual = self.leave.load(Ordering::Relaxed) | self.watchful;
            for lane in &mut self.lanes {
                again |= lane.turn(&mut self.port);
                lane.take_answers(&mut self.port);
                want += lane.flush(&mut self.port);
                let meters = &lane.shared.meters;
                meters.enters.add(1);
                meters.in_hand.set(u64::from(lane.away()));
                unusual |= lane.is_unusual();
            }
            self.at_work.store(false, Ordering::Relaxed);
            if unusual || again {
                let again = again || self.has_late();
                if self.unusual(if again { 0 } else { want }, None)? {
                    return Ok(());
                }
            } else if want == 1 {
                self.port
                    .submit_and_wait(1, None)
                    .map_err(WorkerError::Ring)?;
            } else {
                self.wait_for_more(want)?;
            }
        }
    }

    /// Submits batch commands, and sleeps until they and a request are there.
    #[inline(never)]
    fn wait_for_more(&mut self, want: u32) -> Result<(), WorkerError> {
        let entered = self.port.submit_and_wait(want, Some(AT_ONCE));
        entered.map_err(WorkerError::Ring)
    }

    /// Slow path of a round: start-up, shutdown, retries, and threads with several lanes. Submits and sleeps, for `longest` at
    /// most. True once all lanes are empty.
    #[cold]
    #[inline(never)]
    fn unusual(&mut self, want: u32, longest: Option<Duration>) -> Result<bool, WorkerError> {
        if self.lanes.iter().all(Lane::is_empty) && self.last_commits_taken()? {
            return Ok(true);
        }
        if self.leave.load(Ordering::Relaxed) {
            return Err(WorkerError::Left);
        }
        let retries = self.has_retries();
        let mut lanes = self.lanes.iter_mut();
        let aborts = !retries && lanes.any(Lane::waits_for_aborts);
        let longest = match (retries, aborts) {
            (true, _) => Some(self.backoff),
            (_, true) => Some(ABORT_WAIT),
            _ => longest,
        };
        let entered = match longest {
            // A thread with several lanes polls as one with a single lane does.
            None if want > 0 => {
                let at_once = (want > 1).then_some(AT_ONCE);
                self.port.submit_and_wait(want, at_once)
            }
            _ => self.port.enter(want, longest),
        };
        entered.map_err(WorkerError::Ring)?;
        if retries {
            self.take_retries();
        }
        self.mark_serving();
        Ok(false)
    }

    /// True if a lane has left work to another in this round, which must be done before the thread sleeps (L55).
    pub(crate) fn has_late(&self) -> bool {
        self.lanes.len() > 1 && self.lanes.iter().any(Lane::is_late)
    }

    /// The handler of a lane, for an owner who drives the worker.
    pub(crate) fn handler(&mut self, lane: usize) -> Option<&mut H> {
        self.lanes.get_mut(lane).map(|lane| &mut lane.handler)
    }

    /// The port.
    pub const fn port(&self) -> &P {
        &self.port
    }

    /// Submits the commits that emptied the lanes, and sees that none of them failed.
    fn last_commits_taken(&mut self) -> Result<bool, WorkerError> {
        self.flush();
        self.port.enter(0, None).map_err(WorkerError::Ring)?;
        self.take_completions_seldom()?;
        Ok(self.lanes.iter().all(Lane::is_empty))
    }

    /// Pushes the batch commands that are due.
    #[inline]
    fn flush(&mut self) {
        for lane in &mut self.lanes {
            lane.flush(&mut self.port);
        }
    }

    fn mark_serving(&mut self) {
        if self.starting {
            self.starting = false;
            self.watchful = self.lanes.len() > 1;
            for lane in &self.lanes {
                if lane.shared.status.get() == State::Armed {
                    lane.shared.status.set(State::Serving);
                }
            }
        }
    }

    /// [`take_completions`](Self::take_completions) out of line, for callers off the hot path.
    #[cold]
    #[inline(never)]
    fn take_completions_seldom(&mut self) -> Result<(), WorkerError> {
        self.take_completions()
    }

    #[inline(always)]
    fn take_completions(&mut self) -> Result<(), WorkerError> {
        while let Some(lane) = self.lanes.get_mut(self.recent) {
            // One comparison for the common case: a tag of the lane that the previous completion was for.
            let completion = loop {
                // In a register: the port's own writes would have it read again.
                let quick = lane.quick;
                let Some(completion) = self.port.next_of(quick) else {
                    return Ok(());
                };
                let word = completion.user_data;
                if let Some(tag) = UserData::tag_of(word, quick) {
                    lane.completed(&mut self.port, tag, completion.res)?;
                } else if H::FORWARDS
                    && let Some(tag) = UserData::tag_of(word, lane.forward_owner())
                    && lane.forward_answered(&mut self.port, tag, completion.res)
                {
                    // The next.
                } else if let Some(tag) = UserData::tag_of(word, lane.owner) {
                    lane.completed_seldom(&mut self.port, tag, completion.res)?;
                } else if lane.is_fetch(&completion) {
                    lane.tags_fetched(&mut self.port, &completion)?;
                } else if lane.commit_taken(&completion) {
                    // The next.
                } else {
                    break completion;
                }
            };
            self.other_completion(&completion)?;
        }
        Ok(())
    }

    /// Handles a completion of another lane or another kind. One of an earlier generation is counted and ignored.
    #[inline(never)]
    fn other_completion(&mut self, completion: &Completion) -> Result<(), WorkerError> {
        let word = completion.user_data;
        if !self.lanes[self.recent].is_own(word) {
            match self.lanes.iter().position(|lane| lane.is_own(word)) {
                Some(n) => self.recent = n,
                None => {
                    self.lanes[self.recent].stale();
                    return Ok(());
                }
            }
        }
        let lane = &mut self.lanes[self.recent];
        Ok(lane.other_completed(&mut self.port, completion)?)
    }

    fn has_retries(&self) -> bool {
        self.lanes.iter().any(Lane::has_retries)
    }

    fn take_retries(&mut self) {
        self.backoff = (self.backoff * 2).min(RETRY_MAX);
        for lane in &mut self.lanes {
            lane.take_retries(&mut self.port);
        }
        if !self.has_retries() {
            self.backoff = RETRY_MIN;
        }
    }

    /// Has handlers cancel their operations, and waits for a while until the kernel has none: what it has then is
    /// leaked by whoever owns it (L09).
    #[cold]
    fn reap(&mut self) {
        let until = Instant::now() + REAP;
        for lane in &mut self.lanes {
            lane.contained(|lane| lane.handler.leave());
        }
        while self.lanes.iter().any(|lane| lane.in_flight() != 0) && Instant::now() < until {
            for lane in &mut self.lanes {
                lane.contained(|lane| lane.turn(&mut self.port));
            }
            if self.port.enter(1, Some(ABORT_WAIT)).is_err() {
                return;
            }
            while let Some(completion) = self.port.next() {
                // Requests that come now are left to whoever serves the device next.
                let word = completion.user_data;
                let operation = UserData::unpack(word).filter(|it| it.kind == Kind::Operation);
                let lane = self.lanes.iter_mut().find(|lane| lane.is_own(word));
                if let (Some(UserData { tag, turn, .. }), Some(lane)) = (operation, lane) {
                    let operation = Operation { place: tag, turn };
                    let Completion { res, flags, .. } = completion;
                    let handler = |lane: &mut Lane<P, D, H>| {
                        lane.operation_completed(operation, res, flags);
                    };
                    lane.contained(handler);
                }
            }
        }
    }

    /// Ends the worker: the ring is closed, buffers are freed where nobody else holds them.
    pub fn finish(mut self, result: &Result<(), WorkerError>) {
        self.record_end(result);
    }

    /// Says how the worker ended; its ring is there until it is dropped.
    pub(crate) fn record_end(&mut self, result: &Result<(), WorkerError>) {
        self.at_work.store(false, Ordering::Relaxed);
        if H::OPERATIONS && result.is_err() {
            self.reap();
        }
        for lane in &self.lanes {
            lane.shared.meters.in_hand.set(u64::from(lane.away()));
            match result {
                Ok(()) => lane.shared.status.set(State::Empty),
                Err(error) => lane.shared.status.fail(error.to_string()),
            }
        }
    }
}
