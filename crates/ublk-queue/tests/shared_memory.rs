//! Memory shared with clients, on the simulated driver: requests with data there are served there, the others as usual,
//! in every mode and with every kind of handler. The simulated driver fills the places where data is not with garbage,
//! so that the client detects a handler that reads there, or leaves its data there.
#![expect(
    unsafe_code,
    reason = "a backend whose memory is copied to and from by address"
)]

mod sim;

use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::Poll;

use sim::ToFile;
use ublk_core::iod::IoBounds;
use ublk_core::{Backend, DataMode, Errno, Limits, Op, QueueId};
use ublk_queue::handler::{DirectShared, InlineShared};
use ublk_queue::racy_copy::Copier;
use ublk_queue::task::{Async, TaskRequest};
use ublk_queue::{
    ClientShared, Counters, Direct, Handler, Inline, LaneSpec, Mapped, MemRef, Pool, Worker,
};
use ublk_sim::{Config, End, Faults, Report, Sim};

/// Memory that is accessed by address only.
struct Mem(Box<[UnsafeCell<u8>]>);

// SAFETY: only the copier and the simulated driver access the bytes.
unsafe impl Sync for Mem {}

impl Mem {
    fn new(size: usize) -> Arc<Self> {
        Arc::new(Self((0..size).map(|_| UnsafeCell::new(0)).collect()))
    }
}

impl Mapped for Mem {
    fn region(&self, offset: u64, len: usize) -> MemRef<'_> {
        let start = usize::try_from(offset).expect("small");
        let place = NonNull::new(self.0[start..start + len].as_ptr().cast_mut().cast());
        // SAFETY: inside the box, which lives as long as `self`; no reference to its bytes is made.
        unsafe { MemRef::new(place.expect("of a slice"), len) }
    }
}

impl Backend for Mem {
    fn limits(&self) -> Limits {
        Limits::new(self.0.len() as u64).quick(true)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let from = self.region(offset, buf.len());
        // SAFETY: the contract of `region`.
        unsafe { Copier::detect().load(from.ptr(), buf) };
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        let to = self.region(offset, buf.len());
        // SAFETY: the contract of `region`.
        unsafe { Copier::detect().store(buf, to.ptr()) };
        Ok(())
    }
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.write_zeroes(offset, len, true)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<(), Errno> {
        let place = self.region(offset, usize::try_from(len).expect("small"));
        // SAFETY: the contract of `region`.
        unsafe { Copier::detect().zero(place.ptr(), place.len()) };
        Ok(())
    }
}

fn run<H: Handler>(config: &Config, make: impl Fn() -> H) -> (Report, Counters) {
    let run = sim::run(config.clone(), make);
    assert_eq!(run.report.violations, Vec::<String>::new(), "{config:?}");
    assert_eq!(run.result, Ok(()), "{config:?}");
    let mut sum = Counters::default();
    for lane in &run.lanes {
        sum.add(&lane.counters());
    }
    (run.report, sum)
}

fn config(seed: u64, data: DataMode, batch: bool) -> Config {
    Config {
        data,
        batch,
        queues: 2,
        shared_percent: 60,
        ..Config::new(seed)
    }
}

/// All of 1,000 requests succeed, and those in shared memory are counted.
fn is_well(config: &Config, (report, counters): &(Report, Counters)) {
    assert_eq!((report.completed, report.failed), (1000, 0), "{config:?}");
    let data = counters.reads + counters.writes;
    assert_eq!(counters.shared_hits, report.shared_hits as u64);
    assert_eq!(counters.shared_hits + counters.shared_misses, data);
    assert!(
        counters.shared_hits * 2 > data && counters.shared_misses > 0,
        "{counters:?}"
    );
}

/// The modes in which data reaches memory.
const MODES: [(DataMode, bool); 4] = [
    (DataMode::Copy, false),
    (DataMode::Copy, true),
    (DataMode::UserCopy, false),
    (DataMode::UserCopy, true),
];

async fn serve(mem: Arc<Mem>, mut request: TaskRequest) -> Result<(), Errno> {
    let (op, offset, len) = (request.op(), request.offset(), request.len());
    // Some wait, so that their data is read later than it arrived.
    if offset % 8192 == 0 {
        let mut waited = false;
        std::future::poll_fn(|context| {
            context.waker().wake_by_ref();
            match std::mem::replace(&mut waited, true) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }
    match op {
        Op::Read => mem.read_at(request.data_mut()?, offset),
        Op::Write => mem.write_at(request.data()?, offset, false),
        Op::Flush => Ok(()),
        _ => mem.write_zeroes(offset, len, true),
    }
}

/// L05, L10 With every kind of handler the client finds the data it wrote, and no other bytes.
#[test]
fn l05_data_in_shared_memory_is_served_there_by_every_kind_of_handler() {
    for (data, batch) in MODES {
        for seed in 0..4 {
            let config = config(seed, data, batch);
            let mem = Mem::new(config.size);
            is_well(
                &config,
                &run(&config, || DirectShared::new(Arc::clone(&mem))),
            );
            let mem = Mem::new(config.size);
            is_well(
                &config,
                &run(&config, || InlineShared::new(Arc::clone(&mem))),
            );
            let mem = Mem::new(config.size);
            is_well(
                &config,
                &run(&config, || ClientShared(Inline::new(Arc::clone(&mem)))),
            );
            let mem = Mem::new(config.size);
            is_well(
                &config,
                &run(&config, || ClientShared(Direct(Arc::clone(&mem)))),
            );
        }
    }
}

/// Requests that are answered on other threads find their data, too.
#[test]
fn data_in_shared_memory_is_found_from_other_threads() {
    for (data, batch) in MODES {
        let config = config(7, data, batch);
        let mem = Mem::new(config.size);
        let pool = Pool::start(&mem, 3, 64).expect("threads");
        is_well(&config, &run(&config, || ClientShared(pool.handler())));
    }
}

/// L07, L11 Operations on a file transfer between it and the client's memory, whole and durable; in the zero-copy
/// modes, too.
#[test]
fn l07_l11_forwarded_requests_in_shared_memory_are_whole_and_durable() {
    for data in DataMode::ALL {
        if data == DataMode::GetData {
            continue;
        }
        for seed in 0..10 {
            let config = Config {
                file: true,
                faults: Faults {
                    short_io: 20,
                    interrupted_io: 10,
                    stale: 5,
                    ..Faults::default()
                },
                ..config(seed, data, false)
            };
            is_well(&config, &run(&config, || ClientShared(ToFile)));
        }
    }
}

/// L03 Whatever a descriptor names, nothing outside the registered memory is accessed, and the device continues.
#[test]
fn l03_descriptors_of_a_broken_driver_touch_nothing() {
    let mut refused = 0;
    for seed in 0..30 {
        let config = Config {
            hostile: true,
            end: End::Stop,
            ..config(seed, DataMode::Copy, false)
        };
        let mem = Mem::new(config.size);
        let (report, counters) = run(&config, || DirectShared::new(Arc::clone(&mem)));
        assert_eq!(report.completed, 1000);
        refused += counters.refused;
    }
    assert!(refused > 100, "{refused}");
}

/// A lane that does not support shared memory does not start, instead of looking in the wrong place later.
#[test]
fn handlers_and_modes_that_cannot_share_memory_are_refused() {
    let config = config(1, DataMode::Copy, false);
    let sim = Sim::new(config.clone());
    let mem = Mem::new(config.size);
    let mut worker = Worker::new(sim::port(&sim), Arc::new(AtomicBool::new(false)));
    let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
    let handler = Inline::new(mem);
    let mut spec = LaneSpec::new(QueueId::ZERO, 4, bounds, sim.descriptors(0), handler);
    spec.client_memory = sim.shared_memory().expect("mapped");
    assert_eq!(worker.add_lane(spec).err(), Some(Errno::EOPNOTSUPP));
}

/// Futures see data in shared memory like any other.
#[test]
fn futures_find_data_in_shared_memory() {
    for (data, batch) in MODES {
        for seed in 0..5 {
            let config = config(seed, data, batch);
            let mem = Mem::new(config.size);
            let make = || {
                let mem = Arc::clone(&mem);
                ClientShared(Async::new(move |request| serve(Arc::clone(&mem), request)))
            };
            is_well(&config, &run(&config, make));
        }
    }
}
