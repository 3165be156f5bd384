use crate::agent::*;
use crate::failure::FailureKind;
use crate::fakes::{ID, Kernel, Threads, spec};
use crate::spec::{BackendSpec, Files, Member};
use crate::state::{Phase, ProcessId};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use ublk_core::{Features, Recovery};

const NONCE: u64 = 77;
const DEAD: u16 = 0;
const LIVE: u16 = 1;
const QUIESCED: u16 = 2;

/// A device of ours in this state, with a record whose server is `server`.
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

/// An agent that is told to recover the device.
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
    fn receive(&self) -> FromAgent {
        let until = Instant::now() + Duration::from_secs(10);
        self.front.recv(until).unwrap()
    }

    fn failed(&self) -> Failure {
        match self.receive() {
            FromAgent::Failed(failure) => failure,
            other => panic!("not failed but {other:?}"),
        }
    }
}

fn reissue() -> Features {
    Recovery::Reissue.features() | Features::QUIESCE
}

/// L34 A recovery sets no parameters: it takes over the device, arms a server according to the record, and ends. A
/// recovered device can be recovered again, and L30 a signal leaves it to the next server.
#[test]
fn l34_a_recovered_device_is_recovered_again() {
    let (kernel, store, _dir) = device(QUIESCED, reissue(), None, None);
    let first = recover(&kernel, &store, false);
    let FromAgent::Live(added) = first.receive() else {
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
    // The backend is opened in parallel with the queries.
    let log: Vec<_> = log.iter().filter(|l| *l != "open").collect();
    assert_eq!(log, steps);
    assert_eq!(store.last(ID).unwrap().unwrap().phase, Phase::Live);
    (&first.signal).write_all(b"x").unwrap();
    assert_eq!(first.agent.join().unwrap(), 0);
    let record = store.last(ID).unwrap().unwrap();
    assert_eq!((record.phase, record.cause), (Phase::Left, None));
    assert!(!kernel.log().iter().any(|l| l == "stop" || l == "delete"));
}

/// L30 A foreground device is written back and left to the next agent, or deleted, as its front requested; also if the
/// front just hangs up.
#[test]
fn l30_the_end_of_a_front_is_what_it_wanted() {
    for (lifetime, left) in [(Lifetime::Left, true), (Lifetime::Front, false)] {
        for hangs_up in [false, true] {
            let (kernel, store, _dir) = device(QUIESCED, reissue(), None, None);
            let agent = recover_for(&kernel, &store, false, lifetime);
            assert!(matches!(agent.receive(), FromAgent::Live(_)));
            assert_eq!(store.last(ID).unwrap().unwrap().log, None);
            if !hangs_up {
                agent.front.send(&ToAgent::Leave).unwrap();
                assert!(matches!(agent.receive(), FromAgent::Gone));
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

/// L34 A failed recovery leaves the device unchanged, with the cause in its record: neither stopped nor deleted.
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
        // No agent manages it any more.
        assert!(store.lock(ID, Instant::now()).unwrap().is_some());
    }
}

/// L34 Foreign, live and stopped devices and those without recovery are refused with the reason, before a server is
/// started.
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
            "not created by this ublkctl",
        ),
    ];
    for (state, features, server, nonce, text) in cases {
        let (kernel, store, _dir) = device(state, features, server, None);
        kernel.exists(nonce, features, state);
        // A live device has an agent, which holds the lock.
        let _lock = server.map(|_| store.lock(ID, Instant::now()).unwrap());
        let agent = recover(&kernel, &store, false);
        let failure = agent.failed();
        assert!(failure.text.contains(text), "{failure:?}");
        assert_eq!(kernel.log(), ["get info"], "{text}");
        agent.agent.join().unwrap();
    }
}

/// L34 A device that another agent manages is not taken over.
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

/// L34 If two commands recover a device, the second learns at once that it has a server.
#[test]
fn l34_two_recoveries_do_not_wait_for_each_other() {
    let (kernel, store, _dir) = device(QUIESCED, reissue(), None, None);
    let lock = store.lock(ID, Instant::now()).unwrap().unwrap();
    let second = recover(&kernel, &store, false);
    std::thread::sleep(Duration::from_millis(300));
    // The first one has succeeded.
    has_server(&store);
    kernel.exists(NONCE, reissue(), LIVE);
    let begun = Instant::now();
    let failure = second.failed();
    assert!(
        failure.text.contains("there is nothing to recover"),
        "{failure:?}"
    );
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(!kernel.log().iter().any(|l| l == "start recovery"));
    drop(lock);
    second.agent.join().unwrap();
}

/// L34 A supervised device is revived by its own agent repeatedly, until the agent is told to end; then the device
/// waits.
#[test]
fn l34_a_supervised_device_comes_back() {
    let (kernel, store, _dir) = device(QUIESCED, reissue(), None, Some("queue"));
    let mut record = store.last(ID).unwrap().unwrap();
    record.spec.supervise = true;
    store.write(&record).unwrap();
    let agent = recover(&kernel, &store, false);
    assert!(matches!(agent.receive(), FromAgent::Live(_)));
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
    // Its server dies of the same failure as the ones before, and is not replaced.
    assert_eq!(agent.agent.join().unwrap(), 1);
    assert!(!kernel.log().iter().any(|l| l == "stop" || l == "delete"));
}

/// L34 A signal to the server of a supervised device counts as a death: another server replaces it, even if the driver
/// cannot hold I/O meanwhile, and also in the foreground. A signal to the agent still means the end.
#[test]
fn l34_a_signal_to_a_supervised_server_brings_another() {
    for (features, lifetime) in [
        (reissue(), Lifetime::Own),
        (reissue(), Lifetime::Left),
        (Recovery::Reissue.features(), Lifetime::Own),
        (reissue() | Features::BATCH_IO, Lifetime::Own),
    ] {
        let (kernel, store, _dir) = device(QUIESCED, features, None, None);
        let mut record = store.last(ID).unwrap().unwrap();
        record.spec.supervise = true;
        store.write(&record).unwrap();
        let agent = recover_for(&kernel, &store, false, lifetime);
        assert!(matches!(agent.receive(), FromAgent::Live(_)));
        for lives in 2..4 {
            kernel.signal_server();
            let until = Instant::now() + Duration::from_secs(20);
            let back = ublk_ctrl::wait::until(until, || {
                let proved = kernel.log().iter().filter(|l| *l == "prove").count();
                Ok::<_, ()>((proved == lives).then_some(()))
            });
            assert_eq!(back, Ok(Some(())), "{:?}", kernel.log());
        }
        let held = kernel.log().iter().any(|l| l == "quiesce");
        let can_hold =
            features.contains(Features::QUIESCE) && !features.contains(Features::BATCH_IO);
        assert_eq!(held, can_hold, "{:?}", kernel.log());
        assert!(!agent.agent.is_finished());
        (&agent.signal).write_all(b"x").unwrap();
        assert_eq!(agent.agent.join().unwrap(), 0);
        let record = store.last(ID).unwrap().unwrap();
        assert_eq!((record.phase, record.cause), (Phase::Left, None));
        assert!(!kernel.log().iter().any(|l| l == "stop" || l == "delete"));
    }
}

/// L43 The lock of a supervised device's file is held from server to server. Each server continues with the open file
/// of the previous one, wherever the path leads; the record has the file's identity.
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
        integrity_file: None,
    };
    store.write(&record).unwrap();
    let agent = recover(&kernel, &store, false);
    assert!(matches!(agent.receive(), FromAgent::Live(_)));
    let other = std::fs::File::open(&path).unwrap();
    let is = ublk_backends::Identity::of(&other).unwrap();
    assert_eq!(store.last(ID).unwrap().unwrap().backing, [is]);
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
    let with: Vec<_> = openings
        .iter()
        .map(|(o, fd)| (o.backing.clone(), *fd))
        .collect();
    assert_eq!(with, [(vec![], false), (vec![is], true)]);
    (&agent.signal).write_all(b"x").unwrap();
    agent.agent.join().unwrap();
    let free = ublk_ctrl::wait::until(Instant::now() + Duration::from_secs(10), || {
        Ok::<_, ()>(other.try_lock().is_ok().then_some(()))
    });
    assert_eq!(free, Ok(Some(())), "the lock goes with the processes");
}

/// Only a live device with a server, and a policy that keeps every request, can be upgraded.
#[test]
fn l35_what_cannot_be_upgraded_is_refused() {
    let me = ProcessId::of(std::process::id());
    let queue = Recovery::Queue.features();
    for (state, features, server, text) in [
        (QUIESCED, reissue(), None, "no server to replace"),
        (DEAD, reissue(), None, "no server to replace"),
        (LIVE, queue, me, "6.16"),
        (LIVE, Recovery::Fail.features(), me, "policy `fail`"),
    ] {
        let (kernel, store, _dir) = device(state, features, server, None);
        let agent = recover(&kernel, &store, true);
        let failure = agent.failed();
        assert!(failure.text.contains(text), "{failure:?}");
        if state == DEAD {
            // `recover` would refer back to this command.
            assert!(failure.hint.is_some_and(|h| h.contains("ublkctl delete")));
        }
        assert_eq!(kernel.log(), ["get info"], "{text}");
        agent.agent.join().unwrap();
    }
}

/// A truncated file under an existing device is not a usage error.
#[test]
fn l43_a_cut_file_is_a_failure_of_the_device() {
    let request = |size| RecoverRequest {
        version: LINK_VERSION,
        id: ID,
        replace: true,
        size,
        allow_errors: false,
        accept_backing: false,
        lifetime: Lifetime::Own,
        deadline_ms: 5000,
    };
    let cut = || Failure::new(FailureKind::Usage, "the file ends before");
    let one = BackendSpec::Null { size: 64 << 20 };
    let part = Member {
        path: "/disk".into(),
        offset: 0,
        length: None,
    };
    let two = BackendSpec::Linear {
        files: Files {
            files: vec![part.clone(), part],
            buffered: false,
            discard: false,
            force: false,
            bytes: 0,
        },
    };
    let told = crate::agent::refusals::of_a_device(cut(), &request(None), (64 << 20, &one));
    assert_eq!(told.kind, FailureKind::Failed);
    assert!(
        told.hint
            .is_some_and(|h| h.contains("truncate -s 67108864"))
    );
    let several = crate::agent::refusals::of_a_device(cut(), &request(None), (64 << 20, &two));
    assert!(
        several.hint.is_some_and(|h| !h.contains("67108864")),
        "no file is that long"
    );
    let asked =
        crate::agent::refusals::of_a_device(cut(), &request(Some(1 << 30)), (1 << 30, &one));
    assert_eq!(asked, cut());
}

/// A live device with its agent, as before an upgrade: its server is a running process.
fn served() -> (Arc<Kernel>, Store, tempfile::TempDir, Recovered) {
    let (kernel, store, dir) = device(QUIESCED, reissue(), None, None);
    let agent = recover(&kernel, &store, false);
    assert!(matches!(agent.receive(), FromAgent::Live(_)));
    has_server(&store);
    (kernel, store, dir, agent)
}

fn has_server(store: &Store) {
    let mut record = store.last(ID).unwrap().unwrap();
    record.server = ProcessId::of(std::process::id());
    store.write(&record).unwrap();
}

/// L44 The current agent hands the device over with its lock and exits silently; its successor can do the same.
#[test]
fn l44_a_device_is_handed_from_agent_to_agent() {
    let (kernel, store, _dir, mut old) = served();
    for _ in 0..3 {
        let new = recover(&kernel, &store, true);
        let FromAgent::Live(added) = new.receive() else {
            panic!("not live: {:?}", kernel.log());
        };
        assert!(added.pause_us.is_some());
        assert_eq!(old.agent.join().unwrap(), 0);
        let nobody = old
            .front
            .recv::<FromAgent>(Instant::now() + Duration::from_secs(5));
        assert!(matches!(nobody, Err(LinkError::Closed)), "{nobody:?}");
        assert!(store.lock(ID, Instant::now()).unwrap().is_none());
        assert_eq!(store.last(ID).unwrap().unwrap().phase, Phase::Live);
        has_server(&store);
        old = new;
    }
    (&old.signal).write_all(b"x").unwrap();
    assert_eq!(old.agent.join().unwrap(), 0);
    assert!(store.lock(ID, Instant::now()).unwrap().is_some());
    let left: Vec<_> = std::fs::read_dir(store.lock_path(ID).parent().unwrap())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .filter(|name| !["7.json", "7.lock", "7.log", "7.server"].contains(&name.to_str().unwrap()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// L44 If the agent exits while it is asked, because another command replaced it, the message does not suggest killing
/// the new one. A silent agent is waited for only as long as the command may take.
#[test]
fn l44_who_asks_an_agent_that_leaves_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("run"));
    store.prepare().unwrap();
    let mut listener = crate::link::listener::Listener::prepare(&store.next_socket(ID)).unwrap();
    listener.publish().unwrap();
    let ask = |within| {
        let until = Instant::now() + within;
        crate::agent::succession::Predecessor::ask(&store, ID, NONCE, until).expect_err("no answer")
    };
    let begun = Instant::now();
    let failure = ask(Duration::from_millis(200));
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure:?}");
    assert!(failure.hint.is_some_and(|hint| hint.contains("kill -CONT")));
    assert!(begun.elapsed() < Duration::from_secs(2));
    let leaves = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        drop(listener);
    });
    let failure = ask(Duration::from_secs(5));
    assert_eq!(failure.kind, FailureKind::Busy, "{failure:?}");
    leaves.join().unwrap();
}

/// L44 A hand-over that fails before I/O is held changes nothing. After a later failure the current agent starts
/// another server, supervised or not.
#[test]
fn l44_a_hand_over_that_fails_has_a_way_back() {
    for (step, held) in [("open", false), ("arm", true), ("end recovery", true)] {
        let (kernel, store, _dir, old) = served();
        let before = store.last(ID).unwrap();
        let lives = |log: Vec<String>| log.iter().filter(|l| *l == "prove").count();
        kernel.set_fail(Some(step));
        let new = recover(&kernel, &store, true);
        assert!(!new.failed().text.is_empty());
        assert_eq!(new.agent.join().unwrap(), 1, "{step}");
        kernel.set_fail(None);
        if held {
            let until = Instant::now() + Duration::from_secs(20);
            let back = ublk_ctrl::wait::until(until, || {
                Ok::<_, ()>((lives(kernel.log()) == 2).then_some(()))
            });
            assert_eq!(back, Ok(Some(())), "{step}: {:?}", kernel.log());
        } else {
            assert!(!kernel.log().contains(&"quiesce".to_owned()), "{step}");
            assert_eq!(store.last(ID).unwrap(), before);
        }
        assert!(store.lock(ID, Instant::now()).unwrap().is_none());
        (&old.signal).write_all(b"x").unwrap();
        assert_eq!(old.agent.join().unwrap(), 0, "{step}");
        assert_eq!(store.last(ID).unwrap().unwrap().phase, Phase::Left);
    }
}

/// L44 A signal that arrives while a successor has the device takes effect in the current agent if the hand-over fails.
#[test]
fn l44_a_signal_during_a_hand_over_that_is_given_up_counts() {
    let (_kernel, store, _dir, old) = served();
    let nonce = store.last(ID).unwrap().unwrap().nonce;
    let until = Instant::now() + Duration::from_secs(5);
    let asked = crate::agent::succession::Predecessor::ask(&store, ID, nonce, until).unwrap();
    let (successor, lock) = asked.expect("the agent at work listens");
    (&old.signal).write_all(b"x").unwrap();
    drop((successor, lock));
    let until = Instant::now() + Duration::from_secs(20);
    let ended =
        ublk_ctrl::wait::until(until, || Ok::<_, ()>(old.agent.is_finished().then_some(())));
    assert_eq!(ended, Ok(Some(())), "the agent goes on");
    assert_eq!(old.agent.join().unwrap(), 0);
    assert_eq!(store.last(ID).unwrap().unwrap().phase, Phase::Left);
}

/// L44 Once I/O is held, an upgrade is completed even if its caller goes away. Before that, it is abandoned.
#[test]
fn l44_an_upgrade_does_not_need_its_caller_once_io_is_held() {
    let (kernel, store, _dir, old) = served();
    kernel.set_fail(Some("slow arm"));
    let new = recover(&kernel, &store, true);
    kernel.wait_for("arming slowly");
    drop(new.front);
    (&new.signal).write_all(b"x").unwrap();
    assert_eq!(old.agent.join().unwrap(), 0);
    // The signal concerned this process and takes effect now.
    assert_eq!(new.agent.join().unwrap(), 0);
    let log = kernel.log();
    assert!(
        log.iter().filter(|l| *l == "end recovery").count() == 2,
        "{log:?}"
    );
}

/// L49 A server whose agent died accepts another agent, which learns everything from it.
#[test]
fn l49_a_server_without_an_agent_gets_one() {
    let (kernel, store, _dir) = device(LIVE, reissue(), None, None);
    let mut socket = Listener::prepare(&store.server_socket(ID)).unwrap();
    let mut server = crate::fakes::server(&kernel, None);
    let spec = store.last(ID).unwrap().unwrap().spec;
    let version = LINK_VERSION;
    server
        .link
        .send(&ToServer::Describe {
            version,
            spec,
            opening: crate::link::message::Opening::default(),
        })
        .unwrap();
    let soon = Instant::now() + Duration::from_secs(5);
    assert!(matches!(
        server.link.recv(soon),
        Ok(FromServer::Described { .. })
    ));
    let geometry = crate::fakes::geometry(NONCE, reissue());
    let assignment = crate::link::message::Assignment {
        geometry,
        affinity: vec![ublk_core::CpuMask::new(); 2],
        deadline_ms: 5000,
        shm: None,
        params: None,
    };
    let word = ToServer::Assign(assignment);
    server.link.send_with(&word, &[socket.as_fd()]).unwrap();
    assert!(matches!(
        server.link.recv(soon),
        Ok(FromServer::Armed { .. })
    ));
    server.link.send(&ToServer::Live).unwrap();
    socket.publish().unwrap();
    has_server(&store);
    // The agent dies.
    server.link = Link::pair().unwrap().0;
    drop(socket);
    let agent = recover(&kernel, &store, false);
    let FromAgent::Live(added) = agent.receive() else {
        panic!("not live");
    };
    assert_eq!(added.server_pid, std::process::id());
    assert!(!kernel.log().contains(&"start recovery".to_owned()));
    let mut health = String::new();
    let mut stream = UnixStream::connect(store.socket(ID)).unwrap();
    std::io::Read::read_to_string(&mut stream, &mut health).unwrap();
    assert!(health.contains("\"reads\":42"), "{health}");
    // A device does not get a second agent.
    let second = recover(&kernel, &store, false).failed();
    assert!(second.text.contains("nothing to recover"), "{second:?}");
}
