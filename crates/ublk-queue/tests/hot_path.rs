//! Limits of the hot path: no allocation and no clock read per request, one enter per batch.
#![expect(unsafe_code, reason = "an allocator and a clock that count")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ublk_core::iod::IoBounds;
use ublk_core::{Backend, Errno, IoDesc, Limits, QueueId, Tag};
use ublk_metrics::Level;
use ublk_queue::port::{Completion, Descriptors, Full, IoCommand, Port, Wake};
use ublk_queue::{BatchCommand, Inline, LaneSpec, Worker};

/// Counts allocations while enabled.
struct Counting;

thread_local! {
    /// Per thread: the test harness has other threads, which may allocate.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is forwarded to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

static CLOCK_READS: AtomicUsize = AtomicUsize::new(0);

/// Replaces the C library's function in this program: std's clocks call it.
///
/// # Safety
/// As for the C library's.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(
    clock: libc::clockid_t,
    time: *mut libc::timespec,
) -> libc::c_int {
    if COUNTS.get() {
        CLOCK_READS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the caller's pointer, valid by its contract.
    let res = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) };
    if res == 0 { 0 } else { -1 }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DEPTH: u16 = 64;
/// Requests per enter.
const BATCH: usize = 16;
const REQUESTS: usize = 100_000;

struct Nothing;

impl Backend for Nothing {
    fn limits(&self) -> Limits {
        Limits::new(1 << 30).quick(true)
    }
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        Ok(())
    }
}

/// Every descriptor is a READ of one page.
struct Reads;

impl Descriptors for Reads {
    fn load(&self, _tag: Tag) -> IoDesc {
        IoDesc::new(0, 0, 8, 0)
    }
}

#[derive(Clone)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

/// A driver that delivers a request for the tags it was given longest ago, a batch per enter, and finally aborts. It
/// allocates nothing once it runs.
struct Flat {
    with_driver: VecDeque<u64>,
    ready: VecDeque<Completion>,
    /// Batch mode: the tags of the current fetch completion, and the word of the fetch.
    tags: Vec<u16>,
    fetch: Option<u64>,
    sent: usize,
    enters: Arc<AtomicUsize>,
}

impl Flat {
    fn new(enters: &Arc<AtomicUsize>) -> Self {
        Self {
            with_driver: VecDeque::with_capacity(2 * usize::from(DEPTH)),
            ready: VecDeque::with_capacity(2 * usize::from(DEPTH)),
            tags: Vec::with_capacity(usize::from(DEPTH)),
            fetch: None,
            sent: 0,
            enters: Arc::clone(enters),
        }
    }

    fn complete(&mut self, user_data: u64, res: i32, flags: u32) {
        self.ready.push_back(Completion {
            user_data,
            res,
            flags,
        });
    }
}

// SAFETY: a command's word comes back once per push, and nobody accesses the buffers.
unsafe impl Port for Flat {
    type Wake = NoWake;
    type Command = u64;

    fn prepare(&self, _lane: u16, _command: &IoCommand, user_data: u64) -> u64 {
        user_data
    }

    fn push(&mut self, command: &u64, _result: i32, _addr: u64) -> Result<(), Full> {
        self.with_driver.push_back(*command);
        Ok(())
    }

    fn push_batch(&mut self, _: u16, command: &BatchCommand, word: u64) -> Result<(), Full> {
        if command.cmd_op == ublk_sys::UBLK_U_IO_FETCH_IO_CMDS {
            self.fetch = Some(word);
            return Ok(());
        }
        let prep = command.cmd_op == ublk_sys::UBLK_U_IO_PREP_IO_CMDS;
        for n in 0..command.nr_elem {
            // The same tags again and again: which ones does not matter here.
            self.with_driver.push_back(u64::from(n));
        }
        let bytes = i32::from(command.nr_elem) * i32::from(command.elem_bytes);
        self.complete(word, if prep { 0 } else { bytes }, 0);
        Ok(())
    }

    fn take_tags(&mut self, _lane: u16, _completion: &Completion, tags: &mut Vec<u16>) {
        tags.clear();
        tags.extend_from_slice(&self.tags);
    }

    fn space(&mut self) -> u32 {
        1024
    }

    fn pending(&mut self) -> u32 {
        0
    }

    fn enter(&mut self, want: u32, _timeout: Option<Duration>) -> Result<(), Errno> {
        if want == 0 {
            return Ok(());
        }
        self.enters.fetch_add(1, Ordering::Relaxed);
        if self.sent == REQUESTS {
            COUNTS.set(false);
            let abort = Errno::ENODEV.to_result();
            if let Some(fetch) = self.fetch.take() {
                self.complete(fetch, abort, 0);
                return Ok(());
            }
            while let Some(word) = self.with_driver.pop_front() {
                self.complete(word, abort, 0);
            }
            return Ok(());
        }
        if self.sent == BATCH * 100 {
            COUNTS.set(true);
        }
        self.sent += BATCH;
        if let Some(fetch) = self.fetch {
            self.tags.clear();
            for tag in (0_u16..).take(BATCH) {
                self.with_driver.pop_front();
                self.tags.push(tag);
            }
            self.complete(fetch, 2 * i32::try_from(BATCH).expect("small"), 2);
            return Ok(());
        }
        for _ in 0..BATCH {
            if let Some(word) = self.with_driver.pop_front() {
                self.complete(word, 0, 0);
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        self.ready.pop_front()
    }

    fn wake_handle(&self) -> NoWake {
        NoWake
    }

    fn describe(&self) -> String {
        String::new()
    }
}

/// L37, L55 No memory is allocated and no clock read per request (with latencies, twice per batch), and a batch costs one enter, with per-tag and with
/// batch commands. One test, since allocator and clock belong to the whole program.
#[test]
fn l37_requests_allocate_nothing_read_no_clock_and_a_batch_is_one_enter() {
    COUNTS.set(true);
    let _ = (Instant::now(), Box::new(0_u64));
    COUNTS.set(false);
    assert_eq!(CLOCK_READS.swap(0, Ordering::Relaxed), 1, "is not counted");
    ALLOCATIONS.store(0, Ordering::Relaxed);
    let levels = [Level::Off, Level::Counters, Level::Latencies];
    for (batch, level) in levels
        .into_iter()
        .flat_map(|level| [(false, level), (true, level)])
    {
        let enters = Arc::new(AtomicUsize::new(0));
        let mut worker = Worker::new(Flat::new(&enters), Arc::new(AtomicBool::new(false)));
        let bounds = IoBounds::new(1 << 30, 4096);
        let handler = Inline::new(Arc::new(Nothing));
        let mut spec = LaneSpec::new(QueueId::ZERO, DEPTH, bounds, Reads, handler);
        spec.batch = batch;
        let lane = worker.add_lane(spec).expect("memory");
        lane.measure(level);
        worker.arm().expect("armed");
        let result = worker.run();
        COUNTS.set(false);
        assert_eq!(result, Ok(()));
        worker.finish(&result);
        assert_eq!(lane.counters().reads, REQUESTS as u64);
        assert_eq!(ALLOCATIONS.swap(0, Ordering::Relaxed), 0, "batch {batch}");
        // One per batch, and one that delivers the aborts.
        let enters = enters.load(Ordering::Relaxed);
        let reads = CLOCK_READS.swap(0, Ordering::Relaxed);
        match level {
            // At its beginning and its end; those of the first batch are read before they are counted.
            Level::Latencies => assert!(reads > enters && reads <= 2 * enters + 2, "{reads}"),
            _ => assert_eq!(reads, 0, "batch {batch}, {level}"),
        }
        assert_eq!(enters, REQUESTS / BATCH + 1, "batch {batch}");
    }
}
