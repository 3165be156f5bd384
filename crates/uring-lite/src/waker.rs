//! Wakes a ring from another thread.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use crate::errno::Errno;
use crate::park::Park;
use crate::syscall;

/// `user_data` of the ring's poll of its waker. [`next_cqe`](crate::Ring::next_cqe) does not return completions with
/// it: do not use it for requests.
pub const WAKE_USER_DATA: u64 = u64::MAX;

#[derive(Debug)]
struct WakerState {
    /// On a cache line of its own: wakers write it while the ring's thread works.
    park: CachePadded<Park>,
    bell: OwnedFd,
}

/// Wakes a ring that sleeps in [`enter`](crate::Ring::enter), from any thread, through an eventfd that the ring polls.
/// Cheap to clone. It may outlive the ring, and then does nothing.
///
/// A wake-up while the ring is awake is kept: the next `enter` that would sleep returns at once with
/// [`woken`](crate::Entered::woken). So make the work visible, then wake; and look for work after every `enter` in the
/// loop. Writes before `wake` are visible after the `enter` that it ended.
#[derive(Clone, Debug)]
pub struct Waker(Arc<WakerState>);

static_assertions::assert_impl_all!(Waker: Send, Sync, Clone);

impl Waker {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self(Arc::new(WakerState {
            park: CachePadded::default(),
            bell: syscall::eventfd()?,
        })))
    }

    /// Wakes the ring: one atomic swap while it is awake, and a `write(2)` if it sleeps.
    #[inline]
    pub fn wake(&self) {
        if self.0.park.notify() {
            self.ring_bell();
        }
    }

    #[cold]
    fn ring_bell(&self) {
        // EAGAIN: the counter is at its maximum after 2^64 wake-ups, and still readable, so the poll fires all the
        // same. EINTR is impossible: the eventfd does not block. Nothing else can fail on a descriptor that we own.
        let _ = syscall::eventfd_add(self.0.bell.as_fd());
    }

    pub(crate) fn park(&self) -> &Park {
        &self.0.park
    }

    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.0.bell.as_fd()
    }

    pub(crate) fn drain(&self) {
        syscall::eventfd_drain(self.0.bell.as_fd());
    }
}

/// The ring's side of its waker.
#[derive(Debug)]
pub(crate) struct WakeSide {
    pub(crate) waker: Waker,
    /// The poll is in the kernel, or on its way there.
    pub(crate) armed: bool,
}
