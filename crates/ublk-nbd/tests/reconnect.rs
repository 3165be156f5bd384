//! The client on the simulated driver, against a faulty server.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::server::{Fault, MULTI_CONN, READ_ONLY, Server};
use common::{open, options, serve};
use ublk_nbd::{LinkState, Nbd, OpenError, Retry};
use ublk_sim::Config;

const SIZE: usize = 1 << 20;

fn config(seed: u64) -> Config {
    Config {
        patience: Duration::from_secs(30),
        ..Config::new(seed)
    }
}

#[test]
fn requests_are_served_and_the_connection_ends_with_the_device() {
    for seed in 0..8 {
        let server = Server::start(SIZE, &[]);
        if seed % 2 == 1 {
            server.change(|b| b.drip = 1000);
        }
        let nbd = open(&options(&server));
        let config = Config {
            batch: seed % 3 == 2,
            ..config(seed)
        };
        serve(&nbd, &config).assert_clean(1000);
        assert_eq!(server.connections(), 1);
        assert_eq!(nbd.status().reconnects, 0);
    }
}

/// L71 A connection that breaks at any point loses no request and answers none twice: data and answers are as without a
/// fault.
#[test]
fn l71_requests_in_flight_are_replayed() {
    let places: [fn(u64) -> Fault; 7] = [
        Fault::Request,
        Fault::BeforeReply,
        Fault::InReply,
        Fault::InData,
        Fault::Cookie,
        Fault::Again,
        Fault::Magic,
    ];
    for (seed, place) in (0..).zip(places) {
        let mut faults: Vec<_> = [0, 1, 7, 40].map(place).to_vec();
        faults.extend([Fault::Greeting, Fault::Negotiation, place(100), Fault::None]);
        let server = Server::start(SIZE, &faults);
        let nbd = open(&options(&server));
        serve(&nbd, &config(seed)).assert_clean(1000);
        let status = nbd.status();
        assert_eq!(status.reconnects, 5, "{:?}: {status:?}", faults.first());
        assert_eq!(server.connections(), 8);
        assert!(status.replayed >= 5 && status.last_error.is_some());
    }
}

/// L72 Each queue has its own connection if the server allows it.
#[test]
fn l72_queues_have_connections_of_their_own() {
    let faults = [Fault::InReply(30), Fault::Request(50), Fault::None];
    let server = Server::start(SIZE, &faults);
    server.change(|b| b.flags |= MULTI_CONN);
    let nbd = open(&options(&server));
    assert!(nbd.allows_several_connections());
    let config = Config {
        queues: 3,
        ..config(1)
    };
    serve(&nbd, &config).assert_clean(1000);
    assert_eq!(server.connections(), 5);
    assert_eq!(nbd.status().connections, 0, "they end with the device");
}

/// L77 A FLUSH on one connection covers the writes of all: none of them is complete before its reply is in, however late
/// another connection executes it, also after a reconnect.
#[test]
fn l77_a_flush_covers_the_writes_of_other_connections() {
    for faults in [&[][..], &[Fault::None, Fault::BeforeReply(60), Fault::None]] {
        let server = Server::start(SIZE, faults);
        server.change(|b| {
            b.flags |= MULTI_CONN;
            b.late_writes = Duration::from_millis(1);
        });
        let nbd = open(&options(&server));
        let config = Config {
            queues: 4,
            read_percent: 40,
            ..config(10)
        };
        serve(&nbd, &config).assert_clean(1000);
        assert!(server.flushes() > 10, "{}", server.flushes());
        assert_eq!(nbd.status().reconnects, u64::from(!faults.is_empty()));
    }
}

/// L70 An error reply carries no data and fails only its own request.
#[test]
fn l70_an_error_reply_fails_one_request() {
    let server = Server::start(SIZE, &[Fault::Error(20)]);
    let nbd = open(&options(&server));
    let config = Config {
        read_percent: 100,
        ..config(2)
    };
    let run = serve(&nbd, &config);
    assert_eq!((run.report.completed, run.report.failed), (1000, 1));
    assert_eq!(server.connections(), 1);
}

/// L78 The client drops a server that neither answers nor closes after the request timeout; the queue continues.
#[test]
fn l78_a_silent_server_is_left() {
    let server = Server::start(SIZE, &[Fault::Silence(10), Fault::None]);
    let mut options = options(&server);
    options.request_timeout = Duration::from_secs(1);
    let nbd = open(&options);
    let begun = Instant::now();
    serve(&nbd, &config(3)).assert_clean(1000);
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(10));
    assert_eq!(nbd.status().reconnects, 1);
}

/// L78 A server that answers a WRITE and then does not take its data is left like one that does not answer.
#[test]
fn l78_a_server_that_takes_no_more_is_left() {
    // More than a unix socket holds.
    let server = Server::start(SIZE, &[Fault::Early(400 << 10), Fault::None]);
    let mut options = options(&server);
    options.request_timeout = Duration::from_secs(1);
    let nbd = open(&options);
    let config = Config {
        size: SIZE,
        max_io_bytes: 1 << 20,
        requests: 300,
        depth: 1,
        read_percent: 60,
        ..config(11)
    };
    serve(&nbd, &config).assert_clean(300);
    assert_eq!(nbd.status().reconnects, 1);
}

/// L71 Without a server, requests fail when the policy's time is over, not before, and succeed again when it is back.
#[test]
fn l71_requests_fail_when_the_policy_says_so() {
    for (retry, at_least) in [(Retry::Never, 0), (Retry::For(Duration::from_secs(1)), 1)] {
        let server = Server::start(SIZE, &[Fault::Request(5), Fault::Greeting]);
        let mut options = options(&server);
        options.retry = retry;
        let nbd = open(&options);
        let begun = Instant::now();
        let config = Config {
            read_percent: 100,
            ..config(4)
        };
        let run = serve(&nbd, &config);
        assert_eq!(run.result, Ok(()));
        assert!(run.report.failed > 900, "{}", run.report.failed);
        assert!(begun.elapsed() >= Duration::from_secs(at_least));
        let status = nbd.status();
        assert_eq!(
            (status.reconnects, status.replayed),
            (0, 0),
            "never sent again"
        );
    }
}

/// L79 The first connection waits for a server that starts later, if asked to.
#[test]
fn l79_the_first_connection_may_wait() {
    let server = Server::start(SIZE, &[]);
    server.go();
    thread::sleep(Duration::from_millis(20));
    let options = options(&server);
    let now = Nbd::open(&options, Instant::now());
    assert!(matches!(now, Err(OpenError::Connect(_))), "{now:?}");
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            server.listen();
        });
        open(&options);
    });
}

/// L79 Reconnects are delayed even if the server accepts every connection and breaks it.
#[test]
fn l79_a_server_that_breaks_every_connection_is_given_time() {
    let server = Server::start(SIZE, &[Fault::Request(0)]);
    let mut options = options(&server);
    options.retry = Retry::For(Duration::from_secs(2));
    let nbd = open(&options);
    let config = Config {
        read_percent: 100,
        requests: 50,
        ..config(8)
    };
    let begun = Instant::now();
    let run = serve(&nbd, &config);
    let (took, connections) = (begun.elapsed(), server.connections());
    assert_eq!(run.result, Ok(()));
    assert!(run.report.failed > 0, "the time is over once");
    assert!(connections < 40, "{connections} connections in {took:?}");
}

/// L74 An export that returns smaller, read-only or without a promised feature is not written to.
#[test]
fn l74_a_changed_export_is_not_written_to() {
    let changes: [fn(&mut common::server::Behaviour); 4] = [
        |b| b.size /= 2,
        |b| b.flags |= READ_ONLY,
        |b| b.flags &= !4,
        |b| b.minimum = 8192,
    ];
    for change in changes {
        let server = Server::start(SIZE, &[Fault::Request(200), Fault::None]);
        let nbd = open(&options(&server));
        server.change(change);
        let config = Config {
            read_percent: 0,
            ..config(5)
        };
        let run = serve(&nbd, &config);
        assert_eq!(run.result, Ok(()));
        assert!(run.report.failed > 500, "{}", run.report.failed);
        assert!(nbd.status().last_error.is_some());
    }
    // A device that was shrunk needs no more than it has.
    let server = Server::start(SIZE, &[Fault::Request(200), Fault::None]);
    let nbd = open(&options(&server));
    nbd.set_size(SIZE as u64 / 2);
    server.change(|b| b.size /= 2);
    let config = Config {
        size: SIZE / 2,
        ..config(5)
    };
    serve(&nbd, &config).assert_clean(1000);
    assert_eq!(nbd.status().state.name(), "up");
}

/// L73 The device uses the server's block sizes, or is refused.
#[test]
fn l73_block_sizes_are_obeyed() {
    let server = Server::start(SIZE + 512, &[]);
    let limits = |minimum| {
        server.change(|b| b.minimum = minimum);
        let nbd = Nbd::open(&options(&server), Instant::now());
        nbd.map(|nbd| (nbd.limits(), nbd.notes().len()))
    };
    let (one, notes) = limits(1).expect("any block");
    assert_eq!(
        (one.logical_block_size, one.size, notes),
        (512, 1_049_088, 0)
    );
    let (page, notes) = limits(4096).expect("a page");
    assert_eq!(
        (page.logical_block_size, page.size, notes),
        (4096, 1 << 20, 1)
    );
    assert!(matches!(
        limits(8192),
        Err(OpenError::MinimumBlockSize(8192))
    ));
    let mut options = options(&server);
    options.size = Some(2 << 20);
    server.change(|b| b.minimum = 1);
    let larger = Nbd::open(&options, Instant::now());
    assert!(
        matches!(larger, Err(OpenError::TooSmall { .. })),
        "{larger:?}"
    );
}

/// A device that is forced to stop does not wait for its server.
#[test]
fn giving_up_fails_what_waits() {
    let server = Server::start(SIZE, &[Fault::Request(5), Fault::Greeting]);
    let mut options = options(&server);
    options.retry = Retry::Forever;
    let nbd = open(&options);
    let config = Config {
        read_percent: 100,
        ..config(6)
    };
    let run = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(500));
            assert_eq!(nbd.status().state, LinkState::Reconnecting);
            nbd.give_up();
        });
        serve(&nbd, &config)
    });
    assert_eq!(run.result, Ok(()));
    assert!(run.report.failed > 900);
}
