//! The agent role: owns the control ring of one device and watches its server.
//!
//! The agent creates the device (ADD, SET_PARAMS), has the server arm it, starts it, has a helper check that it is
//! ready, and then waits for events: messages from the server, the server's exit, signals, the front. When asked to
//! end, it stops the device while the server still serves, waits until the server is empty and has exited, and only
//! then deletes the device (L22).

mod attend;
mod bring_up;
mod pace;
mod recover;
mod refusals;
mod relay;
mod revive;
mod succession;

use crate::failure::Failure;
use crate::helper::{self, Helper};
use crate::link::listener::Listener;
use crate::link::message::{
    AddRequest, FromAgent, FromServer, Lifetime, RecoverRequest, ToAgent, ToServer,
};
use crate::link::peer::{Messages, Peer, Role, Standing};
use crate::link::{LINK_VERSION, Link, LinkError};
use crate::report::Added;
use crate::signals::Signals;
use crate::state::{Lock, Record, Store};
use crate::sys::{memory, poll, surroundings, title};
pub use bring_up::check;
use relay::Relay;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use succession::{Heir, Predecessor};
use ublk_core::{DevId, DeviceParams, Geometry};
use ublk_ctrl::{Command, ControlThread, Controller, Error};

/// How long STOP_DEV, DEL_DEV and a server's exit may take before the agent reports it. The agent has no caller to return
/// to, so it then keeps waiting if it can.
const LEAVE: Duration = Duration::from_secs(30);

/// How long opening the control plane may take.
const OPEN: Duration = Duration::from_secs(10);

/// The environment of an agent: real, or a test's.
pub trait World {
    /// Drops scheduling settings and limits inherited from the caller, before any process is started.
    fn drop_caller_limits(&mut self);

    /// Sets the process title to this device.
    fn named(&mut self, id: DevId);

    /// Starts the server process.
    ///
    /// # Errors
    /// When it cannot be started.
    fn server(&mut self) -> Result<Peer, Failure>;

    /// Starts the helper that checks readiness. Called before the control ring is created.
    ///
    /// # Errors
    /// The helper cannot be started.
    fn start_helper(&mut self) -> Result<(), Error>;

    /// Checks, in another process, that the block device exists, opens and has its size.
    ///
    /// # Errors
    /// The reason at the deadline, or earlier if `server` exits.
    fn prove(
        &mut self,
        id: DevId,
        size: u64,
        server: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<(), Error>;

    /// Disables the device's I/O scheduler from the helper, which may get stuck.
    ///
    /// # Errors
    /// The scheduler was not disabled by the deadline.
    fn no_scheduler(&mut self, id: DevId, deadline: Duration) -> Result<(), Error>;

    /// Writes back the device's dirty data in another process.
    ///
    /// # Errors
    /// Data that could not be written back by the deadline.
    fn sync(&mut self, id: DevId, deadline: Duration) -> Result<(), Error>;

    /// Ends the helper, and reaps it if it exits.
    fn end_helper(&mut self);

    /// Opens the control plane.
    ///
    /// # Errors
    /// An error of the kernel.
    fn control(&mut self) -> Result<Box<dyn Controller>, Error>;
}

/// Real processes and the real kernel.
#[derive(Debug)]
pub struct Real {
    program: PathBuf,
    helper: Option<Helper>,
}

impl Real {
    /// Roles are hidden subcommands of `program`.
    #[must_use]
    pub const fn new(program: PathBuf) -> Self {
        Self {
            program,
            helper: None,
        }
    }

    /// Uses a helper that was forked before any thread or ring existed: a fork is cheaper than a program start.
    #[must_use]
    pub fn helper(mut self, helper: Helper) -> Self {
        self.helper = Some(helper);
        self
    }
}

impl World for Real {
    fn drop_caller_limits(&mut self) {
        surroundings::reset_limits();
        memory::unburden();
    }

    fn named(&mut self, id: DevId) {
        title::set(Role::Agent.name(), Some(id.get()));
    }

    fn server(&mut self) -> Result<Peer, Failure> {
        let (role, standing) = (Role::Server, Standing::Beside);
        let server = Peer::spawn(&self.program, role, standing, Messages::Inherit);
        Ok(server?)
    }

    fn start_helper(&mut self) -> Result<(), Error> {
        if self.helper.is_none() {
            self.helper = Some(Helper::start(&self.program)?);
        }
        Ok(())
    }

    fn prove(
        &mut self,
        id: DevId,
        size: u64,
        server: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let helper = self.helper.as_mut().ok_or_else(|| Error::ControllerGone {
            message: "the helper was not started".to_owned(),
        })?;
        let command = Command::ProveReady { id, size };
        let ended = || {
            let now = Some(Instant::now());
            let ready = server.map(|fd| poll::readable(&[fd], now));
            matches!(ready, Some(Ok(ready)) if ready == [true])
        };
        let task = helper::Task::Command(command);
        match helper.ask(task, deadline, &mut { ended }) {
            Err(Error::TimedOut { .. }) if ended() => Err(Error::ControllerGone {
                message: format!("the server ended during {}", command.operation()),
            }),
            done => done.map(drop),
        }
    }

    fn no_scheduler(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        match &mut self.helper {
            Some(helper) => helper.no_scheduler(id, deadline),
            None => Ok(()),
        }
    }

    fn sync(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let mut helper = Helper::start(&self.program)?;
        let synced = helper.sync(id, deadline);
        if !matches!(synced, Err(Error::TimedOut { .. })) {
            helper.finish();
        }
        synced
    }

    fn end_helper(&mut self) {
        if let Some(helper) = self.helper.take() {
            helper.finish();
        }
    }

    fn control(&mut self) -> Result<Box<dyn Controller>, Error> {
        // On a separate thread: the agent itself never gets stuck in the kernel.
        Ok(Box::new(ControlThread::start(OPEN)?))
    }
}

/// The links and signals an agent listens to besides its server.
#[derive(Debug)]
pub(crate) struct Inputs {
    front: Option<Link>,
    signals: Option<Signals>,
    /// What ends when the front exits.
    lifetime: Lifetime,
    /// A signal requested the end: the device is not revived any more.
    told_to_end: bool,
}

/// A device that an agent manages.
struct Device {
    id: DevId,
    geometry: Geometry,
    record: Record,
    started: bool,
}

/// A running agent.
struct Agent<'w> {
    world: &'w mut dyn World,
    store: Store,
    inputs: Inputs,
    server: Option<Peer>,
    control: Option<Box<dyn Controller>>,
    device: Option<Device>,
    relay: Relay,
    /// Of the latest request to move to another NBD server.
    move_ticket: u64,
    log: Option<PathBuf>,
    /// Held from the time the device is known until the agent ends.
    lock: Option<Lock>,
    /// The open file or disk behind the device: lock and claim outlive the server, and the next one goes on with it.
    backing: Vec<OwnedFd>,
    /// I/O may be held: neither the caller nor a signal cancels anything.
    held: bool,
    /// The previous agent, as long as it can take the device back.
    predecessor: Option<Predecessor>,
    /// Parameters of a device that exists: what its next server must keep to.
    promised: Option<DeviceParams>,
    /// The front of the previous agent, which this agent takes over.
    adopted: Option<(Link, Lifetime)>,
    /// Reserved sockets for the next agent, and for an agent that replaces a lost one.
    next: Option<Listener>,
    attach: Option<Listener>,
    heir: Heir,
}

/// The task of an agent.
enum Task {
    Add(AddRequest),
    Recover(RecoverRequest),
}

/// Runs the role to its end. Returns the exit code: 0 when the device was deleted as asked or stopped from outside.
pub fn run(world: &mut dyn World, store: Store, front: Link, signals: Option<Signals>) -> i32 {
    let mut agent = Agent {
        world,
        store,
        inputs: Inputs {
            front: Some(front),
            signals,
            lifetime: Lifetime::Front,
            told_to_end: false,
        },
        server: None,
        control: None,
        device: None,
        relay: Relay::default(),
        move_ticket: 0,
        log: None,
        lock: None,
        backing: Vec::new(),
        held: false,
        predecessor: None,
        promised: None,
        adopted: None,
        next: None,
        attach: None,
        heir: Heir::default(),
    };
    let result = agent.run_task();
    agent.heir.close();
    if agent.heir.has_yielded() {
        // The front is another's, too.
        return 0;
    }
    match result {
        Ok(()) => {
            agent.tell_front(&FromAgent::Gone);
            0
        }
        Err(failure) => {
            // The waiting front prints it; without a front it stays in the log.
            if !agent.tell_front(&FromAgent::Failed(failure.clone())) {
                tracing::error!("{failure}");
            }
            1
        }
    }
}

impl Agent<'_> {
    fn run_task(&mut self) -> Result<(), Failure> {
        match self.request()? {
            Task::Add(request) => self.run_add(&request),
            Task::Recover(request) => self.run_recover(&request),
        }
    }

    fn run_add(&mut self, request: &AddRequest) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_millis(request.deadline_ms);
        if request.lifetime == Lifetime::Own {
            self.world.drop_caller_limits();
        }
        match self.bring_up(request, deadline) {
            Ok(added) => {
                self.announce(request.lifetime, added);
                self.await_keep(request.lifetime);
                self.attend_always()
            }
            Err(failure) => {
                self.unwind();
                self.world.end_helper();
                Err(failure)
            }
        }
    }

    fn run_recover(&mut self, request: &RecoverRequest) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_millis(request.deadline_ms);
        if request.lifetime == Lifetime::Own {
            self.world.drop_caller_limits();
        }
        match self.recover(request, deadline) {
            Ok(added) => {
                self.announce(request.lifetime, added);
                self.take_front(request.lifetime);
                self.attend_always()
            }
            Err(failure) => {
                self.give_up(&failure);
                let forsaken = self.held && request.replace && self.predecessor.is_none();
                // From here on the agent before this one has it again.
                self.lock = self.lock.take().filter(|_| forsaken);
                self.predecessor = None;
                if forsaken {
                    return self.go_on(request.id, failure);
                }
                Err(failure)
            }
        }
    }

    fn request(&self) -> Result<Task, Failure> {
        let link = self.inputs.front.as_ref();
        let link = link.ok_or_else(|| Failure::failed("no front"))?;
        match link.recv(Instant::now() + LEAVE)? {
            ToAgent::Add(request) if request.version == LINK_VERSION => Ok(Task::Add(request)),
            ToAgent::Recover(request) if request.version == LINK_VERSION => {
                Ok(Task::Recover(request))
            }
            ToAgent::Add(AddRequest { version, .. })
            | ToAgent::Recover(RecoverRequest { version, .. }) => {
                Err(LinkError::Version(version).into())
            }
            ToAgent::Leave | ToAgent::Keep => {
                Err(Failure::failed("told to end before any request arrived"))
            }
        }
    }

    /// Says that the device serves, and lets go of the front's standard error.
    fn announce(&mut self, lifetime: Lifetime, added: Added) {
        self.inputs.lifetime = lifetime;
        self.tell_live();
        if let Some(log) = &self.log {
            crate::log::to(log);
        }
        tracing::info!(
            "device {} is live, server process {}",
            added.id,
            added.server_pid
        );
        if !self.tell_front(&FromAgent::Live(added)) {
            tracing::info!("the caller is gone");
        }
        self.world.end_helper();
    }

    /// A new device lives no longer than its front until the front reports that its caller knows the device's name.
    fn await_keep(&mut self, lifetime: Lifetime) {
        if lifetime == Lifetime::Own {
            self.inputs.lifetime = Lifetime::Front;
        }
    }

    /// The caller of a recovery has been notified and does not own the device: the front of the previous agent does, if
    /// there is one.
    fn take_front(&mut self, lifetime: Lifetime) {
        if let Some((front, lifetime)) = self.adopted.take() {
            (self.inputs.front, self.inputs.lifetime) = (Some(front), lifetime);
        } else if lifetime == Lifetime::Own {
            self.inputs.front = None;
        }
    }

    /// Sends a message to the front. Returns whether there is one.
    fn tell_front(&mut self, message: &FromAgent) -> bool {
        let front = self.inputs.front.as_ref();
        front.is_some_and(|front| front.send(message).is_ok())
    }

    fn tell_server(&mut self, message: &ToServer) {
        self.tell_server_with(message, &[]);
    }

    /// Tells the server that its device serves, and passes the log file, because the server may no longer open files.
    fn tell_live(&self) {
        let log = self.log.as_deref().map(Store::open_log);
        let log = log.and_then(|opened| {
            let told = |e| tracing::debug!("cannot open the server's log: {e}");
            opened.map_err(told).ok()
        });
        let log = log.as_ref().map(AsFd::as_fd);
        self.tell_server_with(&ToServer::Live, log.as_slice());
    }

    fn tell_server_with(&self, message: &ToServer, descriptors: &[BorrowedFd<'_>]) {
        let server = self.server.as_ref();
        match server.map(|s| s.link.send_with(message, descriptors)) {
            // Its last words are still to be heard, and say why.
            None | Some(Ok(()) | Err(LinkError::Closed)) => {}
            Some(Err(e)) => tracing::warn!("cannot send to the server: {e}"),
        }
    }

    fn control(&mut self) -> Result<&mut Box<dyn Controller>, Failure> {
        let control = self.control.as_mut();
        control.ok_or_else(|| Failure::failed("cannot open the control ring"))
    }

    fn save(&self) {
        if let Some(Err(e)) = self.device.as_ref().map(|d| self.store.write(&d.record)) {
            tracing::warn!("cannot save the state of the device: {e}");
        }
    }

    /// Waits for the server's next message until the deadline; the server's exit, a signal, or a front that left end
    /// the wait, too.
    fn hear_server(&mut self, what: &str, deadline: Instant) -> Result<FromServer, Failure> {
        let server = self.server.as_mut();
        let server = server.ok_or_else(|| Failure::failed("no server"))?;
        let mut hung_up = false;
        loop {
            // Last messages must be read before an exit is reported, so check for the exit first.
            let end = server.ended();
            match server.link.try_recv() {
                Ok(Some(FromServer::Failed(failure))) => return Err(failure),
                Ok(Some(word)) => return Ok(word),
                Ok(None) => {}
                Err(LinkError::Closed) => hung_up = true,
                Err(e) => return Err(e.into()),
            }
            if let Some(end) = end {
                return Err(Failure::failed(format!(
                    "the server ended before it was {what} ({end})"
                )));
            }
            let mut fds = vec![server.exit_fd()];
            if !self.held {
                fds.extend(self.inputs.signals.as_ref().map(AsFd::as_fd));
                fds.extend(self.inputs.front.as_ref().map(AsFd::as_fd));
            }
            let others = 1..fds.len();
            if !hung_up {
                fds.push(server.link.as_fd());
            }
            let ready = poll::readable(&fds, Some(deadline))
                .map_err(|e| Failure::failed(format!("cannot wait: {e}")))?;
            if ready.get(others).is_some_and(|r| r.contains(&true)) {
                return Err(Failure::failed(
                    "cancelled by a signal, or because the caller exited",
                ));
            }
            if !ready.contains(&true) {
                return Err(Failure::timed_out(format!(
                    "the server was not {what} in time"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests;
