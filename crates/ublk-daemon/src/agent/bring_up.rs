//! Brings up a new device, and cleans up if a step fails.

use super::{Agent, Device, LEAVE};
use crate::failure::Failure;
use crate::kill_point::kill_point;
use crate::link::listener::Listener;
use crate::link::message::{AddRequest, Assignment, FromServer, Lifetime, Opening, ToServer};
use crate::link::peer::Peer;
use crate::link::{LINK_VERSION, Link};
use crate::names;
use crate::report::Added;
use crate::shm;
use crate::spec::{AddSpec, Scheduler};
use crate::state::{self, Phase, ProcessId, Record};
use crate::sys::poll;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use ublk_backends::Identity;
use ublk_core::{CheckedSpec, DevId, DeviceSpec, Features, Limits, Mode, Recovery};
use ublk_ctrl::Error;
use ublk_ctrl::bring_up::{self, TimeLimit, Unserved};

/// How long a device may take to answer its requests in flight before its I/O scheduler is disabled.
const UNSCHEDULE: Duration = Duration::from_secs(2);

/// The time left until the deadline.
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Checks a requested device against the kernel's rules before anything is created. `more` are features beyond those of
/// its mode and policy.
///
/// # Errors
/// [`Error::Spec`] with the violated rule.
pub fn check(
    spec: &AddSpec,
    limits: Limits,
    more: Features,
    nonce: u64,
) -> Result<CheckedSpec, Error> {
    let owned = if spec.unprivileged {
        Features::UNPRIVILEGED_DEV
    } else {
        Features::NONE
    };
    let mut device = DeviceSpec::new(spec.parameters.over(limits))
        .queues(spec.queues)
        .depth(spec.depth)
        .max_io_bytes(spec.max_io_bytes)
        .features(
            spec.mode.features() | spec.recovery.features() | shm::features(spec) | owned | more,
        )
        .server_flags(nonce)
        .trust_kernel(spec.trust_kernel);
    if let Some(bytes) = spec.parameters.descriptor_size {
        device = device.descriptor_bytes(bytes);
    }
    if let Some(id) = spec.id {
        device = device.id(DevId::new(id).map_err(|e| Error::Spec {
            message: e.to_string(),
        })?);
    }
    Ok(device.check(ublk_ctrl::page_size())?)
}

impl Agent<'_> {
    /// Creates and starts the device. On failure, [`Agent::unwind`] removes what was created.
    pub(super) fn bring_up(
        &mut self,
        request: &AddRequest,
        deadline: Instant,
    ) -> Result<Added, Failure> {
        let mut spec = (*request.spec).clone();
        self.start_processes(&mut spec, deadline)?;
        self.tell_server(&ToServer::Describe {
            version: LINK_VERSION,
            spec: spec.clone(),
            opening: Opening::default(),
        });
        let (limits, backing) = self.described(deadline)?;
        tracing::debug!("the server described its backend");
        let nonce =
            state::nonce().map_err(|e| Failure::failed(format!("cannot get random bytes: {e}")))?;
        let asked = spec.mode.features() | spec.recovery.features();
        // A kernel before 7.0 lacks the flag; the server then arms in a way that prevents the scan.
        let optional = match spec.parameters.no_partition_scan {
            true => Features::NO_AUTO_PART_SCAN,
            false => Features::NONE,
        };
        let more = bring_up::negotiate(self.control()?, asked, &[optional], left(deadline))?;
        let checked = check(&spec, limits, more, nonce)?;
        // The record is on disk before ADD_DEV, so that a kill leaves no unknown device (L31).
        let mut record = Record::new(nonce, spec.clone());
        record.server = self.server.as_ref().and_then(|s| ProcessId::of(s.pid));
        record.backing = backing;
        let added = self.add(request, checked, record, deadline)?;
        let unserved = self.set_up(&spec, &added, deadline)?;
        let pid = self.start(&spec, &unserved, limits.size, deadline)?;
        self.enter(Phase::Live)?;
        self.meetable();
        let (block_size, read_only) = (limits.logical_block_size, limits.read_only);
        Ok(self.describe(spec.backend.name(), limits.size, block_size, read_only, pid))
    }

    /// Starts server and helper before the control ring is created, so that they start up in parallel, and chooses the
    /// data mode if it was left open.
    fn start_processes(&mut self, spec: &mut AddSpec, deadline: Instant) -> Result<(), Failure> {
        self.server = Some(self.world.server()?);
        self.world.start_helper()?;
        tracing::debug!("server and helper are started");
        self.control = Some(self.world.control()?);
        tracing::debug!("the control ring is open");
        if let Some(data) = spec.auto {
            let kernel = self.control()?.features(left(deadline))?;
            if kernel.contains(data.features()) {
                spec.mode.data = data;
            }
        }
        Ok(())
    }

    /// Sends ADD_DEV. From then on this agent owns the device, with its record and its lock.
    fn add(
        &mut self,
        request: &AddRequest,
        checked: CheckedSpec,
        mut record: Record,
        deadline: Instant,
    ) -> Result<bring_up::Added, Failure> {
        let nonce = record.nonce;
        // Until the device has a number and its lock is taken.
        let _adding = self.store.adding(nonce)?;
        self.store.write(&record)?;
        kill_point("add:intent");
        let limit = TimeLimit::Until(deadline);
        let added = match bring_up::Added::add(self.control()?, checked, limit) {
            Ok(added) => added,
            Err(e) => {
                // ADD_DEV may still succeed: an abandoned command can take effect later, and the record then attributes
                // the device.
                if !matches!(e, Error::TimedOut { .. }) {
                    self.forget_pending(nonce);
                }
                return Err(e.into());
            }
        };
        kill_point("add:added");
        let geometry = *added.geometry();
        let id = geometry.dev_id();
        tracing::debug!("the device is added");
        self.world.named(id);
        crate::log::journal::device(id.get(), record.spec.name.as_deref());
        record.id = Some(id.get());
        self.log = (request.lifetime == Lifetime::Own).then(|| self.log_path(request, id));
        record.log.clone_from(&self.log);
        record.lifetime = Some(request.lifetime);
        self.device = Some(Device {
            id,
            geometry,
            record,
            started: false,
        });
        // An earlier agent with this number may still be exiting; no other agent has this device.
        self.lock = self.store.lock(id.get(), deadline)?;
        Ok(added)
    }

    /// Sets up the device and assigns it to the server, which arms it in parallel.
    fn set_up(
        &mut self,
        spec: &AddSpec,
        added: &bring_up::Added,
        deadline: Instant,
    ) -> Result<Unserved, Failure> {
        let geometry = added.geometry();
        if geometry.queues() != spec.queues {
            tracing::info!(
                "{} queues requested, the kernel created {} (at most one per CPU)",
                spec.queues,
                geometry.queues()
            );
        }
        let shm = spec.serving.shm.as_ref().zip(shm::open(spec)?);
        let memory = shm.as_ref().map(|(_, file)| file.as_fd());
        let limit = TimeLimit::Until(deadline);
        let (unserved, buffers) = added.set_up(self.control()?, memory, limit)?;
        if let (Some((path, file)), Some(device)) = (&shm, &mut self.device) {
            device.record.shm = Some(shm::registered(path, file, buffers)?);
        }
        tracing::debug!("parameters are set");
        kill_point("add:parameters");
        self.prepare_sockets(unserved.id());
        self.assign(&unserved, deadline)?;
        // State is on disk before START_DEV.
        self.enter(Phase::Starting)?;
        Ok(unserved)
    }

    /// Sends START_DEV once the server has armed, and checks that the device is usable. Returns the process that opened
    /// the character device.
    fn start(
        &mut self,
        spec: &AddSpec,
        unserved: &Unserved,
        size: u64,
        deadline: Instant,
    ) -> Result<u32, Failure> {
        let id = unserved.id();
        let pid = self.armed(deadline)?;
        tracing::debug!("the server is armed");
        kill_point("start:armed");
        if let Some(device) = &mut self.device {
            device.started = true;
        }
        unserved.go_live(self.control()?, pid, TimeLimit::Until(deadline))?;
        tracing::debug!("the device is started");
        kill_point("start:started");
        let server = self.server.as_ref().map(Peer::exit_fd);
        self.world.prove(id, size, server, left(deadline))?;
        tracing::debug!("the device is proved ready");
        kill_point("start:ready");
        // An unprivileged user may not write to sysfs.
        if spec.scheduler == Scheduler::None && !spec.unprivileged {
            self.unschedule(id, deadline);
        }
        self.link();
        Ok(pid)
    }

    /// Creates the sockets on which agent and server accept connections. Without them the device still serves.
    fn prepare_sockets(&mut self, id: DevId) {
        match Listener::prepare(&self.store.next_socket(id.get())) {
            Ok(next) => self.next = Some(next),
            Err(e) => tracing::warn!("this agent cannot receive hand-over requests: {e}"),
        }
        match Listener::prepare(&self.store.server_socket(id.get())) {
            Ok(attach) => self.attach = Some(attach),
            Err(e) => tracing::warn!("a later agent cannot connect to the server: {e}"),
        }
    }

    /// Assigns the device to the server, with the socket on which it accepts another agent if it loses this one.
    pub(super) fn assign(&mut self, unserved: &Unserved, deadline: Instant) -> Result<(), Failure> {
        let affinity = unserved.affinity(self.control()?, TimeLimit::Until(deadline))?;
        let word = ToServer::Assign(Assignment {
            geometry: *unserved.geometry(),
            affinity,
            deadline_ms: u64::try_from(left(deadline).as_millis()).unwrap_or(u64::MAX),
            shm: self.device.as_ref().and_then(|d| d.record.shm.clone()),
            params: self.promised,
        });
        let attach = self.attach.as_ref().map(AsFd::as_fd);
        self.tell_server_with(&word, attach.as_slice());
        Ok(())
    }

    /// Disables the device's I/O scheduler. If that fails, the device still serves.
    fn unschedule(&mut self, id: DevId, deadline: Instant) {
        let within = left(deadline).min(UNSCHEDULE);
        if let Err(e) = self.world.no_scheduler(id, within) {
            tracing::warn!("{e}");
        }
    }

    /// Creates the link of the device's name, if it has one. If that fails, the device still serves.
    pub(super) fn link(&self) {
        let Some(device) = &self.device else { return };
        // An unprivileged user may not create links in /dev.
        if let Some(name) = &device.record.spec.name
            && !device.record.spec.unprivileged
            && let Err(e) = names::link(name, device.id)
        {
            tracing::warn!("cannot create link {}: {e}", names::path(name).display());
        }
    }

    fn log_path(&self, request: &AddRequest, id: DevId) -> PathBuf {
        let asked = request.log.clone();
        asked.unwrap_or_else(|| self.store.log(id.get()))
    }

    fn forget_pending(&self, nonce: u64) {
        if let Err(e) = self.store.forget_pending(nonce) {
            tracing::warn!("{e}");
        }
    }

    /// Records the device's phase.
    fn enter(&mut self, phase: Phase) -> Result<(), Failure> {
        let Some(device) = &mut self.device else {
            return Ok(());
        };
        device.record.phase = phase;
        Ok(self.store.write(&device.record)?)
    }

    /// The device that the server can serve, and which files or disks that is; their descriptors are kept.
    pub(super) fn described(
        &mut self,
        deadline: Instant,
    ) -> Result<(Limits, Vec<Identity>), Failure> {
        match self.hear_server("described", deadline)? {
            FromServer::Described {
                version,
                limits,
                backing,
            } if version == LINK_VERSION => {
                let link = self.server.as_ref().map(|server| &server.link);
                self.backing = link.map(Link::take_descriptors).unwrap_or_default();
                Ok((limits, backing))
            }
            other => Err(out_of_turn(&other)),
        }
    }

    pub(super) fn armed(&mut self, deadline: Instant) -> Result<u32, Failure> {
        match self.hear_server("armed", deadline)? {
            FromServer::Armed { pid } => Ok(pid),
            other => Err(out_of_turn(&other)),
        }
    }

    pub(super) fn describe(
        &self,
        backend: &str,
        size: u64,
        block_size: u32,
        read_only: bool,
        server_pid: u32,
    ) -> Added {
        let device = self.device.as_ref();
        let geometry = device.map(|d| d.geometry);
        let mode = geometry.map_or_else(Mode::default, |g| Mode::of(g.features()));
        let id = device.map_or(0, |d| d.id.get());
        Added {
            id,
            path: PathBuf::from(format!("/dev/ublkb{id}")),
            char_path: PathBuf::from(format!("/dev/ublkc{id}")),
            queues: geometry.map_or(0, |g| g.queues()),
            depth: geometry.map_or(0, |g| g.depth()),
            size,
            block_size,
            max_io_bytes: geometry.map_or(0, |g| g.max_io_bytes()),
            read_only,
            backend: backend.to_owned(),
            data: mode.data,
            batch: mode.batch,
            recovery: geometry.map_or_else(Recovery::default, |g| Recovery::of(g.features())),
            pause_us: None,
            features: geometry.map_or_else(Vec::new, |g| {
                g.features().iter().map(|f| f.name.to_owned()).collect()
            }),
            server_pid,
            agent_pid: std::process::id(),
        }
    }

    /// Undoes a failed [`Agent::bring_up`]: STOP frees the fetches, the server
    /// leaves, DEL removes the device, then its record goes.
    pub(super) fn unwind(&mut self) {
        self.relay.close();
        if let Some(id) = self.device.as_ref().map(|d| d.id)
            && let Ok(control) = self.control()
            && let Err(e) = control.stop(id, LEAVE)
            && !matches!(e, Error::NoSuchDevice { .. })
        {
            tracing::warn!("{e}");
        }
        self.tell_server(&ToServer::Quit);
        if let Some(server) = &mut self.server {
            // The link closes too: a server that waits for a message exits.
            let gone = poll::readable(&[server.exit_fd()], Some(Instant::now() + LEAVE));
            if !matches!(gone.as_deref(), Ok([true])) {
                tracing::warn!("server process {} does not exit; killing it", server.pid);
                // Safe here: this process issued STOP, not the server (a process with its own STOP in flight cannot be
                // killed).
                let _ = server.signal(libc::SIGKILL);
            }
            let _ = server.ended();
        }
        if let Some(device) = self.device.take() {
            self.remove(&device);
        }
    }

    /// Deletes the device, then its record. A device that cannot be deleted stays listed with its cause.
    pub(super) fn remove(&mut self, device: &Device) {
        kill_point("delete:before");
        let deleted = match self.control() {
            Ok(control) => control.delete(device.id, LEAVE),
            Err(_) => return,
        };
        match deleted {
            Ok(()) | Err(Error::NoSuchDevice { .. }) => {
                kill_point("delete:deleted");
                self.forget(device);
            }
            Err(e) => tracing::error!("cannot remove device {}: {e}", device.id),
        }
    }

    /// Removes link and record of a deleted device, in this order: without a record nothing would find the link.
    pub(super) fn forget(&self, device: &Device) {
        names::unlink(device.record.spec.name.as_deref(), device.id);
        if let Err(e) = self.store.remove(device.id.get(), device.record.nonce) {
            tracing::warn!("{e}");
        }
    }
}

fn out_of_turn(word: &FromServer) -> Failure {
    Failure::failed(format!("unexpected message from the server: {word:?}"))
}
