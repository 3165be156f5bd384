//! The data plane behind the server role: a backend of ours served by `ublk-queue`.

use super::engine::{Announce, Backing, Engine, Running};
use super::failures::{Failures, Members};
use super::sandbox;
use crate::backend::{
    Opened, Purpose, log_notes, open, open_to_serve, start_protected, start_zoned,
};
use crate::failure::Failure;
use crate::link::message::{Assignment, Opening};
use crate::problems;
use crate::report::{FileReport, Health, NbdReport, OldestReport, QueueReport, ShmReport, Stats};
use crate::shm;
use crate::spec::{AddSpec, BackendCommand, BackendSpec, NbdCommand};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use ublk_backends::{Composed, File, Protected, ZonedDevice};
use ublk_core::{Backend, Features, Limits, Op, OpenDevice};
use ublk_metrics::{Level, Snapshot};
use ublk_nbd::Nbd;
pub use ublk_queue::Polling;
use ublk_queue::{Plan, Recorded, Recorder, Server, State};
use ublk_trace::Record;
use ublk_trace::recorder::{Drain, Tap};

/// Threads of a device whose requests are delayed: as many wait at once.
const FAULT_THREADS: usize = 32;

/// How long the thread of a failed queue keeps its ring and waits for the end of the process.
const LINGER: Duration = Duration::from_secs(5);

/// The real data plane.
#[derive(Debug, Default)]
pub struct Real {
    opened: Option<(Opened, Limits, AddSpec)>,
    /// Integrity metadata is still that of the previous server.
    start_later: bool,
    /// The previous server holds lock and claim of the file until it exits.
    claim_later: bool,
    /// The kernel may scan for partitions.
    partitions: bool,
    /// The names of several files, for messages.
    members: Option<Members>,
    /// The memory that the device's clients share, open.
    shm: Option<std::fs::File>,
    /// Whether the process only runs this engine, and may drop everything that serving does not need.
    confined: bool,
}

impl Real {
    /// For a process that only serves: see [`sandbox`].
    #[must_use]
    pub fn confined() -> Self {
        Self {
            confined: true,
            ..Self::default()
        }
    }
}

impl Engine for Real {
    fn open(
        &mut self,
        spec: &AddSpec,
        opening: &Opening,
        passed: Vec<OwnedFd>,
    ) -> Result<Backing, Failure> {
        self.claim_later = opening.predecessor.is_some() && passed.is_empty();
        let mut before = Vec::new();
        let purpose = match opening.nonce {
            None => Purpose::Make,
            Some(_) if opening.backing.is_empty() => Purpose::Accept,
            Some(_) => Purpose::Continue,
        };
        let (opened, limits) = open(spec, purpose, |number, path, _| {
            let file = open_to_serve(spec, (number, path), &before, opening, &passed)?;
            before.push(file.identity());
            Ok(file)
        })?;
        let files = opened.files();
        for (file, member) in files.iter().zip(spec.backend.members()) {
            let path = &member.path;
            log_notes(path, file);
            if file.by_ring(spec.mode.data) && file.is_in_memory() {
                tracing::warn!(
                    "{}: this file is in memory and has no asynchronous I/O: in mode {} a kernel thread executes each request; \
                     --data copy is cheaper",
                    path.display(),
                    spec.mode.data
                );
            }
        }
        let copies = files.iter().map(|file| {
            let copy = file.as_fd().try_clone_to_owned();
            copy.map(|copy| (file.identity(), copy))
        });
        // All or none.
        let store = copies.collect::<Result<_, _>>().unwrap_or_default();
        self.members = Members::of(&opened, spec);
        self.shm = shm::open(spec)?;
        self.partitions = !spec.parameters.no_partition_scan;
        self.start_later = purpose.continues();
        self.opened = Some((opened, limits, spec.clone()));
        Ok(Backing { limits, store })
    }

    fn arm(&mut self, assignment: &Assignment) -> Result<Box<dyn Running>, Failure> {
        let (opened, limits, spec) = self
            .opened
            .take()
            .ok_or_else(|| Failure::failed("assigned a device before the backend was open"))?;
        let geometry = &assignment.geometry;
        let within = Duration::from_millis(assignment.deadline_ms);
        let begun = Instant::now();
        let protected = match &opened {
            Opened::ProtectedFile(device) => Some(Arc::clone(device)),
            _ => None,
        };
        match &opened {
            Opened::ProtectedFile(device) if self.start_later => {
                start_protected(&spec, device, within / 2)?;
            }
            Opened::ZonedFile(device) if self.start_later => {
                if let BackendSpec::File { path, .. } = &spec.backend {
                    start_zoned(path, device, within / 2)?;
                }
            }
            _ => {}
        }
        let serving = spec.serving;
        let device = crate::sys::device::open(geometry, within)?;
        let mut plan = Plan::new(limits.size).affinity(assignment.affinity.clone());
        plan.arm_deadline = within.saturating_sub(begun.elapsed());
        plan.options = serving.options;
        plan.threads = serving.total_threads;
        let by_flag = assignment
            .geometry
            .features()
            .contains(Features::NO_AUTO_PART_SCAN);
        plan.partitions = by_flag || self.partitions;
        plan.linger = LINGER;
        let mut shm_bytes = 0;
        if let (Some(path), Some(file), Some(registered)) =
            (&serving.shm, &self.shm, &assignment.shm)
        {
            let memory = shm::map(path, file, registered)?;
            shm_bytes = memory.len();
            plan.client_memory = Some(memory);
        }
        // Without it failures are counted only.
        let failures = Failures::new(self.members.take()).ok();
        let (failures, on_failure) = failures.unzip();
        plan.on_failure = on_failure;
        let files = Files::of(&opened);
        let nbd = match &opened {
            Opened::Nbd(nbd) => Some(Arc::clone(nbd)),
            _ => None,
        };
        if self.claim_later && !opened.files().into_iter().all(File::claim) {
            tracing::debug!("the previous server still holds the lock and claim of the file");
        }
        if self.confined {
            sandbox::drop_capabilities();
            plan.gives_up_admin = true;
        }
        if let Some(nbd) = &nbd {
            may_reconnect(nbd)?;
            if let Some(params) = &assignment.params {
                nbd.serves(params);
            }
        }
        let server = arm_backend(device, plan, opened)?;
        if let Some(nbd) = &nbd {
            connected(nbd, assignment, within.saturating_sub(begun.elapsed()))?;
        }
        if self.confined {
            sandbox::filter_calls(nbd.is_some());
        }
        Ok(Box::new(Served {
            server,
            files,
            protected,
            nbd,
            failures,
            shm_bytes,
        }))
    }
}

/// Serves a backend in the way that suits it.
fn arm_backend(device: OpenDevice, mut plan: Plan, opened: Opened) -> Result<Server, Failure> {
    let server = match opened {
        Opened::Null(null) => Server::arm(device, plan, null),
        Opened::Memory(memory) => Server::arm_mapped(device, plan, memory),
        Opened::Fault(faulty) => {
            // Requests that wait take a thread each.
            plan.pool_threads = FAULT_THREADS;
            arm_any(device, plan, faulty)
        }
        Opened::File(file) => arm_file(device, plan, file),
        Opened::Composed(composed) => Composed::arm(device, plan, composed),
        Opened::ZonedMemory(zoned) => ZonedDevice::arm(device, plan, zoned),
        Opened::ProtectedNull(protected) => arm_any(device, plan, protected),
        Opened::ProtectedMemory(protected) => Protected::arm(device, plan, protected),
        Opened::ProtectedFile(protected) => arm_any(device, plan, protected),
        Opened::ZonedFile(zoned) => arm_any(device, plan, zoned),
        Opened::Nbd(nbd) => nbd.arm(device, plan),
    };
    server.map_err(|e| Failure::failed(format!("cannot serve: {e}")))
}

/// Serves a backend by calls through its table: the engine is compiled for each type that it serves, which takes longer than
/// all else of this crate, and beside what these do for a request such a call is nothing.
fn arm_any(
    device: OpenDevice,
    plan: Plan,
    backend: Arc<dyn Backend>,
) -> Result<Server, ublk_queue::Error> {
    Server::arm(device, plan, Arc::new(backend))
}

fn arm_file(device: OpenDevice, plan: Plan, file: Arc<File>) -> Result<Server, ublk_queue::Error> {
    #[cfg(feature = "kill-points")]
    if let Some(trap) = super::trap::Trap::from_env(&file) {
        return arm_any(device, plan, trap);
    }
    File::arm(device, plan, file)
}

/// The files behind a device, for its health.
enum Files {
    One(Arc<File>),
    Several(Arc<Composed>),
}

impl Files {
    fn of(opened: &Opened) -> Option<Self> {
        match opened {
            Opened::File(file) => Some(Self::One(Arc::clone(file))),
            Opened::Composed(composed) => Some(Self::Several(Arc::clone(composed))),
            _ => None,
        }
    }

    fn syncs(&self) -> (u64, u64) {
        match self {
            Self::One(file) => file.syncs(),
            Self::Several(composed) => composed.syncs(),
        }
    }

    fn all(&self, is: impl Fn(&File) -> bool) -> bool {
        match self {
            Self::One(file) => is(file),
            Self::Several(composed) => composed.members().iter().all(is),
        }
    }
}

/// A device being served, and what its health tells beside the queues.
struct Served {
    server: Server,
    files: Option<Files>,
    /// A device whose metadata is in a file.
    protected: Option<Arc<Protected<File>>>,
    nbd: Option<Arc<Nbd>>,
    failures: Option<Failures>,
    /// Size of the memory shared with clients, in bytes.
    shm_bytes: u64,
}

impl Served {
    fn report(&self, health: &ublk_queue::Health) -> Health {
        let counters = &health.counters;
        let file = self.files.as_ref().map(|files| {
            let (sync_requests, by_calls) = files.syncs();
            FileReport {
                direct: files.all(File::is_direct),
                asynchronous: files.all(|file| !file.is_in_memory()),
                sync_requests,
                syncs: by_calls + counters.syncs,
            }
        });
        let shm = (self.shm_bytes != 0).then_some(ShmReport {
            bytes: self.shm_bytes,
            hits: counters.shared_hits,
            fallbacks: counters.shared_misses,
        });
        let nbd = self.nbd.as_deref().map(nbd_report);
        let mut health = Health {
            file,
            shm,
            nbd,
            first_failure: self.failures.as_ref().and_then(Failures::first),
            ..convert(health)
        };
        health.problems = problems::of(&health);
        health
    }
}

impl Running for Served {
    fn ended_fd(&self) -> BorrowedFd<'_> {
        self.server.ended_fd()
    }

    fn health(&self) -> Health {
        self.report(&self.server.health())
    }

    fn failures_fd(&self) -> Option<BorrowedFd<'_>> {
        self.failures.as_ref().map(Failures::fd)
    }

    fn say_failures(&self) {
        if let Some(failures) = &self.failures {
            failures.say(|text| tracing::error!("{text}"));
        }
    }

    fn moved_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.server.moved_fd())
    }

    fn tell_when_moving(&self) {
        self.server.tell_when_moving();
    }

    fn command(&self, command: &BackendCommand) {
        let (
            Some(nbd),
            BackendCommand::Nbd(NbdCommand {
                uri,
                stay,
                retry,
                size,
                give_up,
            }),
        ) = (&self.nbd, command)
        else {
            return;
        };
        if *stay {
            nbd.stay();
        }
        if let Some(size) = size {
            nbd.set_size(*size);
        }
        if let Some(retry) = retry {
            tracing::info!("retry policy: {retry}");
            nbd.set_retry(*retry);
        }
        match uri.as_deref().map(str::parse) {
            Some(Ok(uri)) => {
                if let Err(e) = nbd.move_to(uri) {
                    tracing::warn!("{e}");
                }
            }
            Some(Err(e)) => tracing::warn!("{e}"),
            None => {}
        }
        if *give_up {
            tracing::info!(
                "requests that wait for the NBD server fail, because the device is being stopped"
            );
            nbd.give_up();
        }
    }

    fn announce_moves(&self, announce: Announce) {
        if let Some(nbd) = &self.nbd {
            nbd.announce_moves(Box::new(move |uri| announce(&uri.to_string())));
        }
    }

    fn metrics(&self) -> Snapshot {
        self.server.metrics()
    }

    fn measure(&self, level: Level) {
        self.server.measure(level);
    }

    fn record(&self) -> Vec<Drain> {
        let mut drains = Vec::new();
        self.server.record(|_| {
            let (tap, drain) = ublk_trace::recorder::channel(RING);
            drains.push(drain);
            Box::new(ToRing(tap))
        });
        drains
    }

    fn end_recording(&self) {
        // A thread that does not follow in time is at work on its last batch; what it records then is left out.
        let _ = self.server.end_recording(Instant::now() + FOLLOW);
    }

    fn failure(&self) -> Option<Failure> {
        failure(&self.server.health())
    }

    fn finish(&mut self, within: Duration) -> Result<Health, Failure> {
        let report = self.server.finish(within);
        let health = report.map_err(|e| Failure::failed(e.to_string()))?.health;
        if let Some(Err(errno)) = self.protected.as_ref().map(|device| device.close()) {
            tracing::warn!(
                "the integrity metadata is checked when the device is added again, because it could not be closed: {errno}"
            );
        }
        failure(&health).map_or_else(|| Ok(self.report(&health)), Err)
    }
}

/// Requests that a thread can serve between two visits of the recorder's reader: 40 bytes each.
const RING: u32 = 1 << 16;

/// How long the threads may take to let go of their recorders.
const FOLLOW: Duration = Duration::from_secs(1);

/// Pushes the requests of a lane into a ring.
struct ToRing(Tap);

impl Recorder for ToRing {
    fn record(&mut self, request: &Recorded) {
        use ublk_trace::Op as To;
        let op = match request.op {
            Op::Read => To::Read,
            Op::Write => To::Write,
            Op::Flush => To::Flush,
            Op::Discard => To::Discard,
            Op::WriteZeroes => To::WriteZeroes,
            Op::ZoneAppend => To::ZoneAppend,
            _ => To::Zone,
        };
        let errno = request
            .errno
            .and_then(|errno| u16::try_from(errno.get()).ok());
        let _ = self.0.push(&Record {
            time: request.began,
            op,
            offset: request.offset,
            len: request.len,
            queue: request.qid.get(),
            latency: Some(request.took),
            error: errno.and_then(NonZeroU16::new),
        });
    }
}

/// Ensures that this process can reconnect to the NBD server without its capabilities.
fn may_reconnect(nbd: &Nbd) -> Result<(), Failure> {
    nbd.check_access().map_err(|e| {
        Failure::failed(format!(
            "{}: the server process could not reconnect to the NBD server: {e}",
            nbd.uri()
        ))
        .hint("it runs without capabilities: let root's own permissions, or the user's, suffice for the socket, the files for TLS, and their directories")
    })
}

/// How long the queues of a new device may take to connect.
const CONNECTS: Duration = Duration::from_secs(10);

/// Each queue of an NBD device has its connection in time, or it is not made.
fn connected(nbd: &Nbd, assignment: &Assignment, left: Duration) -> Result<(), Failure> {
    let queues = assignment.geometry.queues();
    let lacking = match queues {
        // It has the first one.
        1 => 0,
        _ => nbd.unconnected(Instant::now() + left.min(CONNECTS)),
    };
    if lacking == 0 {
        return Ok(());
    }
    let text = format!(
        "{}: {lacking} of {queues} queues have no connection, although the server allows several",
        nbd.uri()
    );
    if assignment.params.is_some() {
        // It exists, and some of its queues serve it.
        tracing::warn!("{text}");
        return Ok(());
    }
    let clients = queues + 1;
    Err(Failure::failed(text).hint(format!(
        "let it admit {clients} clients, one of them for `upgrade` (qemu-nbd --shared={clients}), or use fewer --queues"
    )))
}

fn nbd_report(nbd: &Nbd) -> NbdReport {
    let status = nbd.status();
    let since = status.since.duration_since(std::time::UNIX_EPOCH);
    NbdReport {
        state: status.state.name().to_owned(),
        since: since.map_or(0, |since| since.as_secs()),
        last_error: status.last_error,
        connections: status.connections,
        reconnects: status.reconnects,
        replayed: status.replayed,
        retry: nbd.retry(),
        uri: nbd.uri().to_string(),
        moving: status.moving,
        moving_to: nbd.moves_to().map(|uri| uri.to_string()),
        tls: status.tls,
    }
}

fn failure(health: &ublk_queue::Health) -> Option<Failure> {
    let cause = health.first_error.as_deref();
    (health.state == State::Failed).then(|| Failure::failed(cause.unwrap_or("a queue failed")))
}

fn convert(health: &ublk_queue::Health) -> Health {
    let c = &health.counters;
    Health {
        state: health.state.name().to_owned(),
        first_error: health.first_error.clone(),
        stats: Stats {
            reads: c.reads,
            writes: c.writes,
            flushes: c.flushes,
            discards: c.discards,
            write_zeroes: c.write_zeroes,
            read_bytes: c.read_bytes,
            write_bytes: c.write_bytes,
            errors: c.errors,
            panics: c.panics,
            dropped: c.dropped,
            refused: c.refused,
            enters: c.enters,
        },
        queues: health
            .queues
            .iter()
            .map(|q| QueueReport {
                qid: q.qid.get(),
                thread: q.thread,
                state: q.state.name().to_owned(),
                in_hand: q.in_hand,
                oldest: q.oldest.map(oldest),
                batches: q.counters.enters,
                pinned: q.pinned.as_ref().map(|mask| mask.iter().collect()),
                io_flusher: q.io_flusher,
                setup: q.ring.clone(),
                buffer_bytes: q.buffer_bytes,
                pages: q.pages.name().to_owned(),
            })
            .collect(),
        ..Health::default()
    }
}

fn oldest(oldest: ublk_queue::Oldest) -> OldestReport {
    OldestReport {
        ms: u64::try_from(oldest.age.as_millis()).unwrap_or(u64::MAX),
        place: oldest.place.name().to_owned(),
    }
}
