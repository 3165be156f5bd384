//! Where an NBD device is, as its record says, while it moves to another server.

use super::*;
use crate::fakes::soon;
use crate::link::message::{Question, RecoverRequest};
use crate::spec::{BackendCommand, BackendSpec, NbdCommand, Retry};
use crate::state::Record;
use std::io::Write;

const ONE: &str = "nbd://one/";
const TWO: &str = "nbd://two/";

fn on(uri: &str, moving_to: Option<&str>) -> BackendSpec {
    BackendSpec::Nbd {
        uri: uri.to_owned(),
        moving_to: moving_to.map(str::to_owned),
        length: Some(spec().backend.size()),
        retry: Retry::Never,
        request_timeout: 30,
        wait_for_server: 0,
        tls: Box::default(),
    }
}

/// A live device at ONE, with an agent of its own.
fn device() -> Play {
    let spec = AddSpec {
        backend: on(ONE, None),
        recovery: Recovery::Reissue,
        ..spec()
    };
    let kernel = Kernel::new(None);
    kernel.is_at(ONE);
    let play = play_on(kernel, spec, false, 10_000);
    play.live();
    let front = play.front.as_ref().unwrap();
    front.send(&ToAgent::Keep).unwrap();
    play
}

fn to_two() -> NbdCommand {
    NbdCommand {
        uri: Some(TWO.to_owned()),
        ..NbdCommand::default()
    }
}

/// Tells the device something, like a command that is killed before it has the answer.
fn tell(store: &Store, command: NbdCommand) {
    let mut stream = UnixStream::connect(store.socket(ID)).unwrap();
    let question = Question::Backend(BackendCommand::Nbd(command));
    stream
        .write_all(&serde_json::to_vec(&question).unwrap())
        .unwrap();
}

fn tell_to_move(play: &Play) {
    tell(&play.store, to_two());
    assert!(soon(|| play.kernel.told_to_move().is_some()));
}

fn recorded(store: &Store) -> BackendSpec {
    store.last(ID).unwrap().unwrap().spec.backend
}

/// The record says where a device is to move before its server is told, and where it is whether or not the command that moved
/// it still lives.
#[test]
fn moves_are_recorded_without_their_command() {
    let play = device();
    tell_to_move(&play);
    assert_eq!(recorded(&play.store), on(ONE, Some(TWO)));
    // Its health is still that of a device that moves.
    health(&play.store);
    assert_eq!(recorded(&play.store), on(ONE, Some(TWO)));
    play.kernel.moves().unwrap();
    assert!(soon(|| recorded(&play.store) == on(TWO, None)));
}

/// A move that was given up is recorded as soon as anybody asks.
#[test]
fn a_move_that_was_given_up_is_recorded() {
    let play = device();
    tell_to_move(&play);
    let back = NbdCommand {
        uri: Some(ONE.to_owned()),
        ..NbdCommand::default()
    };
    tell(&play.store, back);
    assert!(soon(|| play.kernel.told_to_move().as_deref() == Some(ONE)));
    play.kernel.moves().unwrap();
    assert!(soon(|| {
        health(&play.store);
        recorded(&play.store) == on(ONE, None)
    }));
}

/// A server that died had not moved its device unless it said so.
#[test]
fn a_server_that_dies_has_not_moved() {
    for moves in [false, true] {
        let play = device();
        tell_to_move(&play);
        if moves {
            play.kernel.moves().unwrap();
        }
        play.kernel.abort();
        let at = on(if moves { TWO } else { ONE }, None);
        assert!(soon(|| recorded(&play.store) == at), "{moves}");
        play.agent.join().unwrap();
    }
}

/// A move that cannot be recorded does not begin.
#[test]
fn a_move_that_cannot_be_recorded_does_not_begin() {
    let play = device();
    let directory = play.store.socket(0).parent().unwrap().to_path_buf();
    // The name of the record's temporary file is taken.
    let record = play.store.last(ID).unwrap().unwrap();
    let aside = directory.join(format!(".{:016x}.tmp", record.nonce));
    std::fs::create_dir_all(aside.join("taken")).unwrap();
    tell(&play.store, to_two());
    health(&play.store);
    assert_eq!(play.kernel.told_to_move(), None);
    assert_eq!(recorded(&play.store), on(ONE, None));
}

/// An agent that hands its device over begins no move: the next server process is where the record said when it began.
#[test]
fn a_device_that_is_handed_over_does_not_move() {
    let play = device();
    let nonce = play.store.last(ID).unwrap().unwrap().nonce;
    let until = Instant::now() + Duration::from_secs(10);
    let asked = crate::agent::succession::Predecessor::ask(&play.store, ID, nonce, until).unwrap();
    assert!(asked.is_some());
    tell(&play.store, to_two());
    health(&play.store);
    assert_eq!(play.kernel.told_to_move(), None);
    assert_eq!(recorded(&play.store), on(ONE, None));
    // It goes on if the other gives up.
    drop(asked);
    assert!(soon(|| {
        if play.kernel.told_to_move().is_none() {
            tell(&play.store, to_two());
            health(&play.store);
        }
        play.kernel.told_to_move().is_some()
    }));
    assert_eq!(recorded(&play.store), on(ONE, Some(TWO)));
}

/// Another server process is refused for a device that may be at either of two NBD servers.
#[test]
fn a_device_that_may_be_elsewhere_is_not_recovered() {
    let features = Recovery::Reissue.features();
    let kernel = Kernel::new(None);
    kernel.exists(77, features, 2);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("run"));
    let mut record = Record::new(77, spec());
    record.spec.backend = on(ONE, Some(TWO));
    record.spec.recovery = Recovery::Reissue;
    record.id = Some(ID);
    record.phase = Phase::Ended;
    (record.agent, record.server) = (None, None);
    store.write(&record).unwrap();
    let (front, far) = Link::pair().unwrap();
    let request = RecoverRequest {
        version: LINK_VERSION,
        id: ID,
        replace: false,
        size: None,
        allow_errors: false,
        accept_backing: false,
        lifetime: Lifetime::Own,
        deadline_ms: 5000,
    };
    front.send(&ToAgent::Recover(request)).unwrap();
    run(&mut Threads(kernel), store.clone(), far, None);
    let until = Instant::now() + Duration::from_secs(10);
    match front.recv(until).unwrap() {
        FromAgent::Failed(failure) => {
            assert!(
                failure.text.contains("either may have its last writes"),
                "{failure}"
            );
        }
        other => panic!("not failed but {other:?}"),
    }
    assert_eq!(recorded(&store), on(ONE, Some(TWO)));
}
