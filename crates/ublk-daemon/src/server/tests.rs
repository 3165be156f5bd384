use super::*;
use crate::fakes::{Kernel, geometry, server, spec};
use crate::link::message::{Assignment, Opening, Piece, RecordOrder};
use crate::link::peer::Peer;
use crate::recording::unpack;
use std::io::Write;
use std::os::unix::net::UnixStream;
use ublk_core::CpuMask;

fn receive(peer: &Peer) -> FromServer {
    peer.link
        .recv(Instant::now() + Duration::from_secs(10))
        .unwrap()
}

/// An armed server, and a stream that sends it a signal.
fn armed(kernel: &std::sync::Arc<Kernel>) -> (Peer, UnixStream) {
    armed_with(kernel, ublk_core::Features::NONE)
}

/// As `armed`, on a device with these features.
fn armed_with(
    kernel: &std::sync::Arc<Kernel>,
    features: ublk_core::Features,
) -> (Peer, UnixStream) {
    let (signals, signal) = UnixStream::pair().unwrap();
    let peer = server(kernel, Some(Signals::fake(signals)));
    let version = LINK_VERSION;
    let describe = ToServer::Describe {
        version,
        spec: spec(),
        opening: Opening::default(),
    };
    peer.link.send(&describe).unwrap();
    assert!(matches!(receive(&peer), FromServer::Described { .. }));
    let assignment = Assignment {
        geometry: geometry(1, features),
        affinity: vec![CpuMask::new(); 2],
        deadline_ms: 1000,
        shm: None,
        params: None,
    };
    peer.link.send(&ToServer::Assign(assignment)).unwrap();
    assert!(matches!(receive(&peer), FromServer::Armed { .. }));
    (peer, signal)
}

fn ended(peer: &Peer, within: Duration) -> bool {
    let ready = poll::readable(&[peer.exit_fd()], Some(Instant::now() + within));
    matches!(ready.as_deref(), Ok([true]))
}

/// L30 A signal to the server is passed to the agent as a request: the server continues until the driver is done.
#[test]
fn l30_a_signal_is_passed_on_and_the_server_serves_on() {
    let kernel = Kernel::new(None);
    let (peer, mut signal) = armed(&kernel);
    signal.write_all(b"x").unwrap();
    assert!(matches!(receive(&peer), FromServer::Leave { .. }));
    peer.link.send(&ToServer::Health { ticket: 3 }).unwrap();
    assert!(matches!(
        receive(&peer),
        FromServer::Health { ticket: 3, .. }
    ));
    assert!(!kernel.log().contains(&"empty".to_owned()));
    kernel.abort();
    assert!(matches!(receive(&peer), FromServer::Empty { .. }));
    assert!(ended(&peer, Duration::from_secs(10)));
}

/// L31 A server whose agent was killed continues, even when asked to end; it ends with its device.
#[test]
fn l31_a_server_outlives_its_agent() {
    let kernel = Kernel::new(None);
    let (mut peer, mut signal) = armed(&kernel);
    peer.link.send(&ToServer::Live).unwrap();
    peer.link.send(&ToServer::Health { ticket: 1 }).unwrap();
    assert!(matches!(receive(&peer), FromServer::Health { .. }));
    let (link, _far) = Link::pair().unwrap();
    drop(std::mem::replace(&mut peer.link, link));
    signal.write_all(b"x").unwrap();
    assert!(!ended(&peer, Duration::from_millis(50)));
    kernel.abort();
    assert!(ended(&peer, Duration::from_secs(10)));
    assert!(kernel.log().contains(&"server exit 0".to_owned()));
}

/// L31 A server whose agent dies before the device serves exits: nothing would ever start the device.
#[test]
fn l31_a_server_that_does_not_serve_yet_ends_with_its_agent() {
    let kernel = Kernel::new(None);
    let (mut peer, _signal) = armed(&kernel);
    let (link, _far) = Link::pair().unwrap();
    drop(std::mem::replace(&mut peer.link, link));
    assert!(ended(&peer, Duration::from_secs(10)));
}

/// L30 A server that must leave its device exits at once with requests in flight: the driver decides about those.
#[test]
fn l30_a_server_hands_its_device_over() {
    let kernel = Kernel::new(None);
    for (features, ends) in [
        (ublk_core::Features::USER_RECOVERY, true),
        (ublk_core::Features::NONE, false),
    ] {
        let (peer, _signal) = armed_with(&kernel, features);
        peer.link.send(&ToServer::Live).unwrap();
        peer.link.send(&ToServer::HandOver).unwrap();
        assert_eq!(ended(&peer, Duration::from_millis(300)), ends);
        assert!(!kernel.log().contains(&"empty".to_owned()));
    }
}

/// Invalid messages do not end a device that serves.
#[test]
fn bad_words_do_not_end_a_device() {
    let kernel = Kernel::new(None);
    let (peer, _signal) = armed(&kernel);
    peer.link.send(&"nonsense").unwrap();
    let again = ToServer::Describe {
        version: 99,
        spec: spec(),
        opening: Opening::default(),
    };
    peer.link.send(&again).unwrap();
    peer.link.send(&ToServer::Health { ticket: 1 }).unwrap();
    assert!(matches!(
        receive(&peer),
        FromServer::Health { ticket: 1, .. }
    ));
    kernel.abort();
    assert!(ended(&peer, Duration::from_secs(10)));
}

#[test]
fn another_version_is_refused_by_name() {
    let kernel = Kernel::new(None);
    let peer = server(&kernel, None);
    let describe = ToServer::Describe {
        version: 99,
        spec: spec(),
        opening: Opening::default(),
    };
    peer.link.send(&describe).unwrap();
    match receive(&peer) {
        FromServer::Failed(failure) => assert!(failure.text.contains("version 99")),
        other => panic!("{other:?}"),
    }
    assert!(ended(&peer, Duration::from_secs(10)));
}

/// L31 A server whose agent dies before it assigned a device exits.
#[test]
fn l31_a_server_without_a_device_ends_with_its_agent() {
    let kernel = Kernel::new(None);
    let mut peer = server(&kernel, None);
    let (link, _far) = Link::pair().unwrap();
    drop(std::mem::replace(&mut peer.link, link));
    assert!(ended(&peer, Duration::from_secs(10)));
}

/// A recording belongs to who began it, comes in parts that fit, and is over once it is stopped.
#[test]
fn a_recording_is_fetched_by_its_owner() {
    let kernel = Kernel::new(None);
    let (peer, _signal) = armed(&kernel);
    let asked = |order| {
        let ticket = 5;
        peer.link.send(&ToServer::Record { ticket, order }).unwrap();
        let mut whole: Option<Piece> = None;
        loop {
            let FromServer::Recorded {
                ticket: 5,
                piece,
                more,
            } = receive(&peer)
            else {
                panic!("no answer");
            };
            match &mut whole {
                None => whole = Some(piece),
                Some(whole) => whole.requests.extend(piece.requests),
            }
            if !more {
                return whole.unwrap();
            }
        }
    };
    let refused = |piece: Piece| piece.refused.is_some() && piece.requests.is_empty();
    assert!(refused(asked(RecordOrder::Pull(1))));
    let piece = asked(RecordOrder::Start(1));
    assert!(piece.refused.is_none() && piece.began > 0);
    let requests = piece.requests.iter().flat_map(|text| unpack(text).unwrap());
    assert!(requests.eq((0..3000).map(crate::recording::tests::record)));
    assert!(refused(asked(RecordOrder::Start(2))));
    assert!(refused(asked(RecordOrder::Stop(2))));
    assert_eq!(asked(RecordOrder::Pull(1)).requests.len(), 0);
    assert!(asked(RecordOrder::Stop(1)).refused.is_none());
    assert!(kernel.log().contains(&"records no more".to_owned()));
    assert!(refused(asked(RecordOrder::Pull(1))));
    kernel.abort();
    assert!(ended(&peer, Duration::from_secs(10)));
}
