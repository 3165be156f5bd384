//! How often QUIESCE_DEV is sent.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

/// Repeats QUIESCE_DEV for a server that does not notice it: soon, then with growing intervals.
#[derive(Debug)]
pub(super) struct Pace {
    next: Instant,
    pause: Duration,
}

impl Pace {
    const FIRST: Duration = Duration::from_millis(5);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(super) fn new() -> Self {
        Self {
            next: Instant::now(),
            pause: Self::FIRST,
        }
    }

    /// When the next one is due.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// Whether one is due; if so, schedules the next with a longer interval.
    pub(super) fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(Self::LONGEST);
        }
        due
    }
}
