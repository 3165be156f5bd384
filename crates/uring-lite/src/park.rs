//! The word between a ring that goes to sleep and threads that wake it.
//!
//! # Protocol
//! One word with three values. The ring's thread is the sleeper, any other thread a waker.
//!
//! | step | change | ordering |
//! |---|---|---|
//! | sleeper, before it sleeps | RUNNING → PARKED, or NOTIFIED → RUNNING and no sleep | acquire |
//! | sleeper, after it woke | any → RUNNING | acquire |
//! | waker | any → NOTIFIED; was it PARKED, ring the bell | release |
//!
//! No wake is lost: all three steps are read-modify-writes of one word, so they have one order. If the waker's swap
//! comes before the sleeper's step, the sleeper finds NOTIFIED and does not sleep. If it comes after, the waker finds
//! PARKED and rings. Either way the sleeper's next acquire reads what the waker's release wrote (or a later swap in
//! the same release sequence), so it sees what the waker did before.
//!
//! A flag that is stored by one side and only loaded by the other would need a `SeqCst` fence between store and load
//! on both sides, and the sleeper would have to look at the caller's work once more between its fence and its sleep.
//! A swap costs what such a fence costs on x86-64 and leaves nothing for the caller to forget.
//!
//! The bell may be late: the waker swaps, the sleeper wakes for another reason, sleeps again, then hears the bell and
//! wakes once for nothing. At most one such wake-up belongs to each `wake`; an idle ring hears nothing.

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
    /// Sleeper: announces sleep. `false` means a wake came since the last sleep: it is taken, do not sleep.
    #[inline]
    #[must_use]
    pub fn park(&self) -> bool {
        // Acquire on failure too: NOTIFIED was written after the waker's work.
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

    /// Sleeper: awake again. `true` if a wake came.
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

    /// Waker: leaves the notice. `true` if the sleeper is parked and the caller must ring the bell.
    #[inline]
    #[must_use]
    pub fn notify(&self) -> bool {
        // Release: what this thread did before is visible to the sleeper that takes the notice.
        self.0.swap(NOTIFIED, Ordering::Release) == PARKED
    }
}
