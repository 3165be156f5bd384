//! Handlers: what a worker calls for each request.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use ublk_core::iod::Io;
use ublk_core::{Backend, DataMode, Errno, IoFlags, Op, QueueId, Tag, ZoneAction, ZoneReport};

use crate::forward::Part;
use crate::memref::MemRef;
use crate::operations::{Operation, Operations, RingId};
use crate::panics::caught;
use crate::port::{Port, Wake};
use crate::request::{OwnedRequest, Request};
use crate::shared::LaneShared;
use metadata::Metadata;

mod around;
mod client_memory;
mod direct;
mod metadata;

pub use around::{ClientShared, Zoned};
pub use direct::{Direct, Mapped};
pub use metadata::InlineMetadata;

pub use crate::backing::Backing;
pub use client_memory::{DirectShared, InlineShared};

/// The lane that a handler belongs to. Only the engine makes it, and it does not change: handlers rely on it when they
/// access a request's memory.
#[derive(Clone)]
pub struct LaneContext {
    pub(crate) qid: QueueId,
    pub(crate) depth: u16,
    pub(crate) data: DataMode,
    pub(crate) max_io_bytes: u32,
    pub(crate) buf_base: u16,
    pub(crate) shares_memory: bool,
    pub(crate) wake: Arc<dyn Wake>,
    pub(crate) ring: RingId,
    /// The lane whose requests the handler gets.
    pub(crate) lane: Arc<LaneShared>,
}

impl LaneContext {
    /// Hw queue.
    #[must_use]
    pub const fn qid(&self) -> QueueId {
        self.qid
    }

    /// Number of tags of the queue.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.depth
    }

    /// How data is transferred.
    #[must_use]
    pub const fn data(&self) -> DataMode {
        self.data
    }

    /// Size of each tag's buffer in bytes.
    #[must_use]
    pub const fn max_io_bytes(&self) -> u32 {
        self.max_io_bytes
    }

    /// Index of tag 0's buffer in the ring's buffer table; the others follow. In zero-copy mode.
    #[must_use]
    pub const fn buf_base(&self) -> u16 {
        self.buf_base
    }

    /// Whether the device shares memory with its clients.
    #[must_use]
    pub const fn shares_memory(&self) -> bool {
        self.shares_memory
    }

    /// Wakes the worker: [`Handler::turn`] is called soon after.
    #[must_use]
    pub fn wake(&self) -> Arc<dyn Wake> {
        Arc::clone(&self.wake)
    }

    /// The worker's ring, in whose table the lane's buffers are registered.
    #[must_use]
    pub const fn ring(&self) -> RingId {
        self.ring
    }
}

impl std::fmt::Debug for LaneContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LaneContext")
            .field("qid", &self.qid)
            .field("depth", &self.depth)
            .field("data", &self.data)
            .finish_non_exhaustive()
    }
}

/// Answers the requests of one queue, on the queue's thread.
///
/// `handle` must not block: complete the request, or [`Request::detach`] or [`Request::keep`] it and complete it later
/// from wherever the work is done. A panic is contained, and its request is answered with EIO.
///
/// A handler with operations of its own on the worker's ring pushes them in [`turn`](Handler::turn) and is called with
/// their completions.
pub trait Handler {
    /// True for a handler that has operations on the ring, or work between requests: the methods for these are only
    /// called then.
    const OPERATIONS: bool = false;

    /// True for a handler that forwards requests to files ([`Request::forward`]).
    const FORWARDS: bool = false;

    /// True for a handler that forwards requests whose data is in several files
    /// ([`Forward::Parts`](crate::Forward::Parts), [`Forward::SyncAll`](crate::Forward::SyncAll)). Others pay nothing for it.
    const SPLITS: bool = false;

    /// True for a handler that supports data in memory shared with clients; [`ClientShared`] adds that to any handler.
    /// Others pay nothing for it.
    const CLIENT_MEMORY: bool = false;

    /// Whether requests stay with this handler until they are answered. Only handlers of this crate can declare it.
    #[doc(hidden)]
    const CLOSED: Closed<Self> = Closed::NO;

    /// True for a handler that serves zoned devices, whose lane then reports to the driver where appends were written;
    /// [`Zoned`] adds that to any handler. Others pay nothing for it.
    const ZONES: bool = false;

    /// Handles a request.
    fn handle(&mut self, request: Request<'_>);

    /// [`Forward::Parts`](crate::Forward::Parts): the part of a request's data that begins `done` bytes into it. Called in ascending order; a
    /// part that does not fit fails the request with EIO.
    fn part(&mut self, io: &Io, done: u64) -> Part {
        let _ = (io, done);
        Part {
            file: 0,
            offset: 0,
            len: 0,
        }
    }

    /// Called once, on the queue's thread, before the first request.
    fn attach(&mut self, context: &LaneContext) {
        let _ = context;
    }

    /// Called after each batch of completions and after a wake-up, before the worker submits and sleeps, to push
    /// operations. Returns true if there is more to do, so that the worker must not sleep.
    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        let _ = ring;
        false
    }

    /// Handles the completion of an operation: its result and `IORING_CQE_F_*`.
    ///
    /// # Safety
    /// Only the handler's lane may call this, for the completion of an operation that the handler pushed there: the
    /// handler takes back the memory it lent, and trusts the result.
    #[expect(unsafe_code, reason = "declared here, called by the lane")]
    unsafe fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        let _ = (operation, res, flags);
    }

    /// Number of operations that the kernel has not completed: the lane does not end before it is 0.
    fn in_flight(&self) -> usize {
        0
    }

    /// True if operations wait to be pushed. Asked on threads that serve several queues, where another queue's handler
    /// may have added some since this one's turn: [`turn`](Handler::turn) is then called again before the thread
    /// sleeps.
    fn is_due(&self) -> bool {
        false
    }

    /// The queue is ending and every request it had is answered: cancel standing operations, such as a receive or a timer,
    /// that no request waits for. Called before each [`turn`](Handler::turn) from then on. More requests may come until the
    /// driver has aborted every tag; answer them as before.
    fn drain(&mut self) {}

    /// The worker ends before its lanes are empty: cancel the operations in flight. [`turn`](Handler::turn) and
    /// [`operation_completed`](Handler::operation_completed) are still called for a limited time, until there are none.
    fn leave(&mut self) {}

    /// The handler's memory that the driver may access after an answer. Only handlers of this crate have any.
    #[doc(hidden)]
    const BACKING: Backing<Self> = Backing::NONE;

    /// Get-data mode: the address of the data of a WRITE, asked before [`Handler::handle`] gets the request. `None` means
    /// the tag's buffer. The range must hold `io.len` bytes.
    ///
    /// # Safety
    /// Only the handler's lane may call this: it holds the handler's [`BACKING`](Handler::BACKING) until the driver is
    /// done.
    #[expect(unsafe_code, reason = "declared here, called by the lane")]
    unsafe fn data_address(&mut self, io: &Io) -> Option<MemRef<'static>> {
        let _ = io;
        None
    }
}

/// Declares whether a handler passes requests to other handlers. Handlers of this crate that never do so only see
/// requests of their own lane and need not check. The declaration is per type: a handler that wraps another, and might
/// pass requests on, has its own.
pub struct Closed<H: ?Sized>(bool, PhantomData<fn(&H)>);

impl<H: ?Sized> Closed<H> {
    /// It may pass requests on.
    pub const NO: Self = Self(false, PhantomData);

    /// It never passes requests on.
    pub(crate) const YES: Self = Self(true, PhantomData);

    /// For a handler of this crate that passes all its requests to an `I` that it owns.
    pub(crate) const fn as_inside<I: ?Sized>(inside: &Closed<I>) -> Self {
        Self(inside.0, PhantomData)
    }

    pub(crate) const fn is_closed(&self) -> bool {
        self.0
    }
}

impl<H: ?Sized> std::fmt::Debug for Closed<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Closed").field(&self.0).finish()
    }
}

impl<F: FnMut(Request<'_>)> Handler for F {
    fn handle(&mut self, request: Request<'_>) {
        self(request);
    }
}

/// A handler behind a pointer: the engine is compiled once for all of these. The constants and all methods but
/// [`handle`](Handler::handle) are lost.
pub(crate) fn boxed(mut handler: impl Handler + 'static) -> Box<dyn FnMut(Request<'_>)> {
    Box::new(move |request| handler.handle(request))
}

/// Calls a backend on the queue's own thread: for backends that declare
/// [`quick`](ublk_core::Limits::quick).
#[derive(Debug)]
pub struct Inline<B> {
    backend: Arc<B>,
}

impl<B: Backend> Inline<B> {
    /// Creates a handler for this backend.
    pub fn new(backend: Arc<B>) -> Self {
        Self { backend }
    }
}

impl<B: Backend> Handler for Inline<B> {
    #[inline(always)]
    fn handle(&mut self, request: Request<'_>) {
        answer(&*self.backend, request);
    }
}

/// What backend calls need of both kinds of request token.
trait Token {
    fn parts(&mut self) -> (Op, u64, u64, IoFlags);
    fn data(&mut self) -> Result<&[u8], Errno>;
    fn data_mut(&mut self) -> Result<&mut [u8], Errno>;
    fn land(&self, at: u64) -> Result<(), Errno>;
    fn pull_metadata(&mut self, to: &mut [u8]) -> Result<(), Errno>;
    fn push_metadata(&mut self, from: &[u8]) -> Result<(), Errno>;
}

macro_rules! token {
    ($token:ty) => {
        impl Token for $token {
            #[inline]
            fn parts(&mut self) -> (Op, u64, u64, IoFlags) {
                (self.op(), self.offset(), self.len(), self.flags())
            }
            #[inline]
            fn data(&mut self) -> Result<&[u8], Errno> {
                self.data()
            }
            #[inline]
            fn data_mut(&mut self) -> Result<&mut [u8], Errno> {
                self.data_mut()
            }
            fn land(&self, at: u64) -> Result<(), Errno> {
                self.land(at)
            }
            fn pull_metadata(&mut self, to: &mut [u8]) -> Result<(), Errno> {
                self.pull_metadata(to)
            }
            fn push_metadata(&mut self, from: &[u8]) -> Result<(), Errno> {
                self.push_metadata(from)
            }
        }
    };
}
token!(Request<'_>);
token!(OwnedRequest);

/// Answers a request with the matching call of the backend.
#[inline(always)]
fn answer<B: Backend>(backend: &B, mut request: Request<'_>) {
    // By value and first: a request whose address no call takes stays in registers.
    if request.op().is_of_zones() {
        return answer_for_zones(backend, request);
    }
    if B::is_blind() && matches!(request.op(), Op::Read | Op::Write) {
        // Separate, so that one comparison tells these from the other ops, here and on completion.
        let result = call_blindly(backend, &mut request);
        return request.complete(result);
    }
    let result = call_for_blocks(backend, &mut request);
    request.complete(result);
}

/// A read or write of a backend that ignores the data.
#[inline(always)]
fn call_blindly<B: Backend>(backend: &B, request: &mut impl Token) -> Result<(), Errno> {
    let (op, offset, _, flags) = request.parts();
    match op {
        Op::Read => backend.read_at(&mut [], offset),
        _ => backend.write_at(&[], offset, flags.fua()),
    }
}

#[cold]
#[inline(never)]
fn answer_for_zones<B: Backend>(backend: &B, mut request: Request<'_>) {
    let result = call_for_zones(backend, &mut request);
    request.complete(result);
}

/// Makes the backend call for a request.
fn call<B: Backend>(backend: &B, request: &mut impl Token) -> Result<(), Errno> {
    match request.parts() {
        (op, ..) if op.is_of_zones() => call_for_zones(backend, request),
        _ => call_for_blocks(backend, request),
    }
}

/// Makes the backend call for a request of any device.
#[inline(always)]
fn call_for_blocks<B: Backend>(backend: &B, request: &mut impl Token) -> Result<(), Errno> {
    let (op, offset, len, flags) = request.parts();
    match op {
        Op::Read | Op::Write if B::is_blind() => call_blindly(backend, request),
        Op::Read => backend.read_at(request.data_mut()?, offset),
        Op::Write => backend.write_at(request.data()?, offset, flags.fua()),
        Op::Flush => backend.flush(),
        Op::Discard => backend.discard(offset, len),
        Op::WriteZeroes => backend.write_zeroes(offset, len, !flags.no_unmap()),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Makes the backend call for a request of a zoned device.
fn call_for_zones<B: Backend>(backend: &B, request: &mut impl Token) -> Result<(), Errno> {
    let (op, zone, ..) = request.parts();
    match op {
        Op::ReportZones => backend.report_zones(zone, &mut ZoneReport::new(request.data_mut()?)),
        Op::ZoneAppend => {
            let at = backend.zone_append(request.data()?, zone)?;
            request.land(at)
        }
        Op::ZoneOpen => backend.manage_zone(ZoneAction::Open, zone),
        Op::ZoneClose => backend.manage_zone(ZoneAction::Close, zone),
        Op::ZoneFinish => backend.manage_zone(ZoneAction::Finish, zone),
        Op::ZoneReset => backend.manage_zone(ZoneAction::Reset, zone),
        Op::ZoneResetAll => backend.reset_all_zones(),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Calls a backend on a pool of threads shared by all queues of the device: for backends that may
/// block.
#[derive(Debug, Clone)]
pub struct Pooled(Arc<Jobs>);

#[derive(Debug, Default)]
struct Jobs {
    /// Bounded by the number of the device's tags.
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<OwnedRequest>,
    closed: bool,
}

/// The threads of a pool. They end once this is dropped and the requests in hand are answered.
#[derive(Debug)]
pub struct Pool {
    jobs: Arc<Jobs>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads that call `backend`, with room for `tags` waiting requests.
    ///
    /// # Errors
    /// The error of starting a thread, or `InvalidInput` if there is no memory for that much room.
    pub fn start<B: Backend>(
        backend: &Arc<B>,
        threads: usize,
        tags: usize,
    ) -> std::io::Result<Self> {
        Self::start_as(backend, threads, tags, false)
    }

    /// Like `start`, with threads that give up CAP_SYS_ADMIN if the plan asks for it.
    pub(crate) fn start_as<B: Backend>(
        backend: &Arc<B>,
        threads: usize,
        tags: usize,
        gives_up_admin: bool,
    ) -> std::io::Result<Self> {
        let jobs = Arc::new(Jobs::default());
        let too_many = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let reserved = jobs.lock().requests.try_reserve(tags);
        reserved.map_err(too_many)?;
        // At most one entry per thread, so no more is reserved.
        let mut pool = Self {
            jobs,
            threads: Vec::new(),
        };
        for n in 0..threads.max(1) {
            let (jobs, backend) = (Arc::clone(&pool.jobs), Arc::clone(backend));
            let thread = thread::Builder::new()
                .name(format!("ublk-pool-{n}"))
                .spawn(move || {
                    // As on the queues' threads: memory reclaim must not wait for our own device (L37).
                    crate::thread::set_io_flusher();
                    if gives_up_admin {
                        crate::thread::give_up_admin();
                    }
                    match Metadata::of(&*backend) {
                        None => jobs.serve(|request| call(&*backend, request)),
                        Some(mut metadata) => {
                            jobs.serve(|request| metadata.call(&*backend, request));
                        }
                    }
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Whether this request waits for a thread.
    pub(crate) fn has_waiting(&self, lane: &Arc<LaneShared>, tag: Tag) -> bool {
        let waiting = self.jobs.lock();
        let mut requests = waiting.requests.iter();
        requests.any(|request| request.is_of(lane, tag))
    }

    /// The handler that feeds this pool.
    #[must_use]
    pub fn handler(&self) -> Pooled {
        Pooled(Arc::clone(&self.jobs))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.jobs.lock().closed = true;
        self.jobs.arrived.notify_all();
        // Not joined: a hung backend call must not hang the owner. The threads end by themselves.
        self.threads.clear();
    }
}

impl Jobs {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers requests by this call until the pool is closed.
    fn serve(&self, mut call: impl FnMut(&mut OwnedRequest) -> Result<(), Errno>) {
        while let Some(mut request) = self.next() {
            let begun = request.is_timed().then(Instant::now);
            let result = caught(|| call(&mut request));
            if let Some(begun) = begun {
                request.was_in_backend(begun.elapsed());
            }
            match result {
                Some(result) => request.complete(result),
                None => request.panicked(),
            }
        }
    }

    fn next(&self) -> Option<OwnedRequest> {
        let mut waiting = self.lock();
        loop {
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            if waiting.closed {
                return None;
            }
            waiting = self
                .arrived
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Handler for Pooled {
    fn handle(&mut self, request: Request<'_>) {
        let request = request.detach();
        let mut waiting = self.0.lock();
        if waiting.closed {
            // Nobody will take it. Its drop, outside the lock, answers it with EIO.
            drop(waiting);
            return drop(request);
        }
        waiting.requests.push_back(request);
        drop(waiting);
        self.0.arrived.notify_one();
    }
}
