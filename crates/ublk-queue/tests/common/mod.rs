//! The simulated driver's ring with a file: operations of tasks complete later, in any order, some only after a few
//! enters, and cancelled ones still write to their buffers.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "../sim/mod.rs"]
pub mod sim;

use std::ops::Deref;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ublk_core::Errno;
use ublk_queue::port::{Completion, Full, IoCommand, Port};
use ublk_queue::{BatchCommand, Handler, Worker};
use ublk_sim::{Config, Sim};
use uring_lite::{Sqe64, sys};

/// Statistics of a run's operations.
#[derive(Debug, Default)]
pub struct Seen {
    pub operations: usize,
    pub cancelled: usize,
    /// Maximum number of operations in flight at once.
    pub most: usize,
    /// Operations in flight when the ring was closed.
    pub left: usize,
}

/// The file behind operations, and statistics.
#[derive(Debug, Default)]
pub struct FileState {
    pub file: Mutex<Vec<u8>>,
    pub seen: Mutex<Seen>,
}

struct Pending {
    sqe: Sqe64,
    /// Enters until it completes.
    left: u32,
    cancelled: bool,
}

/// A port with operations on a file in memory.
pub struct FilePort<P> {
    inner: P,
    shared: Arc<FileState>,
    pending: Vec<Pending>,
    ready: Vec<Completion>,
    rng: u64,
    /// Percentage of pushes that find the queue full.
    full: u64,
}

impl<P: Port> FilePort<P> {
    pub fn new(inner: P, shared: Arc<FileState>, seed: u64, full: u64) -> Self {
        Self {
            inner,
            shared,
            pending: Vec::with_capacity(4096),
            ready: Vec::with_capacity(4096),
            rng: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            full,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % below
    }

    fn cancel(&mut self, sqe: &sys::io_uring_sqe) {
        let target = sqe.addr;
        let found = self
            .pending
            .iter_mut()
            .find(|one| one.sqe.as_raw().user_data == target);
        if let Some(one) = found {
            one.cancelled = true;
            self.shared.seen.lock().expect("no panic").cancelled += 1;
        } else {
            // Too late to cancel: posts an error, since only success is silent.
            self.ready.push(Completion {
                user_data: sqe.user_data,
                res: -libc::ENOENT,
                flags: 0,
            });
        }
    }

    /// Counts one enter.
    fn pass(&mut self) {
        for one in &mut self.pending {
            one.left = one.left.saturating_sub(1);
        }
        while let Some(at) = self.pending.iter().position(|one| one.left == 0) {
            let one = self.pending.swap_remove(at);
            let res = perform(&one, &mut self.shared.file.lock().expect("no panic"));
            self.ready.push(Completion {
                user_data: one.sqe.as_raw().user_data,
                res,
                flags: 0,
            });
        }
    }
}

impl<P> Drop for FilePort<P> {
    fn drop(&mut self) {
        self.shared.seen.lock().expect("no panic").left = self.pending.len();
    }
}

/// Carries out an operation; a cancelled one writes garbage to its buffer, as the kernel may have begun to.
#[expect(
    unsafe_code,
    reason = "acts as the kernel: accesses memory named by entries"
)]
fn perform(one: &Pending, file: &mut [u8]) -> i32 {
    let sqe = one.sqe.as_raw();
    let (ptr, len) = (sqe.addr as *mut u8, sqe.len as usize);
    let at = usize::try_from(sqe.off).expect("small");
    match sqe.opcode {
        sys::IORING_OP_READ => {
            // SAFETY: the entry names memory that is valid until the completion, which this makes.
            let buffer = unsafe { std::slice::from_raw_parts_mut(ptr, len) };
            if one.cancelled {
                buffer.fill(0xee);
                return -libc::ECANCELED;
            }
            buffer.copy_from_slice(&file[at..at + len]);
            sqe.len.cast_signed()
        }
        sys::IORING_OP_WRITE if one.cancelled => -libc::ECANCELED,
        sys::IORING_OP_WRITE => {
            // SAFETY: as above.
            let buffer = unsafe { std::slice::from_raw_parts(ptr, len) };
            file[at..at + len].copy_from_slice(buffer);
            sqe.len.cast_signed()
        }
        _ if one.cancelled => -libc::ECANCELED,
        sys::IORING_OP_NOP | sys::IORING_OP_FSYNC => 0,
        other => panic!("operation {other} is not played here"),
    }
}

#[expect(unsafe_code, reason = "acts as the kernel")]
// SAFETY: completions are the inner port's, or of operations that this port has carried out; each pushed entry goes to
// the inner port or into `pending`, once.
unsafe impl<P: Port> Port for FilePort<P> {
    type Wake = P::Wake;
    type Command = P::Command;

    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Self::Command {
        self.inner.prepare(lane, command, user_data)
    }

    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full> {
        self.inner.push(command, result, addr)
    }

    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        if self.random(100) < self.full {
            return Err(Full);
        }
        if operation.as_raw().opcode == sys::IORING_OP_ASYNC_CANCEL {
            self.cancel(operation.as_raw());
            return Ok(());
        }
        let left = u32::try_from(1 + self.random(6)).expect("small");
        self.pending.push(Pending {
            sqe: *operation,
            left,
            cancelled: false,
        });
        let mut seen = self.shared.seen.lock().expect("no panic");
        seen.operations += 1;
        seen.most = seen.most.max(self.pending.len());
        Ok(())
    }

    fn space(&mut self) -> u32 {
        self.inner.space()
    }

    fn pending(&mut self) -> u32 {
        self.inner.pending()
    }

    fn park(&mut self) -> Result<bool, Errno> {
        Ok(self.ready.is_empty() && self.pending.is_empty() && self.inner.park()?)
    }

    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        self.inner.push_batch(lane, command, user_data)
    }

    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        self.inner.take_tags(lane, completion, tags);
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        let busy = !self.pending.is_empty() || !self.ready.is_empty();
        self.inner.enter(if busy { 0 } else { want }, timeout)?;
        self.pass();
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        self.ready.pop().or_else(|| self.inner.next())
    }

    fn wake_handle(&self) -> P::Wake {
        self.inner.wake_handle()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// The result of a run, and its file.
pub struct Run {
    run: sim::Run,
    pub shared: Arc<FileState>,
}

impl Deref for Run {
    type Target = sim::Run;

    fn deref(&self) -> &sim::Run {
        &self.run
    }
}

impl Run {
    pub fn panics(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.counters().panics).sum()
    }
}

/// Runs the engine on one thread, with a handler per lane, until it ends.
pub fn run<H: Handler>(config: &Config, make: impl FnMut() -> H) -> Run {
    run_until(config, Arc::default(), make)
}

/// Like `run`, but may be told to leave early.
pub fn run_until<H: Handler>(
    config: &Config,
    leave: Arc<AtomicBool>,
    make: impl FnMut() -> H,
) -> Run {
    let shared = Arc::new(FileState {
        file: Mutex::new(vec![0; config.size]),
        seen: Mutex::default(),
    });
    let (seed, full) = (config.seed + 1, u64::from(config.faults.full));
    let port = |device: &Sim| FilePort::new(sim::port(device), Arc::clone(&shared), seed, full);
    let run = sim::run_on(config, port, leave, make, Worker::run);
    Run { run, shared }
}
