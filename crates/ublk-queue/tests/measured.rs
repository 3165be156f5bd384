//! What the engine measures, on the simulated driver: every request once, whatever path it takes.

mod sim;

use std::cell::RefCell;
use std::fs::File;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sim::{ALL_FAULTS, Run, ToFile, Zeroes, drive_and_sleep, run_measured};
use ublk_core::iod::IoBounds;
use ublk_core::{Backend, DataMode, Errno, Limits, Op, QueueId};
use ublk_metrics::{Level, Operation, QueueSnapshot};
use ublk_queue::task::{Async, SharedFd};
use ublk_queue::{
    Handler, Inline, LaneHandle, LaneSpec, OwnedRequest, Place, Pool, Request, Worker,
};
use ublk_sim::{Config, Faults, Sim};

/// The sum over the lanes of a run.
fn total(run: &Run) -> QueueSnapshot {
    let mut total = QueueSnapshot::default();
    for lane in &run.lanes {
        total.add(&lane.metrics(0));
    }
    total
}

/// Asserts that every request has one latency and belongs to one batch.
fn assert_complete(run: &Run, requests: u64, what: &str) {
    let total = total(run);
    assert_eq!(total.requests(), requests, "{what}");
    assert_eq!(total.batches.requests, requests, "{what}");
    assert_eq!(total.in_flight, 0, "{what}");
    for op in &total.ops {
        assert_eq!(op.latency.count(), op.requests, "{what}: {op:?}");
    }
    assert!(total.ops.iter().all(|op| op.latency.max() > Duration::ZERO));
    assert!(total.busy_ns > 0, "{what}");
}

const MODES: [DataMode; 5] = [
    DataMode::Copy,
    DataMode::GetData,
    DataMode::UserCopy,
    DataMode::ZeroCopy,
    DataMode::ZeroCopyManual,
];

fn is_zero_copy(data: DataMode) -> bool {
    data.is_zero_copy()
}

/// Handlers that answer at once, from a pool, by a future, and by forwarding, in every data mode and under faults: each
/// request is in one batch and has one latency.
#[test]
fn every_request_has_one_latency() {
    for data in MODES {
        for seed in 0..4 {
            let config = Config {
                data,
                batch: seed % 2 == 1 && data != DataMode::GetData,
                queues: 1 + (seed % 2) as u16,
                read_percent: 100,
                faults: ALL_FAULTS,
                ..Config::new(seed)
            };
            let what = format!("{data:?}, seed {seed}");
            if !is_zero_copy(data) {
                let zeroes = Arc::new(Zeroes(config.size));
                let inline = || Inline::new(Arc::clone(&zeroes));
                let run = run_measured(&config, Level::Latencies, inline, Worker::run);
                run.assert_clean(1000);
                assert_complete(&run, 1000, &what);
                let driven = run_measured(&config, Level::Latencies, inline, drive_and_sleep);
                driven.assert_clean(1000);
                assert_complete(&driven, 1000, &what);
                let pool = Pool::start(&zeroes, 2, 32).expect("threads");
                let pooled = || pool.handler();
                let run = run_measured(&config, Level::Latencies, pooled, Worker::run);
                run.assert_clean(1000);
                assert_complete(&run, 1000, &what);
            }
            let config = Config {
                file: true,
                unregistered_percent: match data {
                    DataMode::ZeroCopy => 30,
                    _ => 0,
                },
                read_percent: 50,
                faults: Faults {
                    transient: 10,
                    interrupt: 10,
                    stale: 5,
                    ..Faults::default()
                },
                ..config
            };
            let run = run_measured(&config, Level::Latencies, || ToFile, Worker::run);
            run.assert_clean(1000);
            assert_complete(&run, 1000, &format!("forwarded, {what}"));
            let file = SharedFd::new(File::open("/dev/null").expect("/dev/null"));
            let asynchronous = || {
                let file = file.clone();
                Async::new(move |mut request: ublk_queue::task::TaskRequest| {
                    let file = file.clone();
                    async move {
                        let offset = request.offset();
                        match request.op() {
                            Op::Read => request.read_from(&file, offset).await,
                            _ => Err(Errno::EOPNOTSUPP),
                        }
                    }
                })
            };
            let config = Config {
                read_percent: 100,
                ..config
            };
            let run = run_measured(&config, Level::Latencies, asynchronous, Worker::run);
            run.assert_clean(1000);
            assert_complete(&run, 1000, &format!("futures, {what}"));
        }
    }
}

/// The facts of the data mode are those of the run.
#[test]
fn facts_of_the_data_mode_are_counted() {
    let config = |data, unregistered_percent| Config {
        data,
        unregistered_percent,
        file: true,
        ..Config::new(3)
    };
    let facts = |config: &Config| {
        let run = run_measured(config, Level::Off, || ToFile, Worker::run);
        run.assert_clean(1000);
        let total = total(&run);
        let with = |op| total.op(op).map_or(0, |op| op.requests);
        (total.facts, with(Operation::Read), with(Operation::Write))
    };
    let (all, reads, writes) = facts(&config(DataMode::ZeroCopy, 0));
    assert_eq!(
        (all.zero_copy_hits, all.zero_copy_fallbacks),
        (reads + writes, 0)
    );
    let (some, reads, writes) = facts(&config(DataMode::ZeroCopy, 40));
    assert_eq!(
        some.zero_copy_hits + some.zero_copy_fallbacks,
        reads + writes
    );
    assert!(some.zero_copy_fallbacks > 100 && some.zero_copy_hits > 100);
    let (manual, reads, writes) = facts(&config(DataMode::ZeroCopyManual, 0));
    assert_eq!(
        (manual.zero_copy_hits, manual.zero_copy_fallbacks),
        (reads + writes, 0)
    );
    let (get_data, _, writes) = facts(&config(DataMode::GetData, 0));
    assert_eq!(get_data.get_data_rounds, writes);
    let (copy, ..) = facts(&config(DataMode::Copy, 0));
    assert_eq!((copy.zero_copy_hits, copy.get_data_rounds), (0, 0));
}

/// Errors are counted by operation and by errno at every level.
#[test]
fn errors_are_counted_by_errno() {
    for level in Level::ALL {
        let count = RefCell::new(0);
        let run = run_measured(
            &Config {
                read_percent: 100,
                ..Config::new(4)
            },
            level,
            || {
                |mut request: Request<'_>| {
                    let mut count = count.borrow_mut();
                    *count += 1;
                    let errno = match *count % 10 {
                        0 => Errno::ENOSPC,
                        // Beyond the errnos of Linux.
                        1 => Errno::new(900),
                        _ => {
                            let filled = request.data_mut().map(|data| data.fill(0));
                            return request.complete(filled);
                        }
                    };
                    request.complete(Err(errno));
                }
            },
            Worker::run,
        );
        run.assert_clean(1000);
        let total = total(&run);
        assert_eq!(total.errnos, [(0, 100), (28, 100)], "{level}");
        assert_eq!(total.errors(), 200);
        let by_op: u64 = total.ops.iter().map(|op| op.errors).sum();
        assert_eq!(by_op, 200, "{level}");
        assert_eq!(total.batches.count() > 0, level > Level::Off);
    }
}

/// The level changes while requests are in hand: nothing is lost, nothing is counted twice, and nothing is measured while
/// it is off.
#[test]
fn the_level_changes_on_a_live_queue() {
    for (seed, driven) in (0..10).zip([false, true].into_iter().cycle()) {
        let config = Config {
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let sim = Sim::new(config.clone());
        let mut worker = Worker::new(sim::port(&sim), Arc::default());
        let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
        let handle: Rc<RefCell<Option<LaneHandle>>> = Rc::default();
        let held: Arc<Mutex<Vec<OwnedRequest>>> = Arc::default();
        let toggling = {
            let (handle, held, mut count) = (Rc::clone(&handle), Arc::clone(&held), 0_usize);
            move |request: Request<'_>| {
                count += 1;
                if count.is_multiple_of(60) {
                    let handle = handle.borrow();
                    let lane = handle.as_ref().expect("set before it serves");
                    lane.measure(Level::ALL[count / 60 % 3]);
                }
                // Some requests outlive the change.
                let mut held = held.lock().expect("no panic");
                for old in held.drain(..) {
                    old.complete(Err(Errno::ENOSPC));
                }
                match count % 3 == 0 && count < 900 {
                    true => held.push(request.detach()),
                    false => request.complete(Err(Errno::ENOSPC)),
                }
            }
        };
        let descriptors = sim.descriptors(0);
        let spec = LaneSpec::new(QueueId::ZERO, config.depth, bounds, descriptors, toggling);
        let lane = worker.add_lane(spec).expect("memory");
        *handle.borrow_mut() = Some(lane.clone());
        worker.arm().expect("armed");
        let result = match driven {
            true => drive_and_sleep(&mut worker),
            false => worker.run(),
        };
        assert_eq!(result, Ok(()), "seed {seed}");
        worker.finish(&result);
        assert_eq!(sim.report().violations, Vec::<String>::new(), "seed {seed}");
        let total = lane.metrics(0);
        assert_eq!(total.requests(), 1000);
        let latencies: u64 = total.ops.iter().map(|op| op.latency.count()).sum();
        // A third of the time each.
        assert!((150..500).contains(&latencies), "seed {seed}: {latencies}");
        let batched = total.batches.requests;
        assert!((400..900).contains(&batched), "seed {seed}: {batched}");
    }
}

/// A latency is that of the request, whether it is answered at once or by another thread later.
#[test]
fn latencies_are_as_long_as_the_requests() {
    const LONG: Duration = Duration::from_millis(5);
    let config = Config {
        depth: 1,
        requests: 10,
        ..Config::new(1)
    };
    let slow = || {
        |request: Request<'_>| {
            std::thread::sleep(LONG);
            request.complete(Err(Errno::ENOSPC));
        }
    };
    let elsewhere = || {
        |request: Request<'_>| {
            let request = request.detach();
            std::thread::spawn(move || {
                std::thread::sleep(LONG);
                request.complete(Err(Errno::ENOSPC));
            });
        }
    };
    fn check<H: Handler>(config: &Config, make: impl Fn() -> H) {
        let run = run_measured(config, Level::Latencies, make, Worker::run);
        run.assert_clean(10);
        for op in total(&run).ops {
            let shortest = op.latency.percentile(0.0);
            assert!(shortest >= LONG.mul_f64(0.97), "{shortest:?}");
            assert!(op.latency.mean() >= LONG && op.latency.max() < 200 * LONG);
        }
    }
    check(&config, slow);
    check(&config, elsewhere);
}

/// A backend that takes this long for each READ.
struct Slow(Zeroes, Duration);

impl Backend for Slow {
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        std::thread::sleep(self.1);
        self.0.read_at(buf, offset)
    }
}

/// Requests that wait for the only thread, the queue's own or that of a pool, are told from those that the backend takes
/// long for.
#[test]
fn waiting_is_told_from_the_backend() {
    const LONG: Duration = Duration::from_millis(4);
    let config = Config {
        depth: 8,
        requests: 64,
        read_percent: 100,
        ..Config::new(1)
    };
    fn means<H: Handler>(config: &Config, make: impl Fn() -> H) -> (Duration, Duration) {
        let run = run_measured(config, Level::Latencies, make, Worker::run);
        run.assert_clean(64);
        let total = total(&run);
        let op = total.op(Operation::Read).expect("it reads");
        assert_eq!(
            op.backend_mean() + op.waiting_mean(),
            op.latency.mean(),
            "{op:?}"
        );
        (op.backend_mean(), op.waiting_mean())
    }
    let backend = Arc::new(Slow(Zeroes(config.size), LONG));
    let pool = Pool::start(&backend, 1, 8).expect("a thread");
    let in_line = [
        means(&config, || Inline::new(Arc::clone(&backend))),
        means(&config, || pool.handler()),
    ];
    for (in_backend, waiting) in in_line {
        assert!(
            in_backend >= LONG && in_backend < 2 * LONG,
            "{in_backend:?}"
        );
        assert!(waiting > LONG, "{waiting:?} beside {in_backend:?}");
    }
    let pool = Pool::start(&backend, 8, 8).expect("threads");
    let (in_backend, waiting) = means(&config, || pool.handler());
    assert!(in_backend >= LONG && waiting < LONG, "{waiting:?}");
    let (in_backend, waiting) = means(&config, || {
        |request: Request<'_>| {
            let request = request.detach();
            std::thread::spawn(move || {
                std::thread::sleep(LONG);
                request.complete(Err(Errno::EIO));
            });
        }
    });
    assert!(in_backend >= LONG && waiting < LONG, "{waiting:?}");
}

/// A lane of a device in tests that look at it, with its simulated driver.
fn looked_at<H: Handler>(
    config: &Config,
    make: impl FnOnce() -> H,
) -> (
    Sim,
    Worker<ublk_sim::SimPort, ublk_sim::SimDescriptors, H>,
    LaneHandle,
) {
    let sim = Sim::new(config.clone());
    let mut worker = Worker::new(sim::port(&sim), Arc::default());
    let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
    let mut spec = LaneSpec::new(
        QueueId::ZERO,
        config.depth,
        bounds,
        sim.descriptors(0),
        make(),
    );
    (spec.data, spec.batch) = (config.data, config.batch);
    (spec.file_count, spec.device) = (1, Box::new(sim.device()));
    let lane = worker.add_lane(spec).expect("memory");
    worker.arm().expect("armed");
    (sim, worker, lane)
}

/// L24 A request that is never answered is found although its queue goes on with others, and it is known where it is.
#[test]
fn l24_the_oldest_request_is_found_beside_others() {
    for level in [Level::Off, Level::Latencies] {
        let held: Arc<Mutex<Option<OwnedRequest>>> = Arc::default();
        let holds = {
            let (held, mut first) = (Arc::clone(&held), true);
            move |request: Request<'_>| match std::mem::take(&mut first) {
                true => *held.lock().expect("no panic") = Some(request.detach()),
                false => request.complete(Err(Errno::ENOSPC)),
            }
        };
        let (sim, mut worker, lane) = looked_at(&Config::new(3), || holds);
        lane.measure(level);
        assert_eq!(lane.look(), None, "idle");
        let mut serve = |rounds: usize| {
            for _ in 0..rounds {
                let _ = worker.drive().expect("it serves");
            }
        };
        serve(5);
        // With latencies the time of its arrival is known, else that of the first look.
        assert_eq!(
            lane.look(),
            None,
            "{level}: nothing is known at the first look"
        );
        serve(5);
        std::thread::sleep(Duration::from_millis(20));
        let oldest = lane.look().expect("the request in hand");
        assert!(oldest.age >= Duration::from_millis(20), "{oldest:?}");
        assert_eq!(oldest.place, Place::Backend);
        serve(20);
        let requests = lane.metrics(0).requests();
        serve(20);
        assert!(lane.metrics(0).requests() > requests, "others are served");
        assert!(lane.look().expect("still there").age > oldest.age);
        let request = held.lock().expect("no panic").take();
        request.expect("held").complete(Err(Errno::ENOSPC));
        assert_eq!(lane.look().map(|it| it.place), Some(Place::Answer));
        serve(5);
        assert_eq!(lane.look(), None, "{level}: answered");
        let result = drive_and_sleep(&mut worker);
        worker.finish(&result);
        assert_eq!(sim.report().violations, Vec::<String>::new());
        assert_eq!(lane.look(), None);
    }
}

/// Looks change nothing about what is served, in no data mode and under faults, and leave nothing behind.
#[test]
fn looks_disturb_nothing() {
    for data in MODES {
        for (seed, batch) in (0..4).zip([false, true].into_iter().cycle()) {
            let config = Config {
                data,
                // The driver has no batch commands with get-data.
                batch: batch && data != DataMode::GetData,
                file: true,
                // Reads alone take the short path of forwarded requests.
                read_percent: if seed < 2 { 50 } else { 100 },
                unregistered_percent: match data {
                    DataMode::ZeroCopy => 30,
                    _ => 0,
                },
                faults: Faults {
                    transient: 10,
                    interrupt: 10,
                    stale: 5,
                    ..Faults::default()
                },
                ..Config::new(seed)
            };
            let handle: Rc<RefCell<Option<LaneHandle>>> = Rc::default();
            let found: Rc<RefCell<Vec<(usize, Instant, Duration)>>> = Rc::default();
            let (look, seen, mut count) = (Rc::clone(&handle), Rc::clone(&found), 0_usize);
            let handler = Looking(ToFile, move || {
                count += 1;
                let lane = look.borrow();
                let lane = lane.as_ref().filter(|_| count.is_multiple_of(7));
                if let Some(oldest) = lane.and_then(LaneHandle::look) {
                    seen.borrow_mut().push((count, Instant::now(), oldest.age));
                }
            });
            let (sim, mut worker, lane) = looked_at(&config, || handler);
            *handle.borrow_mut() = Some(lane.clone());
            let result = match seed < 2 {
                true => drive_and_sleep(&mut worker),
                false => worker.run(),
            };
            assert_eq!(result, Ok(()), "{data}, seed {seed}");
            worker.finish(&result);
            assert_eq!(
                sim.report().violations,
                Vec::<String>::new(),
                "{data} {seed}"
            );
            assert_eq!(lane.metrics(0).requests(), 1000, "{data}, seed {seed}");
            let found = found.borrow();
            assert!(found.len() > 10, "{data}, seed {seed}: {found:?}");
            // A note goes with its request: none is older than the requests of a while ago.
            for (count, at, age) in found.iter().filter(|(count, ..)| *count > 500) {
                let long_ago = found.iter().rfind(|(n, ..)| n + 400 < *count);
                let (_, then, _) = long_ago.expect("looks at the beginning");
                assert!(*age < *at - *then, "{data}, seed {seed}: {age:?}");
            }
        }
    }
}

/// Forwards, after something else.
struct Looking<F>(ToFile, F);

impl<F: FnMut()> Handler for Looking<F> {
    const FORWARDS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        (self.1)();
        self.0.handle(request);
    }
}

/// A thread that is inside a call of its handler ends no round, and needs none to be found.
#[test]
fn a_call_that_does_not_return_is_found() {
    let config = Config {
        depth: 1,
        requests: 1,
        ..Config::new(1)
    };
    let (far, near) = std::sync::mpsc::channel::<LaneHandle>();
    let (found, told) = std::sync::mpsc::channel();
    let watch = std::thread::spawn(move || {
        let lane = near.recv().expect("a lane");
        let first = loop {
            if let Some(oldest) = lane.look() {
                break oldest;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        std::thread::sleep(Duration::from_millis(20));
        let second = lane.look().expect("it is still there");
        found.send(()).expect("the handler waits");
        (first, second)
    });
    let hangs = move |request: Request<'_>| {
        told.recv_timeout(Duration::from_secs(20)).expect("found");
        request.complete(Err(Errno::ENOSPC));
    };
    let (sim, mut worker, lane) = looked_at(&config, || hangs);
    far.send(lane).expect("it runs");
    let result = worker.run();
    worker.finish(&result);
    assert_eq!(sim.report().violations, Vec::<String>::new());
    let (first, second) = watch.join().expect("no panic");
    assert_eq!(second.place, Place::Backend);
    assert!(second.age >= first.age + Duration::from_millis(20));
}
