//! Notifies the service manager of a foreground device: `Type=notify`, a status line, and the watchdog.
//!
//! The watchdog is fed only while the queues make progress or are idle. A queue with requests in flight that finishes
//! no batch is stuck, one that has had a request in hand all the time is, too, and so is a server that does not answer:
//! after half a period of that, feeding stops, and the manager kills the service between one and one and a half periods
//! after the queue stopped. Requests that wait for an NBD server are not stuck: no new process would answer them.

use super::ask::health;
use crate::problems::{self, age};
use crate::report::{Added, Health};
use sd_notify::NotifyState;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use ublk_core::DevId;

/// Checks of the queues per watchdog period.
const LOOKS: u32 = 8;

/// How long a start may take after a pause.
const START: Duration = Duration::from_secs(60);

/// Reports that the device serves, and starts feeding the watchdog if one is configured.
pub(super) fn serves(added: &Added) {
    let status = format!("{} serves", added.path.display());
    say(&[NotifyState::Ready, NotifyState::Status(&status)]);
    let (Some(period), Ok(id)) = (sd_notify::watchdog_enabled(), DevId::new(added.id)) else {
        return;
    };
    let watch = Watch::new(added.path.display().to_string(), period);
    let thread = std::thread::Builder::new().name("watchdog".to_owned());
    if let Err(e) = thread.spawn(move || feed(id, watch)) {
        tracing::error!("cannot start the watchdog thread: {e}");
    }
}

/// Reports that the service ends on request.
pub(super) fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// Reports that the start is delayed, and extends the start timeout.
pub(super) fn waiting(pause: Duration, starts: u32) {
    let status = format!("start attempt {starts} in {} s", pause.as_secs());
    let more = (pause + START).as_micros();
    let more = u32::try_from(more).unwrap_or(u32::MAX);
    say(&[
        NotifyState::ExtendTimeoutUsec(more),
        NotifyState::Status(&status),
    ]);
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager: {e}");
    }
}

/// Feeds the watchdog to the end of the process.
fn feed(id: DevId, mut watch: Watch) {
    let mut told = String::new();
    loop {
        // Leave time for a busy machine.
        let known = health(id, watch.period / 4).ok();
        let (good, status) = watch.look(known.as_ref(), Instant::now());
        if !good {
            tracing::error!("{status}: the watchdog is not fed");
        }
        let mut state = Vec::new();
        if good {
            state.push(NotifyState::Watchdog);
        }
        if status != told {
            state.push(NotifyState::Status(&status));
        }
        if !state.is_empty() {
            say(&state);
        }
        told = status;
        // This is the interval between checks, not a wait for an event.
        std::thread::sleep(watch.period / LOOKS);
    }
}

/// What is known about the queues.
struct Watch {
    path: String,
    period: Duration,
    /// Per queue and thread: the number of finished batches, and when it was last idle or made progress.
    moved: BTreeMap<(u16, u16), (u64, Instant)>,
    /// When the server last answered.
    heard: Option<Instant>,
}

impl Watch {
    const fn new(path: String, period: Duration) -> Self {
        Self {
            path,
            period,
            moved: BTreeMap::new(),
            heard: None,
        }
    }

    /// Whether to feed the watchdog, and the status line.
    fn look(&mut self, health: Option<&Health>, now: Instant) -> (bool, String) {
        let path = &self.path;
        let Some(health) = health else {
            let since = *self.heard.get_or_insert(now);
            let silent = now.saturating_duration_since(since);
            return (
                silent < self.period / 2,
                format!("{path}: the server does not answer"),
            );
        };
        self.heard = Some(now);
        let mut stuck = None;
        for queue in &health.queues {
            let key = (queue.qid, queue.thread);
            let (batches, since) = self.moved.entry(key).or_insert((queue.batches, now));
            if queue.in_hand == 0 || *batches != queue.batches {
                (*batches, *since) = (queue.batches, now);
            }
            if now.saturating_duration_since(*since) >= self.period / 2 {
                stuck = Some(queue);
            }
        }
        if let Some(queue) = stuck {
            let (qid, thread) = (queue.qid, queue.thread);
            let text = format!("{path}: queue {qid}, thread {thread} makes no progress");
            return (false, text);
        }
        let reached = health.nbd.as_ref().is_none_or(|nbd| nbd.state == "up");
        let mut queues = health.queues.iter().filter(|_| reached);
        if let Some(queue) = queues.find(|queue| age(queue) >= Some(self.period / 2)) {
            let text = format!(
                "{path}: {} makes no progress on a request that it has had for {} s",
                problems::name(queue),
                age(queue).unwrap_or_default().as_secs()
            );
            return (false, text);
        }
        let stats = &health.stats;
        let text = format!(
            "{path} serves: {} reads, {} writes, {} flushes, {} errors",
            stats.reads, stats.writes, stats.flushes, stats.errors
        );
        (true, text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{NbdReport, OldestReport, QueueReport};

    const PERIOD: Duration = Duration::from_secs(8);

    /// Queues given as (requests in flight, finished batches).
    fn health(queues: &[(u64, u64)]) -> Health {
        let queue = |(qid, (in_hand, batches)): (usize, &(u64, u64))| QueueReport {
            qid: u16::try_from(qid).unwrap(),
            thread: 0,
            in_hand: *in_hand,
            batches: *batches,
            ..QueueReport::default()
        };
        Health {
            queues: queues.iter().enumerate().map(queue).collect(),
            ..Health::default()
        }
    }

    /// Checks once a second what `at` returns; the first second in which the watchdog is not fed.
    fn starved(at: impl Fn(u64) -> Option<Health>) -> Option<u64> {
        let mut watch = Watch::new("/dev/ublkb0".to_owned(), PERIOD);
        let start = Instant::now();
        (0..30).find(|second| {
            let now = start + Duration::from_secs(*second);
            !watch.look(at(*second).as_ref(), now).0
        })
    }

    /// L24 A queue without progress and with requests in flight is detected, even beside one that makes progress; an
    /// idle or slow queue is not reported.
    #[test]
    fn l24_only_a_stuck_queue_starves_the_watchdog() {
        assert_eq!(starved(|_| Some(health(&[(0, 7)]))), None, "idle");
        assert_eq!(starved(|s| Some(health(&[(1, s)]))), None, "moving");
        assert_eq!(starved(|s| Some(health(&[(1, s / 3)]))), None, "slow");
        assert_eq!(starved(|_| Some(health(&[(1, 7)]))), Some(4), "stuck");
        assert_eq!(
            starved(|s| Some(health(&[(1, s), (2, 7)]))),
            Some(4),
            "one of two"
        );
        let idle_at_times = |s: u64| Some(health(&[(u64::from(!s.is_multiple_of(3)), 7)]));
        assert_eq!(starved(idle_at_times), None, "idle in between");
    }

    /// L24 A request that is never answered is detected although its queue goes on with others; not while it waits for an
    /// NBD server that cannot be reached.
    #[test]
    fn l24_a_request_that_is_never_answered_starves_the_watchdog() {
        let at = |second: u64, age: u64, nbd: Option<&str>| {
            let mut health = health(&[(1, second)]);
            health.queues[0].oldest = Some(OldestReport {
                ms: age * 1000,
                place: "backend".to_owned(),
            });
            health.nbd = nbd.map(|state| NbdReport {
                state: state.to_owned(),
                since: 0,
                last_error: None,
                connections: 0,
                reconnects: 0,
                replayed: 0,
                retry: crate::spec::Retry::Forever,
                uri: String::new(),
                moving: 0,
                moving_to: None,
                tls: None,
            });
            Some(health)
        };
        assert_eq!(starved(|s| at(s, s, None)), Some(4));
        assert_eq!(starved(|s| at(s, s, Some("up"))), Some(4));
        assert_eq!(starved(|s| at(s, s % 4, None)), None);
        assert_eq!(starved(|s| at(s, s, Some("reconnecting"))), None);
    }

    /// A server that does not answer is stuck, whatever it had in flight; one that answers late is not.
    #[test]
    fn a_silent_server_starves_the_watchdog() {
        assert_eq!(starved(|_| None), Some(4));
        let at_times = |s: u64| s.is_multiple_of(3).then(|| health(&[(0, 7)]));
        assert_eq!(starved(at_times), None);
        let until = |s: u64| (s < 10).then(|| health(&[(0, 7)]));
        assert_eq!(starved(until), Some(13));
    }
}
