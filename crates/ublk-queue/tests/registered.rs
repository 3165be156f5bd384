//! Zero copy for handlers with operations of their own, on the simulated driver with a file: the engine registers pages
//! that the driver did not register before the handler sees the request, and unregisters them before the answer.

mod sim;

use std::fs::File;

use sim::{Run, run};
use ublk_core::{DataMode, Errno, Op};
use ublk_queue::task::{Async, SharedFd, TaskRequest};
use ublk_sim::{Config, End, Faults};

async fn serve(mut request: TaskRequest, file: SharedFd) -> Result<(), Errno> {
    let (offset, durable) = (request.offset(), request.flags().fua());
    match request.op() {
        Op::Read => request.read_from(&file, offset).await,
        Op::Write => {
            request.write_to(&file, offset).await?;
            match durable {
                true => request.ring().fdatasync(&file).await,
                false => Ok(()),
            }
        }
        Op::Flush => request.ring().fdatasync(&file).await,
        _ => {
            let len = request.len();
            request.ring().fallocate(&file, 3, offset, len).await
        }
    }
}

fn config(seed: u64, (data, unregistered_percent): (DataMode, u8)) -> Config {
    Config {
        data,
        unregistered_percent,
        batch: seed % 3 == 2,
        file: true,
        queues: 2,
        ..Config::new(seed)
    }
}

const MODES: [(DataMode, u8); 4] = [
    (DataMode::ZeroCopy, 0),
    (DataMode::ZeroCopy, 40),
    (DataMode::ZeroCopy, 100),
    (DataMode::ZeroCopyManual, 0),
];

fn served(config: Config) -> Run {
    // The simulated ring ignores descriptors.
    let file = SharedFd::new(File::open("/dev/null").expect("/dev/null"));
    run(config, || {
        let file = file.clone();
        Async::new(move |request| serve(request, file.clone()))
    })
}

/// L10 Each request is transferred between its own pages and the file, whether driver or engine registered them, and is
/// answered once.
#[test]
fn l10_tasks_find_their_pages_registered() {
    for mode in MODES {
        for seed in 0..24 {
            let faults = Faults {
                short_submit: 20,
                interrupt: 10,
                transient: 10,
                stale: 5,
                full: if seed % 2 == 0 { 20 } else { 0 },
                ..Faults::default()
            };
            let run = served(Config {
                faults,
                ..config(seed, mode)
            });
            run.assert_clean(1000);
            assert_eq!(run.report.failed, 0, "{mode:?}, seed {seed}");
        }
    }
}

/// A registration that fails costs its own request, and no other.
#[test]
fn a_failed_registration_fails_its_request() {
    for mode in MODES {
        let run = served(Config {
            faults: Faults {
                failed_io: 10,
                ..Faults::default()
            },
            ..config(1, mode)
        });
        run.assert_clean(1000);
        assert!(run.report.failed > 20, "{mode:?}: {:?}", run.report);
    }
}

/// L26 A queue that ends first serves the requests that wait for their registration.
#[test]
fn l26_what_is_being_registered_is_served_before_the_end() {
    for mode in MODES {
        for seed in 0..20 {
            let run = served(Config {
                end: End::Quiesce(300),
                ..config(seed, mode)
            });
            assert_eq!(run.report.violations, Vec::<String>::new(), "{mode:?}");
            assert_eq!(run.result, Ok(()));
            assert_eq!((run.report.failed, run.report.unanswered), (0, 0));
        }
    }
}
