//! What recorders are given, on the simulated driver: every request once, whatever path it takes.

mod sim;

use std::cell::RefCell;
use std::fs::File;
use std::rc::Rc;
use std::sync::Arc;

use sim::{ALL_FAULTS, Run, Sink, ToFile, Zeroes, drive_and_sleep, run_recorded};
use ublk_core::iod::IoBounds;
use ublk_core::{DataMode, Errno, Op, QueueId};
use ublk_metrics::{Level, Operation};
use ublk_queue::task::{Async, SharedFd};
use ublk_queue::{Inline, LaneHandle, LaneSpec, OwnedRequest, Pool, Recorded, Request, Worker};
use ublk_sim::{Config, Faults, Sim};

/// Asserts that what was recorded is what was served.
fn assert_complete((run, recorded): &(Run, Vec<Recorded>), requests: u64, what: &str) {
    run.assert_clean(usize::try_from(requests).unwrap());
    for (op, kind) in [
        (Op::Read, Operation::Read),
        (Op::Write, Operation::Write),
        (Op::Flush, Operation::Flush),
        (Op::Discard, Operation::Discard),
        (Op::WriteZeroes, Operation::WriteZeroes),
    ] {
        let these = || recorded.iter().filter(|it| it.op == op);
        let bytes: u64 = these().map(|it| it.len).sum();
        let errors = these().filter(|it| it.errno.is_some()).count() as u64;
        let (mut served, mut moved, mut failed) = (0, 0, 0);
        for lane in &run.lanes {
            let snapshot = lane.metrics(0);
            for found in snapshot.ops.iter().filter(|found| found.op == kind) {
                served += found.requests;
                moved += found.bytes;
                failed += found.errors;
            }
        }
        assert_eq!(these().count() as u64, served, "{what}: {op:?}");
        assert_eq!(errors, failed, "{what}: {op:?}");
        if matches!(op, Op::Read | Op::Write) {
            assert_eq!(bytes, moved, "{what}: {op:?}");
        }
    }
    assert_eq!(recorded.len() as u64, requests, "{what}");
    let ends = |it: &Recorded| it.began < u64::MAX >> 2 && it.took < u64::MAX >> 2;
    assert!(recorded.iter().all(ends), "{what}");
    assert!(recorded.iter().any(|it| it.took > 0), "{what}");
}

const MODES: [DataMode; 5] = [
    DataMode::Copy,
    DataMode::GetData,
    DataMode::UserCopy,
    DataMode::ZeroCopy,
    DataMode::ZeroCopyManual,
];

/// Handlers that answer at once, from a pool, by a future, and by forwarding, in every data mode and under faults.
#[test]
fn every_request_is_recorded_once() {
    for data in MODES {
        for seed in 0..2 {
            let config = Config {
                data,
                batch: seed % 2 == 1 && data != DataMode::GetData,
                queues: 1 + (seed % 2) as u16,
                read_percent: 100,
                faults: ALL_FAULTS,
                ..Config::new(seed)
            };
            let what = format!("{data:?}, seed {seed}");
            if !data.is_zero_copy() {
                let zeroes = Arc::new(Zeroes(config.size));
                let inline = || Inline::new(Arc::clone(&zeroes));
                assert_complete(&run_recorded(&config, inline, Worker::run), 1000, &what);
                assert_complete(&run_recorded(&config, inline, drive_and_sleep), 1000, &what);
                let pool = Pool::start(&zeroes, 2, 32).expect("threads");
                let pooled = || pool.handler();
                assert_complete(&run_recorded(&config, pooled, Worker::run), 1000, &what);
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
            let forwarded = run_recorded(&config, || ToFile, Worker::run);
            assert_complete(&forwarded, 1000, &format!("forwarded, {what}"));
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
            let futures = run_recorded(&config, asynchronous, Worker::run);
            assert_complete(&futures, 1000, &format!("futures, {what}"));
        }
    }
}

/// Serves a queue; `each` is told the number of the request, and the lane.
fn serve(seed: u64, mut each: impl FnMut(usize, Request<'_>, &LaneHandle) + 'static) -> LaneHandle {
    let config = Config {
        faults: ALL_FAULTS,
        ..Config::new(seed)
    };
    let sim = Sim::new(config.clone());
    let mut worker = Worker::new(sim::port(&sim), Arc::default());
    let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
    let handle: Rc<RefCell<Option<LaneHandle>>> = Rc::default();
    let handler = {
        let (handle, mut count) = (Rc::clone(&handle), 0);
        move |request: Request<'_>| {
            count += 1;
            let handle = handle.borrow();
            each(
                count,
                request,
                handle.as_ref().expect("set before it serves"),
            );
        }
    };
    let descriptors = sim.descriptors(0);
    let spec = LaneSpec::new(QueueId::ZERO, config.depth, bounds, descriptors, handler);
    let lane = worker.add_lane(spec).expect("memory");
    *handle.borrow_mut() = Some(lane.clone());
    worker.arm().expect("armed");
    let result = worker.run();
    assert_eq!(result, Ok(()), "seed {seed}");
    worker.finish(&result);
    assert_eq!(sim.report().violations, Vec::<String>::new(), "seed {seed}");
    lane
}

fn attach(lane: &LaneHandle, sink: Option<&Sink>) {
    let since = std::time::Instant::now();
    lane.record(sink.map(|sink| (Box::new(sink.clone()) as Box<_>, since)));
    lane.measure(match sink {
        Some(_) => Level::Latencies,
        None => Level::Off,
    });
}

/// Recorders are attached and detached while requests are in hand, and a recorder that was taken away is freed.
#[test]
fn recorders_come_and_go_on_a_live_queue() {
    for seed in 0..10 {
        let sink = Sink::default();
        let to = sink.clone();
        let mut held: Vec<OwnedRequest> = Vec::new();
        let lane = serve(seed, move |count, request, lane| {
            if count.is_multiple_of(100) {
                attach(lane, ((count / 100) % 2 == 1).then_some(&to));
            }
            for old in held.drain(..) {
                old.complete(Err(Errno::ENOSPC));
            }
            match count % 3 == 0 && count < 900 {
                true => held.push(request.detach()),
                false => request.complete(Err(Errno::ENOSPC)),
            }
        });
        assert!(lane.has_followed());
        let recorded = sink.0.lock().expect("no panic").len();
        // Half of the time.
        assert!((250..750).contains(&recorded), "seed {seed}: {recorded}");
        assert_eq!(Arc::strong_count(&sink.0), 1, "seed {seed}: freed");
    }
}

/// A request that was in hand when the recorder came is left out: when it arrived is not known. A later one is not.
#[test]
fn only_requests_that_arrive_while_recording_are_recorded() {
    for seed in 0..10 {
        let sink = Sink::default();
        let to = sink.clone();
        let (mut early, mut late) = (None, None);
        let _lane = serve(seed, move |count, request, lane| match count {
            10 => early = Some(request.detach()),
            500 => late = Some(request.detach()),
            _ => {
                match count {
                    100 => attach(lane, Some(&to)),
                    900 => {
                        let (early, late) = (early.take(), late.take());
                        early.expect("held").complete(Err(Errno::EILSEQ));
                        late.expect("held").complete(Err(Errno::ENODATA));
                    }
                    _ => {}
                }
                request.complete(Err(Errno::ENOSPC));
            }
        });
        let recorded = sink.0.lock().expect("no panic");
        let with = |errno| recorded.iter().filter(|it| it.errno == Some(errno)).count();
        assert_eq!(
            (with(Errno::EILSEQ), with(Errno::ENODATA)),
            (0, 1),
            "seed {seed}"
        );
    }
}
