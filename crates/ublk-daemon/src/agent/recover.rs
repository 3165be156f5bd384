//! A new server for a device that has lost its old one, or shall lose it: recovery and upgrade.

use super::bring_up::left;
use super::{Agent, Device, LEAVE};
use crate::backing;
use crate::kill_point::kill_point;
use crate::link::LINK_VERSION;
use crate::policy;
use crate::state::{Phase, ProcessId, Record};
use crate::sys::{poll, process};
use crate::wire::{Added, Assignment, Failure, FailureKind, Lifetime, RecoverRequest, ToServer};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use ublk_core::{DevId, DevState, DeviceParams, Features, Geometry};
use ublk_ctrl::{Error, wait};

/// How long a server that failed to take a device over may take to end.
const QUIT: Duration = Duration::from_secs(5);

impl Agent<'_> {
    /// Gives a device a new server. On failure [`Agent::give_up`] lets go of the device as it is.
    pub(super) fn recover(
        &mut self,
        request: &RecoverRequest,
        deadline: Instant,
    ) -> Result<Added, Failure> {
        let id =
            DevId::new(request.id).map_err(|e| Failure::new(FailureKind::Usage, e.to_string()))?;
        self.world.start_prover()?;
        self.control = Some(self.world.control()?);
        let geometry = self.control()?.info(id, left(deadline))?;
        self.world.named(id);
        let mut record = self.known(&geometry)?;
        may_recover(request, &geometry, &record, self.store.has_server(&record))?;
        let params = self.control()?.get_params(id, left(deadline))?;
        let params = params.ok_or_else(|| {
            Failure::failed(format!("device {id} was never started"))
                .hint(format!("`ublkctl delete {id}` removes it"))
        })?;
        // The driver knows the size it has, whatever it was made with.
        let size = request.size.unwrap_or(params.size);
        record.spec.backend.set_size(size);
        // All that can fail without the device is done while its old server is at work.
        self.server = Some(self.world.server()?);
        let (opening, passed) =
            backing::way(&record, self.backing.as_ref(), request.accept_backing);
        let describe = ToServer::Describe {
            version: LINK_VERSION,
            spec: record.spec.clone(),
            opening,
        };
        self.tell_server_with(&describe, passed.as_ref().map(AsFd::as_fd));
        drop(passed);
        let (limits, backing) = self.described(deadline)?;
        record.backing = backing;
        ublk_core::recovery::fits(&limits, &params)
            .map_err(|misfit| Failure::failed(format!("device {id}: {misfit}")))?;
        let held = Instant::now();
        if request.replace {
            self.send_away(&geometry, &record, deadline)?;
        }
        self.lock = self.store.lock(id.get(), deadline)?;
        if self.lock.is_none() {
            return Err(
                Failure::timed_out(format!("another agent has device {id} in its care"))
                    .hint(format!("`ublkctl info {id}` names it")),
            );
        }
        kill_point("recover:locked");
        record.phase = Phase::Recovering;
        record.cause = None;
        record.agent = ProcessId::of(std::process::id());
        record.server = self.server.as_ref().and_then(|s| ProcessId::of(s.pid));
        self.log = (request.lifetime == Lifetime::Own).then(|| {
            record
                .log
                .clone()
                .unwrap_or_else(|| self.store.log(id.get()))
        });
        record.log.clone_from(&self.log);
        self.store.write(&record)?;
        self.device = Some(Device {
            id,
            geometry,
            record,
            started: true,
        });
        let pid = self.take_over(id, deadline)?;
        self.control()?.end_recovery(id, pid, left(deadline))?;
        let pause = held.elapsed();
        kill_point("recover:ended");
        tracing::debug!("device {id} has a new server, process {pid}");
        // From here on the device serves: what fails now is told and changes nothing.
        let mut params = params;
        if size != params.size {
            match self.control()?.update_size(id, size, left(deadline)) {
                Ok(()) => params.size = size,
                Err(e) => tracing::warn!("{e}"),
            }
        }
        if let Err(e) = self.world.prove(id, params.size, left(deadline)) {
            tracing::warn!("{e}");
        }
        self.link();
        self.set_phase(Phase::Live);
        self.open_relay(id);
        let mut added = self.added(&params, pid);
        if request.replace {
            added.pause_us = u64::try_from(pause.as_micros()).ok();
        }
        Ok(added)
    }

    /// Our record of the device that has this number now; a device without one is somebody else's (L34).
    fn known(&self, geometry: &Geometry) -> Result<Record, Failure> {
        let id = geometry.dev_id();
        let record = self.store.find(id.get(), geometry.server_flags())?;
        record.ok_or_else(|| {
            Failure::foreign(id)
                .hint("the program that made it must recover it: its requests are none of ours")
        })
    }

    /// START_USER_RECOVERY, then the new server with all its fetches. The process that opened the
    /// character device.
    fn take_over(&mut self, id: DevId, deadline: Instant) -> Result<u32, Failure> {
        self.control()?.start_recovery(id, left(deadline))?;
        kill_point("recover:started");
        let geometry = self.control()?.info(id, left(deadline))?;
        if let Some(device) = &mut self.device {
            device.geometry = geometry;
        }
        let affinity = self.affinity(id, geometry.queues(), deadline)?;
        self.tell_server(&ToServer::Assign(Assignment {
            geometry,
            affinity,
            deadline_ms: u64::try_from(left(deadline).as_millis()).unwrap_or(u64::MAX),
            shm: self.device.as_ref().and_then(|d| d.record.shm.clone()),
        }));
        let pid = self.armed(deadline)?;
        kill_point("recover:armed");
        Ok(pid)
    }

    /// Has the old server leave the device. With QUIESCE the driver holds new I/O and takes back what is
    /// idle, and the server ends when it has answered all it has; said again and again, since a server
    /// whose tags are all busy hears nothing of it. Without, it is asked to leave what it has to its
    /// successor.
    fn send_away(
        &mut self,
        geometry: &Geometry,
        record: &Record,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let id = geometry.dev_id();
        let Some(old) = record.server.filter(ProcessId::runs) else {
            return Ok(());
        };
        kill_point("upgrade:before");
        let gone = if geometry.features().contains(Features::QUIESCE) {
            let mut quiesced = Ok(());
            let gone = wait::until(deadline, || {
                quiesced = self.quiesce_once(id, deadline);
                quiesced.clone()?;
                kill_point("upgrade:held");
                Ok::<_, Error>((!old.runs()).then_some(()))
            })?;
            kill_point("upgrade:quiesced");
            gone.is_some()
        } else {
            let pidfd = process::pidfd(old.pid);
            // Opened first, checked second: what is signalled is then what was checked.
            if let Ok(pidfd) = &pidfd
                && old.runs()
            {
                process::signal(pidfd.as_fd(), libc::SIGTERM)
                    .map_err(|e| Failure::failed(format!("cannot signal the old server: {e}")))?;
                kill_point("upgrade:asked");
                let gone = poll::readable(&[pidfd.as_fd()], Some(deadline));
                matches!(gone.as_deref(), Ok([true]))
            } else {
                true
            }
        };
        if gone {
            return Ok(());
        }
        Err(Failure::timed_out(format!(
            "the old server, process {}, has requests in hand that it does not answer; I/O of device {id} is held",
            old.pid
        ))
        .hint(format!(
            "once it has answered, or was killed, `ublkctl recover {id}` gives the device its new server"
        )))
    }

    /// One QUIESCE_DEV. That the device is quiesced already is what is wanted.
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

    /// Lets go of a device that could not be recovered: its new server ends, and the device waits on.
    pub(super) fn give_up(&mut self, failure: &Failure) {
        self.relay.close();
        self.tell_server(&ToServer::Quit);
        if let Some(server) = &mut self.server {
            server.link.hang_up();
            let gone = poll::readable(&[server.exit_fd()], Some(Instant::now() + QUIT));
            if !matches!(gone.as_deref(), Ok([true])) {
                // It has no control command in flight: this process has them all.
                let _ = server.signal(libc::SIGKILL);
                let _ = poll::readable(&[server.exit_fd()], Some(Instant::now() + QUIT));
            }
            let _ = server.ended();
        }
        if let Some(device) = &mut self.device {
            device.record.phase = Phase::Ended;
            device.record.cause = Some(format!("recovery failed: {failure}"));
            self.save();
        }
        self.world.end_prover();
    }

    /// Writes down how far the device has come, if that can be.
    pub(super) fn set_phase(&mut self, phase: Phase) {
        if let Some(device) = &mut self.device {
            device.record.phase = phase;
        }
        self.save();
    }

    pub(super) fn open_relay(&mut self, id: DevId) {
        if let Err(e) = self.relay.open(&self.store.socket(id.get())) {
            tracing::warn!("no socket for health: {e}");
        }
    }

    /// What is said of the device now that it serves.
    fn added(&self, params: &DeviceParams, pid: u32) -> Added {
        let size = params.size;
        let spec = self.device.as_ref().map(|d| &d.record.spec);
        let name = spec.map_or("", |s| s.backend.name());
        self.describe(name, size, params.logical_block_size, params.read_only, pid)
    }
}

/// Whether this device can be given a new server now.
fn may_recover(
    request: &RecoverRequest,
    geometry: &Geometry,
    record: &Record,
    alive: bool,
) -> Result<(), Failure> {
    let (id, granted, state) = (geometry.dev_id(), geometry.features(), geometry.state());
    if !granted.contains(Features::USER_RECOVERY) {
        return Err(Failure::failed(format!(
            "device {id} was made without recovery, so no other server can take it over"
        ))
        .hint(format!("`ublkctl delete {id}` removes it")));
    }
    if request.replace {
        if state != DevState::Live || !alive {
            return Err(Failure::failed(format!(
                "device {id} is {state}, without a server to replace"
            ))
            .hint(format!("`ublkctl recover {id}` gives it one")));
        }
        let may = policy::may_replace(granted, ublk_ctrl::kernel_release().as_ref());
        return if request.allow_errors { Ok(()) } else { may };
    }
    if state == DevState::Live && alive {
        let pid = record.server.map_or(0, |s| s.pid);
        return Err(Failure::failed(format!(
            "device {id} is live, served by process {pid}: there is nothing to recover"
        ))
        .hint(format!(
            "`ublkctl upgrade {id}` replaces a server that works; kill process {pid} if it does not answer"
        )));
    }
    if state == DevState::Dead {
        return Err(Failure::failed(format!(
            "device {id} was stopped or never started: there is nothing to recover"
        ))
        .hint(format!("`ublkctl delete {id}` removes it")));
    }
    Ok(())
}
