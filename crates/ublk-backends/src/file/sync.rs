//! Shares fdatasync calls.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ublk_core::Errno;

/// Shares syncs between concurrent callers.
///
/// A sync makes durable what completed before it began. So a caller that arrives while one runs waits for the next,
/// together with all others that arrived meanwhile (L07).
#[derive(Debug, Default)]
pub(crate) struct Syncs {
    state: Mutex<State>,
    ended: Condvar,
    /// Calls of [`Syncs::wait`] and [`Syncs::count`].
    wanted: AtomicU64,
}

/// Syncs are numbered from 1.
#[derive(Debug, Default)]
struct State {
    /// The last sync that has begun.
    begun: u64,
    /// The last sync that has ended.
    ended: u64,
    /// The last sync that failed, and its errno. A caller that waited for an earlier one and wakes up late gets this
    /// failure, which may not be its own: a false alarm, never a false success.
    failed: Option<(u64, Errno)>,
}

impl Syncs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that is synced by another call.
    pub(crate) fn count(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns once a sync that began after this call has ended. Calls `sync` at most once.
    ///
    /// # Errors
    /// The errno of the sync.
    pub(crate) fn wait(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        self.count();
        let mut state = self.lock();
        // A sync that has begun may have begun too early.
        let mine = state.begun + 1;
        while state.ended < mine {
            if state.begun > state.ended {
                state = self
                    .ended
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.begun += 1;
            let number = state.begun;
            drop(state);
            // Ends the sync even if the call panics, so that no waiter hangs.
            let mut run = Run {
                syncs: self,
                number,
                result: Err(Errno::EIO),
            };
            run.result = sync();
            return run.result;
        }
        match state.failed {
            Some((number, errno)) if number >= mine => Err(errno),
            _ => Ok(()),
        }
    }

    /// Number of requests for a sync, and of syncs that ended here.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.wanted.load(Ordering::Relaxed), self.lock().ended)
    }
}

/// A running sync.
struct Run<'a> {
    syncs: &'a Syncs,
    number: u64,
    result: Result<(), Errno>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let mut state = self.syncs.lock();
        state.ended = self.number;
        if let Err(errno) = self.result {
            state.failed = Some((self.number, errno));
        }
        drop(state);
        self.syncs.ended.notify_all();
    }
}
