//! One fdatasync for all who want one.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use ublk_core::Errno;

/// Shares syncs between concurrent callers.
///
/// A sync makes durable what completed before it began. So who comes while one runs cannot have that one: it waits
/// for the next, together with all others who came meanwhile (L07).
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
    /// The last sync that began.
    begun: u64,
    /// The last sync that ended.
    ended: u64,
    /// The last sync that failed, and how. Who waited for an earlier one and wakes up late is told this failure,
    /// which may not be its own: a false alarm, never a false success.
    failed: Option<(u64, Errno)>,
}

impl Syncs {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request whose sync is made elsewhere.
    pub(crate) fn count(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns when a sync that began after this call has ended. `sync` is called at most once.
    ///
    /// # Errors
    /// What the sync answered.
    pub(crate) fn wait(&self, sync: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        self.count();
        let mut state = self.lock();
        // Whatever has begun may have begun too early.
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
            // Ends the sync also when the call panics: nobody waits for ever.
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

    /// Requests that wanted a sync, and syncs that ended here.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.wanted.load(Ordering::Relaxed), self.lock().ended)
    }
}

/// A sync under way.
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
