//! Fakes for tests: a kernel and a data plane that only record what is requested.

use crate::agent::World;
use crate::failure::Failure;
use crate::link::Link;
use crate::link::message::{Assignment, Opening};
use crate::link::peer::Peer;
use crate::report::{Health, NbdReport, OldestReport, QueueReport, Stats};
use crate::server;
use crate::server::engine::{Announce, Backing, Engine, Running};
use crate::signals::Signals;
use crate::spec::{AddSpec, BackendCommand, BackendSpec, Retry};
use crate::state::{Phase, Store};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use ublk_backends::Identity;
use ublk_core::{CpuMask, DevId, Features, Geometry, Limits, Mode};
use ublk_ctrl::{Command, Controller, Error, Operation, Reply};
use ublk_metrics::{Level, Operation as Kind, QueueSnapshot, Snapshot};
use ublk_trace::recorder::Drain;

pub(crate) const SIZE: u64 = 1 << 20;
pub(crate) const ID: u32 = 7;

/// Whether a condition becomes true within ten seconds. A dropped lock may outlive its file briefly: a child that
/// another test forks holds a copy of the descriptor until it execs or exits.
pub(crate) fn soon(mut is: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + Duration::from_secs(10);
    ublk_ctrl::wait::until(until, || Ok::<_, ()>(is().then_some(()))) == Ok(Some(()))
}

/// All events in order, and the driver's side of the device.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    log: Mutex<Vec<String>>,
    changed: Condvar,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The step that fails.
    fail: Option<&'static str>,
    nonce: u64,
    /// Features that the driver lacks, and those that it drops silently.
    lacks: Features,
    drops: Features,
    /// Features requested from ADD_DEV.
    asked: Features,
    /// Written to when the driver aborts the fetches.
    abort: Option<UnixStream>,
    stopped: bool,
    /// The device's state, as the driver's number.
    device: u16,
    store: Option<Store>,
    /// The store's content at ADD and at START.
    seen: Vec<Seen>,
    /// The file that servers open, and how they opened it.
    file: Option<std::path::PathBuf>,
    openings: Vec<(Opening, bool)>,
    /// Streams to all servers; a write, or a close, acts as a signal.
    signals: Vec<UnixStream>,
    /// The NBD server that the device is at, and the one it is told to move to.
    nbd: Nbd,
    /// Announces a move to the agent.
    announce: Announced,
}

/// Where an NBD device is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Nbd {
    pub(crate) at: Option<String>,
    pub(crate) to: Option<String>,
}

#[derive(Default)]
struct Announced(Option<Announce>);

impl std::fmt::Debug for Announced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Announced").field(&self.0.is_some()).finish()
    }
}

/// Id and phase of a record, if it exists.
pub(crate) type Seen = Option<(Option<u32>, Phase)>;

impl Kernel {
    pub(crate) fn new(fail: Option<&'static str>) -> Arc<Self> {
        let kernel = Self::default();
        kernel.state.lock().unwrap().fail = fail;
        Arc::new(kernel)
    }

    /// Sends a signal to the last server.
    pub(crate) fn signal_server(&self) {
        let state = self.state.lock().unwrap();
        let mut signal = state.signals.last().expect("a server");
        signal.write_all(b"x").unwrap();
    }

    /// The device is at this NBD server.
    pub(crate) fn is_at(&self, uri: &str) {
        self.state.lock().unwrap().nbd.at = Some(uri.to_owned());
    }

    /// The device goes to the NBD server that it was told to move to, if that can be announced.
    pub(crate) fn moves(&self) -> Result<(), String> {
        let mut state = self.state.lock().unwrap();
        let to = state.nbd.to.take().expect("told to move");
        state.announce.0.as_ref().expect("serves")(&to)?;
        state.nbd.at = Some(to);
        Ok(())
    }

    /// Where the device is told to move.
    pub(crate) fn told_to_move(&self) -> Option<String> {
        self.state.lock().unwrap().nbd.to.clone()
    }

    /// Makes only this step fail from now on.
    pub(crate) fn set_fail(&self, step: Option<&'static str>) {
        self.state.lock().unwrap().fail = step;
    }

    /// Removes these features from the driver.
    pub(crate) fn lacks(&self, features: Features) {
        self.state.lock().unwrap().lacks = features;
    }

    /// Makes the driver grant these features to no device.
    pub(crate) fn drops(&self, features: Features) {
        self.state.lock().unwrap().drops = features;
    }

    /// The features requested from ADD_DEV.
    pub(crate) fn asked(&self) -> Features {
        self.state.lock().unwrap().asked
    }

    /// Makes the data plane open this file.
    pub(crate) fn has_file(&self, path: &std::path::Path) {
        self.state.lock().unwrap().file = Some(path.to_owned());
    }

    /// The file and the lock on it: those of the server before, where its descriptor came along.
    fn file(&self, passed: Vec<OwnedFd>) -> Option<(Identity, OwnedFd)> {
        let path = self.state.lock().unwrap().file.clone()?;
        let passed = passed.into_iter().next();
        let file = passed.map_or_else(|| std::fs::File::open(path).unwrap(), Into::into);
        file.try_lock().unwrap();
        Some((Identity::of(&file).unwrap(), file.into()))
    }

    fn opened(&self, opening: &Opening, passed: bool) {
        let mut state = self.state.lock().unwrap();
        state.openings.push((opening.clone(), passed));
    }

    /// How servers were told to open their backing store, and whether with a descriptor.
    pub(crate) fn openings(&self) -> Vec<(Opening, bool)> {
        self.state.lock().unwrap().openings.clone()
    }

    fn device(&self) -> Geometry {
        let state = self.state.lock().unwrap();
        let granted = state.asked.without(state.drops);
        geometry_in(state.device, state.nonce, granted)
    }

    /// Creates a device with this nonce, features and state.
    pub(crate) fn exists(&self, nonce: u64, features: Features, device: u16) {
        let mut state = self.state.lock().unwrap();
        (state.nonce, state.asked, state.device) = (nonce, features, device);
    }

    pub(crate) fn note(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push(what.into());
        self.changed.notify_all();
    }

    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits until an event has happened.
    pub(crate) fn wait_for(&self, what: &str) {
        let log = self.log.lock().unwrap();
        let (log, wait) = self
            .changed
            .wait_timeout_while(log, Duration::from_secs(10), |log| {
                !log.iter().any(|l| l == what)
            })
            .unwrap();
        assert!(!wait.timed_out(), "no `{what}` in {log:?}");
    }

    pub(crate) fn fails(&self, step: &str) -> bool {
        self.state.lock().unwrap().fail == Some(step)
    }

    /// Sets the store whose records are read when ADD and START arrive.
    pub(crate) fn look_into(&self, store: &Store) {
        self.state.lock().unwrap().store = Some(store.clone());
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    fn look(&self) {
        let mut state = self.state.lock().unwrap();
        let store = state.store.as_ref();
        let record = store.and_then(|s| s.find(ID, state.nonce).unwrap());
        let seen = record.map(|r| (r.id, r.phase));
        state.seen.push(seen);
    }

    /// Makes the driver abort every fetch.
    pub(crate) fn abort(&self) {
        let mut state = self.state.lock().unwrap();
        state.stopped = true;
        if let Some(mut abort) = state.abort.take() {
            abort.write_all(b"a").unwrap();
        }
    }

    fn fetches(&self, abort: UnixStream) {
        let mut state = self.state.lock().unwrap();
        if state.stopped {
            (&abort).write_all(b"a").unwrap();
        }
        state.abort = Some(abort);
    }
}

/// The device as the driver creates it: with the granted features and those it always sets.
pub(crate) fn geometry(nonce: u64, granted: Features) -> Geometry {
    geometry_in(0, nonce, granted)
}

/// As `geometry`, in this state.
pub(crate) fn geometry_in(state: u16, nonce: u64, granted: Features) -> Geometry {
    let forced = Features::URING_CMD_COMP_IN_TASK | Features::CMD_IOCTL_ENCODE;
    serde_json::from_value(serde_json::json!({
        "dev_id": ID, "queues": 2, "depth": 64, "max_io_bytes": 524_288, "io_desc_size": 24,
        "features": (granted | forced).bits(), "state": state, "server_pid": null, "server_flags": nonce,
        "owner_uid": 0, "owner_gid": 0,
    }))
    .unwrap()
}

pub(crate) fn spec() -> AddSpec {
    AddSpec {
        backend: BackendSpec::Mem { size: SIZE },
        id: None,
        queues: 2,
        depth: 64,
        block_size: 512,
        max_io_bytes: 512 << 10,
        read_only: false,
        mode: Mode::default(),
        auto: None,
        recovery: ublk_core::Recovery::None,
        parameters: Box::default(),
        serving: crate::spec::Serving::default(),
        name: None,
        scheduler: Default::default(),
        supervise: false,
        unprivileged: false,
        trust_kernel: false,
    }
}

/// The control plane of the fake kernel.
pub(crate) struct Control(pub(crate) Arc<Kernel>);

#[expect(unsafe_code, reason = "plays the driver")]
// SAFETY: no data plane serves a device of the fake kernel.
unsafe impl Controller for Control {
    fn call(&mut self, command: Command, _deadline: Duration) -> Result<Reply, Error> {
        let step = match command {
            Command::Affinity { queue, .. } => format!("affinity {queue}"),
            _ => command.operation().to_string(),
        };
        self.0.note(step.clone());
        if self.0.fails(&step) {
            return Err(Error::Refused {
                operation: command.operation(),
                dev: command.dev(),
                errno: ublk_core::Errno::EINVAL,
            });
        }
        Ok(match command {
            Command::Add { spec } => {
                {
                    let mut state = self.0.state.lock().unwrap();
                    state.nonce = spec.spec().server_flags;
                    state.asked = spec.spec().features;
                    let has = Features::known().without(state.lacks);
                    ublk_core::require_features(state.asked, has)?;
                }
                self.0.look();
                Reply::Geometry(self.0.device())
            }
            Command::Info { .. } => Reply::Geometry(self.0.device()),
            Command::Affinity { queue, .. } => {
                let mut mask = CpuMask::new();
                mask.insert(queue.get().into());
                Reply::Affinity(mask)
            }
            Command::Features => {
                let state = self.0.state.lock().unwrap();
                Reply::Features(Features::known().without(state.lacks))
            }
            Command::GetParams { .. } => {
                let spec = ublk_core::DeviceSpec::new(Limits::new(SIZE));
                let spec = spec.check(ublk_ctrl::page_size())?;
                let params = spec.params(&self.0.device())?;
                Reply::Params(ublk_core::DeviceParams::decode(&params))
            }
            Command::StartRecovery { .. } => {
                self.0.state.lock().unwrap().stopped = false;
                Reply::Done
            }
            Command::EndRecovery { .. } => {
                self.0.state.lock().unwrap().device = 1;
                Reply::Done
            }
            Command::Quiesce { .. } => {
                self.0.state.lock().unwrap().device = 2;
                self.0.abort();
                Reply::Done
            }
            Command::Stop { .. } => {
                self.0.abort();
                Reply::Done
            }
            Command::Start { server_pid, .. } => {
                assert_eq!(server_pid, std::process::id());
                self.0.look();
                Reply::Done
            }
            _ => Reply::Done,
        })
    }
}

/// The data plane of the fake kernel.
pub(crate) struct Data(pub(crate) Arc<Kernel>);

impl Engine for Data {
    fn open(
        &mut self,
        spec: &AddSpec,
        opening: &Opening,
        passed: Vec<OwnedFd>,
    ) -> Result<Backing, Failure> {
        if self.0.fails("open") {
            return Err(Failure::failed("open: no memory"));
        }
        self.0.note("open");
        self.0.opened(opening, !passed.is_empty());
        let limits = Limits::new(spec.backend.size());
        let store = self.0.file(passed).into_iter().collect();
        Ok(Backing { limits, store })
    }

    fn arm(&mut self, assignment: &Assignment) -> Result<Box<dyn Running>, Failure> {
        assert_eq!(assignment.affinity.len(), 2);
        if self.0.fails("arm") {
            return Err(Failure::failed("arm: queue 1: no ring"));
        }
        let (ended, abort) = UnixStream::pair().unwrap();
        self.0.fetches(abort);
        if self.0.fails("hang in arm") {
            self.0.note("hangs");
            // Block until the driver aborts the fetches.
            let _ = (&ended).read(&mut [0]);
            return Err(Failure::failed("arm: aborted"));
        }
        if self.0.fails("slow arm") {
            self.0.note("arming slowly");
            std::thread::sleep(Duration::from_millis(300));
        }
        self.0.note("armed");
        Ok(Box::new(Serving(Arc::clone(&self.0), ended)))
    }
}

struct Serving(Arc<Kernel>, UnixStream);

impl Running for Serving {
    fn ended_fd(&self) -> BorrowedFd<'_> {
        self.1.as_fd()
    }

    fn command(&self, command: &BackendCommand) {
        let BackendCommand::Nbd(command) = command;
        if command.uri.is_some() {
            self.0.state.lock().unwrap().nbd.to.clone_from(&command.uri);
        }
    }

    fn announce_moves(&self, announce: Announce) {
        self.0.state.lock().unwrap().announce = Announced(Some(announce));
    }

    fn health(&self) -> Health {
        let nbd = self.0.state.lock().unwrap().nbd.clone();
        Health {
            nbd: nbd.at.map(|at| NbdReport {
                state: "up".to_owned(),
                since: 0,
                last_error: None,
                connections: 1,
                reconnects: 0,
                replayed: 0,
                retry: Retry::Never,
                uri: at,
                moving: nbd.to.is_some().into(),
                moving_to: nbd.to,
                tls: None,
            }),
            state: "serving".to_owned(),
            first_error: None,
            stats: Stats {
                reads: 42,
                ..Stats::default()
            },
            queues: queues(if self.0.fails("many threads") { 900 } else { 0 }),
            ..Health::default()
        }
    }

    fn metrics(&self) -> Snapshot {
        let mut snapshot = Snapshot::new(Level::Off, 1, 2_000_000_000);
        let mut queue = QueueSnapshot::new(0, 0);
        queue.op_mut(Kind::Read).requests = 42;
        snapshot.queues.push(queue);
        snapshot
    }

    fn measure(&self, level: Level) {
        self.0.note(format!("measures {level}"));
    }

    fn record(&self) -> Vec<Drain> {
        let (mut tap, drain) = ublk_trace::recorder::channel(4096);
        for n in 0..3000 {
            tap.push(&crate::recording::tests::record(n));
        }
        vec![drain]
    }

    fn end_recording(&self) {
        self.0.note("records no more");
    }

    fn failure(&self) -> Option<Failure> {
        let failed = self.0.fails("queue");
        failed.then(|| Failure::failed("queue 1: its thread died"))
    }

    fn finish(&mut self, _within: Duration) -> Result<Health, Failure> {
        self.0.note("empty");
        Ok(self.health())
    }
}

/// Roles as threads on the fake kernel.
pub(crate) struct Threads(pub(crate) Arc<Kernel>);

/// The server role on a thread of the test.
pub(crate) fn server(kernel: &Arc<Kernel>, signals: Option<Signals>) -> Peer {
    let (near, far) = Link::pair().unwrap();
    let (exit, alive) = UnixStream::pair().unwrap();
    let kernel = Arc::clone(kernel);
    std::thread::spawn(move || {
        let code = server::run(far, &mut Data(Arc::clone(&kernel)), signals, None);
        kernel.note(format!("server exit {code}"));
        drop(alive);
    });
    Peer::thread(near, exit.into(), 4242)
}

impl World for Threads {
    fn drop_caller_limits(&mut self) {}

    fn named(&mut self, _id: DevId) {}

    fn server(&mut self) -> Result<Peer, Failure> {
        if self.0.fails("spawn") {
            return Err(Failure::failed("no process left"));
        }
        if self.0.fails("silent server") {
            let (near, far) = Link::pair().unwrap();
            let (exit, alive) = UnixStream::pair().unwrap();
            // It hangs until told to quit.
            std::thread::spawn(move || {
                let far = far;
                while !matches!(
                    far.recv::<crate::link::message::ToServer>(None),
                    Ok(crate::link::message::ToServer::Quit) | Err(_)
                ) {}
                drop(alive);
            });
            return Ok(Peer::thread(near, exit.into(), 4242));
        }
        let (signals, signal) = UnixStream::pair().unwrap();
        self.0.state.lock().unwrap().signals.push(signal);
        Ok(server(&self.0, Some(Signals::fake(signals))))
    }

    fn start_helper(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn prove(
        &mut self,
        id: DevId,
        size: u64,
        _server: Option<BorrowedFd<'_>>,
        _deadline: Duration,
    ) -> Result<(), Error> {
        self.0.note("prove");
        assert_eq!((id.get(), size), (ID, SIZE));
        if self.0.fails("prove") {
            return Err(Error::TimedOut {
                operation: Operation::ProveReady,
                dev: Some(id),
                after: Duration::from_secs(1),
                abandoned: true,
            });
        }
        Ok(())
    }

    fn no_scheduler(&mut self, id: DevId, _deadline: Duration) -> Result<(), Error> {
        self.0.note("no scheduler");
        assert_eq!(id.get(), ID);
        if self.0.fails("no scheduler") {
            return Err(Error::NoPermission {
                operation: Operation::NoScheduler,
                dev: Some(id),
                errno: ublk_core::Errno::EACCES,
            });
        }
        Ok(())
    }

    fn sync(&mut self, _id: DevId, _deadline: Duration) -> Result<(), Error> {
        self.0.note("sync");
        Ok(())
    }

    fn end_helper(&mut self) {}

    fn control(&mut self) -> Result<Box<dyn Controller>, Error> {
        if self.0.fails("open control") {
            return Err(Error::MissingModule);
        }
        Ok(Box::new(Control(Arc::clone(&self.0))))
    }
}

/// The health of this many queues, each as long as a real one.
fn queues(count: u16) -> Vec<QueueReport> {
    let queue = |qid| QueueReport {
        qid,
        thread: 0,
        state: "serving".to_owned(),
        in_hand: 0,
        oldest: Some(OldestReport {
            ms: u64::MAX,
            place: "backend".to_owned(),
        }),
        batches: u64::MAX,
        pinned: Some((0..16).collect()),
        io_flusher: true,
        setup: "single-issuer defer-taskrun registered-fd registered-files no-sqarray".to_owned(),
        buffer_bytes: 64 << 20,
        pages: "small pages".to_owned(),
    };
    (0..count).map(queue).collect()
}
