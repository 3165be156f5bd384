//! The state of the connections, for operators.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use crate::transport::TlsInfo;

/// Whether requests can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkState {
    /// Every queue has its connection.
    Up,
    /// A queue has lost its connection and reconnects.
    Reconnecting,
    /// The retry time is over: requests fail until the server is back.
    Failing,
    /// The server is back, but its export changed: reads are served, writes fail.
    ReadsOnly,
}

impl LinkState {
    /// The state's name in output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Reconnecting => "reconnecting",
            Self::Failing => "failing",
            Self::ReadsOnly => "reads-only",
        }
    }
}

/// A snapshot of a device's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// The worst state of any queue.
    pub state: LinkState,
    /// When this state began.
    pub since: SystemTime,
    /// The most recent reason why a connection was lost or failed.
    pub last_error: Option<String>,
    /// Current number of connections.
    pub connections: u32,
    /// Number of reconnects.
    pub reconnects: u64,
    /// Number of requests that were resent after a reconnect.
    pub replayed: u64,
    /// Number of queues that have not yet moved to the device's new server.
    pub moving: u32,
    /// How the most recent connection is encrypted, `None` for plain text.
    pub tls: Option<TlsInfo>,
}

/// The states of all queues.
#[derive(Debug)]
pub(crate) struct Board {
    inner: Mutex<Inner>,
    /// Signalled when a queue has another state.
    changed: Condvar,
}

#[derive(Debug)]
struct Inner {
    queues: Vec<Option<LinkState>>,
    since: SystemTime,
    last_error: Option<String>,
    reconnects: u64,
    replayed: u64,
    /// Queues that have connected before.
    met: Vec<usize>,
    moving: Vec<usize>,
    tls: Option<TlsInfo>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            queues: Vec::new(),
            since: SystemTime::now(),
            last_error: None,
            reconnects: 0,
            replayed: 0,
            met: Vec::new(),
            moving: Vec::new(),
            tls: None,
        };
        Self {
            inner: Mutex::new(inner),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, queue: usize, state: LinkState) {
        let mut inner = self.lock();
        let before = inner.worst();
        if inner.queues.len() <= queue {
            inner.queues.resize(queue + 1, None);
        }
        let is_up = |state| matches!(state, LinkState::Up | LinkState::ReadsOnly);
        if let Some(place) = inner.queues.get_mut(queue) {
            let back = place.is_some_and(|before| !is_up(before)) && is_up(state);
            *place = Some(state);
            // The first connection of a queue is not a reconnect.
            match back && inner.met.contains(&queue) {
                true => inner.reconnects += 1,
                false if is_up(state) => inner.met.push(queue),
                false => {}
            }
        }
        if inner.worst() != before {
            inner.since = SystemTime::now();
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Waits until so many queues have a connection. Returns how many lack one at the deadline.
    pub(crate) fn lacking(&self, queues: usize, by: Instant) -> usize {
        let left = by.saturating_duration_since(Instant::now());
        let waits = |inner: &mut Inner| inner.connections() < queues;
        let waited = self.changed.wait_timeout_while(self.lock(), left, waits);
        let (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queues.saturating_sub(inner.connections())
    }

    /// All queues are to move to another server.
    pub(crate) fn move_all(&self) {
        let mut inner = self.lock();
        inner.moving = (0..inner.queues.len()).collect();
        // Errors of an earlier move do not apply to this one.
        inner.last_error = None;
    }

    /// Whether a queue is to move to another server, and has not yet.
    pub(crate) fn is_moving(&self, queue: usize) -> bool {
        self.lock().moving.contains(&queue)
    }

    /// Notes that a queue has moved, or never will.
    pub(crate) fn moved(&self, queue: usize) {
        self.lock().moving.retain(|moving| *moving != queue);
    }

    /// Notes that a queue has ended.
    pub(crate) fn ended(&self, queue: usize) {
        if let Some(place) = self.lock().queues.get_mut(queue) {
            *place = None;
        }
    }

    pub(crate) fn failed(&self, error: String) {
        self.lock().last_error = Some(error);
    }

    /// Notes the encryption of a new connection.
    pub(crate) fn carried(&self, tls: Option<TlsInfo>) {
        self.lock().tls = tls;
    }

    /// Adds to the number of resent requests.
    pub(crate) fn replayed(&self, replayed: u64) {
        self.lock().replayed += replayed;
    }

    pub(crate) fn snapshot(&self) -> Status {
        let inner = self.lock();
        let connections = inner.connections();
        Status {
            state: inner.worst(),
            since: inner.since,
            last_error: inner.last_error.clone(),
            connections: u32::try_from(connections).unwrap_or(u32::MAX),
            reconnects: inner.reconnects,
            replayed: inner.replayed,
            moving: u32::try_from(inner.moving.len()).unwrap_or(u32::MAX),
            tls: inner.tls.clone(),
        }
    }
}

impl Inner {
    fn connections(&self) -> usize {
        let up = |state: &&Option<LinkState>| {
            matches!(state, Some(LinkState::Up | LinkState::ReadsOnly))
        };
        self.queues.iter().filter(up).count()
    }

    fn worst(&self) -> LinkState {
        let any = |state| self.queues.contains(&Some(state));
        let order = [
            LinkState::Failing,
            LinkState::Reconnecting,
            LinkState::ReadsOnly,
        ];
        order.into_iter().find(|s| any(*s)).unwrap_or(LinkState::Up)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_worst_queue_is_the_state_of_the_device() {
        let board = Board::new();
        assert_eq!(board.snapshot().state, LinkState::Up);
        board.set(1, LinkState::Reconnecting);
        board.set(0, LinkState::Up);
        let seen = board.snapshot();
        assert_eq!((seen.state, seen.connections), (LinkState::Reconnecting, 1));
        board.set(1, LinkState::Failing);
        board.set(0, LinkState::ReadsOnly);
        assert_eq!(board.snapshot().state, LinkState::Failing);
        board.set(1, LinkState::Up);
        assert_eq!(board.snapshot().state, LinkState::ReadsOnly);
        assert_eq!(board.snapshot().connections, 2);
    }

    /// L72 Whoever waits for all queues is woken by the last one, and learns by the deadline how many lack a connection.
    #[test]
    fn l72_queues_without_a_connection_are_counted() {
        let board = Board::new();
        let soon = || Instant::now() + Duration::from_millis(10);
        board.set(0, LinkState::Up);
        board.set(1, LinkState::Reconnecting);
        assert_eq!(board.lacking(3, soon()), 2);
        let by = Instant::now() + Duration::from_secs(10);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| (board.lacking(2, by), Instant::now() < by));
            // It sleeps by then.
            std::thread::sleep(Duration::from_millis(50));
            board.set(1, LinkState::Up);
            assert_eq!(waits.join().expect("no panic"), (0, true));
        });
    }
}
