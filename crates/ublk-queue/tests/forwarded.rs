//! Requests that the engine forwards to a file, on the simulated driver with a file that tracks durability.

mod sim;

use sim::{Spread, ToFile, run};
use ublk_core::iod::Io;
use ublk_core::{DataMode, Errno};
use ublk_queue::{Forward, Handler, Part, Request};
use ublk_sim::{Config, End, Faults};

fn file_config(seed: u64, (data, unregistered_percent): (DataMode, u8)) -> Config {
    Config {
        data,
        unregistered_percent,
        file: true,
        queues: 2,
        ..Config::new(seed)
    }
}

const COPY: (DataMode, u8) = (DataMode::Copy, 0);

/// The modes in which data reaches a file, and the percentage of requests whose registration the driver leaves to the
/// server.
const FILE_MODES: [(DataMode, u8); 6] = [
    COPY,
    (DataMode::GetData, 0),
    (DataMode::UserCopy, 0),
    (DataMode::ZeroCopy, 0),
    (DataMode::ZeroCopy, 40),
    (DataMode::ZeroCopyManual, 0),
];

/// True if a registration is linked to its operation. The simulated ring splits such chains, which io_uring never does.
fn has_chains((data, unregistered): (DataMode, u8)) -> bool {
    data == DataMode::ZeroCopyManual || unregistered > 0
}

/// L07, L11 Forwarded requests transfer all of their data in every mode, even if operations are short or interrupted,
/// and are durable if that was promised.
#[test]
fn l07_l11_forwarded_requests_are_whole_and_durable() {
    for data in FILE_MODES {
        for seed in 0..20 {
            let config = Config {
                faults: Faults {
                    short_io: 20,
                    interrupted_io: 10,
                    short_submit: if has_chains(data) { 0 } else { 20 },
                    transient: 10,
                    interrupt: 10,
                    stale: 5,
                    ..Faults::default()
                },
                ..file_config(seed, data)
            };
            let run = run(config, || ToFile);
            run.assert_clean(1000);
            assert_eq!(run.report.failed, 0, "{data:?}, seed {seed}");
            assert!(run.report.operations > 1000);
        }
    }
}

/// L54 A full submission queue loses no operation and splits no chain.
#[test]
fn l52_l54_a_full_submission_queue_loses_no_operation() {
    for data in FILE_MODES.into_iter().filter(|data| !has_chains(*data)) {
        for seed in 0..10 {
            let config = Config {
                faults: Faults {
                    full: 30,
                    ..Faults::default()
                },
                ..file_config(seed, data)
            };
            let run = run(config, || ToFile);
            run.assert_clean(1000);
            assert_eq!(run.report.failed, 0, "{data:?}, seed {seed}");
        }
    }
}

/// Errors of the file are those of the request, and cost no other request.
#[test]
fn errors_of_the_file_reach_the_block_layer() {
    for data in FILE_MODES {
        for seed in 0..10 {
            let config = Config {
                faults: Faults {
                    failed_io: 10,
                    short_io: 10,
                    ..Faults::default()
                },
                ..file_config(seed, data)
            };
            let run = run(config, || ToFile);
            run.assert_clean(1000);
            assert!(run.report.failed > 20, "{data:?}: {:?}", run.report);
        }
    }
}

/// L07 Requests that arrive while a sync runs share the next one.
#[test]
fn l07_syncs_are_shared() {
    let config = Config {
        depth: 64,
        queues: 1,
        read_percent: 0,
        requests: 4000,
        ..file_config(1, COPY)
    };
    let run = run(config, || ToFile);
    run.assert_clean(4000);
    let counters = run.lanes[0].counters();
    assert_eq!(counters.syncs, run.report.syncs as u64);
    // One flush in 20 requests, and FUA on about a fifth of the other writes.
    assert!(counters.flushes > 100);
    assert!(
        counters.syncs * 4 < (counters.writes / 5 + counters.flushes) * 3,
        "{counters:?}"
    );
}

/// L35 A queue that is told to end first serves the requests that it has forwarded.
#[test]
fn l35_forwarded_requests_are_finished_before_the_end() {
    for seed in 0..20 {
        let config = Config {
            end: End::Quiesce(300),
            ..file_config(seed, COPY)
        };
        let run = run(config, || ToFile);
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(run.result, Ok(()));
        assert_eq!(run.report.unanswered, 0);
    }
}

/// L07, L11 Requests that several files hold transfer all of their parts in every mode, and are durable in every file,
/// even if operations are short or interrupted, or the submission queue is full.
#[test]
fn l07_l11_split_requests_are_whole_and_durable() {
    for data in FILE_MODES {
        for seed in 0..20 {
            let config = Config {
                faults: Faults {
                    short_io: 20,
                    interrupted_io: 10,
                    full: if has_chains(data) { 0 } else { 20 },
                    short_submit: if has_chains(data) { 0 } else { 20 },
                    transient: 10,
                    interrupt: 10,
                    stale: 5,
                    ..Faults::default()
                },
                batch: seed % 2 == 1 && data.0 != DataMode::GetData,
                ..file_config(seed, data)
            };
            let run = run(config, || Spread);
            run.assert_clean(1000);
            assert_eq!(run.report.failed, 0, "{data:?}, seed {seed}");
            assert!(run.report.operations > 2500, "{:?}", run.report);
        }
    }
}

/// L07 A flush, or a durable write, of a device over three files syncs all three.
#[test]
fn l07_every_file_is_synced() {
    let config = Config {
        depth: 1,
        queues: 1,
        read_percent: 0,
        ..file_config(1, COPY)
    };
    let run = run(config, || Spread);
    run.assert_clean(1000);
    let counters = run.lanes[0].counters();
    assert_eq!(counters.syncs % 3, 0, "{counters:?}");
    assert!(counters.syncs > 3 * counters.flushes, "{counters:?}");
    assert!(counters.flushes > 20);
}

/// The failure of one file fails the requests that need it, and no other.
#[test]
fn errors_of_one_file_of_several_reach_the_block_layer() {
    for data in FILE_MODES {
        for seed in 0..10 {
            let config = Config {
                faults: Faults {
                    failed_io: 5,
                    short_io: 10,
                    ..Faults::default()
                },
                ..file_config(seed, data)
            };
            let run = run(config, || Spread);
            run.assert_clean(1000);
            let failed = run.report.failed;
            assert!((20..900).contains(&failed), "{data:?}: {:?}", run.report);
        }
    }
}

/// A queue that is told to end first serves the requests that it has split.
#[test]
fn l35_split_requests_are_finished_before_the_end() {
    for seed in 0..20 {
        let config = Config {
            end: End::Quiesce(300),
            ..file_config(seed, COPY)
        };
        let run = run(config, || Spread);
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(run.result, Ok(()));
        assert_eq!(run.report.unanswered, 0);
    }
}

/// Names a wrong part, or panics.
struct Wrong(fn(&Io, u64) -> Part);

impl Handler for Wrong {
    const FORWARDS: bool = true;
    const SPLITS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        match request.op().has_data() {
            true => request.forward(Forward::Parts { durable: true }),
            false => request.complete(Err(Errno::EIO)),
        }
    }

    fn part(&mut self, io: &Io, done: u64) -> Part {
        (self.0)(io, done)
    }
}

/// L25 A handler that names no part of the request, or panics, fails that request.
#[test]
fn l25_wrong_parts_fail_their_request() {
    const fn part(file: u16, len: u64) -> Part {
        Part {
            file,
            offset: 0,
            len,
        }
    }
    let wrong: [fn(&Io, u64) -> Part; 5] = [
        |io, _| part(3, io.len),
        |_, _| part(0, 0),
        |io, done| part(0, io.len - done + 1),
        |io, done| part(0, if done == 0 { io.len / 2 } else { io.len }),
        |_, _| panic!("on purpose"),
    ];
    for wrong in wrong {
        let run = run(file_config(1, COPY), || Wrong(wrong));
        run.assert_clean(1000);
        assert_eq!(run.report.failed, 1000);
    }
}

/// A handler that did not declare splitting gets EINVAL.
#[test]
fn splitting_is_declared() {
    struct Undeclared;
    impl Handler for Undeclared {
        const FORWARDS: bool = true;
        fn handle(&mut self, request: Request<'_>) {
            match request.op().has_data() {
                true => request.forward(Forward::Parts { durable: false }),
                false => request.forward(Forward::SyncAll),
            }
        }
    }
    let run = run(file_config(1, COPY), || Undeclared);
    run.assert_clean(1000);
    assert_eq!(run.report.failed, 1000);
}

/// A handler that did not declare forwarding gets EOPNOTSUPP.
#[test]
fn forwarding_is_declared() {
    let run = run(Config::new(1), || {
        |request: Request<'_>| request.forward(Forward::Sync { file: 0 })
    });
    run.assert_clean(1000);
    assert_eq!(run.report.failed, 1000);
}
