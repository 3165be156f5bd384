use super::*;
use crate::failure::FailureKind;
use crate::fakes::{ID, Kernel, Threads, spec};
use crate::link::LINK_VERSION;
use crate::link::message::Lifetime;
use crate::report::Health;
use crate::spec::AddSpec;
use crate::state::Phase;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use ublk_core::{DataMode, DevId, Features, Mode, Recovery};

mod moves;
mod recover;

struct Play {
    kernel: Arc<Kernel>,
    front: Option<Link>,
    store: Store,
    agent: JoinHandle<i32>,
    _dir: tempfile::TempDir,
}

/// An agent on the fake kernel, told to add a device.
fn play(fail: Option<&'static str>, foreground: bool, deadline_ms: u64) -> Play {
    play_on(Kernel::new(fail), spec(), foreground, deadline_ms)
}

/// As `play`, on a configured kernel and in a mode.
fn play_mode(kernel: Arc<Kernel>, data: DataMode, batch: bool) -> Play {
    let mode = Mode::new(data).batched(batch);
    play_on(kernel, AddSpec { mode, ..spec() }, true, 10_000)
}

fn play_on(kernel: Arc<Kernel>, spec: AddSpec, foreground: bool, deadline_ms: u64) -> Play {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("run"));
    kernel.look_into(&store);
    let (front, far) = Link::pair().unwrap();
    let request = AddRequest {
        version: LINK_VERSION,
        spec: Box::new(spec),
        lifetime: if foreground {
            Lifetime::Front
        } else {
            Lifetime::Own
        },
        // A thread of a test would redirect the test's own log.
        log: Some("/nonexistent/log".into()),
        deadline_ms,
    };
    front.send(&ToAgent::Add(request)).unwrap();
    let (world, agents) = (Arc::clone(&kernel), store.clone());
    let agent = std::thread::spawn(move || run(&mut Threads(world), agents, far, None));
    Play {
        kernel,
        front: Some(front),
        store,
        agent,
        _dir: dir,
    }
}

impl Play {
    fn receive(&self) -> FromAgent {
        let until = Instant::now() + Duration::from_secs(10);
        self.front.as_ref().unwrap().recv(until).unwrap()
    }

    fn live(&self) -> Added {
        match self.receive() {
            FromAgent::Live(added) => added,
            other => panic!("not live but {other:?}"),
        }
    }

    fn failed(&self) -> Failure {
        match self.receive() {
            FromAgent::Failed(failure) => failure,
            other => panic!("not failed but {other:?}"),
        }
    }

    fn records(&self) -> usize {
        let dir = self.store.socket(0);
        std::fs::read_dir(dir.parent().unwrap()).map_or(0, Iterator::count)
    }
}

const UP: [&str; 9] = [
    "open",
    "add",
    "set parameters",
    "affinity 0",
    "affinity 1",
    "armed",
    "start",
    "prove",
    "no scheduler",
];

/// L22 STOP while the queues still serve, then the server is empty and exits, then DEL; L20 START only once everything
/// is armed; L38 the device is checked before it is reported as live.
#[test]
fn l22_stop_while_serving_and_delete_after_empty() {
    let play = play(None, true, 10_000);
    let added = play.live();
    assert_eq!((added.id, added.queues, added.depth), (ID, 2, 64));
    assert_eq!(added.path.to_str(), Some("/dev/ublkb7"));
    assert_eq!(play.kernel.log(), UP);
    let front = play.front.as_ref().unwrap();
    front.send(&ToAgent::Leave).unwrap();
    assert_eq!(play.receive(), FromAgent::Gone);
    let down = ["sync", "stop", "empty", "server exit 0", "delete"];
    assert_eq!(play.kernel.log(), [&UP[..], &down].concat());
    assert_eq!(play.records(), 0, "no record, socket or log is left");
    assert_eq!(play.agent.join().unwrap(), 0);
}

/// A device whose scheduler cannot be disabled still serves.
#[test]
fn a_scheduler_that_stays_is_no_failure() {
    let play = play(Some("no scheduler"), true, 10_000);
    assert_eq!(play.live().id, ID);
    assert_eq!(play.kernel.log(), UP);
}

/// L33 A failure at any step removes what was created, in the right order, and reports the reason.
#[test]
fn l33_a_failure_at_each_step_is_told_and_cleaned_up() {
    let added: &[&str] = &["stop", "delete"];
    for (step, undone, text) in [
        ("spawn", &[][..], "no process left"),
        ("open", &[], "no memory"),
        ("open control", &[], "not loaded"),
        ("add", &[], "add"),
        ("set parameters", added, "set parameters"),
        ("affinity 1", added, "affinity"),
        ("arm", added, "no ring"),
        ("start", added, "start"),
        ("prove", added, "ready"),
    ] {
        let play = play(Some(step), false, 10_000);
        let failure = play.failed();
        assert!(failure.text.contains(text), "{step}: {failure:?}");
        let Play {
            kernel,
            agent,
            ref store,
            ..
        } = play;
        assert_eq!(agent.join().unwrap(), 1, "{step}");
        let log = kernel.log();
        let taken_back: Vec<&str> = log
            .iter()
            .map(String::as_str)
            .filter(|l| ["stop", "delete"].contains(l))
            .collect();
        assert_eq!(taken_back, undone, "{step}: {log:?}");
        // The server is gone before the device is deleted.
        let at = |what: &str| log.iter().position(|l| l.starts_with(what));
        if let (Some(exit), Some(delete)) = (at("server exit"), at("delete")) {
            assert!(exit < delete, "{step}: {log:?}");
        }
        assert!(store.last(ID).unwrap().is_none(), "{step}");
    }
}

/// L24 A failed queue fails the device: the cause is reported and kept for `list`, and the device is left for `delete`.
#[test]
fn l24_a_failed_queue_is_told_with_its_cause() {
    let play = play(Some("queue"), true, 10_000);
    play.live();
    play.kernel.abort();
    let failure = play.failed();
    assert!(failure.text.contains("its thread died"), "{failure:?}");
    assert!(failure.hint.unwrap().contains("ublkctl delete 7"));
    assert_eq!(play.agent.join().unwrap(), 1);
    let record = play.store.last(ID).unwrap().unwrap();
    assert_eq!(record.phase, Phase::Ended);
    assert!(record.cause.unwrap().contains("its thread died"));
    assert!(!play.kernel.log().contains(&"delete".to_owned()));
}

/// L30 A device stopped by another process: the agent ends normally and deletes nothing.
#[test]
fn l30_a_device_stopped_by_somebody_else_is_not_deleted() {
    let play = play(None, false, 10_000);
    play.live();
    play.kernel.abort();
    assert_eq!(play.agent.join().unwrap(), 0);
    let log = play.kernel.log();
    assert!(log.contains(&"empty".to_owned()), "{log:?}");
    assert!(!log.contains(&"delete".to_owned()), "{log:?}");
    let record = play.store.last(ID).unwrap().unwrap();
    assert_eq!(record.phase, Phase::Stopped);
    assert!(!play.store.socket(ID).exists());
}

/// A front that is killed while the device is created takes the device with it; L27 nothing hangs.
#[test]
fn l27_a_front_that_leaves_early_cancels() {
    let mut play = play(Some("hang in arm"), false, 60_000);
    play.kernel.wait_for("hangs");
    play.front = None;
    assert_eq!(play.agent.join().unwrap(), 1);
    let log = play.kernel.log();
    assert!(!log.contains(&"start".to_owned()), "{log:?}");
    assert_eq!(log.last().map(String::as_str), Some("delete"));
    assert!(play.store.last(ID).unwrap().is_none());
}

/// A foreground device ends with its front, a background device does not.
#[test]
fn a_device_in_the_foreground_ends_with_its_front() {
    let mut front = play(None, true, 10_000);
    front.live();
    front.front = None;
    assert_eq!(front.agent.join().unwrap(), 0);
    assert_eq!(
        front.kernel.log().last().map(String::as_str),
        Some("delete")
    );

    let mut back = play(None, false, 10_000);
    back.live();
    back.front.as_ref().unwrap().send(&ToAgent::Keep).unwrap();
    back.front = None;
    // Still there and answering.
    assert_eq!(health(&back.store).stats.reads, 42);
    back.kernel.abort();
    assert_eq!(back.agent.join().unwrap(), 0);
}

/// L27 A silent server is not waited for beyond the deadline.
#[test]
fn l27_a_silent_server_times_out() {
    let play = play(Some("silent server"), true, 50);
    let failure = play.failed();
    assert_eq!(failure.kind, FailureKind::TimedOut, "{failure:?}");
    assert_eq!(play.agent.join().unwrap(), 1);
    assert_eq!(play.kernel.log(), [""; 0]);
}

fn health(store: &Store) -> Health {
    let mut stream = UnixStream::connect(store.socket(ID)).unwrap();
    let limit = Some(Duration::from_secs(10));
    stream.set_read_timeout(limit).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every caller gets the health; too many callers, or one that leaves, do no harm.
#[test]
fn the_agent_relays_health() {
    let play = play(None, true, 10_000);
    play.live();
    let impatient: Vec<UnixStream> = (0..40)
        .map(|_| UnixStream::connect(play.store.socket(ID)).unwrap())
        .collect();
    drop(impatient);
    let health = health(&play.store);
    assert_eq!(health.stats.reads, 42);
    play.front.as_ref().unwrap().send(&ToAgent::Leave).unwrap();
    assert_eq!(play.receive(), FromAgent::Gone);
}

/// L31 The record is on disk before ADD_DEV, and the phase before START_DEV, as the fake kernel checks.
#[test]
fn l31_state_is_on_disk_before_the_kernel_is_asked() {
    let play = play(None, true, 10_000);
    play.live();
    assert_eq!(
        play.kernel.seen(),
        [
            Some((None, Phase::Adding)),
            Some((Some(ID), Phase::Starting))
        ]
    );
    let record = play.store.last(ID).unwrap().unwrap();
    assert_eq!((record.phase, record.spec), (Phase::Live, spec()));
}

/// L04 The mode's features are requested from ADD_DEV, and the reported mode is that of the granted features.
#[test]
fn l04_the_mode_is_asked_of_the_kernel_and_told_as_granted() {
    for (data, batch) in [
        (DataMode::Copy, false),
        (DataMode::GetData, false),
        (DataMode::UserCopy, true),
        (DataMode::ZeroCopy, true),
    ] {
        let play = play_mode(Kernel::new(None), data, batch);
        let added = play.live();
        assert_eq!(
            play.kernel.asked(),
            Mode::new(data).batched(batch).features()
        );
        assert_eq!((added.data, added.batch), (data, batch));
        let named = |name: &str| added.features.iter().any(|f| f == name);
        assert!(named("CMD_IOCTL_ENCODE"), "{:?}", added.features);
        assert_eq!(named("BATCH_IO"), batch, "{:?}", added.features);
        let record = play.store.last(ID).unwrap().unwrap();
        assert_eq!(record.spec.mode, Mode::new(data).batched(batch));
        play.front.as_ref().unwrap().send(&ToAgent::Leave).unwrap();
        assert_eq!(play.receive(), FromAgent::Gone);
    }
}

/// An open data mode becomes the one that pays off, if the kernel supports it, else copy; the choice is recorded.
#[test]
fn an_open_mode_is_what_pays_where_the_kernel_has_it() {
    for (has, data) in [(true, DataMode::ZeroCopy), (false, DataMode::Copy)] {
        let kernel = Kernel::new(None);
        if !has {
            kernel.lacks(Features::AUTO_BUF_REG);
        }
        let open = AddSpec {
            auto: Some(DataMode::ZeroCopy),
            ..spec()
        };
        let play = play_on(kernel, open, true, 10_000);
        assert_eq!(play.live().data, data);
        assert_eq!(play.kernel.asked(), data.features());
        let record = play.store.last(ID).unwrap().unwrap();
        assert_eq!(record.spec.mode.data, data);
        play.front.as_ref().unwrap().send(&ToAgent::Leave).unwrap();
        assert_eq!(play.receive(), FromAgent::Gone);
    }
}

/// A mode that the kernel lacks is refused with the names of its features and the kernel that introduced them, and
/// nothing is left behind.
#[test]
fn a_kernel_without_the_mode_refuses_it_by_name() {
    let kernel = Kernel::new(None);
    kernel.lacks(Features::BATCH_IO | Features::AUTO_BUF_REG);
    let play = play_mode(kernel, DataMode::ZeroCopy, true);
    let failure = play.failed();
    assert_eq!(failure.kind, FailureKind::Unsupported);
    for part in [
        "AUTO_BUF_REG (since Linux 6.16)",
        "BATCH_IO (since Linux 7.0)",
    ] {
        assert!(failure.text.contains(part), "{failure:?}");
    }
    assert!(failure.hint.unwrap().contains("newer kernel"));
    assert_eq!(play.agent.join().unwrap(), 1);
    let log = play.kernel.log();
    assert!(
        !log.iter().any(|l| l == "delete" || l == "armed"),
        "{log:?}"
    );
    assert!(play.store.last(ID).unwrap().is_none());
}

/// L04 A feature that the kernel drops silently fails the add with the error that embedding programs get, and the device
/// is deleted.
#[test]
fn l04_a_mode_dropped_in_silence_is_not_replaced() {
    let user_copy = AddSpec {
        mode: Mode::new(DataMode::UserCopy),
        ..spec()
    };
    let recovered = AddSpec {
        recovery: Recovery::Reissue,
        ..spec()
    };
    let unprivileged = AddSpec {
        unprivileged: true,
        ..spec()
    };
    for (spec, refused) in [
        (user_copy, Features::USER_COPY),
        (recovered, Features::USER_RECOVERY),
        (unprivileged, Features::UNPRIVILEGED_DEV),
    ] {
        let kernel = Kernel::new(None);
        kernel.drops(refused);
        let play = play_on(kernel, spec, true, 10_000);
        let failure = play.failed();
        let not_granted = ublk_ctrl::Error::NotGranted {
            dev: DevId::new(ID).unwrap(),
            asked: play.kernel.asked(),
            refused,
        };
        let told = format!("{}; {}", failure.text, failure.hint.unwrap());
        assert_eq!(told, not_granted.to_string());
        assert_eq!(play.agent.join().unwrap(), 1);
        let log = play.kernel.log();
        assert_eq!(log.last().map(String::as_str), Some("delete"));
        let further = |step: &String| ["set parameters", "armed"].contains(&step.as_str());
        assert!(!log.iter().any(further), "{log:?}");
    }
}

/// L31 A new device is removed if its front ends before its name was reported, however it ends; afterwards it stays.
#[test]
fn l31_a_device_that_nobody_heard_of_is_taken_back() {
    let mut play = play(None, false, 10_000);
    play.live();
    drop(play.front.take());
    assert_eq!(play.agent.join().unwrap(), 0);
    let log = play.kernel.log();
    assert!(
        log.ends_with(&["stop", "empty", "server exit 0", "delete"].map(str::to_owned)),
        "{log:?}"
    );
    let mut play = self::play(None, false, 10_000);
    play.live();
    play.front.as_ref().unwrap().send(&ToAgent::Keep).unwrap();
    drop(play.front.take());
    std::thread::sleep(Duration::from_millis(100));
    assert!(!play.agent.is_finished());
    assert!(!play.kernel.log().iter().any(|step| step == "stop"));
}

/// The health of hundreds of threads is reported completely, and their end is a normal one.
#[test]
fn the_health_of_hundreds_of_threads_is_told() {
    let play = play(Some("many threads"), true, 10_000);
    play.live();
    let told = health(&play.store);
    assert_eq!((told.queues.len(), told.queues[899].qid), (900, 899));
    play.front.as_ref().unwrap().send(&ToAgent::Leave).unwrap();
    assert_eq!(play.receive(), FromAgent::Gone);
}
