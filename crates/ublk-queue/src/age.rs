//! How long the oldest request of a lane has been in hand.
//!
//! Nobody reads a clock for it per request. Whoever looks ([`LaneHandle::look`](crate::LaneHandle::look)) asks the lane's
//! thread to note at the end of its next round which requests it has in hand; a note goes when its request is answered.
//! At the next look, the oldest note tells since when a request has at least been there. A thread that is inside a handler
//! ends no round: that it works, and how many rounds it has ended, is known without asking it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ublk_core::Tag;

/// Where a request is that has been taken from the driver and not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// It waits for a thread of the pool: all of them are busy.
    Waiting,
    /// The backend has it: a call has not returned, an operation has not completed, or its task has not ended.
    Backend,
    /// It has been answered, and the queue's thread has not passed the answer on.
    Answer,
}

impl Place {
    /// The place as one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Backend => "backend",
            Self::Answer => "answer",
        }
    }
}

/// The request that a lane has had in hand for longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Oldest {
    /// For how long at least: since the first look that found it. With latencies, since it arrived.
    pub age: Duration,
    /// Where it is.
    pub place: Place,
}

/// Notes of a lane. Made by whoever looks, not by the lane's thread, which must not allocate (L37).
pub(crate) struct Notes {
    /// When a tag's request was noted, in nanoseconds of the worker's clock; 0 for none.
    since: Box<[AtomicU64]>,
    /// Number of requests that the lane had taken when notes were made last.
    taken: AtomicU64,
    /// Of the thread, as of a look that found it at work: the number of rounds that it had ended, and the time.
    work: Mutex<Option<(u64, u64)>>,
}

impl Notes {
    pub(crate) fn new(depth: u16) -> Self {
        Self {
            since: (0..depth).map(|_| AtomicU64::new(0)).collect(),
            taken: AtomicU64::new(u64::MAX),
            work: Mutex::new(None),
        }
    }

    /// Notes a tag's request unless that was done before. Lane's thread only.
    pub(crate) fn note(&self, tag: Tag, now: u64) -> bool {
        let cell = self.since.get(tag.index());
        // Relaxed: one writer, and readers need no order.
        let free = cell.filter(|cell| cell.load(Ordering::Relaxed) == 0);
        free.is_some_and(|cell| {
            cell.store(now.max(1), Ordering::Relaxed);
            true
        })
    }

    /// Removes the note of a tag's request. Lane's thread only.
    pub(crate) fn remove(&self, tag: Tag) -> bool {
        let cell = self.since.get(tag.index());
        let noted = cell.filter(|cell| cell.load(Ordering::Relaxed) != 0);
        noted.is_some_and(|cell| {
            cell.store(0, Ordering::Relaxed);
            true
        })
    }

    /// All requests in hand are noted, of this number taken so far. Lane's thread only.
    pub(crate) fn are_made(&self, taken: u64) {
        self.taken.store(taken, Ordering::Relaxed);
    }

    /// Whether there may be requests without a note. A thread that only waits must not be woken for nothing: a queue whose
    /// rounds go on does not look stuck.
    pub(crate) fn are_missing(&self, taken: u64) -> bool {
        self.taken.load(Ordering::Relaxed) != taken
    }

    /// The tag whose note is the oldest, and when that was made.
    pub(crate) fn oldest(&self) -> Option<(Tag, u64)> {
        let noted = self.since.iter().enumerate().filter_map(|(n, since)| {
            let since = since.load(Ordering::Relaxed);
            let tag = Tag::new(u16::try_from(n).ok()?).ok()?;
            (since != 0).then_some((tag, since))
        });
        noted.min_by_key(|(_, since)| *since)
    }

    /// Since when the thread has been in one round, as far as looks know: `at_work`, with this number of ended rounds.
    pub(crate) fn at_work(&self, at_work: bool, rounds: u64, now: u64) -> Option<u64> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        *work = match *work {
            _ if !at_work => None,
            Some((before, since)) if before == rounds => Some((before, since)),
            _ => Some((rounds, now)),
        };
        work.map(|(_, since)| since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_note_is_told_until_it_is_removed() {
        let tag = |n| Tag::new(n).expect("small");
        let notes = Notes::new(4);
        assert_eq!(notes.oldest(), None);
        assert!(notes.note(tag(3), 0) && notes.note(tag(1), 70));
        assert!(!notes.note(tag(3), 90), "the first note stays");
        assert_eq!(notes.oldest(), Some((tag(3), 1)));
        assert!(notes.remove(tag(3)) && !notes.remove(tag(3)) && !notes.remove(tag(0)));
        assert_eq!(notes.oldest(), Some((tag(1), 70)));
        assert!(!notes.note(tag(9), 1), "no such tag");
    }

    /// A thread is asked again only after it has taken other requests.
    #[test]
    fn a_thread_that_only_waits_is_left_alone() {
        let notes = Notes::new(1);
        assert!(notes.are_missing(0));
        notes.are_made(7);
        assert!(!notes.are_missing(7));
        assert!(notes.are_missing(8));
    }

    #[test]
    fn a_thread_is_in_one_round_until_it_ends_it_or_sleeps() {
        let notes = Notes::new(1);
        assert_eq!(notes.at_work(true, 5, 100), Some(100));
        assert_eq!(notes.at_work(true, 5, 200), Some(100));
        assert_eq!(notes.at_work(true, 6, 300), Some(300));
        assert_eq!(notes.at_work(false, 6, 400), None);
        assert_eq!(notes.at_work(true, 6, 500), Some(500));
    }
}
