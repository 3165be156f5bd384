//! Supervision: an agent that brings its device back by itself.

use super::bring_up::left;
use super::{Agent, Device};
use crate::link::LINK_VERSION;
use crate::sys::poll;
use crate::wire::{Failure, Lifetime, RecoverRequest, ToServer};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use ublk_core::{DevId, DevState};

/// First and longest pause between the death of a server and the next try.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// A server that lived so long died of something else than the one before.
const STEADY: Duration = Duration::from_secs(60);

/// How long a try may take.
const TRY: Duration = Duration::from_secs(60);

impl Agent<'_> {
    /// Attends the device, and gives it a new server whenever its own dies, if it is supervised.
    pub(super) fn attend_always(&mut self) -> Result<(), Failure> {
        let mut pause = FIRST;
        loop {
            let supervised = self.device.as_ref().filter(|d| d.record.spec.supervise);
            let id = supervised.map(|d| d.id);
            let begun = Instant::now();
            let failure = match self.attend() {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            };
            let Some(id) = id.filter(|_| !self.ears.told_to_end) else {
                return Err(failure);
            };
            if begun.elapsed() >= STEADY {
                pause = FIRST;
            }
            tracing::error!("{failure}; it is supervised");
            if !self.revive(id, &mut pause)? {
                if self.ears.lifetime == Lifetime::Front {
                    self.take_away(id);
                }
                return Ok(());
            }
        }
    }

    /// Tries until the device has a new server. False when a signal ends that: the device waits on.
    fn revive(&mut self, id: DevId, pause: &mut Duration) -> Result<bool, Failure> {
        loop {
            if self.told_to_end(*pause) {
                tracing::info!("device {id} waits for a server; this agent was told to end");
                return Ok(false);
            }
            *pause = (*pause * 2).min(LONGEST);
            let deadline = Instant::now() + TRY;
            let request = RecoverRequest {
                version: LINK_VERSION,
                id: id.get(),
                replace: false,
                size: None,
                allow_errors: false,
                accept_backing: false,
                lifetime: self.ears.lifetime,
                deadline_ms: 0,
            };
            match self.recover(&request, deadline) {
                Ok(added) => {
                    let log = self.log.clone();
                    self.tell_server(&ToServer::Live { log });
                    self.world.end_prover();
                    let pid = added.server_pid;
                    tracing::info!("device {id} serves again, server {pid}");
                    return Ok(true);
                }
                Err(failure) => {
                    self.give_up(&failure);
                    self.device = None;
                    self.lock = None;
                    if !self.waits(id) {
                        return Err(failure);
                    }
                    tracing::error!("{failure}; next try in {} s", pause.as_secs_f32());
                }
            }
        }
    }

    /// Stops and deletes a device that has no server any more, at the end of its front.
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

    /// Whether a signal or the front asks for the end before the pause is over.
    fn told_to_end(&self, pause: Duration) -> bool {
        let mut fds = Vec::new();
        fds.extend(self.ears.signals.as_ref().map(AsFd::as_fd));
        fds.extend(self.ears.front.as_ref().map(AsFd::as_fd));
        let ready = poll::readable(&fds, Some(Instant::now() + pause));
        ready.is_ok_and(|ready| ready.contains(&true))
    }

    /// Whether the device still has no server: nobody stopped, deleted or recovered it meanwhile.
    fn waits(&mut self, id: DevId) -> bool {
        let deadline = Instant::now() + TRY;
        let Ok(control) = self.control() else {
            return true;
        };
        match control.info(id, left(deadline)) {
            Ok(info) => match info.state() {
                DevState::Dead => false,
                DevState::Live => {
                    let record = self.store.find(id.get(), info.server_flags());
                    let served = |r: &crate::state::Record| self.store.has_server(r);
                    !record.is_ok_and(|r| r.as_ref().is_some_and(served))
                }
                _ => true,
            },
            Err(ublk_ctrl::Error::NoSuchDevice { .. }) => false,
            Err(_) => true,
        }
    }
}
