//! Handlers as futures, run on the worker's own thread and ring.
//!
//! An [`Async`] handler makes a future of each request and polls it at once. A request that needs to wait for nothing
//! is answered in that poll, at nearly the cost of a plain handler. Other futures stay in a slot of their tag, which is
//! allocated once. They wait for operations on the worker's ring ([`Ring`]), or for anything else that wakes their
//! `Waker` from any thread. There is no runtime, and nothing is allocated per request.
//!
//! ```
//! use ublk_core::{Errno, Op};
//! use ublk_queue::task::{Async, SharedFd, TaskRequest};
//!
//! async fn serve(mut request: TaskRequest, file: SharedFd) -> Result<(), Errno> {
//!     let offset = request.offset();
//!     match request.op() {
//!         Op::Read => request.read_from(&file, offset).await,
//!         Op::Write => request.write_to(&file, offset).await,
//!         Op::Flush => request.ring().fdatasync(&file).await,
//!         _ => Err(Errno::EOPNOTSUPP),
//!     }
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! let file = SharedFd::new(std::fs::File::open("/dev/null")?);
//! let handler = Async::new(move |request| serve(request, file.clone()));
//! # drop(handler);
//! # Ok(())
//! # }
//! ```

mod buf;
mod core;
mod entry;
mod fd;
mod local;
mod operation;
mod pool;
mod ready;
mod request;
mod ring;
mod slots;

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use ublk_core::iod::Io;
use ublk_core::{DataMode, Errno};
use uring_lite::Sqe64;

pub use self::buf::{BufferLocation, IoBuf, IoBufMut, Slice};
pub use self::entry::MAX_PIECES;
pub use self::fd::SharedFd;
pub use self::local::{Local, LocalError};
pub use self::operation::{Descriptor, Done, Elapsed, Number, Outcome, RingOp, Transferred};
pub use self::pool::leaked_operations;
pub use self::request::{TagBuf, TaskRequest};
pub use self::ring::Ring;

use self::core::{Core, Ended};
use self::pool::Sink;
use self::slots::{Panicked, Slots};
use crate::buffers::BufferPool;
use crate::handler::{Closed, Handler, LaneContext};
use crate::operations::{Operation, Operations};
use crate::port::{Full, Port};
use crate::request::{Request, brings_data};
use crate::shared::LaneShared;

// Types that share `Cell`s with their worker's thread.
static_assertions::assert_not_impl_any!(TaskRequest: Send, Sync);
static_assertions::assert_not_impl_any!(TagBuf: Send, Sync);
static_assertions::assert_not_impl_any!(Ring: Send, Sync);
static_assertions::assert_not_impl_any!(RingOp<Vec<u8>, Transferred>: Send, Sync);

/// How many rounds of tasks that wake each other are polled before the ring gets its turn.
const ROUNDS: usize = 8;

/// Answers requests with futures made by `F`.
///
/// One per queue; its slots and operations are allocated on the queue's thread, before the first request. A future that
/// panics fails its own request (EIO, counted) and no other.
pub struct Async<F, Fut> {
    lane: Option<Lane<Fut>>,
    make: F,
    operations: Option<u16>,
}

struct Lane<Fut> {
    /// The lane of these requests: the executor knows its tags and buffers.
    shared: Arc<LaneShared>,
    slots: Slots<Fut>,
    core: Rc<Core>,
    /// The tags polled in this turn.
    batch: Vec<u16>,
    /// A WRITE's data has to be fetched (user copy).
    fetches: bool,
}

impl<F, Fut> std::fmt::Debug for Async<F, Fut> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Async").finish_non_exhaustive()
    }
}

impl<F, Fut> Async<F, Fut>
where
    F: Fn(TaskRequest) -> Fut,
    Fut: Future<Output = Result<(), Errno>> + 'static,
{
    /// Creates a handler whose futures come from `make`: an `async fn`, or a closure with an `async` block.
    pub const fn new(make: F) -> Self {
        Self {
            lane: None,
            make,
            operations: None,
        }
    }

    /// Sets how many operations may be in flight at once; futures wait for each other beyond that. The default is twice
    /// the queue's depth, at least 16. An operation that is leaked (`mem::forget`) occupies its slot for ever.
    #[must_use]
    pub const fn operations(mut self, operations: u16) -> Self {
        self.operations = Some(operations);
        self
    }
}

impl<P: Port> Sink for Operations<'_, P> {
    fn push(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), Full> {
        self.put(sqe, operation)
    }

    fn word(&self, operation: Operation) -> u64 {
        Operations::word(self, operation)
    }
}

/// Keeps a request whose task has ended until its last lease is returned.
#[cold]
fn finish_later(core: &Core, request: Request<'_>, ended: Ended) {
    let at = request.tag().index();
    core.keep(at, request.keep());
    core.finish(at, ended);
}

impl<F, Fut> Handler for Async<F, Fut>
where
    F: Fn(TaskRequest) -> Fut,
    Fut: Future<Output = Result<(), Errno>> + 'static,
{
    const OPERATIONS: bool = true;
    const CLOSED: Closed<Self> = Closed::YES;

    fn attach(&mut self, context: &LaneContext) {
        let depth = context.depth;
        let operations = self.operations.unwrap_or(depth.saturating_mul(2).max(16));
        let zero_copy = context.data.is_zero_copy();
        let registered = zero_copy.then_some(context.buf_base);
        if zero_copy {
            // Sends from registered buffers are writes, which raise SIGPIPE if the peer is gone.
            crate::thread::block_sigpipe();
        }
        let wake = context.wake.clone();
        let pooled = BufferPool::is_for(context.data);
        let whose = (context.qid, context.ring);
        let lane = (context.lane.values.clone(), Arc::downgrade(&context.lane));
        let core = Core::new(depth, operations, wake, whose, registered, !pooled, lane);
        self.lane = Some(Lane {
            shared: Arc::clone(&context.lane),
            slots: Slots::new(usize::from(depth)),
            core: Rc::new(core),
            batch: Vec::with_capacity(usize::from(depth)),
            fetches: context.data == DataMode::UserCopy || context.shares_memory,
        });
    }

    // Inlined, as for `Inline`: a call would keep every request in memory instead of registers.
    #[inline(always)]
    fn handle(&mut self, mut request: Request<'_>) {
        let lane = self.lane.as_mut();
        let Some(lane) = lane.filter(|lane| request.is_of(&lane.shared)) else {
            // Not attached, or another lane's request, passed on by a handler that wraps this one.
            return request.complete(Err(Errno::EINVAL));
        };
        let tag = request.tag();
        let io = Io::new(
            request.op(),
            request.flags(),
            request.offset(),
            request.len(),
        );
        if lane.fetches
            && brings_data(io.op)
            && let Err(errno) = request.data()
        {
            return request.complete(Err(errno));
        }
        let (at, core) = (tag.index(), &lane.core);
        let state = core.begin(at, io, || request.memory());
        core.ready.settle(false);
        let task = TaskRequest::new(Rc::clone(core), tag);
        let waker = core.ready.lend(at);
        let mut context = Context::from_waker(&waker);
        let make = &self.make;
        match lane.slots.start(at, || make(task), &mut context) {
            Ok(Poll::Ready(result)) if !state.is_leased() => request.complete(result),
            Ok(Poll::Pending) => core.keep(at, request.keep()),
            Ok(Poll::Ready(result)) => finish_later(core, request, Ok(result)),
            Err(Panicked) => finish_later(core, request, Err(Panicked)),
        }
    }

    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        let Some(lane) = &mut self.lane else {
            return false;
        };
        if ring.ring != lane.core.ring {
            return false;
        }
        lane.core.ready.settle(false);
        let mut rounds = ROUNDS;
        let mut pushed = lane.core.flush(ring);
        while rounds > 0 && !lane.core.nobody_ready() {
            lane.poll_ready();
            pushed = lane.core.flush(ring);
            rounds -= 1;
        }
        let again = !pushed || !lane.core.nobody_ready();
        lane.core.ready.settle(!again);
        again
    }

    #[expect(unsafe_code, reason = "the lane's call")]
    unsafe fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        if let Some(lane) = &self.lane {
            lane.core.completed(operation, res, flags);
        }
    }

    fn in_flight(&self) -> usize {
        self.lane.as_ref().map_or(0, |lane| lane.core.pool.busy())
    }

    fn is_due(&self) -> bool {
        let core = self.lane.as_ref().map(|lane| &lane.core);
        core.is_some_and(|core| core.pool.has_orders())
    }

    fn leave(&mut self) {
        if let Some(lane) = &mut self.lane {
            // Operations become orphans, which are cancelled; requests stay unanswered.
            lane.slots.clear_all();
        }
    }
}

impl<Fut> Drop for Lane<Fut> {
    fn drop(&mut self) {
        // Tasks first: their operations become orphans. Operations that hold a request's buffer keep the core alive for
        // ever, so they are counted here.
        self.slots.clear_all();
        self.core.pool.count_leaks();
        self.core.end();
    }
}

impl<Fut: Future<Output = Result<(), Errno>>> Lane<Fut> {
    /// Polls each ready task once.
    fn poll_ready(&mut self) {
        let core = &self.core;
        core.take_ready(&mut self.batch);
        for tag in self.batch.drain(..) {
            let at = usize::from(tag);
            let waker = core.ready.lend(at);
            match self.slots.poll(at, &mut Context::from_waker(&waker)) {
                Ok(Poll::Pending) => {}
                Ok(Poll::Ready(result)) => core.finish(at, Ok(result)),
                Err(Panicked) => core.finish(at, Err(Panicked)),
            }
        }
    }
}
