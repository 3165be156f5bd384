//! The shipped engine on the simulated driver: each seed gives another order of delays, refusals, partial submissions
//! and aborts.
#![expect(
    unsafe_code,
    reason = "a backend whose memory the simulated driver reaches by address"
)]

mod sim;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sim::{ALL_FAULTS, Run, run, run_driven};
use ublk_core::{Backend, DataMode, Errno, Limits, Op};
use ublk_queue::{
    Direct, Handler, Inline, Mapped, MemRef, OwnedRequest, Pool, Request, State, WorkerError,
};
use ublk_sim::{Config, End, Faults};

/// A simple memory device.
struct Mem(Mutex<Vec<u8>>);

impl Mem {
    fn new(size: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![0; size])))
    }
}

fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).expect("small");
    start..start + len
}

impl Backend for Mem {
    fn limits(&self) -> Limits {
        Limits::new(self.0.lock().expect("no panic").len() as u64).quick(true)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        buf.copy_from_slice(&self.0.lock().expect("no panic")[range(offset, buf.len())]);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        self.0.lock().expect("no panic")[range(offset, buf.len())].copy_from_slice(buf);
        Ok(())
    }
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.write_zeroes(offset, len, true)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<(), Errno> {
        let len = usize::try_from(len).expect("small");
        self.0.lock().expect("no panic")[range(offset, len)].fill(0);
        Ok(())
    }
}

fn run_mem(config: Config) -> Run {
    let mem = Mem::new(config.size);
    run(config, || Inline::new(Arc::clone(&mem)))
}

#[test]
fn every_request_is_answered_once_with_the_right_data() {
    for seed in 0..50 {
        run_mem(Config {
            queues: 1 + (seed % 4) as u16,
            ..Config::new(seed)
        })
        .assert_clean(1000);
    }
}

/// L10 An owner's loop loses no request and ends like the engine's own, under all faults, in every mode.
#[test]
fn l10_a_driven_worker_answers_each_request_once() {
    for seed in 0..60 {
        let config = Config {
            queues: 1 + (seed % 3) as u16,
            batch: seed % 2 == 1,
            faults: if seed % 3 == 0 {
                Faults::default()
            } else {
                ALL_FAULTS
            },
            ..Config::new(seed)
        };
        let mem = Mem::new(config.size);
        run_driven(config, || Inline::new(Arc::clone(&mem))).assert_clean(1000);
    }
}

/// L25 A panic of the handler costs only one request in an owner's loop, too.
#[test]
fn l25_a_driven_worker_survives_a_panic() {
    for seed in 0..10 {
        let mut calls = 0;
        let run = run_driven(Config::new(seed), || {
            move |request: Request<'_>| {
                calls += 1;
                assert!(calls % 100 != 7, "on purpose");
                request.complete(Err(Errno::ENOSPC));
            }
        });
        assert_eq!(run.result, Ok(()), "seed {seed}");
        let panics: u64 = run.lanes.iter().map(|lane| lane.counters().panics).sum();
        assert!(panics > 0, "seed {seed}");
    }
}

/// L50 Short submits, signals and refusals for lack of memory lose nothing.
#[test]
fn l50_partial_submission_and_interrupts_lose_nothing() {
    for seed in 0..50 {
        let faults = Faults {
            short_submit: 40,
            interrupt: 30,
            transient: 10,
            ..Faults::default()
        };
        run_mem(Config {
            queues: 2,
            faults,
            ..Config::new(seed)
        })
        .assert_clean(1000);
    }
}

/// L10 Under all faults at once, each request is answered exactly once, by its own tag.
#[test]
fn l10_each_request_is_answered_once_under_all_faults() {
    for seed in 0..100 {
        let depth = 1 + (seed % 40) as u16;
        run_mem(Config {
            queues: 3,
            depth,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        })
        .assert_clean(1000);
    }
}

/// L53 Completions of another generation, lane or tag are counted and ignored.
#[test]
fn l53_stale_completions_are_ignored() {
    let faults = Faults {
        stale: 60,
        ..Faults::default()
    };
    let run = run_mem(Config {
        faults,
        ..Config::new(5)
    });
    run.assert_clean(1000);
    assert!(run.stale() > 10, "the driver injected some");
}

/// L54 A full submission queue disarms no tag.
#[test]
fn l54_a_full_submission_queue_disarms_no_tag() {
    for seed in 0..50 {
        let faults = Faults {
            full: 30,
            ..Faults::default()
        };
        run_mem(Config {
            faults,
            ..Config::new(seed)
        })
        .assert_clean(1000);
    }
}

/// L26 Aborts end a queue normally, even with requests in hand.
#[test]
fn l26_aborts_are_the_normal_end() {
    for seed in 0..50 {
        let config = Config {
            end: End::Quiesce(300),
            ..Config::new(seed)
        };
        let run = run_mem(config);
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(run.result, Ok(()));
        assert_eq!(run.report.failed, 0);
        assert_eq!(run.report.unanswered, 0, "what was in hand is committed");
    }
}

/// L20 A refused fetch is detected before START_DEV, with queue and tag.
#[test]
fn l20_a_refused_fetch_fails_arming() {
    let run = run_mem(Config {
        queues: 2,
        refuse_fetch: Some((1, 7, -22)),
        ..Config::new(1)
    });
    assert!(
        !run.has_armed,
        "the failure is seen before START_DEV would be sent"
    );
    let error = run.result.expect_err("arming failed").to_string();
    assert_eq!(
        error,
        "queue 1, tag 7: the driver refused FETCH_REQ: invalid argument (EINVAL)"
    );
    assert_eq!(run.report.completed, 0);
}

/// L24 A failed queue shows its state and cause.
#[test]
fn l24_a_failed_queue_is_visible() {
    let run = run_mem(Config {
        refuse_commit: Some((100, -22)),
        ..Config::new(2)
    });
    assert!(run.result.is_err());
    assert_eq!(run.lanes[0].state(), State::Failed);
    let cause = run.lanes[0].first_error().expect("a cause");
    assert!(
        cause.contains("refused COMMIT_AND_FETCH_REQ: invalid argument"),
        "{cause}"
    );
    let run = run_mem(Config {
        enter_fails: Some((20, 9)),
        ..Config::new(2)
    });
    assert_eq!(run.result, Err(WorkerError::Ring(Errno::EBADF)));
    assert_eq!(run.lanes[0].state(), State::Failed);
}

/// L09 Buffers stay mapped if a worker ends while the driver has them.
#[test]
fn l09_buffers_outlive_a_worker_that_leaves_tags_with_the_driver() {
    let run = run_mem(Config {
        depth: 64,
        enter_fails: Some((50, 9)),
        ..Config::new(3)
    });
    assert!(run.result.is_err());
    let Run { lanes, sim, .. } = run;
    drop(lanes);
    // Unmapped memory would crash here.
    assert!(sim.late_writes() > 0);
    // The same if arming fails half-way, with some tags at the driver, or if a worker is just dropped.
    let run = run_mem(Config {
        depth: 64,
        refuse_fetch: Some((0, 40, -22)),
        ..Config::new(4)
    });
    let Run { lanes, sim, .. } = run;
    drop(lanes);
    assert!(sim.late_writes() > 0);
}

/// Panics on every tenth request.
struct Panics {
    inner: Inline<Mem>,
    count: Arc<AtomicUsize>,
}

impl Handler for Panics {
    fn handle(&mut self, request: Request<'_>) {
        if self.count.fetch_add(1, Ordering::Relaxed) % 10 == 9 {
            std::panic::resume_unwind(Box::new("on purpose"));
        }
        self.inner.handle(request);
    }
}

/// L25 A panic costs its request and nothing else.
#[test]
fn l25_a_panic_answers_eio_and_the_queue_goes_on() {
    for seed in 0..20 {
        let config = Config {
            queues: 2,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let (mem, count) = (Mem::new(config.size), Arc::new(AtomicUsize::new(0)));
        let make = || Panics {
            inner: Inline::new(Arc::clone(&mem)),
            count: Arc::clone(&count),
        };
        let run = run(config, make);
        run.assert_clean(1000);
        assert_eq!(run.report.failed, 100);
        let panics: u64 = run.lanes.iter().map(|lane| lane.counters().panics).sum();
        assert_eq!(panics, 100);
    }
}

/// Drops every tenth request.
#[test]
fn dropped_requests_are_answered_with_eio_and_counted() {
    let mem = Mem::new(Config::new(0).size);
    let count = AtomicUsize::new(0);
    let run = run(Config::new(11), || {
        let (mut inner, count) = (Inline::new(Arc::clone(&mem)), &count);
        move |request: Request<'_>| match count.fetch_add(1, Ordering::Relaxed) % 10 {
            9 => drop(request),
            8 => drop(request.detach()),
            _ => inner.handle(request),
        }
    });
    run.assert_clean(1000);
    assert_eq!(run.report.failed, 200);
    assert_eq!(run.lanes[0].counters().dropped, 200);
}

/// L55 An answer from another thread wakes a sleeping engine at once.
#[test]
fn l55_answers_of_a_pool_wake_the_engine() {
    for seed in 0..10 {
        let config = Config {
            queues: 2,
            depth: 4,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let mem = Mem::new(config.size);
        let pool = Pool::start(&mem, 3, 8).expect("threads");
        run(config, || pool.handler()).assert_clean(1000);
    }
}

/// Without the wake-up it shows as a hang: the check can fail.
#[test]
fn l55_a_request_never_answered_is_seen_as_a_hang() {
    let held = Arc::new(Mutex::new(Vec::<OwnedRequest>::new()));
    let config = Config {
        patience: Duration::from_millis(50),
        ..Config::new(1)
    };
    let run = run(config, || {
        let held = Arc::clone(&held);
        move |request: Request<'_>| held.lock().expect("no panic").push(request.detach())
    });
    assert!(
        run.report.violations[0].starts_with("L55"),
        "{:?}",
        run.report
    );
    assert!(run.result.is_err());
    // Requests may outlive their worker; answering them then only frees the buffers.
    for request in held.lock().expect("no panic").drain(..) {
        request.complete(Ok(()));
    }
}

/// L05 The oracle detects a handler that does not fill the buffer: the check can fail.
#[test]
fn l05_stale_bytes_are_seen_by_the_oracle() {
    let run = run(Config::new(1), || {
        |request: Request<'_>| request.complete(Ok(()))
    });
    assert!(
        run.report
            .violations
            .iter()
            .any(|v| v.contains("wrong data read")),
        "{:?}",
        run.report
    );
}

/// L13 Whatever a broken driver writes into a descriptor, nothing outside device or buffer is accessed.
#[test]
fn l13_hostile_descriptors_are_refused() {
    for seed in 0..50 {
        let config = Config {
            hostile: true,
            requests: 5000,
            ..Config::new(seed)
        };
        let size = config.size as u64;
        let run = run(config, || {
            move |mut request: Request<'_>| {
                let end = request
                    .offset()
                    .checked_add(request.len())
                    .expect("no overflow");
                assert!(end <= size);
                match request.op() {
                    Op::Read => request.data_mut().expect("copy mode").fill(1),
                    Op::Write => assert_eq!(
                        request.data().expect("copy mode").len() as u64,
                        request.len()
                    ),
                    _ => {}
                }
                request.complete(Ok(()));
            }
        });
        assert_eq!(run.result, Ok(()));
        assert_eq!(run.lanes[0].counters().panics, 0);
        assert!(run.lanes[0].counters().refused > 0);
    }
}

/// A memory device that lets the driver copy to and from its own memory.
struct MappedMem(Box<[std::cell::UnsafeCell<u8>]>);

// SAFETY: the bytes are accessed by address only, and in these tests on one thread.
unsafe impl Sync for MappedMem {}

impl MappedMem {
    fn new(size: usize) -> Arc<Self> {
        Arc::new(Self(
            (0..size).map(|_| std::cell::UnsafeCell::new(0)).collect(),
        ))
    }
}

impl Backend for MappedMem {
    fn limits(&self) -> Limits {
        Limits::new(self.0.len() as u64).quick(true)
    }
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        Err(Errno::EIO)
    }
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.write_zeroes(offset, len, true)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<(), Errno> {
        for byte in &self.0[range(offset, usize::try_from(len).expect("small"))] {
            // SAFETY: one thread, no reference to the byte is held.
            unsafe { *byte.get() = 0 };
        }
        Ok(())
    }
}

impl Mapped for MappedMem {
    fn region(&self, offset: u64, len: usize) -> MemRef<'_> {
        let bytes = &self.0[range(offset, len)];
        let first = std::ptr::NonNull::new(bytes[0].get()).expect("not null");
        // SAFETY: the bytes live as long as the backend, and no reference to them is ever made.
        unsafe { MemRef::new(first, len) }
    }
}

/// Get-data: a READ is answered from memory anywhere with each kind of token, from another thread, too.
#[test]
fn l10_reads_are_answered_from_anywhere_by_any_token() {
    for seed in 0..16 {
        let config = Config {
            data: DataMode::GetData,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let mem: &'static MappedMem = Box::leak(Box::new(MappedMem(
            (0..config.size)
                .map(|_| std::cell::UnsafeCell::new(0))
                .collect(),
        )));
        let (requests, taken) = std::sync::mpsc::channel::<(OwnedRequest, MemRef<'static>)>();
        let other = std::thread::spawn(move || {
            for (request, region) in taken {
                request.complete_from(region);
            }
        });
        let make = || {
            let (requests, mut count) = (requests.clone(), 0u32);
            move |mut request: Request<'_>| {
                let (offset, len) = (request.offset(), request.len());
                let region = || mem.region(offset, usize::try_from(len).expect("small"));
                count += 1;
                let result = match request.op() {
                    Op::Read => {
                        assert!(request.takes_any_source());
                        return match count % 4 {
                            0 => request.complete_from(region()),
                            1 => request.keep().complete_from(region()),
                            2 => request.detach().complete_from(region()),
                            _ => drop(requests.send((request.keep().detach(), region()))),
                        };
                    }
                    Op::Write => {
                        let to = region();
                        request.data().map(|data| {
                            // SAFETY: valid as long as the data, and exclusively ours while the request is in hand.
                            unsafe {
                                to.ptr()
                                    .as_ptr()
                                    .copy_from_nonoverlapping(data.as_ptr(), data.len())
                            };
                        })
                    }
                    Op::Flush => Ok(()),
                    _ => mem.write_zeroes(offset, len, true),
                };
                request.complete(result);
            }
        };
        run(config, make).assert_clean(1000);
        drop(requests);
        other.join().expect("no panic");
    }
}

/// User copy and get-data transfer data correctly, through the tag's buffer and directly to the backend's memory.
#[test]
fn data_modes_move_the_right_bytes_under_all_faults() {
    for seed in 0..60 {
        for data in [DataMode::UserCopy, DataMode::GetData] {
            let config = Config {
                data,
                queues: 2,
                faults: ALL_FAULTS,
                ..Config::new(seed)
            };
            run_mem(config.clone()).assert_clean(1000);
            let mem = MappedMem::new(config.size);
            run(config, || Direct(Arc::clone(&mem))).assert_clean(1000);
        }
    }
}

/// In modes in which the driver is not told the buffers' addresses, successive requests use the same buffer; in copy
/// mode each tag has its own.
#[test]
fn l08_buffers_follow_what_is_in_flight_only_where_they_may() {
    for (data, few) in [(DataMode::UserCopy, true), (DataMode::Copy, false)] {
        let config = Config {
            data,
            read_percent: 100,
            faults: ALL_FAULTS,
            ..Config::new(5)
        };
        let seen = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
        let addresses = Arc::clone(&seen);
        let run = run(config.clone(), move || {
            let addresses = Arc::clone(&addresses);
            move |mut request: Request<'_>| {
                let data = request.data_mut().ok().filter(|data| !data.is_empty());
                let address = data.map(|data| data.as_ptr() as usize);
                addresses.lock().expect("no panic").extend(address);
                request.complete(Err(Errno::EIO));
            }
        });
        assert_eq!(run.result, Ok(()));
        let seen = seen.lock().expect("no panic").len();
        let all = usize::from(config.depth);
        assert_eq!(seen, if few { 1 } else { all }, "{data:?}");
    }
}

/// L05 In user copy a READ that nobody filled never exposes the content of the pages.
#[test]
fn l05_user_copy_always_delivers_something_of_ours() {
    let config = Config {
        data: DataMode::UserCopy,
        read_percent: 100,
        ..Config::new(1)
    };
    let run = run(config, || |request: Request<'_>| request.complete(Ok(())));
    // All zeroes, the content of the device.
    run.assert_clean(1000);
}

/// L11 Partial commits of batches are resumed, fetches that end are pushed again, no tag is lost.
#[test]
fn l11_batches_lose_no_tag_under_all_faults() {
    for seed in 0..60 {
        for data in [DataMode::Copy, DataMode::UserCopy] {
            let depth = 1 + (seed % 40) as u16;
            let config = Config {
                data,
                batch: true,
                queues: 2,
                depth,
                ..Config::new(seed)
            };
            run_mem(config.clone()).assert_clean(1000);
            run_mem(Config {
                faults: ALL_FAULTS,
                ..config
            })
            .assert_clean(1000);
        }
    }
}

/// L25 A panic in the middle of a batch costs its request only.
#[test]
fn l25_a_panic_in_a_batch_costs_one_request() {
    for seed in 0..10 {
        let config = Config {
            batch: true,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let (mem, count) = (Mem::new(config.size), Arc::new(AtomicUsize::new(0)));
        let run = run(config, || Panics {
            inner: Inline::new(Arc::clone(&mem)),
            count: Arc::clone(&count),
        });
        run.assert_clean(1000);
        assert_eq!(run.report.failed, 100);
    }
}

/// L26 The abort of a batch lane's fetch ends the queue, with or without requests in hand.
#[test]
fn l26_an_aborted_fetch_ends_a_batch_lane() {
    for seed in 0..50 {
        let config = Config {
            batch: true,
            end: End::Quiesce(300),
            ..Config::new(seed)
        };
        let run = run_mem(config);
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(run.result, Ok(()));
        assert_eq!(run.report.failed, 0);
        assert_eq!(run.report.unanswered, 0);
    }
}

/// L24 An element that the driver refuses fails the queue; the error names its tag.
#[test]
fn l24_a_refused_element_fails_the_queue() {
    let run = run_mem(Config {
        batch: true,
        refuse_commit: Some((100, -22)),
        ..Config::new(2)
    });
    let cause = run.lanes[0].first_error().expect("a cause");
    assert!(
        cause.contains("refused COMMIT_IO_CMDS: invalid argument"),
        "{cause}"
    );
}
