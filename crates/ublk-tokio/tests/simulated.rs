//! Requests of the simulated driver, answered from a runtime's threads.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use ublk_core::Op;
use ublk_queue::{Handler, LaneHandle, OwnedRequest, WorkerError};
use ublk_sim::{Config, Faults, Report, Sim};
use ublk_tokio::{Spawn, channel};

type Disk = Arc<Mutex<Vec<u8>>>;

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime")
}

fn config(seed: u64) -> Config {
    Config {
        queues: 2,
        depth: 4,
        faults: Faults {
            short_submit: 20,
            interrupt: 10,
            transient: 5,
            full: 3,
            stale: 10,
            ..Faults::default()
        },
        ..Config::new(seed)
    }
}

async fn answer(mut request: OwnedRequest, disk: Disk) {
    if request.tag().get() == 3 {
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
    tokio::task::yield_now().await;
    let start = usize::try_from(request.offset()).expect("small");
    let range = start..start + usize::try_from(request.len()).expect("small");
    let result = match request.op() {
        Op::Read => request
            .data_mut()
            .map(|data| data.copy_from_slice(&disk.lock().expect("no panic")[range])),
        Op::Write => request
            .data()
            .map(|data| disk.lock().expect("no panic")[range].copy_from_slice(data)),
        Op::Flush => Ok(()),
        _ => {
            disk.lock().expect("no panic")[range].fill(0);
            Ok(())
        }
    };
    request.complete(result);
}

fn run<H: Handler>(
    config: &Config,
    make: impl Fn() -> H,
) -> (Result<(), WorkerError>, Vec<LaneHandle>, Report) {
    let sim = Sim::new(config.clone());
    let (result, lanes) = sim.serve(|_| make()).expect("memory");
    (result, lanes, sim.report())
}

/// L55 Answers from a runtime's threads wake the sleeping engine, and the data is correct.
#[test]
fn l55_requests_of_a_channel_are_answered_by_tasks() {
    let runtime = runtime();
    for seed in 0..10 {
        let config = config(seed);
        let disk: Disk = Arc::new(Mutex::new(vec![0; config.size]));
        let (feed, mut requests) = channel(8);
        let answering = runtime.spawn(async move {
            while let Some(request) = requests.next().await {
                tokio::spawn(answer(request, Arc::clone(&disk)));
            }
        });
        let (result, _, report) = run(&config, || feed.clone());
        assert_eq!((result, report.violations), (Ok(()), vec![]));
        assert_eq!((report.completed, report.failed), (1000, 0));
        drop(feed);
        runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(10), answering).await })
            .expect("it ends with the queues")
            .expect("no panic");
    }
}

#[test]
fn a_task_for_each_request() {
    let runtime = runtime();
    let config = config(3);
    let disk: Disk = Arc::new(Mutex::new(vec![0; config.size]));
    let spawn = Spawn::new(runtime.handle().clone(), move |request| {
        answer(request, Arc::clone(&disk))
    });
    let (result, _, report) = run(&config, || spawn.clone());
    assert_eq!((result, report.violations), (Ok(()), vec![]));
    assert_eq!((report.completed, report.failed), (1000, 0));
}

/// L25 A task that panics costs its own request.
#[test]
fn l25_a_task_that_panics_answers_eio() {
    let runtime = runtime();
    let config = config(5);
    let disk: Disk = Arc::new(Mutex::new(vec![0; config.size]));
    let count = AtomicUsize::new(0);
    let spawn = Spawn::new(runtime.handle().clone(), move |request| {
        let (disk, n) = (Arc::clone(&disk), count.fetch_add(1, Ordering::Relaxed));
        async move {
            if n % 10 == 9 {
                // A panic without the message.
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            answer(request, disk).await;
        }
    });
    let (result, lanes, report) = run(&config, || spawn.clone());
    assert_eq!((result, report.violations), (Ok(()), vec![]));
    assert_eq!((report.completed, report.failed), (1000, 100));
    let dropped: u64 = lanes.iter().map(|lane| lane.counters().dropped).sum();
    assert_eq!(dropped, 100);
}

/// A channel that is too small, or that nobody reads, answers with EIO instead of waiting.
#[test]
fn requests_without_a_place_fail() {
    let config = Config {
        requests: 50,
        ..config(6)
    };
    let (feed, requests) = channel(1);
    drop(requests);
    let (result, _, report) = run(&config, || feed.clone());
    assert_eq!((result, report.violations), (Ok(()), vec![]));
    assert_eq!((report.completed, report.failed), (50, 50));
}
