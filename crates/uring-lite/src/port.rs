//! The interface between the ring and its kernel.

#![forbid(unsafe_code)]

use crate::entry::{CqEntry, SqEntry};
use crate::errno::Errno;
use crate::memory::{CqMemory, SqMemory};
use crate::sys::__kernel_timespec;

/// The kernel side of a ring: [`Linux`](crate::Linux), or a fake on the heap for tests.
pub trait Port<S: SqEntry, C: CqEntry> {
    /// Memory of the submission queue.
    type Sq: SqMemory<S>;
    /// Memory of the completion queue.
    type Cq: CqMemory<C>;

    /// `io_uring_enter(2)`: takes up to `to_submit` entries and, with GETEVENTS in `flags`, waits until `min_complete`
    /// CQEs are visible or the timeout expires. Returns what the system call does: the number of entries taken, and an
    /// errno only if none was.
    ///
    /// # Errors
    /// The errnos of the system call.
    fn enter(
        &mut self,
        to_submit: u32,
        min_complete: u32,
        flags: u32,
        timeout: Option<&__kernel_timespec>,
    ) -> Result<u32, Errno>;
}
