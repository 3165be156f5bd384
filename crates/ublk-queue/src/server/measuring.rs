//! Measurement of a running server.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ublk_core::QueueId;
use ublk_metrics::{Level, Snapshot};

use super::Server;
use crate::measure::nanos_since;
use crate::recording::Recorder;

/// When a server started, and what it measures.
#[derive(Debug)]
pub(super) struct Begun {
    /// By the clock on the wall, in nanoseconds since 1970: tells one server from the next.
    wall: u64,
    at: Instant,
    level: AtomicU8,
    recording: AtomicBool,
}

impl Begun {
    pub(super) fn now() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let wall = wall.map_or(0, |time| time.as_nanos());
        Self {
            wall: u64::try_from(wall).unwrap_or(0),
            at: Instant::now(),
            level: AtomicU8::new(Level::Off as u8),
            recording: AtomicBool::new(false),
        }
    }
}

impl Server {
    /// Measures this much from each thread's next batch on, while the device serves. Requests in flight at that moment have
    /// no latency.
    pub fn measure(&self, level: Level) {
        self.begun.level.store(level as u8, Ordering::Relaxed);
        self.apply_level();
    }

    /// Measures what is asked for, and latencies while requests are recorded.
    fn apply_level(&self) {
        let level = match self.begun.recording.load(Ordering::Relaxed) {
            true => Level::Latencies,
            false => Level::from_u8(self.begun.level.load(Ordering::Relaxed)),
        };
        // All lanes first: some share a thread, which changes all of its lanes at once.
        for armed in &self.lanes {
            armed.lane.prepare_to_measure(level);
        }
        for armed in &self.lanes {
            armed.lane.measure(level);
        }
    }

    /// Passes each request that arrives and ends from now on to the recorder of its lane, while the device serves. `make`
    /// makes the recorder of a lane: a queue with several threads has one for each. Ends an earlier recording. Latencies are
    /// measured meanwhile, whatever [`measure`](Self::measure) says. Returns when the recording began.
    pub fn record(&self, mut make: impl FnMut(QueueId) -> Box<dyn Recorder>) -> Instant {
        let since = Instant::now();
        for armed in &self.lanes {
            let qid = armed.lane.qid();
            armed.lane.record(Some((make(qid), since)));
        }
        self.begun.recording.store(true, Ordering::Relaxed);
        self.apply_level();
        since
    }

    /// Ends the recording, and waits until no lane uses its recorder any more, or until the deadline. True if none does.
    #[must_use]
    pub fn end_recording(&self, deadline: Instant) -> bool {
        for armed in &self.lanes {
            armed.lane.record(None);
        }
        self.begun.recording.store(false, Ordering::Relaxed);
        self.apply_level();
        loop {
            // Each is asked, and frees what its lane has left.
            let followed = self.lanes.iter().filter(|armed| armed.lane.has_followed());
            if followed.count() == self.lanes.len() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the device has done since this server started. Takes no lock of the serving threads, and costs them nothing.
    #[must_use]
    pub fn metrics(&self) -> Snapshot {
        let level = Level::from_u8(self.begun.level.load(Ordering::Relaxed));
        let mut snapshot = Snapshot::new(level, self.begun.wall, nanos_since(self.begun.at));
        let queues = self.lanes.iter();
        snapshot.queues = queues
            .map(|armed| armed.lane.metrics(armed.thread))
            .collect();
        snapshot
    }
}
