//! How the threads of a server end, and how its owner learns of it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ublk_core::Tag;
use uring_lite::Waker;

use super::Server;
use crate::handler::Pool;
use crate::health::State;
use crate::shared::LaneShared;
use crate::thread;
use crate::worker::LaneHandle;

/// State shared by the owner and the threads of a server.
pub(super) struct ServerState {
    pub(super) leave: Arc<AtomicBool>,
    wakers: Mutex<Vec<Waker>>,
    running: Mutex<Running>,
    ended: Condvar,
    pub(super) ended_fd: OwnedFd,
    /// See [`Server::tell_when_moving`].
    pub(super) moved_fd: Arc<OwnedFd>,
    /// Answers the requests of a backend that may block. It lives as long as a thread or the owner.
    pool: Mutex<Option<Pool>>,
}

/// The threads of a server that have not ended.
#[derive(Default)]
pub(super) struct Running {
    threads: usize,
    /// True if one of them lingers or has lingered.
    pub(super) failed: bool,
}

impl Running {
    pub(super) const fn have_ended(&self) -> bool {
        self.threads == 0
    }

    /// True if there is something to report to the owner.
    pub(super) const fn is_over(&self) -> bool {
        self.threads == 0 || self.failed
    }
}

impl ServerState {
    /// State for this many threads.
    ///
    /// # Errors
    /// The eventfd could not be created.
    pub(super) fn new(threads: usize) -> std::io::Result<Self> {
        Ok(Self {
            leave: Arc::new(AtomicBool::new(false)),
            wakers: Mutex::new(Vec::with_capacity(threads)),
            running: Mutex::default(),
            ended: Condvar::new(),
            ended_fd: thread::event_fd()?,
            moved_fd: Arc::new(thread::event_fd()?),
            pool: Mutex::default(),
        })
    }

    pub(super) fn keep(&self, pool: Pool) {
        *self.pool.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool);
    }

    /// Whether a tag's request waits for a thread of the pool.
    pub(super) fn has_waiting(&self, lane: &Arc<LaneShared>, tag: Tag) -> bool {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.as_ref()
            .is_some_and(|pool| pool.has_waiting(lane, tag))
    }

    /// Waits until the condition holds. False after the timeout.
    pub(super) fn wait(&self, timeout: Option<Duration>, wanted: fn(&Running) -> bool) -> bool {
        let running = self.running();
        let not_yet = |running: &mut Running| !wanted(running);
        let Some(timeout) = timeout else {
            drop(self.ended.wait_while(running, not_yet));
            return true;
        };
        let wait = self.ended.wait_timeout_while(running, timeout, not_yet);
        !wait.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    pub(super) fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leave(&self) {
        self.leave.store(true, Ordering::Relaxed);
        for waker in self.wakers().iter() {
            waker.wake();
        }
        // Under the lock, so that no thread is between its check of `leave` and its sleep.
        let running = self.running();
        self.ended.notify_all();
        drop(running);
    }

    /// Keeps a failed queue's thread and ring until the owner decides.
    pub(super) fn linger(&self, time: Duration) {
        let mut running = self.running();
        running.failed = true;
        thread::signal_event(self.ended_fd.as_fd());
        self.ended.notify_all();
        let stay = |_: &mut Running| !self.leave.load(Ordering::Relaxed);
        drop(self.ended.wait_timeout_while(running, time, stay));
    }
}

/// Counts a thread as running, and notifies the owner when it has ended, for whatever reason (L24).
pub(super) struct EndGuard {
    shared: Arc<ServerState>,
    pub(super) lanes: Vec<LaneHandle>,
}

impl EndGuard {
    pub(super) fn new(shared: &Arc<ServerState>) -> Self {
        shared.running().threads += 1;
        Self {
            shared: Arc::clone(shared),
            lanes: Vec::new(),
        }
    }

    /// Marks lanes that have neither ended nor failed as ended by a panic.
    pub(super) fn tell_panic(&self) {
        for lane in &self.lanes {
            lane.ended_without_a_word();
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.lanes.iter().any(|lane| lane.state() == State::Failed)
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.tell_panic();
        if self.has_failed() {
            // A queue's failure is the device's: the other queues leave, too.
            self.shared.leave();
        }
        let mut running = self.shared.running();
        running.threads -= 1;
        if running.threads == 0 {
            thread::signal_event(self.shared.ended_fd.as_fd());
        }
        drop(running);
        self.shared.ended.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let states = self.lanes.iter().map(|armed| armed.lane.state());
        let in_use = |state| matches!(state, State::Serving | State::Leaving);
        // Closing their rings now could lose a request in flight.
        if !states.into_iter().any(in_use) {
            self.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::{ArmedLane, Begun, Server};
    use super::*;
    use crate::server::parts::ThreadSetup;

    /// L09 Dropping a server under load closes no ring: its threads serve on until the driver takes the queues back.
    /// Before the device is in use, they leave.
    #[test]
    fn l09_a_server_in_use_is_not_left_by_its_drop() {
        for (states, leaves) in [
            (&[State::Armed, State::Arming][..], true),
            (&[State::Armed, State::Serving], false),
            (&[State::Empty, State::Leaving], false),
            (&[State::Empty, State::Failed], true),
            (&[], true),
        ] {
            let shared = Arc::new(ServerState::new(2).expect("an eventfd"));
            let armed = |state: &State| ArmedLane {
                lane: LaneHandle::in_state(*state),
                thread: 0,
                setup: ThreadSetup::default(),
                ring: String::new(),
            };
            drop(Server {
                threads: Vec::new(),
                lanes: states.iter().map(armed).collect(),
                shared: Arc::clone(&shared),
                begun: Begun::now(),
            });
            assert_eq!(shared.leave.load(Ordering::Relaxed), leaves, "{states:?}");
        }
    }
}
