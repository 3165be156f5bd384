//! Every sleeper is woken: owners that drive the engine and sleep for as long as it allows, threads that poll, rings
//! that accept no entries for a while, aborts that become visible late, several threads on a queue.

mod sim;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use sim::{ALL_FAULTS, Filled, drive_and_sleep, run, run_driven, run_on, run_sized};
use ublk_core::iod::IoBounds;
use ublk_core::{DataMode, Errno, QueueId};
use ublk_queue::port::Port;
use ublk_queue::worker::Share;
use ublk_queue::{
    Handler, KeptRequest, LaneContext, LaneSpec, Next, Operations, Polling, Pool, Request, State,
    Worker, WorkerError,
};
use ublk_sim::{Config, End, Faults, Sim, SimDescriptors, SimPort};

/// Collects requests for the owner, like a raw queue.
#[derive(Clone, Default)]
struct Collect(Rc<RefCell<VecDeque<KeptRequest>>>);

impl Handler for Collect {
    fn handle(&mut self, request: Request<'_>) {
        self.0.borrow_mut().push_back(request.keep());
    }
}

impl Collect {
    /// Answers the collected requests. True if there were any.
    fn answer(&self) -> bool {
        let kept: Vec<_> = self.0.borrow_mut().drain(..).collect();
        let any = !kept.is_empty();
        for mut request in kept {
            if let Ok(data) = request.data_mut() {
                data.fill(0);
            }
            request.complete(Ok(()));
        }
        any
    }
}

/// The loop of a raw queue's owner: a turn, the answers, another turn, and a sleep once there is nothing to answer.
fn take_turns(
    worker: &mut Worker<SimPort, SimDescriptors, Collect>,
    kept: &Collect,
) -> Result<(), WorkerError> {
    for _ in 0..100_000 {
        let next = worker.drive()?;
        if kept.answer() {
            continue;
        }
        match next {
            Next::Ended => return Ok(()),
            Next::Ready => worker.port().sleep_until_readable(None),
            Next::Within(time) => worker.port().sleep_until_readable(Some(time)),
        }
    }
    panic!("the queue does not end");
}

/// A device that holds only zeroes, so that its content is known.
fn zeroes(seed: u64) -> Config {
    Config {
        read_percent: 100,
        ..Config::new(seed)
    }
}

/// L61 A turn of a driven queue leaves no command that the kernel has not seen: no get-data command, no refusal after
/// the device shrank, no command that io_uring refused.
#[test]
fn l61_a_turn_leaves_no_command_behind() {
    let transient = Faults {
        transient: 10,
        busy: 10,
        ..Faults::default()
    };
    for seed in 0..20 {
        for (data, batch, faults, shrink) in [
            (DataMode::Copy, false, Faults::default(), false),
            (DataMode::Copy, false, Faults::default(), true),
            (DataMode::Copy, false, transient, false),
            (DataMode::GetData, false, Faults::default(), false),
            (DataMode::GetData, false, transient, false),
            (DataMode::Copy, true, transient, true),
        ] {
            let config = Config {
                data,
                batch,
                faults,
                read_percent: 50,
                ..Config::new(seed)
            };
            let kept = Collect::default();
            let run = run_sized(
                &config,
                if shrink { config.size / 2 } else { config.size },
                || kept.clone(),
                |worker| take_turns(worker, &kept),
            );
            let hangs = |text: &&String| !text.contains("wrong data read");
            assert_eq!(run.report.violations.iter().find(hangs), None, "{seed}");
            assert_eq!((run.result, run.report.completed), (Ok(()), 1000), "{seed}");
        }
    }
}

/// L61 An enter that took nothing (EAGAIN, EBUSY, ENOMEM) is not the last one before an owner's sleep.
#[test]
fn l61_a_driven_worker_does_not_sleep_on_what_a_busy_ring_left() {
    for seed in 0..40 {
        let faults = Faults {
            busy: 30,
            ..Faults::default()
        };
        let config = Config {
            faults,
            depth: 1 + (seed % 16) as u16,
            batch: seed % 2 == 1,
            ..zeroes(seed)
        };
        run_driven(config.clone(), || Filled).assert_clean(1000);
        run(config, || Filled).assert_clean(1000);
    }
}

/// L62 Aborts that are seen after commits have crossed them end a queue, however it is driven, and its ring is not
/// closed in between.
#[test]
fn l62_late_aborts_end_a_queue() {
    for seed in 0..60 {
        let faults = Faults {
            late_aborts: 70,
            ..Faults::default()
        };
        let config = Config {
            faults,
            batch: seed % 3 == 2,
            end: End::Quiesce(300),
            ..zeroes(seed)
        };
        let kept = Collect::default();
        for run in [
            run(config.clone(), || Filled),
            run_driven(config.clone(), || Filled),
            run_on(
                &config,
                sim::port,
                Arc::default(),
                || kept.clone(),
                |worker| take_turns(worker, &kept),
            ),
        ] {
            assert_eq!(run.report.violations, Vec::<String>::new(), "{seed}");
            assert_eq!(run.result, Ok(()), "{seed}");
            assert_eq!(run.report.unanswered, 0, "what was in hand is committed");
            assert_eq!(run.lanes[0].state(), State::Empty);
        }
    }
}

/// L60 A polling worker takes the notice of another thread's answer, and sleeps again.
#[test]
fn l60_a_polling_worker_takes_each_wake_once() {
    let spin = Duration::from_micros(50);
    for seed in 0..10 {
        for polling in [Polling::Fixed(spin), Polling::Adaptive(spin)] {
            let config = Config {
                polling,
                depth: 4,
                faults: if seed % 2 == 0 {
                    Faults::default()
                } else {
                    ALL_FAULTS
                },
                ..zeroes(seed)
            };
            let pool = Pool::start(&Arc::new(sim::Zeroes(config.size)), 2, 4).expect("threads");
            run(config.clone(), || pool.handler()).assert_clean(1000);
            run(config, || Filled).assert_clean(1000);
        }
    }
}

/// Runs several threads on one queue, each with its own ring, as the server does.
fn run_threads(config: &Config, threads: u16) -> Sim {
    let sim = Sim::new(config.clone());
    let shares = Share::deal(threads, config.depth, config.max_io_bytes).expect("memory");
    let ports: Vec<_> = shares.iter().map(|_| sim::port(&sim)).collect();
    std::thread::scope(|scope| {
        for (port, share) in ports.into_iter().zip(shares) {
            scope.spawn(|| {
                let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
                let descriptors = port.descriptors(0);
                let mut worker = Worker::new(port, Arc::default());
                let (qid, depth) = (QueueId::ZERO, config.depth);
                let mut spec = LaneSpec::new(qid, depth, bounds, descriptors, Filled);
                (spec.data, spec.batch, spec.share) = (config.data, config.batch, share);
                spec.device = Box::new(sim.device());
                let lane = worker.add_lane(spec).expect("memory");
                let armed = worker.arm();
                let result = armed.and_then(|()| worker.run());
                assert_eq!(result, Ok(()));
                worker.finish(&result);
                assert_eq!(lane.state(), State::Empty);
            });
        }
    });
    sim
}

/// L10 Several threads on a queue answer each request once: each serves its own tags, or in batch mode any tag; none
/// fetches before all have prepared theirs.
#[test]
fn l10_several_threads_share_a_queue() {
    for seed in 0..8 {
        for batch in [false, true] {
            for threads in [2, 3] {
                let config = Config {
                    batch,
                    faults: if seed % 2 == 0 {
                        Faults::default()
                    } else {
                        ALL_FAULTS
                    },
                    ..zeroes(seed)
                };
                let report = run_threads(&config, threads).report();
                assert_eq!(report.violations, Vec::<String>::new(), "{seed} {batch}");
                assert_eq!((report.completed, report.failed), (1000, 0));
            }
        }
    }
}

/// L55 An answer from another thread wakes an owner that sleeps on the ring's descriptor.
#[test]
fn l55_answers_of_other_threads_end_an_owners_sleep() {
    for seed in 0..10 {
        let config = Config {
            depth: 4,
            faults: ALL_FAULTS,
            ..zeroes(seed)
        };
        let pool = Pool::start(&Arc::new(sim::Zeroes(config.size)), 2, 4).expect("threads");
        let leave = Arc::new(AtomicBool::new(false));
        let run = run_on(
            &config,
            sim::port,
            leave,
            || pool.handler(),
            drive_and_sleep,
        );
        run.assert_clean(1000);
    }
}

/// L55 A raw queue's request may go to another thread, whose answer wakes the owner.
#[test]
fn l55_a_kept_request_goes_to_another_thread() {
    for seed in 0..6 {
        let config = Config {
            depth: 4,
            faults: ALL_FAULTS,
            ..zeroes(seed)
        };
        let kept = Collect::default();
        let (send, receive) = std::sync::mpsc::channel::<ublk_queue::OwnedRequest>();
        let answering = std::thread::spawn(move || {
            for mut request in receive {
                let filled = request.data_mut().map(|data| data.fill(0));
                request.complete(filled);
            }
        });
        let run = run_on(
            &config,
            sim::port,
            Arc::default(),
            || kept.clone(),
            |worker| loop {
                let next = worker.drive()?;
                for request in kept.0.borrow_mut().drain(..) {
                    send.send(request.detach()).expect("the thread listens");
                }
                match next {
                    Next::Ended => return Ok(()),
                    Next::Ready => worker.port().sleep_until_readable(None),
                    Next::Within(time) => worker.port().sleep_until_readable(Some(time)),
                }
            },
        );
        run.assert_clean(1000);
        drop(send);
        answering.join().expect("no panic");
    }
}

/// L10 Requests for a pool that is gone are answered with EIO, and the queue ends.
#[test]
fn l10_a_pool_that_is_gone_answers() {
    let config = Config::new(1);
    let pool = Pool::start(&Arc::new(sim::Zeroes(config.size)), 2, 4).expect("threads");
    let handler = pool.handler();
    drop(pool);
    let run = run(config, || handler.clone());
    assert_eq!(run.result, Ok(()));
    assert!(run.report.failed > 0, "{:?}", run.report);
    assert_eq!(run.report.violations, Vec::<String>::new());
    // An impossible size is an error.
    let backend = Arc::new(sim::Zeroes(4096));
    assert!(Pool::start(&backend, 1, usize::MAX).is_err());
}

/// Keeps the requests of the first queue; the turn of the second one answers them.
struct Relay {
    kept: Rc<RefCell<Vec<KeptRequest>>>,
    answers: bool,
}

impl Handler for Relay {
    const OPERATIONS: bool = true;

    fn attach(&mut self, context: &LaneContext) {
        self.answers = context.qid() != QueueId::ZERO;
    }

    fn handle(&mut self, request: Request<'_>) {
        match self.answers {
            true => Filled.handle(request),
            false => self.kept.borrow_mut().push(request.keep()),
        }
    }

    fn turn<P: Port>(&mut self, _: &mut Operations<'_, P>) -> bool {
        if self.answers {
            for request in self.kept.borrow_mut().drain(..) {
                request.complete(Err(Errno::EIO));
            }
        }
        false
    }
}

/// L55 An answer that one queue's turn gives to a request of another queue of the thread is taken before the thread
/// sleeps.
#[test]
fn l55_queues_of_a_thread_answer_for_each_other() {
    for seed in 0..20 {
        let config = Config {
            queues: 2,
            depth: 4,
            requests: 20,
            read_percent: 100,
            ..Config::new(seed)
        };
        let kept = Rc::default();
        let relay = || Relay {
            kept: Rc::clone(&kept),
            answers: false,
        };
        for run in [run(config.clone(), relay), run_driven(config, relay)] {
            assert_eq!(run.result, Ok(()), "{seed}");
            assert_eq!(run.report.violations, Vec::<String>::new(), "{seed}");
        }
    }
}
