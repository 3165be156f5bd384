//! Moves of a device to another server.

mod common;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::server::Server;
use common::{Run, open, options, serve};
use ublk_nbd::Nbd;
use ublk_sim::Config;

const SIZE: usize = 1 << 20;

fn config(seed: u64) -> Config {
    Config {
        patience: Duration::from_secs(60),
        requests: 20_000,
        ..Config::new(seed)
    }
}

/// Serves the device and moves it after the first server has had some requests.
fn move_under_load(nbd: &Nbd, config: &Config, from: &Server, to: &Server) -> Run {
    let begun = from.requests();
    thread::scope(|scope| {
        scope.spawn(|| {
            while from.requests() < begun + 2000 {
                thread::sleep(Duration::from_millis(1));
            }
            let to = to.uri().parse().expect("a URI");
            nbd.move_to(to).expect("one connection");
        });
        serve(nbd, config)
    })
}

/// A device moves to a second server with the same data under load: the old connection is drained and flushed.
#[test]
fn a_device_moves_under_load() {
    let (one, two) = (Server::start(SIZE, &[]), Server::start(SIZE, &[]));
    two.share_data_of(&one);
    let nbd = open(&options(&one));
    let config = config(7);
    let run = move_under_load(&nbd, &config, &one, &two);
    run.assert_clean(20_000);
    assert_eq!((one.connections(), two.connections()), (1, 1));
    assert!(two.requests() > 1000, "{}", two.requests());
    let status = nbd.status();
    assert_eq!((status.reconnects, status.replayed), (0, 0));
    // A smaller export is refused as the target of a move.
    let small = Server::start(SIZE / 2, &[]);
    let nbd = open(&options(&one));
    let run = move_under_load(&nbd, &config, &one, &small);
    assert_eq!((run.report.completed, run.report.failed), (20_000, 0));
    assert_eq!(small.requests(), 0);
    let error = nbd.status().last_error.expect("why it did not move");
    assert!(error.contains("524288 bytes"), "{error}");
}

/// A device stays on a server whose last FLUSH fails, because that server may hold the only copy of answered data.
#[test]
fn a_device_does_not_move_from_a_server_that_cannot_flush() {
    let (one, two) = (Server::start(SIZE, &[]), Server::start(SIZE, &[]));
    two.share_data_of(&one);
    one.change(|b| b.cannot_flush = true);
    let nbd = open(&options(&one));
    let config = Config {
        read_percent: 100,
        ..config(9)
    };
    let run = move_under_load(&nbd, &config, &one, &two);
    run.assert_clean(20_000);
    assert_eq!(two.requests(), 0);
    let error = nbd.status().last_error.expect("why it did not move");
    assert!(error.contains("last flush"), "{error}");
    assert_eq!(nbd.uri().to_string(), one.uri());
}

/// A device is announced at its next server before that has a request, and when the old one has flushed; one that cannot be
/// announced stays.
#[test]
fn a_move_is_announced_before_it_comes_about() {
    for refused in [false, true] {
        let (one, two) = (
            Arc::new(Server::start(SIZE, &[])),
            Arc::new(Server::start(SIZE, &[])),
        );
        two.share_data_of(&one);
        let nbd = open(&options(&one));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (told_to, from, to) = (Arc::clone(&told), Arc::clone(&one), Arc::clone(&two));
        nbd.announce_moves(Box::new(move |uri| {
            assert!(from.flushes() > 0 && to.requests() == 0);
            told_to.lock().expect("unpoisoned").push(uri.to_string());
            match refused {
                true => Err("nobody writes it down".to_owned()),
                false => Ok(()),
            }
        }));
        let run = move_under_load(&nbd, &config(11), &one, &two);
        run.assert_clean(20_000);
        assert_eq!(*told.lock().expect("unpoisoned"), [two.uri()]);
        assert_eq!(two.requests() == 0, refused);
        let stays = if refused { &one } else { &two };
        assert_eq!(nbd.uri().to_string(), stays.uri());
        assert_eq!((nbd.moves_to(), nbd.status().moving), (None, 0));
        let error = nbd.status().last_error.unwrap_or_default();
        assert_eq!(error.contains("nobody writes it down"), refused, "{error}");
    }
}

/// A device that is told to stay while its next server cannot be reached stays, and so does one that has been told to come
/// back.
#[test]
fn a_move_can_be_given_up() {
    for comes_back in [false, true] {
        let one = Server::start(SIZE, &[]);
        let nbd = open(&options(&one));
        let run = thread::scope(|scope| {
            scope.spawn(|| {
                while one.requests() < 1000 {
                    thread::sleep(Duration::from_millis(1));
                }
                let nowhere = "nbd+unix:///?socket=/nowhere".parse().expect("a URI");
                nbd.move_to(nowhere).expect("one connection");
                assert_eq!(nbd.status().moving, 1);
                assert!(nbd.moves_to().is_some());
                assert_eq!(nbd.uri().to_string(), one.uri());
                match comes_back {
                    true => nbd.move_to(nbd.uri()).expect("one connection"),
                    false => nbd.stay(),
                }
            });
            serve(&nbd, &config(12))
        });
        run.assert_clean(20_000);
        assert_eq!((nbd.moves_to(), nbd.status().moving), (None, 0));
        // One that was on its way may have been made, and was not used.
        assert!(one.connections() <= 2 && nbd.status().reconnects == 0);
    }
}

/// Moves that overtake each other, at any step, lose nothing and end somewhere.
#[test]
fn moves_overtake_each_other() {
    let servers = [(); 3].map(|()| Server::start(SIZE, &[]));
    for server in &servers[1..] {
        server.share_data_of(&servers[0]);
    }
    let nbd = open(&options(&servers[0]));
    let ended = std::sync::atomic::AtomicBool::new(false);
    let run = thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = 0x2545_f491_4f6c_dd1d_u64;
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                match servers.get(usize::try_from(random % 4).expect("small")) {
                    Some(to) => nbd.move_to(to.uri().parse().expect("a URI")).expect("one"),
                    None => nbd.stay(),
                }
                thread::sleep(Duration::from_micros(random >> 8 & 2047));
            }
        });
        let run = serve(&nbd, &config(13));
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        run
    });
    run.assert_clean(20_000);
    assert!(servers.iter().all(|server| server.requests() > 100));
}
