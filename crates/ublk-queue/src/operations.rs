//! Ring operations of a handler.

use std::sync::atomic::{AtomicU64, Ordering};

use uring_lite::Sqe64;
use uring_lite::op::{Fd, SqeFlags};

use crate::port::{Full, Port};
use crate::user_data::UserData;

/// One use of a slot in a handler's pool of operations; it comes back with the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Slot in the pool.
    pub slot: u16,
    /// Generation of the slot, modulo 4096: tells completions of earlier operations apart (L53).
    pub turn: u16,
}

/// Flags that tie an entry to its neighbours, which may be commits and fetches of the engine, or that suppress its
/// completion.
const TIES: SqeFlags = SqeFlags::LINK
    .and(SqeFlags::HARDLINK)
    .and(SqeFlags::DRAIN)
    .and(SqeFlags::CQE_SKIP_SUCCESS);

/// Why an operation was not pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPushed {
    /// The submission queue is full.
    #[error("the submission queue is full")]
    Full,
    /// The entry has a flag that affects other entries (LINK, HARDLINK, DRAIN) or suppresses its completion
    /// (CQE_SKIP_SUCCESS).
    #[error(
        "the entry affects other entries or posts no completion: push it without LINK, HARDLINK, DRAIN and CQE_SKIP_SUCCESS"
    )]
    Tied,
}

/// Identifies a worker's ring within the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RingId(u64);

impl RingId {
    /// The id of a new ring.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Gives a handler access to the submission queue; its entries go with the worker's next enter.
pub struct Operations<'a, P> {
    pub(crate) port: &'a mut P,
    pub(crate) lane: u16,
    pub(crate) generation: u16,
    pub(crate) files: u32,
    pub(crate) ring: RingId,
}

impl<P: Port> Operations<'_, P> {
    /// Puts an operation into the submission queue.
    ///
    /// The entry must stand alone and post a completion. The ring's registered files and buffers belong to the engine:
    /// an entry that closes or replaces one of them breaks the device.
    ///
    /// # Errors
    /// The queue is unchanged after an error. On [`NotPushed::Full`] return true from
    /// [`Handler::turn`](crate::Handler::turn) and push the entry in the next turn. [`NotPushed::Tied`] is permanent.
    pub fn push(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), NotPushed> {
        if sqe.as_raw().flags & TIES.bits() != 0 {
            return Err(NotPushed::Tied);
        }
        self.put(sqe, operation).map_err(|Full| NotPushed::Full)
    }

    /// Pushes an operation of this crate, without the check.
    pub(crate) fn put(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), Full> {
        self.port
            .push_operation(&sqe.user_data(self.word(operation)))
    }

    /// The `user_data` word of an operation, for a cancel request.
    #[must_use]
    pub fn word(&self, operation: Operation) -> u64 {
        let Operation { slot, turn } = operation;
        UserData::operation(self.lane, self.generation, slot, turn).pack()
    }

    /// A file of [`Plan::files`](crate::Plan::files), by its index there.
    #[must_use]
    pub fn file(&self, number: u16) -> Fd {
        Fd::registered(self.files + u32::from(number))
    }

    /// Free entries of the submission queue.
    pub fn space(&mut self) -> u32 {
        self.port.space()
    }
}
