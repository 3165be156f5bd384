//! The client over TLS: whom it believes, and what becomes of requests when a session ends.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::pki::{Authority, Pair};
use common::server::{Fault, MULTI_CONN, Server};
use common::{open, options, serve};
use rustls::version::{TLS12, TLS13};
use ublk_nbd::{Carrier, ConnectError, Nbd, NbdOptions, OpenError, TlsSetupError};
use ublk_sim::Config;

const SIZE: usize = 1 << 20;

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&TLS12, &TLS13];

fn config(seed: u64) -> Config {
    Config {
        patience: Duration::from_secs(30),
        ..Config::new(seed)
    }
}

/// A server with TLS, and options that reach it.
fn secured(authority: &Authority, pair: &Pair, faults: &[Fault]) -> (Server, NbdOptions) {
    let server = Server::start(SIZE, faults);
    server.change(|b| b.tls = Some(authority.server(pair, false, BOTH)));
    let options = tls_options(&server, authority);
    (server, options)
}

fn tls_options(server: &Server, authority: &Authority) -> NbdOptions {
    let mut options = options(server);
    options.uri = server.tls_uri().parse().expect("a URI");
    options.tls.ca = Some(authority.directory().join("ca-cert.pem"));
    options
}

fn plain(authority: &Authority) -> Pair {
    authority.pair("localhost", |_| {})
}

/// The failure of the first connection.
fn refused(options: &NbdOptions) -> ConnectError {
    match Nbd::open(options, Instant::now()) {
        Err(OpenError::Connect(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// Threads of this process that carry TLS.
fn relays() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("threads");
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        Some(name.trim() == "nbd-tls")
    };
    tasks.filter_map(name).filter(|is_one| *is_one).count()
}

#[test]
fn requests_are_served_over_tls_of_each_version() {
    let authority = Authority::new();
    let pair = plain(&authority);
    for (seed, (versions, name)) in (0..).zip([(&TLS12, "TLSv1_2"), (&TLS13, "TLSv1_3")]) {
        let server = Server::start(SIZE, &[]);
        server.change(|b| {
            b.tls = Some(authority.server(&pair, false, &[versions]));
            b.drip = 1000 * usize::try_from(seed).expect("small");
        });
        let nbd = open(&tls_options(&server, &authority));
        serve(&nbd, &config(seed)).assert_clean(1000);
        assert_eq!((server.connections(), nbd.status().reconnects), (1, 0));
        let tls = nbd.status().tls.expect("TLS");
        assert_eq!((tls.version.as_str(), tls.carrier), (name, Carrier::Thread));
        assert!(tls.cipher.contains("_AES_256_GCM_SHA384"), "{tls}");
    }
}

/// L75 A server is believed only with a certificate of the authority, for its name, in its time.
#[test]
fn l75_the_peer_is_verified() {
    let (authority, other) = (Authority::new(), Authority::new());
    let wrong_name = authority.pair("elsewhere", |_| {});
    let cases = [
        (plain(&other), "UnknownIssuer", "--tls-ca"),
        (
            authority.expired("localhost"),
            "expired",
            "another certificate",
        ),
    ];
    for (pair, text, advice) in cases {
        let (server, mut options) = secured(&authority, &pair, &[]);
        let error = refused(&options);
        assert!(error.to_string().contains(text), "{error}");
        let hint = error.hint().expect("what to do");
        assert!(hint.contains(advice), "{hint}");
        // That does not change with time: nobody waits for it.
        let begun = Instant::now();
        options.connect_timeout = Duration::from_secs(5);
        let error = Nbd::open(&options, begun + Duration::from_secs(5));
        assert!(error.is_err() && begun.elapsed() < Duration::from_secs(4));
        assert_eq!(server.requests(), 0);
    }
    let (_server, mut options) = secured(&authority, &wrong_name, &[]);
    let error = refused(&options);
    assert!(error.to_string().contains("\"localhost\""), "{error}");
    assert!(error.hint().expect("advice").contains("--tls-hostname"));
    options.tls.hostname = Some("elsewhere".to_owned());
    open(&options);
    options.tls.hostname = Some("not a name".to_owned());
    let error = refused(&options);
    let is_name = matches!(error, ConnectError::TlsSetup(TlsSetupError::Name(_)));
    assert!(is_name, "{error}");
}

/// L75 A list of revoked certificates beside the authority's is heeded.
#[test]
fn l75_a_revoked_certificate_is_refused() {
    let authority = Authority::new();
    let (server, mut options) = secured(&authority, &plain(&authority), &[]);
    let directory = authority.directory().display();
    let uri = format!("{}&tls-certificates={directory}", server.tls_uri());
    options.uri = uri.parse().expect("a URI");
    open(&options);
    authority.revoke();
    let error = refused(&options);
    assert!(error.to_string().contains("Revoked"), "{error}");
}

/// L75 Where TLS was asked for no server is used without, whatever it answers.
#[test]
fn l75_plain_text_is_refused() {
    let authority = Authority::new();
    let pair = plain(&authority);
    let (_server, options) = secured(&authority, &pair, &[Fault::NoTls]);
    let error = refused(&options);
    assert!(error.to_string().contains("does not offer TLS"), "{error}");
    assert!(error.hint().expect("advice").contains("--tls"), "{error}");
    // And the other way round the server's own refusal says what it wants.
    let (server, mut options) = secured(&authority, &pair, &[]);
    options.tls.ca = None;
    options.uri = server.uri().parse().expect("a URI");
    let error = refused(&options);
    assert!(
        error.to_string().contains("NBD_REP_ERR_TLS_REQD"),
        "{error}"
    );
    assert!(error.hint().expect("advice").contains("nbds"));
}

/// L75 What is said behind the reply to STARTTLS in plain text is no part of the session, and ends the connection.
#[test]
fn l75_data_before_tls_is_not_believed() {
    let authority = Authority::new();
    let (server, options) = secured(&authority, &plain(&authority), &[Fault::Injected]);
    let error = refused(&options);
    assert!(error.to_string().contains("before TLS is up"), "{error}");
    assert_eq!(server.requests(), 0);
}

/// L78 A server that is silent in the handshake of TLS costs no more than the time of an attempt.
#[test]
fn l78_a_tls_handshake_has_a_deadline() {
    let authority = Authority::new();
    let (_server, mut options) = secured(&authority, &plain(&authority), &[Fault::TlsSilence]);
    options.connect_timeout = Duration::from_secs(1);
    let begun = Instant::now();
    let error = refused(&options);
    assert!(error.to_string().contains("timed out"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_client_shows_its_certificate() {
    let authority = Authority::new();
    for version in [&TLS12, &TLS13] {
        let server = Server::start(SIZE, &[]);
        let config = authority.server(&plain(&authority), true, &[version]);
        server.change(|b| b.tls = Some(config));
        let mut options = tls_options(&server, &authority);
        let error = refused(&options);
        let hint = error.hint().unwrap_or_else(|| panic!("{error}"));
        assert!(hint.contains("--tls-cert"), "{error}: {hint}");
        let client = authority.pair("client", |_| {});
        options.tls.certificate = Some(authority.file("one.pem", &client.certificate));
        options.tls.key = Some(authority.file("one.key", &client.key));
        open(&options);
        // The same by a directory, as libnbd has it.
        authority.client(&client);
        let directory = authority.directory().display();
        let uri = format!("{}&tls-certificates={directory}", server.tls_uri());
        options = tls_options(&server, &authority);
        options.uri = uri.parse().expect("a URI");
        open(&options);
        std::fs::remove_file(authority.directory().join("client-key.pem")).expect("a file");
        let error = refused(&options);
        assert!(
            error.to_string().contains("client-key.pem is missing"),
            "{error}"
        );
        std::fs::remove_file(authority.directory().join("client-cert.pem")).expect("a file");
    }
}

/// Files that cannot be used are named; none is read without end.
#[test]
fn bad_files_are_named() {
    let authority = Authority::new();
    let pair = plain(&authority);
    let (_server, good) = secured(&authority, &pair, &[]);
    let (empty, large) = ("empty.pem", "large.pem");
    authority.file(empty, "");
    let file = std::fs::File::create(authority.directory().join(large)).expect("a file");
    file.set_len(1 << 30).expect("a size");
    for (ca, text) in [
        ("missing.pem", "No such file"),
        (empty, "no certificate"),
        (large, "too large"),
        (".", "not a regular file"),
    ] {
        let mut options = good.clone();
        options.tls.ca = Some(authority.directory().join(ca));
        let error = refused(&options).to_string();
        assert!(error.contains(ca) && error.contains(text), "{error}");
    }
    // Before the server is looked for, which may have no name and take long.
    let mut options = NbdOptions::new("nbds://server.invalid/".parse().expect("a URI"));
    options.tls.ca = Some(authority.directory().join("missing.pem"));
    let error = refused(&options).to_string();
    assert!(error.contains("missing.pem"), "{error}");
    let mut options = good.clone();
    options.tls.certificate = Some(authority.file("server.pem", &pair.certificate));
    for (text, reason) in [
        ("", "no key"),
        (plain(&authority).key.as_str(), "not the key of"),
    ] {
        options.tls.key = Some(authority.file("some.key", text));
        let error = refused(&options).to_string();
        assert!(
            error.contains("some.key") && error.contains(reason),
            "{error}"
        );
    }
    // So they are when a server that is up could not connect again.
    let nbd = open(&good);
    nbd.check_access().expect("all there");
    std::fs::remove_file(authority.directory().join("ca-cert.pem")).expect("a file");
    let error = nbd.check_access().expect_err("not there").to_string();
    assert!(error.contains("ca-cert.pem"), "{error}");
}

/// L71 A TLS session that ends at any place, in any way, costs no request, and leaves no thread behind.
#[test]
fn l71_requests_are_replayed_over_tls() {
    let authority = Authority::new();
    let pair = plain(&authority);
    type Place = fn(u64) -> Fault;
    let closed: &[&str] = &["closed the connection", "reset by peer", "Broken pipe"];
    let places: [(Place, &[&str]); 5] = [
        (Fault::Request, closed),
        (Fault::InRecord, closed),
        (Fault::BadRecord, &["decrypt"]),
        (Fault::CloseNotify, &["closes the TLS session"]),
        (Fault::InData, closed),
    ];
    for (seed, (place, why)) in (0..).zip(places) {
        let mut faults: Vec<_> = [0, 1, 7, 40].map(place).to_vec();
        faults.extend([Fault::Greeting, Fault::Negotiation, place(100), Fault::None]);
        let (server, options) = secured(&authority, &pair, &faults);
        let nbd = open(&options);
        serve(&nbd, &config(seed)).assert_clean(1000);
        let status = nbd.status();
        assert_eq!(status.reconnects, 5, "{:?}: {status:?}", faults.first());
        assert_eq!(server.connections(), 8);
        let error = status.last_error.expect("one");
        assert!(why.iter().any(|why| error.contains(why)), "{error}");
    }
}

/// Keys that change cost nothing where a thread carries the session.
#[test]
fn keys_may_change() {
    let authority = Authority::new();
    let (server, options) = secured(&authority, &plain(&authority), &[Fault::KeyUpdate(50)]);
    let nbd = open(&options);
    serve(&nbd, &config(20)).assert_clean(1000);
    assert_eq!((server.connections(), nbd.status().reconnects), (1, 0));
}

/// A session whose keys are used up gives way to another one, without an interruption.
#[test]
fn used_up_keys_are_replaced() {
    let authority = Authority::new();
    // Another one is there long before twice as many are sent; with few it is not, and the last are answered first.
    for (records, requests) in [(3000, 20_000), (20, 300)] {
        let (server, mut options) = secured(&authority, &plain(&authority), &[]);
        options.tls_records = records;
        let nbd = open(&options);
        let config = Config {
            requests,
            ..config(21)
        };
        serve(&nbd, &config).assert_clean(requests);
        let status = nbd.status();
        assert!(server.connections() >= 3, "{status:?}");
        assert_eq!(status.replayed, 0, "{status:?}");
        assert_eq!(status.reconnects > 0, records == 20, "{status:?}");
    }
}

/// Several queues have a session each; every thread ends with its connection.
#[test]
fn threads_end_with_their_connections() {
    let authority = Authority::new();
    let faults = [Fault::InReply(30), Fault::Request(50), Fault::None];
    let (server, options) = secured(&authority, &plain(&authority), &faults);
    server.change(|b| b.flags |= MULTI_CONN);
    let nbd = open(&options);
    let config = Config {
        queues: 3,
        ..config(22)
    };
    serve(&nbd, &config).assert_clean(1000);
    assert_eq!(server.connections(), 5);
    drop(nbd);
    // A connection that is told of but never served has none.
    drop(open(&options));
    let begun = Instant::now();
    while relays() > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{} are left",
            relays()
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// Renewed files are in force from the next connection on; what they lack is told, and requests wait for it.
#[test]
fn files_are_read_for_each_connection() {
    let (authority, other) = (Authority::new(), Authority::new());
    let faults = [Fault::Request(100), Fault::None];
    let (server, options) = secured(&authority, &plain(&authority), &faults);
    let nbd = open(&options);
    let second = other.server(&plain(&other), false, BOTH);
    server.change(|b| b.tls = Some(second));
    let run = thread::scope(|scope| {
        scope.spawn(|| {
            let begun = Instant::now();
            let refused = || {
                nbd.status()
                    .last_error
                    .is_some_and(|e| e.contains("UnknownIssuer"))
            };
            while !refused() {
                assert!(
                    begun.elapsed() < Duration::from_secs(20),
                    "{:?}",
                    nbd.status()
                );
                thread::sleep(Duration::from_millis(5));
            }
            let renewed = std::fs::read_to_string(other.directory().join("ca-cert.pem"));
            authority.file("ca-cert.pem", &renewed.expect("a file"));
        });
        serve(&nbd, &config(23))
    });
    run.assert_clean(1000);
    assert_eq!(nbd.status().reconnects, 1);
}
