//! The timer on the ring by which a queue measures its deadlines.
#![expect(unsafe_code, reason = "names a time to the kernel")]

use std::mem::ManuallyDrop;

use uring_lite::Sqe64;
use uring_lite::op::{self, Timespec};

/// A one-shot timer.
#[derive(Debug)]
pub(crate) struct Timer {
    after: ManuallyDrop<Box<Timespec>>,
    armed: bool,
}

impl Timer {
    /// A timer of one second.
    pub(crate) fn new() -> Self {
        Self {
            after: ManuallyDrop::new(Box::new(Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            })),
            armed: false,
        }
    }

    pub(crate) const fn is_armed(&self) -> bool {
        self.armed
    }

    /// The timeout operation.
    pub(crate) fn arm(&self) -> Sqe64 {
        // SAFETY: the time is in a box that is neither changed nor freed while the timer is armed.
        unsafe { op::timeout(&raw const **self.after, 0) }
    }

    pub(crate) const fn pushed(&mut self) {
        self.armed = true;
    }

    pub(crate) const fn fired(&mut self) {
        self.armed = false;
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if !self.armed {
            // SAFETY: dropped once, here; the kernel does not have it.
            unsafe { ManuallyDrop::drop(&mut self.after) };
        }
    }
}
