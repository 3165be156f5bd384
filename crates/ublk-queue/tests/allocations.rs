//! Nothing is allocated per request, as counted by the global allocator.
#![expect(unsafe_code, reason = "a global allocator that counts")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;

use common::run;
use ublk_core::{Errno, Op};
use ublk_queue::port::Port;
use ublk_queue::task::{Async, SharedFd, TaskRequest};
use ublk_queue::{Handler, LaneContext, Operation, Operations, Request};
use ublk_sim::Config;

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is forwarded to the system allocator; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Counts the allocations of a handler's calls after the first few.
struct Watched<H> {
    inner: H,
    calls: usize,
    allocated: &'static std::sync::atomic::AtomicUsize,
}

/// Requests until all buffers have their final size.
const WARM: usize = 100;

impl<H: Handler> Watched<H> {
    fn watch<T>(&mut self, call: impl FnOnce(&mut H) -> T) -> T {
        let before = COUNT.with(Cell::get);
        let value = call(&mut self.inner);
        let allocated = COUNT.with(Cell::get) - before;
        self.calls += 1;
        if self.calls > WARM {
            self.allocated
                .fetch_add(allocated, std::sync::atomic::Ordering::Relaxed);
        }
        value
    }
}

impl<H: Handler> Handler for Watched<H> {
    const OPERATIONS: bool = H::OPERATIONS;

    fn handle(&mut self, request: Request<'_>) {
        self.watch(|inner| inner.handle(request));
    }

    fn attach(&mut self, context: &LaneContext) {
        self.inner.attach(context);
    }

    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        self.watch(|inner| inner.turn(ring))
    }

    unsafe fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        // SAFETY: the lane's call, for an operation of the handler inside.
        self.watch(|inner| unsafe { inner.operation_completed(operation, res, flags) });
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }
}

async fn serve(mut request: TaskRequest, file: SharedFd, waste: bool) -> Result<(), Errno> {
    let offset = request.offset();
    // Uses wakers, yields and operations.
    request.ring().nop().await?;
    if waste {
        drop(std::hint::black_box(Box::new(offset)));
    }
    match request.op() {
        Op::Read => request.read_from(&file, offset).await,
        Op::Write => request.write_to(&file, offset).await,
        Op::Flush => request.ring().fdatasync(&file).await,
        // Only the backend's own allocations would show here.
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn allocations(operations: u16, waste: bool) -> usize {
    let allocated: &'static std::sync::atomic::AtomicUsize = Box::leak(Box::default());
    let config = Config::new(7);
    let file = SharedFd::new(File::open("/dev/null").expect("/dev/null"));
    let run = run(&config, || {
        let file = file.clone();
        Watched {
            inner: Async::new(move |request| serve(request, file.clone(), waste))
                .operations(operations),
            calls: 0,
            allocated,
        }
    });
    assert_eq!(run.report.completed, 1000);
    assert!(run.shared.seen.lock().expect("no panic").operations > 1500);
    allocated.load(std::sync::atomic::Ordering::Relaxed)
}

/// L37 Tasks with operations allocate nothing per request, with enough slots and with too few.
#[test]
fn l37_tasks_allocate_nothing_per_request() {
    assert_eq!(allocations(32, false), 0);
    assert_eq!(allocations(3, false), 0);
}

/// L90 One box per task is detected: the check above can fail.
#[test]
fn l90_an_allocation_per_request_is_seen() {
    assert!(allocations(32, true) > 500);
}
