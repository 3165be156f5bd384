//! Supervision: the agent revives its device without a command.

use super::{Agent, Device};
use crate::failure::Failure;
use crate::link::LINK_VERSION;
use crate::link::message::{FromAgent, Lifetime, RecoverRequest};
use crate::sys::poll;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use ublk_core::{DevId, DevState};

/// First and longest pause between the death of a server and the next attempt.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// After this time the next death counts as unrelated to the previous one.
const STEADY: Duration = Duration::from_secs(60);

/// Deadline of an attempt.
const TRY: Duration = Duration::from_secs(60);

/// How long a device without supervision gets new servers after a failed hand-over.
const GRACE: Duration = Duration::from_secs(60);

/// The result of reviving a device.
enum Revived {
    /// The device serves; the pause before the next attempt, should the server die soon.
    Served(Duration),
    /// Another agent manages it.
    Yielded,
    /// This agent was told to end.
    ToldToEnd,
}

/// How a pause ended.
enum Rest {
    Over,
    Yielded,
    ToldToEnd,
}

impl Agent<'_> {
    /// Attends the device, and replaces its server when it dies, if the device is supervised or another agent failed to
    /// hand it over.
    pub(super) fn attend_always(&mut self) -> Result<(), Failure> {
        let mut pause = FIRST;
        loop {
            let device = self.device.as_ref();
            let (id, supervised) =
                device.map_or((None, false), |d| (Some(d.id), d.record.spec.supervise));
            let begun = Instant::now();
            let lived = self.attend();
            let deserted = self.heir.is_deserted();
            if lived.is_ok() && !deserted {
                return Ok(());
            }
            let failure = lived.err();
            let wanted = !self.inputs.told_to_end && (supervised || deserted);
            let Some(id) = id.filter(|_| wanted) else {
                return failure.map_or(Ok(()), Err);
            };
            if deserted {
                pause = Duration::ZERO;
            } else if begun.elapsed() >= STEADY {
                pause = FIRST;
            }
            match failure {
                Some(failure) if supervised => tracing::error!("{failure}; starting a new server"),
                Some(failure) => tracing::error!("{failure}"),
                None => tracing::error!("a failed hand-over left device {id} without a server"),
            }
            match self.revive(id, pause, supervised)? {
                Revived::Served(next) => pause = next,
                Revived::Yielded => return Ok(()),
                Revived::ToldToEnd => {
                    if self.inputs.lifetime == Lifetime::Front {
                        self.take_away(id);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Continues after a hand-over that failed while I/O was held, with no previous agent left to go back to.
    pub(super) fn go_on(&mut self, id: u32, failure: Failure) -> Result<(), Failure> {
        let Ok(dev) = DevId::new(id) else {
            return Err(failure);
        };
        self.device = None;
        self.tell_front(&FromAgent::Failed(failure.clone()));
        if self.inputs.lifetime == Lifetime::Own {
            self.inputs.front = None;
        }
        crate::log::to(&self.log.clone().unwrap_or_else(|| self.store.log(id)));
        tracing::error!("{failure}; this agent keeps trying");
        match self.revive(dev, FIRST, false)? {
            Revived::Served(_) => self.attend_always(),
            Revived::Yielded | Revived::ToldToEnd => Ok(()),
        }
    }

    /// Tries until the device has a new server: without end if it is supervised.
    fn revive(
        &mut self,
        id: DevId,
        mut pause: Duration,
        supervised: bool,
    ) -> Result<Revived, Failure> {
        let begun = Instant::now();
        loop {
            match self.rest(pause) {
                Rest::Over => {}
                Rest::Yielded => return Ok(Revived::Yielded),
                Rest::ToldToEnd => {
                    tracing::info!("device {id} waits for a server; this agent was told to end");
                    return Ok(Revived::ToldToEnd);
                }
            }
            pause = (pause * 2).clamp(FIRST, LONGEST);
            let deadline = Instant::now() + TRY;
            let request = RecoverRequest {
                version: LINK_VERSION,
                id: id.get(),
                replace: false,
                size: None,
                allow_errors: false,
                accept_backing: false,
                lifetime: self.inputs.lifetime,
                deadline_ms: 0,
            };
            match self.recover(&request, deadline) {
                Ok(added) => {
                    self.tell_live();
                    self.world.end_helper();
                    self.heir.is_served();
                    let pid = added.server_pid;
                    tracing::info!("device {id} is live again, server process {pid}");
                    return Ok(Revived::Served(pause));
                }
                Err(failure) => {
                    let noted = self.device.is_some();
                    self.give_up(&failure);
                    if !noted {
                        self.note_failed_recovery(id, &failure);
                    }
                    self.device = None;
                    self.held = false;
                    if !self.waits(id) || (!supervised && begun.elapsed() >= GRACE) {
                        self.lock = None;
                        return Err(failure);
                    }
                    tracing::error!("{failure}; next try in {} s", pause.as_secs_f32());
                }
            }
        }
    }

    /// Writes down why a device has no server yet, for `list` and `info`: its attempt failed before its record was read.
    fn note_failed_recovery(&self, id: DevId, failure: &Failure) {
        if let Ok(Some(mut record)) = self.store.last(id.get()) {
            record.cause = Some(format!("recovery failed: {failure}"));
            if let Err(e) = self.store.write(&record) {
                tracing::warn!("cannot save the state of the device: {e}");
            }
        }
    }

    /// Waits for the next attempt. The wait ends early if another agent takes the device, the front leaves, or a signal
    /// arrives.
    fn rest(&mut self, pause: Duration) -> Rest {
        let until = Instant::now() + pause;
        loop {
            let yielding = self.heir.is_yielding();
            let mut fds = Vec::new();
            fds.extend(self.heir.fd());
            let others = fds.len()..;
            if !yielding {
                fds.extend(self.inputs.signals.as_ref().map(AsFd::as_fd));
                fds.extend(self.inputs.front.as_ref().map(AsFd::as_fd));
            }
            let ready = poll::readable(&fds, (!yielding).then_some(until));
            let ready = ready.unwrap_or_default();
            if ready.get(others).is_some_and(|r| r.contains(&true)) {
                return Rest::ToldToEnd;
            }
            if ready.contains(&true) {
                self.hear_successor();
            }
            if self.heir.has_yielded() {
                return Rest::Yielded;
            }
            if !self.heir.is_yielding() && Instant::now() >= until {
                return Rest::Over;
            }
        }
    }

    /// Stops and deletes a device without a server when its front ends.
    fn take_away(&mut self, id: DevId) {
        let Ok(Some(record)) = self.store.last(id.get()) else {
            return;
        };
        let Ok(control) = self.control() else { return };
        match control.info(id, TRY) {
            Ok(info) if info.server_flags() == record.nonce => {
                let geometry = info;
                if let Err(e) = control.stop(id, TRY) {
                    tracing::error!("{e}");
                }
                self.remove(&Device {
                    id,
                    geometry,
                    record,
                    started: true,
                });
            }
            _ => {}
        }
    }

    /// Whether the device still needs a server: it was neither stopped nor deleted meanwhile. No other agent can have
    /// started one, because the lock is held.
    fn waits(&mut self, id: DevId) -> bool {
        let Ok(control) = self.control() else {
            return true;
        };
        match control.info(id, TRY) {
            Ok(info) => info.state() != DevState::Dead,
            Err(ublk_ctrl::Error::NoSuchDevice { .. }) => false,
            Err(_) => true,
        }
    }
}
