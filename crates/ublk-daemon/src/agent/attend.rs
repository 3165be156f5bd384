//! The agent's event loop while the device serves, and the shutdown.

use super::pace::Pace;
use super::relay::Report;
use super::{Agent, LEAVE};
use crate::failure::Failure;
use crate::kill_point::kill_point;
use crate::link::LinkError;
use crate::link::message::{
    FromServer, Lifetime, LogQuestion, MetricsQuestion, Question, RecordQuestion, ToAgent, ToServer,
};
use crate::log;
use crate::names;
use crate::report::Health;
use crate::spec::{BackendCommand, NbdCommand};
use crate::state::Phase;
use crate::sys::poll;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;
use ublk_core::{DevState, Features, Geometry, Recovery};
use ublk_ctrl::Error;

/// State of the shutdown.
#[derive(Debug, Default)]
struct Ending {
    /// Why the agent stopped the device, if it did.
    asked: Option<String>,
    /// Deadline for the exit of a server that was asked to leave the device to its successor.
    handing_over: Option<Instant>,
    /// The server of a supervised device is leaving and will be replaced.
    deserting: bool,
    /// When a server that does not leave is reported.
    patience: Option<Instant>,
    /// When to repeat QUIESCE_DEV while the server is still running.
    pace: Option<Pace>,
    /// The server reported that it is empty.
    empty: bool,
    /// The server reported this failure.
    failed: Option<Failure>,
    /// The server's link is closed.
    hung_up: bool,
    /// How the server's process exited.
    exit: Option<String>,
}

/// Whether a caller moves the device to another NBD server.
const fn moves(question: Option<&Question>) -> bool {
    matches!(
        question,
        Some(Question::Backend(BackendCommand::Nbd(NbdCommand {
            uri: Some(_),
            ..
        })))
    )
}

#[derive(Debug, Default)]
struct Ready {
    exit: bool,
    link: bool,
    signal: bool,
    front: bool,
    caller: bool,
    successor: bool,
}

impl Agent<'_> {
    /// Waits for events until the server is gone, then acts on how it ended. Sleeps without events: there is no periodic
    /// wake-up.
    pub(super) fn attend(&mut self) -> Result<(), Failure> {
        let mut ending = Ending::default();
        while !self.heir.has_yielded() && (ending.exit.is_none() || self.heir.is_yielding()) {
            let ready = self
                .wait(&ending)
                .map_err(|e| Failure::failed(format!("cannot wait for events: {e}")))?;
            if ready.exit {
                ending.exit = self.server.as_mut().and_then(super::Peer::ended);
            }
            if ready.link || ready.exit {
                self.listen(&mut ending);
            }
            if ready.signal {
                if let Some(signals) = &mut self.inputs.signals {
                    signals.clear();
                }
                self.signalled(&mut ending);
            }
            if ready.successor {
                self.hear_successor();
                let own = !self.heir.is_yielding() && !self.heir.has_yielded();
                if own && self.inputs.told_to_end {
                    self.asked_to_end(&mut ending, "a signal during a hand-over");
                }
            }
            if ready.front {
                self.hear_front(&mut ending);
            }
            if ready.caller {
                self.ask_server();
            }
            self.press(&mut ending)?;
        }
        if self.heir.has_yielded() {
            self.relay.abandon();
            return Ok(());
        }
        self.relay.close();
        self.close(ending)
    }

    fn wait(&self, ending: &Ending) -> io::Result<Ready> {
        let Some(server) = &self.server else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let mut fds = Vec::new();
        let mut kinds: Vec<fn(&mut Ready) -> &mut bool> = Vec::new();
        if ending.exit.is_none() {
            fds.push(server.exit_fd());
            kinds.push(|r| &mut r.exit);
        }
        if let Some(successor) = self.heir.fd() {
            fds.push(successor);
            kinds.push(|r| &mut r.successor);
        }
        if !ending.hung_up {
            fds.push(server.link.as_fd());
            kinds.push(|r| &mut r.link);
        }
        if let Some(signals) = &self.inputs.signals {
            fds.push(signals.as_fd());
            kinds.push(|r| &mut r.signal);
        }
        // During a hand-over the front's messages are left for the agent that will manage the device.
        if let Some(front) = self
            .inputs
            .front
            .as_ref()
            .filter(|_| !self.heir.is_yielding())
        {
            fds.push(front.as_fd());
            kinds.push(|r| &mut r.front);
        }
        if let Some(caller) = self.relay.fd() {
            fds.push(caller);
            kinds.push(|r| &mut r.caller);
        }
        let mut ready = Ready::default();
        // Sleep without a timeout, except while QUIESCE must be repeated because a busy server does not notice it.
        let pace = ending.pace.as_ref().map(Pace::next);
        let again = [pace, ending.handing_over, ending.patience];
        let again = again
            .into_iter()
            .flatten()
            .min()
            .filter(|_| ending.exit.is_none());
        for (yes, kind) in poll::readable(&fds, again)?.into_iter().zip(kinds) {
            *kind(&mut ready) = yes;
        }
        Ok(ready)
    }

    /// Handles all pending messages from the server.
    fn listen(&mut self, ending: &mut Ending) {
        loop {
            let Some(server) = &self.server else { return };
            match server.link.try_recv() {
                Ok(None) => return,
                // The successor asks the server to leave if the driver has no QUIESCE.
                Ok(Some(FromServer::Leave { .. })) if self.heir.is_yielding() => {
                    self.tell_server(&ToServer::HandOver);
                }
                Ok(Some(FromServer::Leave { why })) => self.server_leaves(ending, &why),
                Ok(Some(FromServer::Empty { health })) => {
                    ending.empty = true;
                    if let Some(health) = health {
                        report(&health);
                    }
                }
                Ok(Some(FromServer::Failed(failure))) => ending.failed = Some(failure),
                Ok(Some(FromServer::Moves { uri })) => self.is_at(&uri, false),
                Ok(Some(FromServer::Health {
                    ticket,
                    health,
                    more,
                })) => {
                    if let Some(nbd) = &health.nbd {
                        // An earlier question's answer says nothing about the latest move.
                        let settled = nbd.moving_to.is_none() && ticket >= self.move_ticket;
                        self.is_at(&nbd.uri, settled);
                    }
                    self.relay
                        .answer(ticket, Report::Health(health.into()), more);
                }
                Ok(Some(FromServer::Metrics {
                    ticket,
                    snapshot,
                    more,
                })) => self.relay.answer(ticket, Report::Metrics(snapshot), more),
                Ok(Some(FromServer::Recorded {
                    ticket,
                    piece,
                    more,
                })) => self.relay.answer(ticket, Report::Recorded(piece), more),
                Ok(Some(other)) => tracing::warn!("unexpected message from the server: {other:?}"),
                Err(e @ (LinkError::Garbled(_) | LinkError::TooLong(_))) => tracing::warn!("{e}"),
                Err(_) => {
                    ending.hung_up = true;
                    return;
                }
            }
        }
    }

    /// Records the NBD server that the device is at, unless that is known.
    fn is_at(&mut self, uri: &str, settled: bool) {
        let device = self.device.as_mut();
        if device.is_some_and(|device| device.record.spec.backend.is_at(uri, settled)) {
            self.save();
        }
    }

    fn hear_front(&mut self, ending: &mut Ending) {
        let Some(front) = &self.inputs.front else {
            return;
        };
        match front.try_recv::<ToAgent>() {
            Ok(None) => {}
            Ok(Some(ToAgent::Keep)) => self.keep(),
            Ok(Some(ToAgent::Leave)) => self.asked_to_end(ending, "the front"),
            Ok(Some(ToAgent::Add(_) | ToAgent::Recover(_))) => {
                tracing::warn!("unexpected message from the front");
            }
            Err(_) => {
                self.inputs.front = None;
                if self.inputs.lifetime != Lifetime::Own {
                    self.asked_to_end(ending, "the end of the front");
                }
            }
        }
    }

    /// Detaches the device from its front, and updates the record if the device changed hands meanwhile.
    fn keep(&mut self) {
        self.inputs.lifetime = Lifetime::Own;
        self.inputs.front = None;
        let own = Some(Lifetime::Own);
        if let Some(device) = self.device.as_mut().filter(|d| d.record.lifetime != own) {
            device.record.lifetime = own;
            self.save();
        }
    }

    /// Accepts a caller: passes its question to the server, and records a change for later servers.
    fn ask_server(&mut self) {
        let Some((ticket, question)) = self.relay.accept() else {
            return;
        };
        let mut question = question;
        if self.heir.is_yielding() && moves(question.as_ref()) {
            // The next server process will be where the record says.
            question = None;
        }
        let device = self.device.as_ref().filter(|_| moves(question.as_ref()));
        let before = device.map(|device| device.record.spec.backend.clone());
        let spec = self.device.as_mut().map(|device| &mut device.record.spec);
        let changed = match (&question, spec) {
            (Some(Question::Backend(command)), Some(spec)) => spec.backend.keep(command),
            (
                Some(Question::Metrics(MetricsQuestion {
                    metrics: Some(level),
                })),
                Some(spec),
            ) => std::mem::replace(&mut spec.serving.options.metrics, *level) != *level,
            _ => false,
        };
        if changed
            && let Some(device) = &mut self.device
            && let Err(e) = self.store.write(&device.record)
        {
            if let Some(before) = before {
                // Unrecorded, the device would be back at the old server with its next process.
                tracing::warn!("the device does not move, because that cannot be recorded: {e}");
                device.record.spec.backend = before;
                question = None;
            } else {
                tracing::warn!("the change is not recorded for later servers: {e}");
            }
        }
        if moves(question.as_ref()) {
            self.move_ticket = ticket;
        }
        self.tell_server(&match question {
            None => ToServer::Health { ticket },
            Some(Question::Backend(command)) => ToServer::Backend { ticket, command },
            Some(Question::Metrics(MetricsQuestion { metrics: level })) => {
                ToServer::Metrics { ticket, level }
            }
            Some(Question::Record(RecordQuestion { record: order })) => {
                ToServer::Record { ticket, order }
            }
            Some(Question::Log(LogQuestion { log_level: level })) => {
                if let Ok(level) = level.parse() {
                    log::set_level(level);
                }
                ToServer::Log { ticket, level }
            }
        });
    }

    /// While a successor is active, a signal concerns only this process.
    fn signalled(&mut self, ending: &mut Ending) {
        if self.heir.is_yielding() {
            self.inputs.told_to_end = true;
        } else {
            self.asked_to_end(ending, "a signal");
        }
    }

    /// Presses a server whose device's I/O is held to leave. Gives up on a server that does not: only a person can
    /// decide whether its requests may be lost.
    fn press(&mut self, ending: &mut Ending) -> Result<(), Failure> {
        if ending.exit.is_some() {
            return Ok(());
        }
        if self.heir.is_deserted() && ending.pace.is_none() {
            ending.pace = Some(Pace::new());
        }
        if ending
            .handing_over
            .is_some_and(|until| Instant::now() >= until)
        {
            return Err(self.no_way_out());
        }
        if ending.patience.is_some_and(|until| Instant::now() >= until) {
            ending.patience = None;
            let text = self.does_not_leave();
            tracing::error!(
                "{text}; the device gets a new server once this one has answered its requests or was killed"
            );
        }
        if self.can_quiesce() && ending.pace.as_mut().is_some_and(Pace::is_due) {
            self.quiesce();
        }
        Ok(())
    }

    /// The failure of a server that does not leave its device, which stays as it is.
    fn no_way_out(&mut self) -> Failure {
        self.relay.close();
        let failure = Failure::timed_out(self.does_not_leave());
        let Some(id) = self.device.as_ref().map(|d| d.id) else {
            return failure;
        };
        failure.hint(format!(
            "when that process has answered its requests or was killed, run `ublkctl recover {id}`"
        ))
    }

    /// Records that the server does not release its device; returns the message.
    fn does_not_leave(&mut self) -> String {
        let pid = self.server.as_ref().map_or(0, |s| s.pid);
        let Some(device) = &mut self.device else {
            return format!("process {pid} does not exit");
        };
        let id = device.id;
        let text = format!(
            "device {id}: server process {pid} does not release the device; its I/O is held"
        );
        device.record.cause = Some(text.clone());
        self.save();
        text
    }

    /// Handles a signal to the server. For a supervised device this counts as a death: once the server has answered its
    /// requests in flight, another replaces it, if the driver can hold new I/O meanwhile. For any other device, and
    /// once the agent was told to end, it is a request to end.
    fn server_leaves(&mut self, ending: &mut Ending, why: &str) {
        let device = self.device.as_ref();
        let supervised = device.is_some_and(|d| d.record.spec.supervise);
        if !supervised || self.inputs.told_to_end || ending.asked.is_some() {
            return self.asked_to_end(ending, why);
        }
        if ending.deserting {
            return;
        }
        ending.deserting = true;
        ending.patience = Some(Instant::now() + LEAVE);
        tracing::info!("{why}; starting a new server");
        // While a batch device is held, the driver fails its I/O.
        let batch = device.is_some_and(|d| d.geometry.features().contains(Features::BATCH_IO));
        if self.can_quiesce() && !batch {
            ending.pace = Some(Pace::new());
        } else {
            self.tell_server(&ToServer::HandOver);
        }
    }

    /// Handles a request to end the processes. A recoverable device is left to its next server (L30), unless it ends
    /// with its front; any other device is stopped and deleted.
    fn asked_to_end(&mut self, ending: &mut Ending, why: &str) {
        let recoverable = self
            .device
            .as_ref()
            .is_some_and(|d| Recovery::of(d.geometry.features()).is_recoverable());
        if self.inputs.lifetime == Lifetime::Front || !recoverable {
            return self.leave(ending, why);
        }
        if ending.handing_over.is_some() || ending.asked.is_some() {
            return;
        }
        if self.inputs.lifetime == Lifetime::Left {
            self.write_back();
        }
        ending.handing_over = Some(Instant::now() + LEAVE);
        ending.pace = Some(Pace::new());
        self.inputs.told_to_end = true;
        tracing::info!("leaving the device to its next server, requested by {why}");
        self.set_phase(Phase::HandingOver);
        if !self.can_quiesce() {
            self.tell_server(&ToServer::HandOver);
        }
    }

    /// Writes back the device's dirty data: the machine may go down before another server could do so.
    fn write_back(&mut self) {
        let Some((id, nonce)) = self.device.as_ref().map(|d| (d.id, d.record.nonce)) else {
            return;
        };
        let Err(e) = self.world.sync(id, LEAVE) else {
            return;
        };
        tracing::error!("device {id}: write-back failed: {e}");
        if !matches!(e, Error::TimedOut { .. })
            && let Err(e) = self.store.note_unwritten(nonce)
        {
            tracing::warn!("{e}");
        }
    }

    fn can_quiesce(&self) -> bool {
        let device = self.device.as_ref();
        device.is_some_and(|d| d.geometry.features().contains(Features::QUIESCE))
    }

    /// Sends QUIESCE again, so that the driver takes back idle tags.
    fn quiesce(&mut self) {
        let Some(id) = self.device.as_ref().map(|d| d.id) else {
            return;
        };
        if self.can_quiesce()
            && let Err(e) = self.quiesce_once(id, Instant::now() + LEAVE)
        {
            tracing::warn!("{e}");
        }
    }

    /// Stops the device while the server still serves (L22). Does nothing if repeated.
    fn leave(&mut self, ending: &mut Ending, why: &str) {
        if ending.asked.is_some() {
            return;
        }
        ending.asked = Some(why.to_owned());
        let Some(device) = &mut self.device else {
            return;
        };
        let id = device.id;
        tracing::info!("stopping and deleting device {id}, requested by {why}");
        device.record.phase = Phase::Leaving;
        self.save();
        kill_point("stop:before");
        // STOP_DEV does not write back a device that outlives its server, nor data that is dirty in stacked devices.
        if let Err(e) = self.world.sync(id, LEAVE) {
            tracing::error!("data that is not written back is lost: {e}");
        }
        let Ok(control) = self.control() else { return };
        match control.stop(id, LEAVE) {
            Ok(()) | Err(Error::NoSuchDevice { .. }) => {}
            // The device stops when the server answers or exits; both are events here.
            Err(e) => tracing::error!("{e}"),
        }
        kill_point("stop:stopped");
    }

    /// Cleans up after the server's exit.
    fn close(&mut self, ending: Ending) -> Result<(), Failure> {
        let exit = ending.exit.unwrap_or_default();
        let Some(mut device) = self.device.take() else {
            return Ok(());
        };
        let id = device.id;
        // All that the server sent has been read.
        device.record.spec.backend.has_not_moved();
        // Kept only for another server under this agent.
        let revived = device.record.spec.supervise || self.heir.is_deserted();
        if !revived || self.inputs.told_to_end || ending.asked.is_some() {
            self.backing.clear();
        }
        let cause = match (ending.failed, ending.empty) {
            (Some(failure), _) => Some(failure.to_string()),
            (None, true) if ending.deserting && !self.inputs.told_to_end => {
                Some("its server ended on a signal".to_owned())
            }
            (None, true) => None,
            (None, false) => Some(format!("the server process ended ({exit})")),
        };
        if ending.asked.is_some() {
            if let Some(cause) = &cause {
                tracing::warn!("device {id} was being stopped when {cause}");
            }
            self.remove(&device);
            return Ok(());
        }
        // Check that the number still belongs to this device; a record left behind is harmless.
        let ours = self.control()?.info(id, LEAVE);
        let left = ending.handing_over.is_some() || is_left(&ours);
        device.record.phase = match cause {
            None if left => Phase::Left,
            None => Phase::Stopped,
            Some(_) => Phase::Ended,
        };
        device.record.cause.clone_from(&cause);
        if device.record.phase == Phase::Stopped {
            // The disk is gone, and its name must not lead to the next device with the same number.
            names::unlink(device.record.spec.name.as_deref(), id);
        }
        match ours {
            Ok(info) if info.server_flags() == device.record.nonce => {
                if let Err(e) = self.store.write(&device.record) {
                    tracing::warn!("{e}");
                }
            }
            _ => self.forget(&device),
        }
        // The next agent need not wait until this process has exited.
        let goes_on = device.record.spec.supervise && !self.inputs.told_to_end;
        if !goes_on && !self.heir.is_deserted() {
            self.heir.close();
            self.lock = None;
        }
        let next = if Recovery::of(device.geometry.features()).is_recoverable() {
            format!(
                "`ublkctl recover {id}` starts a new server, `ublkctl delete {id}` removes the device"
            )
        } else {
            format!("the device is dead; `ublkctl delete {id}` removes it")
        };
        match cause {
            None if left => {
                tracing::info!("device {id} waits for its next server; {next}");
                Ok(())
            }
            None => {
                tracing::info!("device {id} was stopped by another process");
                Ok(())
            }
            Some(cause) => Err(Failure::failed(format!("device {id}: {cause}")).hint(next)),
        }
    }
}

/// Whether a device whose server ended waits for another server, for example after an upgrade by another agent. It may
/// still be live if the driver has not noticed the server's end; a stopped device is dead before its server knows.
fn is_left(info: &Result<Geometry, Error>) -> bool {
    let left = |info: &Geometry| {
        Recovery::of(info.features()).is_recoverable() && info.state() != DevState::Dead
    };
    info.as_ref().is_ok_and(left)
}

fn report(health: &Health) {
    let stats = &health.stats;
    tracing::info!(
        "{} reads, {} writes, {} flushes, {} errors",
        stats.reads,
        stats.writes,
        stats.flushes,
        stats.errors
    );
    if stats.panics + stats.dropped != 0 {
        tracing::warn!(
            "{} panics caught, {} requests dropped",
            stats.panics,
            stats.dropped
        );
    }
}
