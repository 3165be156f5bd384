use super::*;
use crate::fakes::{ID, Kernel, Threads, spec};
use crate::state::{Phase, ProcessId};
use crate::wire::BackendSpec;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use ublk_core::{Features, Recovery};

const NONCE: u64 = 77;
const LIVE: u16 = 1;
const QUIESCED: u16 = 2;

/// A device of ours in a state, with a record whose server is `server`.
fn device(
    state: u16,
    features: Features,
    server: Option<ProcessId>,
    fail: Option<&'static str>,
) -> (Arc<Kernel>, Store, tempfile::TempDir) {
    let kernel = Kernel::new(fail);
    kernel.exists(NONCE, features, state);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("run"));
    let mut spec = spec();
    spec.backend = BackendSpec::Null {
        size: spec.backend.size(),
    };
    spec.recovery = Recovery::of(features);
    let mut record = Record::new(NONCE, spec);
    record.id = Some(ID);
    record.phase = Phase::Ended;
    record.agent = None;
    record.server = server;
    store.write(&record).unwrap();
    (kernel, store, dir)
}

struct Recovered {
    front: Link,
    signal: UnixStream,
    agent: std::thread::JoinHandle<i32>,
}

/// An agent told to recover the device.
fn recover(kernel: &Arc<Kernel>, store: &Store, replace: bool) -> Recovered {
    recover_for(kernel, store, replace, Lifetime::Own)
}

fn recover_for(
    kernel: &Arc<Kernel>,
    store: &Store,
    replace: bool,
    lifetime: Lifetime,
) -> Recovered {
    let (front, far) = Link::pair().unwrap();
    let (signals, signal) = UnixStream::pair().unwrap();
    let request = RecoverRequest {
        version: LINK_VERSION,
        id: ID,
        replace,
        size: None,
        allow_errors: false,
        accept_backing: false,
        lifetime,
        deadline_ms: 5000,
    };
    front.send(&ToAgent::Recover(request)).unwrap();
    let (world, store) = (Arc::clone(kernel), store.clone());
    let agent = std::thread::spawn(move || {
        run(
            &mut Threads(world),
            store,
            far,
            Some(Signals::fake(signals)),
        )
    });
    Recovered {
        front,
        signal,
        agent,
    }
}

impl Recovered {
    fn hear(&self) -> FromAgent {
        let until = Instant::now() + Duration::from_secs(10);
        self.front.recv(until).unwrap()
    }

    fn failed(&self) -> Failure {
        match self.hear() {
            FromAgent::Failed(failure) => failure,
            other => panic!("not failed but {other:?}"),
        }
    }
}

fn reissue() -> Features {
    Recovery::Reissue.features() | Features::QUIESCE
}

/// L34 A recovery sets no parameters: it takes the device, arms a server with what the record says, and ends;
/// what was recovered can be recovered again, and L30 a signal leaves it to the next server.
#[test]
fn l34_a_recovered_device_is_recovered_again() {
    let (kernel, store, _dir) = device(QUIESCED, reissue(), None, None);
    let first = recover(&kernel, &store, false);
    let FromAgent::Live(added) = first.hear() else {
        panic!("not live");
    };
    assert_eq!((added.id, added.recovery), (ID, Recovery::Reissue));
    assert_eq!(added.pause_us, None);
    let steps = [
        "get info",
        "get parameters",
        "start recovery",
        "get info",
        "affinity 0",
        "affinity 1",
        "armed",
        "end recovery",
        "prove",
    ];
    let log = kernel.log();
    // Opening the backend goes on beside the looking up.
    let log: Vec<_> = log.iter().filter(|l| *l != "open").collect();
    assert_eq!(log, steps);
    assert_eq!(store.last(ID).unwrap().unwrap().phase, Phase::Live);
    (&first.signal).write_all(b"x").unwrap();
    assert_eq!(first.agent.join().unwrap(), 0);
    let record = store.last(ID).unwrap().unwrap();
    assert_eq!((record.phase, record.cause), (Phase::Left, None));
    assert!(!kernel.log().iter().any(|l| l == "stop" || l == "delete"));
}

/// L30 An agent in front: its device is written back and left to the next one, or goes, as its front wanted; in
/// either case also when the front just hangs up.
#[test]
fn l30_the_end_of_a_front_is_what_it_wanted() {
    for (lifetime, left) in [(Lifetime::Left, true), (Lifetime::Front, false)] {
        for hangs_up in [false, true] {
            let (kernel, store, _dir) = device(QUIESCED, reissue(), None, None);
            let agent = recover_for(&kernel, &store, false, lifetime);
            assert!(matches!(agent.hear(), FromAgent::Live(_)));
            assert_eq!(store.last(ID).unwrap().unwrap().log, None);
            if !hangs_up {
                agent.front.send(&ToAgent::Leave).unwrap();
                assert!(matches!(agent.hear(), FromAgent::Gone));
            }
            drop(agent.front);
            assert_eq!(agent.agent.join().unwrap(), 0);
            let log = kernel.log();
            assert!(log.contains(&"sync".to_owned()), "{log:?}");
            let deleted = log.contains(&"delete".to_owned());
            assert_eq!(deleted, !left, "{log:?}");
            let record = store.last(ID).unwrap();
            assert_eq!(record.map(|r| r.phase), left.then_some(Phase::Left));
        }
    }
}

/// L34 A recovery that fails leaves the device as it was, with the cause in its record: neither stopped nor
/// deleted.
#[test]
fn l34_a_failed_recovery_leaves_the_device_waiting() {
    for step in ["spawn", "open", "start recovery", "arm", "end recovery"] {
        let (kernel, store, _dir) = device(QUIESCED, reissue(), None, Some(step));
        let agent = recover(&kernel, &store, false);
        let failure = agent.failed();
        assert!(!failure.text.is_empty());
        assert_eq!(agent.agent.join().unwrap(), 1, "{step}");
        let record = store.last(ID).unwrap().unwrap();
        assert_eq!(record.phase, Phase::Ended, "{step}");
        let taken = !matches!(step, "spawn" | "open");
        assert_eq!(record.cause.is_some(), taken, "{step}: {record:?}");
        let log = kernel.log();
        assert!(!log.iter().any(|l| l == "stop" || l == "delete"), "{log:?}");
        // Nobody has it in care any more.
        assert!(store.lock(ID, Instant::now()).unwrap().is_some());
    }
}

/// L34 Foreign devices, live ones, stopped ones and those made without recovery are refused with the reason,
/// before a server is started.
#[test]
fn l34_what_cannot_be_recovered_is_refused() {
    let me = ProcessId::of(std::process::id());
    let cases = [
        (LIVE, reissue(), me, NONCE, "nothing to recover"),
        (0, reissue(), None, NONCE, "stopped or never started"),
        (QUIESCED, Features::NONE, None, NONCE, "without recovery"),
        (
            QUIESCED,
            reissue(),
            None,
            NONCE + 1,
            "not made by this ublkctl",
        ),
    ];
    for (state, features, server, nonce, text) in cases {
        let (kernel, store, _dir) = device(state, features, server, None);
        kernel.exists(nonce, features, state);
        let agent = recover(&kernel, &store, false);
        let failure = agent.failed();
        assert!(failure.text.contains(text), "{failure:?}");
        assert_eq!(kernel.log(), ["get info"], "{text}");
        agent.agent.join().unwrap();
    }
}

/// L34 A device in the care of another agent is left to it.
#[test]
fn l34_another_agents_device_is_not_taken() {
    let (kernel, store, _dir) = device(QUIESCED, reissue(), None, None);
    let lock = store.lock(ID, Instant::now()).unwrap();
    assert!(lock.is_some());
    let agent = recover(&kernel, &store, false);
    let failure = agent.failed();
    assert!(failure.text.contains("another agent"), "{failure:?}");
    assert!(!kernel.log().contains(&"start recovery".to_owned()));
    agent.agent.join().unwrap();
}

/// L34 A supervised device is brought back by its own agent, again and again, until it is told to end; then it
/// waits.
#[test]
fn l34_a_supervised_device_comes_back() {
    let (kernel, store, _dir) = device(QUIESCED, reissue(), None, Some("queue"));
    let mut record = store.last(ID).unwrap().unwrap();
    record.spec.supervise = true;
    store.write(&record).unwrap();
    let agent = recover(&kernel, &store, false);
    assert!(matches!(agent.hear(), FromAgent::Live(_)));
    for lives in 2..4 {
        kernel.abort();
        let until = Instant::now() + Duration::from_secs(20);
        let ends = |l: &&String| *l == "prove";
        let back = ublk_ctrl::wait::until(until, || {
            let lived = kernel.log().iter().filter(ends).count();
            Ok::<_, ()>((lived == lives).then_some(()))
        });
        assert_eq!(back, Ok(Some(())), "{:?}", kernel.log());
    }
    (&agent.signal).write_all(b"x").unwrap();
    // Its server ends by the same failure as those before, and is not replaced.
    assert_eq!(agent.agent.join().unwrap(), 1);
    assert!(!kernel.log().iter().any(|l| l == "stop" || l == "delete"));
}

/// L43 The lock of a supervised device's file is held from one server to the next, and each next one goes on with the
/// open file of the one before, whatever its path leads to; which file it is stands in the record.
#[test]
fn l43_a_file_passes_from_server_to_server() {
    let (kernel, store, dir) = device(QUIESCED, reissue(), None, Some("queue"));
    let path = dir.path().join("disk.img");
    std::fs::write(&path, [0; 4096]).unwrap();
    kernel.has_file(&path);
    let mut record = store.last(ID).unwrap().unwrap();
    record.spec.supervise = true;
    record.spec.backend = BackendSpec::File {
        path: path.clone(),
        offset: 0,
        length: Some(crate::fakes::SIZE),
        buffered: false,
        discard: true,
        force: false,
    };
    store.write(&record).unwrap();
    let agent = recover(&kernel, &store, false);
    assert!(matches!(agent.hear(), FromAgent::Live(_)));
    let other = std::fs::File::open(&path).unwrap();
    let is = ublk_backends::Identity::of(&other).unwrap();
    assert_eq!(store.last(ID).unwrap().unwrap().backing, Some(is));
    std::fs::rename(&path, dir.path().join("renamed")).unwrap();
    kernel.abort();
    let until = Instant::now() + Duration::from_secs(20);
    let back = ublk_ctrl::wait::until(until, || {
        assert!(other.try_lock().is_err(), "nobody else gets the lock");
        let lives = kernel.log().iter().filter(|l| *l == "prove").count();
        Ok::<_, ()>((lives == 2).then_some(()))
    });
    assert_eq!(back, Ok(Some(())), "{:?}", kernel.log());
    let openings = kernel.openings();
    let with: Vec<_> = openings.iter().map(|(o, fd)| (o.backing, *fd)).collect();
    assert_eq!(with, [(None, false), (Some(is), true)]);
    (&agent.signal).write_all(b"x").unwrap();
    agent.agent.join().unwrap();
    let free = ublk_ctrl::wait::until(Instant::now() + Duration::from_secs(10), || {
        Ok::<_, ()>(other.try_lock().is_ok().then_some(()))
    });
    assert_eq!(free, Ok(Some(())), "the lock goes with the processes");
}

/// Upgrades are of live devices with a server, and of policies that keep every request.
#[test]
fn l35_what_cannot_be_upgraded_is_refused() {
    let me = ProcessId::of(std::process::id());
    let queue = Recovery::Queue.features();
    for (state, features, server, text) in [
        (QUIESCED, reissue(), None, "without a server to replace"),
        (LIVE, queue, me, "6.16"),
        (LIVE, Recovery::Fail.features(), me, "policy `fail`"),
    ] {
        let (kernel, store, _dir) = device(state, features, server, None);
        let agent = recover(&kernel, &store, true);
        let failure = agent.failed();
        assert!(failure.text.contains(text), "{failure:?}");
        assert_eq!(kernel.log(), ["get info"], "{text}");
        agent.agent.join().unwrap();
    }
}
