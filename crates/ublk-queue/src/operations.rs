//! Operations of a handler on its worker's ring.

use std::sync::atomic::{AtomicU64, Ordering};

use uring_lite::Sqe64;
use uring_lite::op::{Fd, SqeFlags};

use crate::port::{Full, Port};
use crate::user_data::UserData;

/// A use of a place in a handler's pool of operations: comes back with the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operation {
    /// Place in the pool.
    pub place: u16,
    /// Which use of the place it is, modulo 4096: a completion of an earlier one is told apart (L53).
    pub turn: u16,
}

/// Flags that tie an entry to its neighbours, which are commits and fetches of the engine as often as not, or hide its end.
const TIES: SqeFlags = SqeFlags::LINK
    .and(SqeFlags::HARDLINK)
    .and(SqeFlags::DRAIN)
    .and(SqeFlags::CQE_SKIP_SUCCESS);

/// Why an operation was not pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotPushed {
    /// No room in the submission queue.
    #[error("the submission queue is full")]
    Full,
    /// The entry has a flag that concerns others (LINK, HARDLINK, DRAIN) or hides its completion (CQE_SKIP_SUCCESS).
    #[error(
        "the entry is tied to others, or its completion would not come: push it without LINK, HARDLINK, DRAIN and CQE_SKIP_SUCCESS"
    )]
    Tied,
}

/// A worker's ring, told apart from all others of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RingId(u64);

impl RingId {
    /// That of a new ring.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The way for operations into the submission queue; they go with the worker's next enter.
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
    /// It stands alone and its completion comes. The ring's registered files and buffers are the engine's: an entry that closes
    /// or replaces one of those breaks the device.
    ///
    /// # Errors
    /// With nothing changed: [`NotPushed::Full`], then return from [`Handler::turn`](crate::Handler::turn) with true and push
    /// it at the next one, or [`NotPushed::Tied`].
    pub fn push(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), NotPushed> {
        if sqe.as_raw().flags & TIES.bits() != 0 {
            return Err(NotPushed::Tied);
        }
        self.put(sqe, operation).map_err(|Full| NotPushed::Full)
    }

    /// The same for the operations of this crate.
    pub(crate) fn put(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), Full> {
        self.port
            .push_operation(&sqe.user_data(self.word(operation)))
    }

    /// The word of an operation, by which another can cancel it.
    #[must_use]
    pub fn word(&self, operation: Operation) -> u64 {
        let Operation { place, turn } = operation;
        UserData::operation(self.lane, self.generation, place, turn).pack()
    }

    /// A file of [`Plan::files`](crate::Plan::files), by its number there.
    #[must_use]
    pub fn file(&self, number: u16) -> Fd {
        Fd::registered(self.files + u32::from(number))
    }

    /// Free entries of the submission queue.
    pub fn space(&mut self) -> u32 {
        self.port.space()
    }
}
