//! Measurement of a running server.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Instant, SystemTime};

use ublk_metrics::{Level, Snapshot};

use super::Server;
use crate::measure::nanos_since;

/// When a server started, and what it measures.
#[derive(Debug)]
pub(super) struct Begun {
    /// By the clock on the wall, in nanoseconds since 1970: tells one server from the next.
    wall: u64,
    at: Instant,
    level: AtomicU8,
}

impl Begun {
    pub(super) fn now() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let wall = wall.map_or(0, |time| time.as_nanos());
        Self {
            wall: u64::try_from(wall).unwrap_or(0),
            at: Instant::now(),
            level: AtomicU8::new(Level::Off as u8),
        }
    }
}

impl Server {
    /// Measures this much from each thread's next batch on, while the device serves. Requests in flight at that moment have
    /// no latency.
    pub fn measure(&self, level: Level) {
        // All lanes first: some share a thread, which changes all of its lanes at once.
        for armed in &self.lanes {
            armed.lane.prepare_to_measure(level);
        }
        for armed in &self.lanes {
            armed.lane.measure(level);
        }
        self.begun.level.store(level as u8, Ordering::Relaxed);
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
