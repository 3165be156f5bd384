//! Starts a new server for a device that has lost its server (recovery) or is about to (upgrade).

use super::bring_up::left;
use super::pace::Pace;
use super::refusals::{is_somewhere, not_free, nothing_missing, of_a_device};
use super::succession::{Predecessor, join_group};
use super::{Agent, Device, LEAVE};
use crate::backing;
use crate::failure::{Failure, FailureKind};
use crate::kill_point::kill_point;
use crate::link::listener::{self, Listener};
use crate::link::message::{FromServer, Lifetime, RecoverRequest, ToServer};
use crate::link::peer::Peer;
use crate::link::{LINK_VERSION, LinkError};
use crate::policy;
use crate::report::Added;
use crate::state::{Phase, Prepared, ProcessId, Record};
use crate::sys::{poll, process};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use ublk_core::{DevId, DevState, DeviceParams, Features, Geometry};
use ublk_ctrl::Error;
use ublk_ctrl::bring_up::{self, TimeLimit, Unserved};

/// How long a server that failed to take a device over may take to end.
const QUIT: Duration = Duration::from_secs(5);

/// How long processes that only check the lock may hold it.
const GLANCE: Duration = Duration::from_millis(20);

/// Interval between looks at a device that another process is recovering.
const LOOK: Duration = Duration::from_millis(200);

/// What a device needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// A server.
    Server,
    /// A server in place of the running one.
    Other,
    /// An agent, because it has none.
    Agent,
}

impl Agent<'_> {
    /// Starts a new server for a device. On failure, [`Agent::give_up`] releases the device in its current state.
    ///
    /// Everything that can fail is prepared while the old server is running: lock, descriptors, record and sockets
    /// exist, and the new server has opened its backend. Once I/O is held, nothing depends on the caller or the run
    /// directory (L44).
    pub(super) fn recover(
        &mut self,
        request: &RecoverRequest,
        deadline: Instant,
    ) -> Result<Added, Failure> {
        let id =
            DevId::new(request.id).map_err(|e| Failure::new(FailureKind::Usage, e.to_string()))?;
        self.held = false;
        self.world.start_helper()?;
        self.control = Some(self.world.control()?);
        let geometry = self.control()?.info(id, left(deadline))?;
        self.world.named(id);
        let mut record = self.known(&geometry)?;
        crate::log::journal::device(id.get(), record.spec.name.as_deref());
        let served = self.store.has_server(&record);
        let mut way = way(request, &geometry, served)?;
        is_somewhere(id, &record, way)?;
        self.take_care(request, &geometry, way, deadline)?;
        if self.predecessor.is_some() {
            // The other agent begins no move from here on, and may have begun one before.
            record = self.known(&geometry)?;
            is_somewhere(id, &record, way)?;
        }
        if way == Way::Agent {
            if self.lock.is_none() {
                return Err(nothing_missing(id, &record));
            }
            // Its agent died while I/O was held: the only way is forward.
            if record.phase != Phase::HandingOver {
                return self.attach(request, geometry, record, deadline);
            }
            way = Way::Other;
        }
        let params = self.params(id, deadline)?;
        self.promised = Some(params);
        // The driver knows the current size, which may differ from the initial one.
        let size = request.size.unwrap_or(params.size);
        record.spec.backend.set_size(size);
        self.join(&record);
        self.start_server(request, &mut record, &params, deadline)?;
        let old = record.server;
        self.sign(request, &mut record);
        let prepared = self.reserve(&record, way)?;
        if way == Way::Server && self.predecessor.is_none() {
            let begun = Record {
                phase: Phase::Recovering,
                ..record.clone()
            };
            if let Err(e) = self.store.write(&begun) {
                tracing::warn!("cannot save the state of the device: {e}");
            }
        }
        self.device = Some(Device {
            id,
            geometry,
            record,
            started: true,
        });
        let held = Instant::now();
        let unserved = self.hold(&geometry, way, old, deadline)?;
        let pid = self.arm_replacement(&unserved, deadline)?;
        unserved.go_live(self.control()?, pid, TimeLimit::Until(deadline))?;
        let pause = held.elapsed();
        kill_point("recover:ended");
        tracing::debug!("device {id} has a new server, process {pid}");
        // The device serves from here on: later failures are only reported.
        self.publish(prepared);
        let params = self.usable(id, params, size, deadline);
        self.link();
        let mut added = self.added(&params, pid);
        if request.replace {
            added.pause_us = u64::try_from(pause.as_micros()).ok();
        }
        Ok(added)
    }

    /// Starts a server that opens the device's backend beside the old one's.
    fn start_server(
        &mut self,
        request: &RecoverRequest,
        record: &mut Record,
        params: &DeviceParams,
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.server = Some(self.world.server()?);
        let (opening, passed) =
            backing::next_opening(record, &self.backing, request.accept_backing);
        let describe = ToServer::Describe {
            version: LINK_VERSION,
            spec: record.spec.clone(),
            opening,
        };
        let borrowed: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        self.tell_server_with(&describe, &borrowed);
        drop(passed);
        let described = self.described(deadline);
        let size = request.size.unwrap_or(params.size);
        let backend = &record.spec.backend;
        let (limits, backing) = described.map_err(|f| of_a_device(f, request, (size, backend)))?;
        record.backing = backing;
        ublk_core::recovery::fits(&limits, params)
            .map_err(|misfit| Failure::failed(format!("device {}: {misfit}", request.id)))
    }

    /// Sets the size of the recovered device and checks that it is usable; failures are only reported.
    fn usable(
        &mut self,
        id: DevId,
        mut params: DeviceParams,
        size: u64,
        deadline: Instant,
    ) -> DeviceParams {
        if size != params.size {
            let control = self.control().map_err(|e| tracing::warn!("{e}")).ok();
            match control.map(|control| control.update_size(id, size, left(deadline))) {
                Some(Ok(())) => params.size = size,
                Some(Err(e)) => tracing::warn!("{e}"),
                None => {}
            }
        }
        let server = self.server.as_ref().map(Peer::exit_fd);
        if let Err(e) = self.world.prove(id, params.size, server, left(deadline)) {
            tracing::warn!("{e}");
        }
        params
    }

    fn params(&mut self, id: DevId, deadline: Instant) -> Result<DeviceParams, Failure> {
        let limit = TimeLimit::Until(deadline);
        Ok(bring_up::params(self.control()?, id, limit)?)
    }

    /// Ensures that no other agent manages the device, by taking its lock, which a running agent hands over. An agent of an
    /// earlier version releases the lock when its server is gone; [`Agent::arm_replacement`] waits for that.
    fn take_care(
        &mut self,
        request: &RecoverRequest,
        geometry: &Geometry,
        way: Way,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let id = geometry.dev_id().get();
        if self.lock.is_none() {
            // A process that checks whether the lock is held takes it for a moment.
            self.lock = self.store.lock(id, Instant::now() + GLANCE)?;
        }
        if self.lock.is_some() || way == Way::Agent {
            return Ok(());
        }
        if let Some((predecessor, lock)) =
            Predecessor::ask(&self.store, id, geometry.server_flags(), deadline)?
        {
            self.lock = Some(lock);
            self.predecessor = Some(predecessor);
        } else if way == Way::Server {
            self.outlast(request, geometry, deadline)?;
        }
        Ok(())
    }

    /// Waits for the lock of a device that another agent is giving a server, as long as it still needs one.
    fn outlast(
        &mut self,
        request: &RecoverRequest,
        geometry: &Geometry,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let id = geometry.dev_id();
        loop {
            let glance = deadline.min(Instant::now() + LOOK);
            self.lock = self.store.lock(id.get(), glance)?;
            if self.lock.is_some() || Instant::now() >= deadline {
                return self.locked(id.get(), deadline);
            }
            let now = self.control()?.info(id, left(deadline))?;
            let record = self.known(&now)?;
            let served = self.store.has_server(&record);
            if way(request, &now, served)? != Way::Server {
                return Err(nothing_missing(id, &record));
            }
        }
    }

    /// Waits for the lock of the device.
    fn locked(&mut self, id: u32, deadline: Instant) -> Result<(), Failure> {
        if self.lock.is_none() {
            self.lock = self.store.lock(id, deadline)?;
        }
        if self.lock.is_some() {
            return Ok(());
        }
        Err(
            Failure::timed_out(format!("another agent manages device {id}"))
                .hint(format!("`ublkctl info {id}` shows it")),
        )
    }

    /// Replaces an agent that serves for a front: takes over its message target and its control group.
    fn join(&mut self, record: &Record) {
        let Some(predecessor) = &self.predecessor else {
            return;
        };
        if let Some(messages) = &predecessor.messages {
            if let Err(e) = process::redirect(messages.as_fd(), process::Stream::Err) {
                tracing::warn!("cannot redirect messages to the device's service: {e}");
            }
            if let Some(agent) = record.agent
                && let Err(e) = join_group(agent.pid)
            {
                tracing::warn!("agent and server stay in the caller's control group: {e}");
            }
        }
    }

    /// Records the lifetime and the log for the new server.
    fn sign(&mut self, request: &RecoverRequest, record: &mut Record) {
        let adopted = self.predecessor.as_ref().filter(|p| p.front.is_some());
        let lifetime = adopted.map_or(request.lifetime, |p| p.lifetime);
        let id = request.id;
        let log = || record.log.clone().unwrap_or_else(|| self.store.log(id));
        self.log = (lifetime == Lifetime::Own).then(log);
        record.log.clone_from(&self.log);
        record.lifetime = Some(lifetime);
        record.phase = Phase::Live;
        record.cause = None;
        record.agent = ProcessId::of(std::process::id());
        record.server = self.server.as_ref().and_then(|s| ProcessId::of(s.pid));
    }

    /// Reserves the files in the run directory. If that fails, a running device keeps its server, and a waiting device is
    /// recovered anyway.
    fn reserve(&mut self, record: &Record, way: Way) -> Result<Option<Prepared>, Failure> {
        let id = record.id.unwrap_or_default();
        let sockets = self.relay.prepare(&self.store.socket(id)).and_then(|()| {
            self.next = Some(Listener::prepare(&self.store.next_socket(id))?);
            self.attach = Some(Listener::prepare(&self.store.server_socket(id))?);
            Ok(())
        });
        let prepared = self.store.prepare_record(record);
        if way == Way::Other {
            sockets.map_err(|e| {
                Failure::failed(format!(
                    "device {id}: cannot create a socket in the run directory: {e}"
                ))
                .hint("nothing was changed; free space there and try again")
            })?;
            return Ok(Some(prepared?));
        }
        if let Err(e) = sockets {
            tracing::warn!("cannot create the sockets for health and the next agent: {e}");
        }
        if let Err(e) = &prepared {
            tracing::warn!("cannot save the state of the device: {e}");
        }
        Ok(prepared.ok())
    }

    /// Publishes everything that was reserved: this agent now owns the device.
    fn publish(&mut self, prepared: Option<Prepared>) {
        if let Some(Err(e)) = prepared.map(Prepared::publish) {
            tracing::warn!("cannot save the state of the device: {e}");
        }
        self.meetable();
        if let Some(predecessor) = self.predecessor.take() {
            predecessor.done();
            if let Some(front) = predecessor.front {
                self.adopted = Some((front, predecessor.lifetime));
            }
        }
    }

    /// Publishes the sockets of a live device.
    pub(super) fn meetable(&mut self) {
        let Some(id) = self.device.as_ref().map(|d| d.id) else {
            return;
        };
        self.open_relay(id);
        if let Some(next) = self.next.take() {
            self.heir.listen(next);
        }
        if let Some(mut attach) = self.attach.take()
            && let Err(e) = attach.publish()
        {
            tracing::warn!("a later agent cannot connect to the server: {e}");
        }
    }

    /// Becomes the agent of a device whose server runs without an agent.
    fn attach(
        &mut self,
        request: &RecoverRequest,
        geometry: Geometry,
        mut record: Record,
        deadline: Instant,
    ) -> Result<Added, Failure> {
        let id = geometry.dev_id();
        let pid = record.server.map_or(0, |s| s.pid);
        let alone = |why: String| {
            Failure::failed(format!(
                "device {id} is served by process {pid}, whose agent is gone and which accepts no other agent: {why}"
            ))
            .hint(format!("`ublkctl upgrade {id}` replaces both"))
        };
        let link = listener::connect(&self.store.server_socket(id.get()))
            .map_err(|e| alone(e.to_string()))?;
        match link.recv(deadline.min(Instant::now() + QUIT)) {
            Ok(FromServer::Attached { version }) if version == LINK_VERSION => {}
            Ok(FromServer::Attached { version }) => {
                return Err(alone(LinkError::Version(version).to_string()));
            }
            Ok(other) => return Err(alone(format!("unexpected message {other:?}"))),
            Err(e) => return Err(alone(e.to_string())),
        }
        let params = self.params(id, deadline)?;
        let server = record.server;
        self.server = Some(Peer::adopted(pid, link).map_err(|e| alone(e.to_string()))?);
        self.sign(request, &mut record);
        record.server = server;
        let prepared = self.reserve(&record, Way::Server)?;
        self.device = Some(Device {
            id,
            geometry,
            record,
            started: true,
        });
        self.attach = None;
        self.publish(prepared);
        tracing::info!("device {id} has an agent again; its server is process {pid}");
        if let Some(device) = &self.device
            && device.record.spec.backend.moving_to().is_some()
        {
            self.tell_server(&ToServer::Health { ticket: 0 });
        }
        Ok(self.added(&params, pid))
    }

    /// Our record of the device that currently has this number; a device without a record is foreign (L34).
    fn known(&self, geometry: &Geometry) -> Result<Record, Failure> {
        let id = geometry.dev_id();
        let record = self.store.find(id.get(), geometry.server_flags())?;
        record.ok_or_else(|| {
            Failure::foreign(id).hint("only the program that created the device can recover it")
        })
    }

    /// Arms the new server. Returns the process that opened the character device.
    fn arm_replacement(&mut self, unserved: &Unserved, deadline: Instant) -> Result<u32, Failure> {
        // Wait for the lock of an earlier version's agent, which is about to exit.
        self.locked(unserved.id().get(), deadline)?;
        kill_point("recover:locked");
        if let Some(device) = &mut self.device {
            device.geometry = *unserved.geometry();
        }
        self.assign(unserved, deadline)?;
        let pid = self.armed(deadline)?;
        kill_point("recover:armed");
        Ok(pid)
    }

    /// Holds the device's I/O until its old server has released it, and starts its recovery: START_USER_RECOVERY
    /// succeeds as soon as the character device is closed, even if the old process still runs. With QUIESCE the driver
    /// holds new I/O and takes back idle tags, and the server exits when it has answered its requests. QUIESCE is
    /// repeated, because it does not reach a server whose tags are all busy. Without QUIESCE the server is asked to
    /// leave its requests to its successor.
    fn hold(
        &mut self,
        geometry: &Geometry,
        way: Way,
        old: Option<ProcessId>,
        deadline: Instant,
    ) -> Result<Unserved, Failure> {
        let id = geometry.dev_id();
        // Open the pidfd before checking, so that the checked process is the one signalled.
        let pidfd = old.and_then(|old| process::pidfd(old.pid).ok());
        let pidfd = pidfd.filter(|_| old.is_some_and(|old| old.runs()));
        let other = way == Way::Other;
        let quiesces = other && geometry.features().contains(Features::QUIESCE);
        if other {
            kill_point("upgrade:before");
            if let Some(predecessor) = &self.predecessor {
                predecessor.holding()?;
            }
        }
        self.held = true;
        if let Some(pidfd) = pidfd.as_ref().filter(|_| other && !quiesces) {
            process::signal(pidfd.as_fd(), libc::SIGTERM)
                .map_err(|e| Failure::failed(format!("cannot signal the old server: {e}")))?;
            kill_point("upgrade:asked");
        }
        let mut pace = Pace::new();
        let limit = TimeLimit::Until(deadline);
        let unserved = loop {
            if quiesces && pace.is_due() {
                self.quiesce_once(id, deadline)?;
                kill_point("upgrade:held");
            }
            let mut within = left(deadline);
            if quiesces {
                within = within.min(left(pace.next()));
            }
            match Unserved::take_over(self.control()?, id, within, limit) {
                Ok(unserved) => break unserved,
                Err(
                    Error::Busy { .. }
                    | Error::WrongState {
                        state: DevState::Live,
                        ..
                    },
                ) => {}
                Err(e) => return Err(e.into()),
            }
            if Instant::now() >= deadline {
                return Err(not_free(id, old));
            }
        };
        if quiesces {
            kill_point("upgrade:quiesced");
        }
        kill_point("recover:started");
        Ok(unserved)
    }

    /// Sends one QUIESCE_DEV. A device that is already quiesced is a success.
    pub(super) fn quiesce_once(&mut self, id: DevId, deadline: Instant) -> Result<(), Error> {
        let Some(control) = &mut self.control else {
            return Ok(());
        };
        let within = left(deadline).clamp(Duration::from_millis(100), LEAVE);
        match control.quiesce(id, within) {
            Ok(()) | Err(Error::Busy { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Releases a device that could not be recovered: its new server ends, and the device keeps waiting.
    pub(super) fn give_up(&mut self, failure: &Failure) {
        self.relay.close();
        self.tell_server(&ToServer::Quit);
        if let Some(server) = &mut self.server {
            server.link.hang_up();
            let gone = poll::readable(&[server.exit_fd()], Some(Instant::now() + QUIT));
            if !matches!(gone.as_deref(), Ok([true])) {
                // The server has no control command in flight; only this process issues them.
                let _ = server.signal(libc::SIGKILL);
                let _ = poll::readable(&[server.exit_fd()], Some(Instant::now() + QUIT));
            }
            let _ = server.ended();
        }
        (self.next, self.attach) = (None, None);
        let device = self.device.as_mut();
        // If there is an agent to go back to, the device and its record are that agent's.
        if let Some(device) = device.filter(|_| self.predecessor.is_none()) {
            device.record.phase = Phase::Ended;
            device.record.cause = Some(format!("recovery failed: {failure}"));
            self.save();
        }
        self.world.end_helper();
    }

    /// Records the device's phase, if possible.
    pub(super) fn set_phase(&mut self, phase: Phase) {
        if let Some(device) = &mut self.device {
            device.record.phase = phase;
        }
        self.save();
    }

    pub(super) fn open_relay(&mut self, id: DevId) {
        if let Err(e) = self.relay.open(&self.store.socket(id.get())) {
            tracing::warn!("cannot create the socket for health: {e}");
        }
    }

    /// The report on the device now that it serves.
    fn added(&self, params: &DeviceParams, pid: u32) -> Added {
        let size = params.size;
        let spec = self.device.as_ref().map(|d| &d.record.spec);
        let name = spec.map_or("", |s| s.backend.name());
        self.describe(name, size, params.logical_block_size, params.read_only, pid)
    }
}

/// What a device needs for this recovery or upgrade.
fn way(request: &RecoverRequest, geometry: &Geometry, served: bool) -> Result<Way, Failure> {
    let (id, granted, state) = (geometry.dev_id(), geometry.features(), geometry.state());
    let alive = state == DevState::Live && served;
    // An agent can be attached to any device.
    if alive && !request.replace {
        return Ok(Way::Agent);
    }
    if !granted.contains(Features::USER_RECOVERY) {
        return Err(Failure::failed(format!(
            "device {id} was created without recovery, so no other server can take it over"
        ))
        .hint(format!("`ublkctl delete {id}` removes it")));
    }
    if request.replace {
        if !alive {
            let hint = match state {
                DevState::Dead => format!("`ublkctl delete {id}` removes it"),
                _ => format!("`ublkctl recover {id}` starts one"),
            };
            return Err(Failure::failed(format!(
                "device {id} is {state} and has no server to replace"
            ))
            .hint(hint));
        }
        let may = policy::may_replace(granted, ublk_ctrl::kernel_release().as_ref());
        return if request.allow_errors {
            Ok(Way::Other)
        } else {
            may.map(|()| Way::Other)
        };
    }
    if state == DevState::Dead {
        return Err(Failure::failed(format!(
            "device {id} was stopped or never started: there is nothing to recover"
        ))
        .hint(format!("`ublkctl delete {id}` removes it")));
    }
    Ok(Way::Server)
}
