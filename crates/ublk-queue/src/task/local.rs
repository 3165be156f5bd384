//! Runs ring operations as futures without a device: one task on a ring of its own.
#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ublk_core::{QueueId, deadline_in};
use uring_lite::{Cqe16, EnterError, RegisterError, SetupError, Sqe64};

use super::core::Core;
use super::pool::Sink;
use super::ring::Ring;
use crate::operations::{Operation, RingId};
use crate::port::Full;
use crate::shared::TagValues;
use crate::user_data::UserData;

/// How long the shutdown waits for cancelled operations.
const REAP: Duration = Duration::from_secs(2);

/// Why a future could not be run to completion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The ring could not be created.
    #[error(transparent)]
    SetUp(#[from] SetupError),
    /// The waker could not be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The ring is unusable.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// The future was not ready in time: allow more time, or check what it waits for.
    #[error("the future was not ready within {0:?}")]
    TimedOut(Duration),
}

/// Runs futures that use ring operations, one at a time, on the calling thread: for set-up before a device serves
/// (connecting, reading a header), and for tests.
#[derive(Debug)]
pub struct Local {
    /// Closed before the core is dropped, which then leaks memory that the kernel may still use.
    ring: uring_lite::Ring<Sqe64, Cqe16>,
    core: Ring,
}

impl Sink for uring_lite::Ring<Sqe64, Cqe16> {
    fn push(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), Full> {
        let word = self.word(operation);
        uring_lite::Ring::push(self, &sqe.user_data(word)).map_err(|_| Full)
    }

    fn word(&self, operation: Operation) -> u64 {
        UserData::operation(0, 0, operation.slot, operation.turn).pack()
    }
}

impl Local {
    /// Creates a ring for this many operations at once.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn new(operations: u16) -> Result<Self, LocalError> {
        let entries = u32::from(operations).max(8);
        let mut ring = uring_lite::Ring::<Sqe64, Cqe16>::builder(entries).build()?;
        let waker = Arc::new(ring.waker()?);
        Ok(Self {
            ring,
            core: Ring(Rc::new(Core::new(
                1,
                operations,
                waker,
                (QueueId::ZERO, RingId::next()),
                None,
                true,
                (TagValues::default(), Weak::new()),
            ))),
        })
    }

    /// The ring, to create operations.
    #[must_use]
    pub fn ring(&self) -> Ring {
        self.core.clone()
    }

    /// Runs a future to completion, for at most `limit`.
    ///
    /// # Errors
    /// [`LocalError`]; operations of the future are cancelled.
    pub fn run<T>(
        &mut self,
        limit: Duration,
        future: impl Future<Output = T>,
    ) -> Result<T, LocalError> {
        let until = deadline_in(limit);
        let core = Rc::clone(&self.core.0);
        let mut future = pin!(future);
        let mut tags = Vec::with_capacity(1);
        core.make_ready(0);
        loop {
            core.ready.settle(false);
            core.take_ready(&mut tags);
            if !tags.is_empty() {
                let waker = core.ready.lend(0);
                let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
                if let Poll::Ready(value) = polled {
                    return Ok(value);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LocalError::TimedOut(limit));
            }
            self.step(left)?;
        }
    }

    /// Submits, waits, and handles the completions.
    fn step(&mut self, limit: Duration) -> Result<(), LocalError> {
        let core = &self.core.0;
        let pushed = core.flush(&mut self.ring);
        let idle = core.nobody_ready();
        core.ready.settle(idle);
        let want = u32::from(pushed && idle);
        match self.ring.enter(want, Some(limit)) {
            Ok(_) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(cqe) = self.ring.next_cqe() {
            if let Some(word) = UserData::unpack(cqe.user_data) {
                let operation = Operation {
                    slot: word.tag,
                    turn: word.turn,
                };
                core.completed(operation, cqe.res, cqe.flags);
            }
        }
        Ok(())
    }

    /// Cancels the operations in flight, and waits until all have completed. False if some have not within two seconds;
    /// their memory is leaked then.
    pub fn finish(&mut self) -> bool {
        let until = Instant::now() + REAP;
        self.core.0.pool.cancel_all();
        while self.core.0.pool.busy() != 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.step(left).is_err() {
                return false;
            }
        }
        true
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.finish();
    }
}
