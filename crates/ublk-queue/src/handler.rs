//! What a worker calls for each request.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use ublk_core::{Backend, Errno, Op};

use crate::request::{OwnedRequest, Request};

/// Answers the requests of one queue, on the queue's thread.
///
/// `handle` must not block: complete the request, or [`Request::detach`] it and complete it later
/// from wherever the work is done. A panic is contained, its request answered with EIO.
pub trait Handler {
    /// Takes a request.
    fn handle(&mut self, request: Request<'_>);
}

impl<F: FnMut(Request<'_>)> Handler for F {
    fn handle(&mut self, request: Request<'_>) {
        self(request);
    }
}

/// Calls a backend on the queue's own thread: for backends that declare
/// [`quick`](ublk_core::Limits::quick).
#[derive(Debug)]
pub struct Inline<B>(pub Arc<B>);

impl<B: Backend> Handler for Inline<B> {
    #[inline]
    fn handle(&mut self, mut request: Request<'_>) {
        let backend = &*self.0;
        let result = match request.op() {
            Op::Read => {
                let offset = request.offset();
                backend.read_at(request.data_mut(), offset)
            }
            Op::Write => backend.write_at(request.data(), request.offset(), request.flags().fua()),
            op => without_data(
                backend,
                op,
                request.offset(),
                request.len(),
                request.flags().no_unmap(),
            ),
        };
        request.complete(result);
    }
}

fn without_data<B: Backend>(
    b: &B,
    op: Op,
    offset: u64,
    len: u64,
    no_unmap: bool,
) -> Result<(), Errno> {
    match op {
        Op::Flush => b.flush(),
        Op::Discard => b.discard(offset, len),
        Op::WriteZeroes => b.write_zeroes(offset, len, !no_unmap),
        Op::Read | Op::Write => Err(Errno::EOPNOTSUPP),
    }
}

/// Calls a backend on a pool of threads shared by all queues of the device: for backends that may
/// block.
#[derive(Debug, Clone)]
pub struct Pooled(Arc<Jobs>);

#[derive(Debug, Default)]
struct Jobs {
    /// Bounded by the tags of the device.
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<OwnedRequest>,
    closed: bool,
}

/// The threads of a pool; they end when this is dropped and the requests in hand are answered.
#[derive(Debug)]
pub struct Pool {
    jobs: Arc<Jobs>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads` threads that call `backend`, with room for `tags` waiting requests.
    ///
    /// # Errors
    /// The error of starting a thread.
    pub fn start<B: Backend>(
        backend: &Arc<B>,
        threads: usize,
        tags: usize,
    ) -> std::io::Result<Self> {
        let jobs = Arc::new(Jobs::default());
        jobs.lock().requests.reserve(tags);
        let mut pool = Self {
            jobs,
            threads: Vec::with_capacity(threads),
        };
        for n in 0..threads.max(1) {
            let (jobs, backend) = (Arc::clone(&pool.jobs), Arc::clone(backend));
            let thread = thread::Builder::new()
                .name(format!("ublk-pool-{n}"))
                .spawn(move || {
                    // As on the queues' threads: memory reclaim must not wait for our own device (L37).
                    crate::thread::set_io_flusher();
                    while let Some(mut request) = jobs.next() {
                        let call = std::panic::AssertUnwindSafe(|| serve(&*backend, &mut request));
                        match std::panic::catch_unwind(call) {
                            Ok(result) => request.complete(result),
                            Err(_) => request.panicked(),
                        }
                    }
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
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
        // Not joined: a backend call that hangs must not hang the owner. Threads end by themselves.
        self.threads.clear();
    }
}

impl Jobs {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.0.lock().requests.push_back(request);
        self.0.arrived.notify_one();
    }
}

fn serve<B: Backend>(backend: &B, request: &mut OwnedRequest) -> Result<(), Errno> {
    let (op, offset, len) = (request.op(), request.offset(), request.len());
    match op {
        Op::Read => backend.read_at(request.data_mut(), offset),
        Op::Write => backend.write_at(request.data(), offset, request.flags().fua()),
        _ => without_data(backend, op, offset, len, request.flags().no_unmap()),
    }
}
