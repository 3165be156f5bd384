//! A worker: one thread, one ring, and the lanes it hosts.

mod driven;
mod measuring;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ublk_core::{DataMode, Errno};
use ublk_metrics::Level;

use crate::buffers::{Arena, BufferPool};
use crate::data_path::DataPath;
use crate::handler::{Handler, LaneContext};
use crate::health::State;
use crate::lane::{ABORT_WAIT, Lane, LaneError, Panicked};
use crate::measure::ThreadFlags;
use crate::operations::{Operation, RingId};
use crate::panics::{catch, discard};
use crate::port::{Completion, Descriptors, NoDevice, Port, Wake};
use crate::shared::{LaneShared, TagValues};
use crate::user_data::{Kind, UserData};

pub use self::driven::Next;
pub use crate::lane::{LaneHandle, LaneSpec, Share};

/// Why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// A lane failed, and the device with it.
    #[error(transparent)]
    Lane(#[from] LaneError),
    /// The ring is unusable.
    #[error("io_uring_enter failed for good: {0}")]
    Ring(Errno),
    /// The owner asked the worker to leave before the driver had aborted its tags.
    #[error("asked to leave before the driver aborted the tags")]
    Left,
}

/// First wait before commands that io_uring refused are pushed again; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_micros(100);
const RETRY_MAX: Duration = Duration::from_millis(5);

/// How long a worker that shuts down waits for cancelled operations.
const REAP: Duration = Duration::from_secs(1);

/// How long an enter that pushed batch commands waits for a request besides their completions: if the driver did not
/// take all elements, only their completions arrive.
const AT_ONCE: Duration = Duration::from_millis(5);

/// A panic payload: a handler that panics with it ends the queue's thread as a defect of the engine would (L24). For
/// tests.
#[cfg(feature = "kill-points")]
#[derive(Debug, Clone, Copy)]
pub struct EndThread;

/// Lanes that share one ring and one thread. The thread that makes the ring arms and runs the worker.
pub struct Worker<P: Port, D, H> {
    // Dropped before the lanes: the ring is closed while their buffers still exist.
    port: P,
    lanes: Vec<Lane<P, D, H>>,
    leave: Arc<AtomicBool>,
    flags: Arc<ThreadFlags>,
    backoff: Duration,
    /// No batch has been served yet.
    starting: bool,
    ring: RingId,
    /// The lane of the previous completion.
    recent: usize,
    /// What is measured, and the request for it ([`ThreadFlags::wanted`]).
    level: Level,
    wanted: u8,
    /// The zero of its clock.
    begun: Instant,
}

impl<P: Port, D: Descriptors, H: Handler> Worker<P, D, H> {
    /// A worker without lanes. If `leave` is true when the worker wakes, it ends without waiting for the driver's
    /// aborts.
    pub fn new(port: P, leave: Arc<AtomicBool>) -> Self {
        let flags = Arc::<ThreadFlags>::default();
        Self {
            port,
            lanes: Vec::new(),
            leave,
            backoff: RETRY_MIN,
            starting: true,
            ring: RingId::next(),
            recent: 0,
            level: Level::Off,
            wanted: 0,
            begun: flags.begun,
            flags,
        }
    }

    /// Adds a lane and maps its buffers. The port addresses the lane's char device by the lane's index, in the order of
    /// addition from 0.
    ///
    /// # Errors
    /// ENOMEM if the buffers cannot be mapped; EINVAL for a share of another depth or with smaller buffers; ENOSPC
    /// beyond 65,536 lanes; EOPNOTSUPP for shared memory or zones with a handler that does not support them, for shared
    /// memory in get-data mode, and for zones if the driver copies the data.
    pub fn add_lane(&mut self, mut spec: LaneSpec<D, H>) -> Result<LaneHandle, Errno> {
        let index = u16::try_from(self.lanes.len()).map_err(|_| Errno::ENOSPC)?;
        if !spec.share.fits(spec.depth, spec.bounds.max_io_bytes) {
            return Err(Errno::EINVAL);
        }
        // If the driver is not told the buffers' addresses, the lane owns all of them.
        let pooled = BufferPool::is_for(spec.data);
        let mut arena = match spec.share.arena.take().filter(|_| !pooled) {
            Some(arena) => arena,
            None => Arena::with(spec.depth, spec.bounds.max_io_bytes, spec.huge_pages)?,
        };
        let buffers = pooled.then(|| arena.pool(spec.depth));
        let wake: Arc<dyn Wake> = Arc::new(self.port.wake_handle());
        let device = std::mem::replace(&mut spec.device, Box::new(NoDevice));
        let client = spec.client_memory.take();
        if client.is_some() && (!H::CLIENT_MEMORY || spec.data == DataMode::GetData) {
            return Err(Errno::EOPNOTSUPP);
        }
        let copied = matches!(spec.data, DataMode::Copy | DataMode::GetData);
        if spec.zoned && (!H::ZONES || copied) {
            return Err(Errno::EOPNOTSUPP);
        }
        let values = match spec.zoned || spec.data == DataMode::GetData {
            true => TagValues::new(spec.depth),
            false => TagValues::default(),
        };
        let shares = client.is_some();
        let path = DataPath::new(spec.data, device).shared_with(client, spec.depth);
        let shared = LaneShared::new(
            spec.qid,
            spec.depth,
            spec.bounds.size,
            arena,
            (path, values),
            (Arc::clone(&wake), Arc::clone(&self.flags)),
        );
        if let Some(on_failure) = spec.on_failure.clone() {
            shared.set_on_failure(on_failure);
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
        self.flags.watchful.store(true, Ordering::Relaxed);
        Ok(LaneHandle::new(shared))
    }

    /// Fetches every tag with one submission, and verifies that the driver took it (L20).
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
        // A device in recovery has requests at once.
        self.round_begins();
        self.take_completions_seldom()?;
        while self.has_retries() || !self.lanes.iter().all(Lane::is_armed) {
            if self.leave.load(Ordering::Relaxed) {
                // Another thread of the queue failed; this one would wait for it.
                return Err(WorkerError::Left);
            }
            self.flush();
            self.round_ends();
            self.port
                .enter(1, Some(self.backoff))
                .map_err(WorkerError::Ring)?;
            self.round_begins();
            self.take_completions_seldom()?;
            self.take_retries();
        }
        self.flush();
        self.port.enter(0, None).map_err(WorkerError::Ring)
    }

    /// Serves until every lane is empty: the driver has aborted its tags, and no request is in hand.
    ///
    /// # Errors
    /// Why the worker ended early.
    pub fn run(&mut self) -> Result<(), WorkerError> {
        while self.guarded(Self::serve)?.is_none() {
            // A handler whose `turn` panicked may claim to have more to do; that must not keep the thread from
            // sleeping.
            if self.unusual(1, Some(ABORT_WAIT))? {
                break;
            }
        }
        Ok(())
    }

    /// Runs a step under one `catch_unwind` for the whole batch. The request token's drop has recorded EIO by the time
    /// a panic is caught, and the step restarts after the completion that caused it. `None` if a handler's
    /// [`turn`](Handler::turn) panicked: the other lanes' turns have been done, and the caller starts the step again.
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
                        // Not a handler's panic but a defect of the engine: it ends the thread and is reported as such.
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

    /// Finds the lane whose handler panicked, reports what it was doing, and makes the lane usable again.
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
        self.flags.at_work.store(false, Ordering::Relaxed);
    }

    /// Reaps and handles completions, then submits and sleeps, until all lanes are empty.
    fn serve(&mut self) -> Result<(), WorkerError> {
        for lane in &mut self.lanes {
            lane.serve_fetched(&mut self.port)?;
        }
        loop {
            // Set before handlers run, so that one that hangs shows as busy.
            self.flags.at_work.store(true, Ordering::Relaxed);
            self.take_completions()?;
            let mut again = false;
            let mut want = 1;
            let mut unusual =
                self.leave.load(Ordering::Relaxed) | self.flags.watchful.load(Ordering::Relaxed);
            for lane in &mut self.lanes {
                again |= lane.turn(&mut self.port);
                lane.take_answers(&mut self.port);
                want += lane.flush(&mut self.port);
                let meters = &lane.shared.meters;
                meters.enters.add(1);
                meters.in_hand.set(u64::from(lane.away()));
                unusual |= lane.is_unusual();
            }
            self.flags.at_work.store(false, Ordering::Relaxed);
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

    /// Submits batch commands, and sleeps until they have completed and a request has arrived.
    #[inline(never)]
    fn wait_for_more(&mut self, want: u32) -> Result<(), WorkerError> {
        let entered = self.port.submit_and_wait(want, Some(AT_ONCE));
        entered.map_err(WorkerError::Ring)
    }

    /// Slow path of a round: start-up, shutdown, retries, measurement, and threads with several lanes. Submits and sleeps, for `longest` at
    /// most. True once all lanes are empty.
    #[cold]
    #[inline(never)]
    fn unusual(&mut self, want: u32, longest: Option<Duration>) -> Result<bool, WorkerError> {
        self.round_ends();
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
            // A thread with several lanes polls like one with a single lane.
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
        self.round_begins();
        Ok(false)
    }

    /// True if a lane has left work to another in this round, which must be done before the thread sleeps (L55).
    pub(crate) fn has_late(&self) -> bool {
        self.lanes.len() > 1 && self.lanes.iter().any(Lane::is_late)
    }

    /// The handler of a lane, for owners that drive the worker.
    pub(crate) fn handler(&mut self, lane: usize) -> Option<&mut H> {
        self.lanes.get_mut(lane).map(|lane| &mut lane.handler)
    }

    /// The port.
    pub const fn port(&self) -> &P {
        &self.port
    }

    /// Submits the commits that emptied the lanes, and verifies that none of them failed.
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
                // Kept in a register: the compiler would reload it after the port's writes.
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
                } else if let Some(tag) = UserData::tag_of(word, lane.owner) {
                    lane.completed_seldom(&mut self.port, tag, completion.res)?;
                } else if lane.is_fetch(&completion) {
                    lane.tags_fetched(&mut self.port, &completion)?;
                } else if lane.commit_taken(&completion) {
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

    /// Lets handlers cancel their operations, and waits a limited time for their completions. Buffers of operations
    /// that are still in flight are leaked by their owners (L09).
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
                // Requests that arrive now are left to the device's next server.
                let word = completion.user_data;
                let operation = UserData::unpack(word).filter(|it| it.kind == Kind::Operation);
                let lane = self.lanes.iter_mut().find(|lane| lane.is_own(word));
                if let (Some(UserData { tag, turn, .. }), Some(lane)) = (operation, lane) {
                    let operation = Operation { slot: tag, turn };
                    let Completion { res, flags, .. } = completion;
                    let handler = |lane: &mut Lane<P, D, H>| {
                        lane.operation_completed(operation, res, flags);
                    };
                    lane.contained(handler);
                }
            }
        }
    }

    /// Ends the worker: closes the ring, and frees buffers that nobody else holds.
    pub fn finish(mut self, result: &Result<(), WorkerError>) {
        self.record_end(result);
    }

    /// Records how the worker ended; the ring lives until the worker is dropped.
    pub(crate) fn record_end(&mut self, result: &Result<(), WorkerError>) {
        self.flags.at_work.store(false, Ordering::Relaxed);
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
