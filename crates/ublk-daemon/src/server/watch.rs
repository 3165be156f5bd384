//! Looks at the queues of a serving device while they are in use, so that requests that are never answered are known,
//! and logged, without anybody asking.
//!
//! An idle device is not looked at: its threads say when it moves again (L55).
#![forbid(unsafe_code)]

use super::engine::Running;
use crate::report::{Problem, ProblemKind};
use std::time::{Duration, Instant};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// When to look next, and what the log has been told.
#[derive(Debug, Default)]
pub(super) struct Watch {
    next: Option<Instant>,
    /// Batches as of the last look.
    batches: u64,
    told: Option<Problem>,
}

impl Watch {
    /// When to look next; `None` while the device is idle.
    pub(super) const fn next(&self) -> Option<Instant> {
        self.next
    }

    /// The device has served something since it was idle.
    pub(super) fn moved(&mut self, now: Instant) {
        self.next.get_or_insert(now + LOOK);
    }

    /// Looks if it is time, and logs what has changed.
    pub(super) fn look(&mut self, running: &dyn Running, now: Instant, say: impl Fn(String)) {
        if self.next.is_some_and(|next| next > now) {
            return;
        }
        let is_idle = self.is_idle(running, &say);
        if is_idle {
            running.tell_when_moving();
        }
        // What came before the threads knew that they shall tell is seen by another look.
        self.next = match is_idle && self.is_idle(running, &say) {
            true => None,
            false => Some(now + LOOK),
        };
    }

    /// Whether the device has done nothing since the look before and has nothing to do.
    fn is_idle(&mut self, running: &dyn Running, say: &impl Fn(String)) -> bool {
        let health = running.health();
        let mut problems = health.problems.iter();
        let stalled = problems.find(|it| it.kind == ProblemKind::Stalled);
        match (stalled, &self.told) {
            (Some(problem), None) => say(problem.text.clone()),
            (None, Some(_)) => say("the requests that were stalled have been answered".to_owned()),
            _ => {}
        }
        self.told = stalled.cloned();
        let before = std::mem::replace(&mut self.batches, health.stats.enters);
        before == self.batches && health.queues.iter().all(|queue| queue.in_hand == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::report::{Health, QueueReport};
    use std::cell::{Cell, RefCell};
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use ublk_metrics::{Level, Snapshot};
    use ublk_trace::recorder::Drain;

    struct Device {
        ended: UnixStream,
        batches: Cell<u64>,
        in_hand: Cell<u64>,
        stalled: Cell<bool>,
        /// Batches when it was told to tell, and one that comes at that moment.
        waits: Cell<Option<u64>>,
        late: Cell<bool>,
    }

    impl Running for Device {
        fn ended_fd(&self) -> BorrowedFd<'_> {
            self.ended.as_fd()
        }
        fn health(&self) -> Health {
            let queue = QueueReport {
                in_hand: self.in_hand.get(),
                ..QueueReport::default()
            };
            let problem = Problem {
                kind: ProblemKind::Stalled,
                text: "stalled".to_owned(),
            };
            let mut health = Health {
                queues: vec![queue],
                problems: self.stalled.get().then_some(problem).into_iter().collect(),
                ..Health::default()
            };
            health.stats.enters = self.batches.get();
            health
        }
        fn tell_when_moving(&self) {
            self.waits.set(Some(self.batches.get()));
            if self.late.take() {
                self.batches.set(self.batches.get() + 1);
            }
        }
        fn metrics(&self) -> Snapshot {
            Snapshot::default()
        }
        fn measure(&self, _: Level) {}
        fn record(&self) -> Vec<Drain> {
            Vec::new()
        }
        fn end_recording(&self) {}
        fn failure(&self) -> Option<Failure> {
            None
        }
        fn finish(&mut self, _: Duration) -> Result<Health, Failure> {
            Ok(Health::default())
        }
    }

    /// L55 An idle device is not looked at; one that moves, or has something in hand, is, and a stall is logged once.
    #[test]
    fn l55_only_a_device_in_use_is_looked_at() {
        let (ended, _far) = UnixStream::pair().unwrap();
        let device = Device {
            ended,
            batches: Cell::new(3),
            in_hand: Cell::new(0),
            stalled: Cell::new(false),
            waits: Cell::default(),
            late: Cell::new(true),
        };
        let said: RefCell<Vec<String>> = RefCell::default();
        let say = |text: String| said.borrow_mut().push(text);
        let mut watch = Watch::default();
        let (start, count) = (Instant::now(), Cell::new(0));
        let look = |watch: &mut Watch| {
            count.set(count.get() + 1);
            watch.look(&device, start + LOOK * count.get(), say);
            watch.next().is_some()
        };
        assert!(look(&mut watch), "its batches have moved");
        assert!(look(&mut watch), "and once more as it was told to tell");
        assert_eq!(device.waits.take(), Some(3));
        assert!(!look(&mut watch), "idle");
        assert_eq!(device.waits.take(), Some(4));
        watch.moved(start + LOOK * count.get());
        device.in_hand.set(1);
        assert!(look(&mut watch) && look(&mut watch));
        assert_eq!(device.waits.take(), None);
        device.stalled.set(true);
        assert!(look(&mut watch) && look(&mut watch));
        assert_eq!(*said.borrow(), ["stalled"]);
        device.stalled.set(false);
        device.in_hand.set(0);
        assert!(!look(&mut watch));
        assert_eq!(said.borrow().len(), 2);
    }

    /// A look before its time does nothing.
    #[test]
    fn looks_are_not_more_often_than_they_are_due() {
        let mut watch = Watch::default();
        let now = Instant::now();
        watch.moved(now);
        let (at, later) = (watch.next(), now + LOOK / 2);
        watch.moved(later);
        assert_eq!(watch.next(), at, "the first movement counts");
    }
}
