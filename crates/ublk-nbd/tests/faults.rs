//! Every position and every kind of a broken connection, with simple, structured and extended replies.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::faulty::{EXTENT, Fault, Faulty, How, Offer, SHORT, Seen, Stage, When, Wrong};
use common::server::FLAGS;
use common::{Run, open, serve};
use nbd_client::Framing;
use ublk_core::DataMode;
use ublk_nbd::{Nbd, NbdOptions, TlsOptions, info};
use ublk_sim::Config;

const FRAMINGS: [Framing; 3] = [Framing::Simple, Framing::Structured, Framing::Extended];

fn options(server: &Faulty) -> NbdOptions {
    let mut options = NbdOptions::new(server.uri().parse().expect("a URI"));
    options.chunks = Some(true);
    options.connect_timeout = SHORT;
    options.request_timeout = Duration::from_secs(1);
    options
}

fn config(seed: u64, requests: usize, data: DataMode) -> Config {
    Config {
        data,
        patience: Duration::from_secs(60),
        requests,
        ..Config::new(seed)
    }
}

/// Runs a device on a server whose connections break in turn. The first connection is a good one until then.
fn run(framing: Framing, faults: &[Fault], config: &Config) -> (Faulty, Nbd, Run) {
    let server = Faulty::start(framing, faults);
    let nbd = open(&options(&server));
    let run = serve(&nbd, config);
    (server, nbd, run)
}

/// Runs the same with each framing at the same time, and in zero copy.
fn each_framing(test: impl Fn(Framing, DataMode) + Sync) {
    let copy = FRAMINGS.map(|framing| (framing, DataMode::Copy));
    let zero_copy = (Framing::Simple, DataMode::ZeroCopy);
    thread::scope(|scope| {
        for (framing, data) in copy.into_iter().chain([zero_copy]) {
            let test = &test;
            scope.spawn(move || test(framing, data));
        }
    });
}

/// Every framing is served well by itself, also a byte at a time.
#[test]
fn each_framing_is_served() {
    each_framing(|framing, data| {
        for (drip, requests) in [(0, 1000), (1, 60), (7, 200)] {
            let server = Faulty::start(framing, &[Fault::None]);
            server.change(|offer| offer.drip = drip);
            let mut options = options(&server);
            options.request_timeout = Duration::from_secs(60);
            let nbd = open(&options);
            serve(&nbd, &config(1, requests, data)).assert_clean(requests);
            assert_eq!(server.connections(), 1, "{framing:?} {data:?}");
        }
    });
}

/// L71 A connection that is closed before, inside or after each of its stages costs no request and doubles none.
#[test]
fn l71_connections_are_closed_at_every_position() {
    use Stage::{Data, Export, Negotiation, Reply, Request};
    use When::{After, Before, Inside};
    each_framing(|framing, data| {
        for (seed, stage) in (0..).zip([Request, Reply, Data]) {
            let mut faults = vec![Fault::At(stage, Before, How::Close, 100)];
            for when in [Before, Inside, After] {
                // Connections that are refused in each way, then one that breaks.
                for shake in [Negotiation, Export] {
                    faults.push(Fault::At(shake, when, How::Close, 0));
                }
                for number in [0, 1, 40] {
                    faults.push(Fault::At(stage, when, How::Close, number));
                }
            }
            faults.push(Fault::None);
            let wanted = u64::try_from(faults.len()).expect("few");
            let (server, nbd, run) = run(framing, &faults, &config(seed, 1000, data));
            run.assert_clean(1000);
            assert_eq!(
                server.connections(),
                wanted,
                "{framing:?} {data:?} {stage:?}"
            );
            assert!(nbd.status().replayed > 0);
        }
    });
}

/// L78 A connection that stalls there is left when its time is over, and costs no request either.
#[test]
fn l78_connections_stall_at_every_position() {
    use Stage::{Data, Export, Negotiation, Reply, Request};
    use When::{After, Before, Inside};
    each_framing(|framing, data| {
        let stages = [(Request, Before), (Request, Inside), (Request, After)];
        let replies = [(Reply, Before), (Reply, Inside), (Data, Inside)];
        let mut faults = Vec::new();
        for (stage, when) in stages.into_iter().chain(replies) {
            faults.push(Fault::At(stage, when, How::Stall, 20));
        }
        for (stage, when) in [
            (Negotiation, Before),
            (Negotiation, Inside),
            (Negotiation, After),
            (Export, Before),
            (Export, Inside),
        ] {
            faults.push(Fault::At(stage, when, How::Stall, 0));
        }
        faults.push(Fault::None);
        let wanted = u64::try_from(faults.len()).expect("few");
        let begun = Instant::now();
        let (server, _, run) = run(framing, &faults, &config(7, 1000, data));
        run.assert_clean(1000);
        assert_eq!(server.connections(), wanted, "{framing:?} {data:?}");
        assert!(begun.elapsed() >= Duration::from_secs(6) + 5 * SHORT);
    });
}

/// L76 What breaks the protocol ends the connection with a reason, and the requests are answered by the next one.
#[test]
fn l76_replies_that_break_the_protocol() {
    let of_all = [
        (Wrong::Magic, "magic"),
        (Wrong::OtherMagic, "magic"),
        (Wrong::Cookie, "no such request"),
        (Wrong::Again, "no such request"),
    ];
    let of_chunks = [
        (Wrong::Giant, "beyond"),
        (Wrong::Overlap, "twice"),
        (Wrong::Beyond, "beyond"),
        (Wrong::Before, "before"),
        (Wrong::Missing, "missing"),
        (Wrong::Type, "kind"),
        (Wrong::NoError, "error"),
    ];
    let of_simple = [(Wrong::DataAfterError, "magic")];
    each_framing(|framing, data| {
        let more: &[_] = match framing {
            Framing::Simple => &of_simple,
            _ => &of_chunks,
        };
        for (wrong, word) in of_all.iter().chain(more) {
            let faults = [31, 0, 1].map(|n| Fault::Wrong(*wrong, n));
            let faults = [&faults[..], &[Fault::None]].concat();
            let reads = Config {
                read_percent: 100,
                ..config(3, 300, data)
            };
            let (server, nbd, run) = run(framing, &faults, &reads);
            match wrong {
                // The request of the error has its answer, and it is one.
                Wrong::DataAfterError => assert_eq!(run.report.failed, 3),
                _ => run.assert_clean(300),
            }
            let error = nbd.status().last_error.unwrap_or_default();
            assert!(error.contains(word), "{framing:?} {wrong:?}: {error}");
            assert_eq!(server.connections(), 4, "{framing:?} {wrong:?}");
        }
        if framing.has_chunks() {
            let faults = [Fault::Wrong(Wrong::DataOfAWrite, 31), Fault::None];
            let writes = Config {
                read_percent: 0,
                ..config(4, 300, data)
            };
            let (server, _, run) = run(framing, &faults, &writes);
            run.assert_clean(300);
            assert_eq!(server.connections(), 2);
        }
    });
}

/// L70 An error fails its request alone, whatever came before it in chunks.
#[test]
fn l70_errors_fail_their_requests_alone() {
    each_framing(|framing, data| {
        let (server, _, run) = run(framing, &[Fault::Errors(10)], &config(5, 500, data));
        assert_eq!(run.result, Ok(()));
        assert_eq!((run.report.completed, run.report.failed), (500, 50));
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(server.connections(), 1, "{framing:?} {data:?}");
    });
}

/// A server that says that it shuts down is left once it has answered everything, and its requests go to the next.
#[test]
fn a_server_that_shuts_down_is_left() {
    each_framing(|framing, data| {
        let faults = [0, 1, 40, 200]
            .map(Fault::ShutsDown)
            .into_iter()
            .chain([Fault::None])
            .collect::<Vec<_>>();
        // The first connection has to begin well.
        let faults = [&[Fault::ShutsDown(100)][..], &faults].concat();
        let (server, nbd, run) = run(framing, &faults, &config(10, 1000, data));
        run.assert_clean(1000);
        assert_eq!(server.connections(), 6, "{framing:?} {data:?}");
        let status = nbd.status();
        assert_eq!(status.reconnects, 5);
        let error = status.last_error.expect("a reason");
        assert!(error.contains("shuts down"), "{error}");
        // Each was told that the client leaves; the last one may not have heard it yet.
        let seen = server.seen();
        let goodbyes = seen.iter().filter(|seen| seen.command == 2).count();
        assert!(goodbyes >= 5, "{framing:?} {data:?}: {goodbyes}");
    });
}

/// L76 Options without end, and of a giant length, end an attempt to connect; the next one is as good as any.
#[test]
fn l76_endless_options_end_an_attempt() {
    each_framing(|framing, data| {
        let first = Fault::At(Stage::Request, When::After, How::Close, 20);
        let faults = [
            first,
            Fault::EndlessOptions,
            Fault::GiantOption,
            Fault::None,
        ];
        let (server, nbd, run) = run(framing, &faults, &config(6, 300, data));
        run.assert_clean(300);
        assert_eq!(server.connections(), 4, "{framing:?} {data:?}");
        let error = nbd.status().last_error.expect("a reason");
        assert!(error.contains("too long"), "{error}");
    });
}

fn offered(framing: Framing) -> Offer {
    Offer {
        framing,
        size: 1 << 20,
        flags: FLAGS,
        blocks: [1, 32 << 20],
        drip: 0,
        faults: vec![Fault::None],
    }
}

/// Ranges without data are at most a GiB, and as long as the server takes: also with extended headers, where its maximum is
/// one of data, since a later connection may do without them.
#[test]
fn ranges_without_data_are_as_long_as_the_server_takes() {
    let of = |framing, blocks, block_size| {
        let server = Faulty::with(Offer {
            size: 4 << 30,
            blocks,
            ..offered(framing)
        });
        let mut options = options(&server);
        options.block_size = block_size;
        let limits = open(&options).limits();
        assert_eq!(limits.max_discard, limits.max_write_zeroes);
        limits.max_discard
    };
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        assert_eq!(of(framing, [1, 32 << 20], None), 32 << 20);
        assert_eq!(of(framing, [1, u32::MAX], None), 1 << 30);
        // Whole blocks of the device.
        assert_eq!(of(framing, [512, 9 * 512], Some(4096)), 4096);
    }
}

/// L74 A server that takes only shorter ranges than the device was promised is not written to.
#[test]
fn l74_shorter_ranges_are_not_what_was_promised() {
    let first = Fault::At(Stage::Request, When::After, How::Close, 20);
    let server = Faulty::with(Offer {
        blocks: [1, 64 << 20],
        faults: vec![first, Fault::None],
        ..offered(Framing::Structured)
    });
    let nbd = open(&options(&server));
    server.change(|offer| offer.blocks = [1, 32 << 20]);
    let writes = Config {
        read_percent: 0,
        ..config(8, 300, DataMode::Copy)
    };
    let run = serve(&nbd, &writes);
    assert!(run.report.failed > 200, "{}", run.report.failed);
    let error = nbd.status().last_error.expect("a reason");
    assert!(error.contains("33554432 bytes now"), "{error}");
}

/// CACHE is never sent, nor a flag that no request of the block layer has; a rotational export makes a rotational device,
/// and a rest of less than a block is left out with a word.
#[test]
fn nothing_is_asked_that_nobody_asked_for() {
    const ROTATIONAL: u16 = 1 << 4;
    const CACHE_AND_FAST_ZERO: u16 = 1 << 10 | 1 << 11;
    each_framing(|framing, data| {
        let server = Faulty::with(Offer {
            size: (1 << 20) + 100,
            flags: FLAGS | ROTATIONAL | CACHE_AND_FAST_ZERO,
            ..offered(framing)
        });
        let nbd = open(&options(&server));
        let limits = nbd.limits();
        assert!(limits.rotational && limits.size == 1 << 20);
        let notes = nbd.notes().concat();
        assert!(notes.contains("the last 100 bytes"), "{notes}");
        serve(&nbd, &config(9, 1000, data)).assert_clean(1000);
        // FUA, NO_HOLE, and the length of data behind an extended header.
        let known = 1 | 2 | 1 << 5;
        let bad =
            |seen: &Seen| ![0, 1, 2, 3, 4, 6].contains(&seen.command) || seen.flags & !known != 0;
        let seen = server.seen();
        assert_eq!(
            seen.iter().find(|seen| bad(seen)),
            None,
            "{framing:?} {data:?}"
        );
        let some = |command| seen.iter().any(|seen| seen.command == command);
        assert!(
            [0, 1, 3, 4, 6].into_iter().all(some),
            "{framing:?} {data:?}"
        );
    });
}

/// What an export is made of is summed over as many questions as it takes; what the server does not tell is not made up.
#[test]
fn the_content_of_an_export_is_summed() {
    let of = |framing, fault| {
        let server = Faulty::with(Offer {
            size: 9 * EXTENT + 1000,
            faults: vec![fault],
            ..offered(framing)
        });
        let uri = server.uri().parse().expect("a URI");
        let offer = info(
            &uri,
            &TlsOptions::default(),
            Instant::now() + Duration::from_secs(2),
        )
        .expect("an export");
        assert_eq!(offer.export.framing, framing);
        (offer.allocation, server.seen().len())
    };
    for framing in [Framing::Structured, Framing::Extended] {
        let (sum, asked) = of(framing, Fault::None);
        let sum = sum.expect("it has contexts");
        assert_eq!((sum.data, sum.hole), (5 * EXTENT, 4 * EXTENT + 1000));
        assert_eq!((sum.zero, sum.extents), (sum.hole, 10));
        // Four questions, and the goodbye.
        assert!(sum.complete && asked >= 4, "{asked}");
        let close = Fault::At(Stage::Data, When::Inside, How::Close, 1);
        let stall = Fault::At(Stage::Reply, When::Inside, How::Stall, 1);
        for fault in [Fault::Errors(2), close, stall] {
            let (sum, _) = of(framing, fault);
            let sum = sum.expect("it has contexts");
            assert_eq!((sum.data, sum.complete), (2 * EXTENT, false), "{fault:?}");
        }
    }
    assert_eq!(of(Framing::Simple, Fault::None).0, None);
}
