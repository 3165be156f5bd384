//! The word shared by a ring that goes to sleep and threads that wake it.
//!
//! # Protocol
//! One word with three values. The ring's thread is the sleeper, any other thread a waker.
//!
//! | step | change | ordering |
//! |---|---|---|
//! | sleeper, before it sleeps | RUNNING → PARKED, or NOTIFIED → RUNNING and no sleep | acquire |
//! | sleeper, after it wakes | any → RUNNING | acquire |
//! | waker | any → NOTIFIED; writes to the eventfd if it was PARKED | release |
//!
//! No wake-up is lost: all three steps are read-modify-writes of one word, so they have a total order. If the waker's
//! swap comes before the sleeper's step, the sleeper finds NOTIFIED and does not sleep. If it comes after, the waker
//! finds PARKED and writes to the eventfd. Either way the sleeper's next acquire reads what the waker's release wrote
//! (or a later swap in the same release sequence), so it sees the waker's earlier writes.
//!
//! With a flag that one side only stores and the other only loads, both sides would need a `SeqCst` fence between store
//! and load, and the sleeper would have to check the caller's work again between its fence and its sleep. A swap costs
//! as much as such a fence on x86-64 and leaves nothing for the caller to forget.
//!
//! The write to the eventfd may be late: the waker swaps, the sleeper wakes for another reason, sleeps again, then sees
//! the eventfd and wakes once for nothing. Each `wake` causes at most one such wake-up; an idle ring sleeps on.

#![forbid(unsafe_code)]

#[cfg(loom)]
use loom::sync::atomic::AtomicU32;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

const RUNNING: u32 = 0;
const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;

/// The shared word.
#[derive(Debug)]
pub struct Park(AtomicU32);

impl Default for Park {
    fn default() -> Self {
        Self(AtomicU32::new(RUNNING))
    }
}

impl Park {
    /// Sleeper: announces sleep. `false` means that a wake came since the last sleep; it has been taken, do not sleep.
    #[inline]
    #[must_use]
    pub fn park(&self) -> bool {
        // Acquire on failure, too: NOTIFIED was written after the waker's work.
        match self
            .0
            .compare_exchange(RUNNING, PARKED, Ordering::Acquire, Ordering::Acquire)
        {
            Ok(_) => true,
            Err(_) => {
                self.0.swap(RUNNING, Ordering::Acquire);
                false
            }
        }
    }

    /// Sleeper: is awake again. `true` if a wake came.
    #[inline]
    pub fn unpark(&self) -> bool {
        // Acquire: pairs with the release in `notify`.
        self.0.swap(RUNNING, Ordering::Acquire) == NOTIFIED
    }

    /// Sleeper: whether a wake has come that no sleep has taken.
    #[inline]
    pub fn is_notified(&self) -> bool {
        // Relaxed: a hint; `park` takes the notice with acquire.
        self.0.load(Ordering::Relaxed) == NOTIFIED
    }

    /// Waker: leaves the notice. `true` if the sleeper is parked and the caller must write to the eventfd.
    #[inline]
    #[must_use]
    pub fn notify(&self) -> bool {
        // Release: this thread's earlier writes become visible to the sleeper that takes the notice.
        self.0.swap(NOTIFIED, Ordering::Release) == PARKED
    }
}
