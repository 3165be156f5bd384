//! The helper role: runs control commands for a process that must be able to return.
//!
//! A process with an unfinished control command cannot exit, and the open that proves readiness may
//! hang. A process that others wait for therefore has a helper do both: past the deadline it reports and
//! continues, and the helper stays behind. [`Helper`] is the near end, a [`Controller`] like any other.

use crate::failure::NO_START;
use crate::in_use::holders::{self, Claim, Holders};
use crate::in_use::write_back::{Unwritten, note_unwritten, write_back};
use crate::link::peer::{Messages, Peer, Role, Standing};
use crate::link::{LINK_VERSION, Link, LinkError};
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use ublk_core::deadline_in;
use ublk_core::{DevId, Errno};
use ublk_ctrl::{CANCEL_GRACE, Command, Control, Controller, Error, Operation, Reply, wait};

/// Allowance beyond the command's deadline and its cancelling, for two processes to be scheduled.
const SLACK: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    version: u32,
    ticket: u64,
    task: Task,
    deadline: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    ticket: u64,
    result: Result<Told, Error>,
}

/// A task for a helper.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) enum Task {
    /// A control command.
    Command(Command),
    /// As `Command`, if the device still has this nonce, which is checked right before the command.
    Same { nonce: u64, command: Command },
    /// Returns the users of the device and claims it: until it is deleted or released, or the helper exits, nobody else
    /// can claim it, and its number is not reused.
    Claim { id: DevId },
    /// Returns the users of the device, without changing the claim.
    Look { id: DevId },
    /// Releases the claim.
    Release,
    /// Writes back all dirty data of the device.
    WriteBack { id: DevId, nonce: u64 },
}

impl Task {
    const fn operation(&self) -> Operation {
        match self {
            Self::Command(command) | Self::Same { command, .. } => command.operation(),
            Self::Claim { .. } | Self::Look { .. } | Self::Release => Operation::Claim,
            Self::WriteBack { .. } => Operation::Sync,
        }
    }

    const fn dev(&self) -> Option<DevId> {
        match self {
            Self::Command(command) | Self::Same { command, .. } => command.dev(),
            Self::Claim { id } | Self::Look { id } | Self::WriteBack { id, .. } => Some(*id),
            Self::Release => None,
        }
    }
}

/// A helper's answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Reply(Reply),
    Holders(Holders),
    Unwritten(Vec<Unwritten>),
}

/// A helper process, seen from its caller.
#[derive(Debug)]
pub struct Helper {
    peer: Peer,
    ticket: u64,
}

impl Helper {
    /// Starts a helper: `program` in its hidden role. It holds none of our files, so that a helper left behind keeps no
    /// pipe open.
    ///
    /// # Errors
    /// [`Error::ControllerGone`] when it cannot be started.
    pub fn start(program: &Path) -> Result<Self, Error> {
        Peer::spawn(program, Role::Helper, Standing::Alone, Messages::Nowhere)
            .map(Self::new)
            .map_err(|e| Error::ControllerGone {
                message: format!("{NO_START} ({}): {e}", program.display()),
            })
    }

    /// Wraps a running helper.
    #[must_use]
    pub const fn new(peer: Peer) -> Self {
        Self { peer, ticket: 0 }
    }

    /// Its pid.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.peer.pid
    }

    /// Closes the link and reaps the process. A stuck helper is left behind.
    pub fn finish(self) {
        let soon = Instant::now() + SLACK;
        let mut peer = self.peer;
        peer.link.hang_up();
        let _ = crate::sys::poll::readable(&[peer.exit_fd()], Some(soon));
        let _ = peer.ended();
    }

    fn gone(&mut self, error: &LinkError) -> Error {
        let soon = Instant::now() + SLACK;
        // A helper that closed its link is about to exit: its exit status gives the reason.
        let _ = crate::sys::poll::readable(&[self.peer.exit_fd()], Some(soon));
        let end = self.peer.ended();
        Error::ControllerGone {
            message: match end {
                Some(end) => format!("helper process {} ended ({end})", self.peer.pid),
                None => format!("helper process {}: {error}", self.peer.pid),
            },
        }
    }
}

/// Interval at which a waiting caller checks whether waiting still makes sense.
const LOOK: Duration = Duration::from_millis(200);

impl Helper {
    /// Runs a task. Meanwhile `hopeless` is polled: whether waiting has become pointless.
    pub(crate) fn ask(
        &mut self,
        task: Task,
        deadline: Duration,
        hopeless: &mut dyn FnMut() -> bool,
    ) -> Result<Told, Error> {
        self.ticket += 1;
        let ticket = self.ticket;
        let begun = Instant::now();
        let until = begun + deadline + CANCEL_GRACE + SLACK;
        let ask = Ask {
            version: LINK_VERSION,
            ticket,
            task,
            deadline,
        };
        if let Err(e) = self.peer.link.send(&ask) {
            return Err(self.gone(&e));
        }
        loop {
            let look = until.min(Instant::now() + LOOK);
            match self.peer.link.recv::<Answer>(look) {
                Ok(answer) if answer.ticket == ticket => return answer.result,
                // An answer to an abandoned call.
                Ok(_) => {}
                Err(LinkError::TimedOut) if look < until && !hopeless() => {}
                Err(LinkError::TimedOut) => {
                    return Err(Error::TimedOut {
                        operation: task.operation(),
                        dev: task.dev(),
                        after: deadline.min(begun.elapsed()),
                        abandoned: true,
                    });
                }
                Err(e) => return Err(self.gone(&e)),
            }
        }
    }

    fn holders(&mut self, task: Task, deadline: Duration) -> Result<Holders, Error> {
        match self.ask(task, deadline, &mut || false)? {
            Told::Holders(holders) => Ok(holders.without(&[std::process::id(), self.peer.pid])),
            other => Err(unexpected(&task, &other)),
        }
    }

    /// Returns the users of a device and, if nobody else claims it, claims it until it is deleted or the helper exits.
    ///
    /// # Errors
    /// The disk cannot be opened, or not before the deadline.
    pub fn claim(&mut self, id: DevId, deadline: Duration) -> Result<Holders, Error> {
        self.holders(Task::Claim { id }, deadline)
    }

    /// Returns the users of a device: after [`Helper::claim`], or without it as far as is visible without opening the
    /// disk.
    ///
    /// # Errors
    /// The deadline.
    pub fn look(&mut self, id: DevId, deadline: Duration) -> Result<Holders, Error> {
        self.holders(Task::Look { id }, deadline)
    }

    /// Releases the claim.
    ///
    /// # Errors
    /// The deadline.
    pub fn release(&mut self, deadline: Duration) -> Result<(), Error> {
        self.ask(Task::Release, deadline, &mut || false).map(drop)
    }

    /// Writes back all dirty data of a device and returns what could not be written, which is also recorded under the
    /// nonce. Gives up when `hopeless` returns true.
    ///
    /// # Errors
    /// The deadline, or `hopeless`.
    pub fn write_back(
        &mut self,
        id: DevId,
        nonce: u64,
        deadline: Duration,
        hopeless: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Unwritten>, Error> {
        let task = Task::WriteBack { id, nonce };
        match self.ask(task, deadline, hopeless)? {
            Told::Unwritten(failed) => Ok(failed),
            other => Err(unexpected(&task, &other)),
        }
    }

    /// Issues a command if the device still has this nonce, which is checked right before it.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] if it is another device, and those of the command.
    pub fn same(&mut self, nonce: u64, command: Command, deadline: Duration) -> Result<(), Error> {
        let task = Task::Same { nonce, command };
        match self.ask(task, deadline, &mut || false)? {
            Told::Reply(Reply::Done) => Ok(()),
            other => Err(unexpected(&task, &other)),
        }
    }
}

fn unexpected(task: &Task, told: &Told) -> Error {
    Error::BadReply {
        operation: task.operation(),
        message: format!("unexpected reply {told:?}"),
    }
}

#[expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]
// SAFETY: replies come from `Control` in the helper process, which runs this same program.
unsafe impl Controller for Helper {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        let task = Task::Command(command);
        match self.ask(task, deadline, &mut || false)? {
            Told::Reply(reply) => Ok(reply),
            other => Err(unexpected(&task, &other)),
        }
    }
}

/// Executes commands in a helper.
pub type Handler = Box<dyn FnMut(Command, Duration) -> Result<Reply, Error>>;

/// The real control plane, on a ring of the process's only thread.
///
/// # Errors
/// As [`Control::open`].
pub fn control() -> Result<Handler, Error> {
    let mut control = Control::open()?;
    Ok(Box::new(move |command, deadline| {
        control.call(command, deadline)
    }))
}

/// Runs the role until the caller hangs up. `open` creates the handler when the first command needs it.
pub fn run(link: &Link, open: impl FnMut() -> Result<Handler, Error>) -> i32 {
    let mut hands = Hands {
        open,
        control: None,
        claim: None,
    };
    loop {
        let ask: Ask = match link.recv(None) {
            Ok(ask) => ask,
            Err(LinkError::Closed) => return 0,
            Err(e) => {
                tracing::error!("{e}");
                return 1;
            }
        };
        if ask.version != LINK_VERSION {
            tracing::error!("{}", LinkError::Version(ask.version));
            return 1;
        }
        let result = hands.work(ask.task, ask.deadline);
        let reply = Answer {
            ticket: ask.ticket,
            result,
        };
        if link.send(&reply).is_err() {
            return 0;
        }
    }
}

/// A running helper.
struct Hands<F> {
    open: F,
    control: Option<Handler>,
    claim: Option<Claim>,
}

impl<F: FnMut() -> Result<Handler, Error>> Hands<F> {
    fn work(&mut self, task: Task, deadline: Duration) -> Result<Told, Error> {
        match task {
            Task::Command(command) => self.command(command, deadline).map(Told::Reply),
            Task::Same { nonce, command } => self.same(nonce, command, deadline).map(Told::Reply),
            Task::Claim { id } => {
                // Drop the previous claim first: two claims of ours would conflict.
                self.claim = None;
                let claim = Claim::ask(id.get()).map_err(|e| {
                    Error::of_command(Operation::Claim, Some(id), Errno::from_io(&e))
                })?;
                self.claim = Some(claim);
                Ok(Told::Holders(self.look(id)))
            }
            Task::Look { id } => Ok(Told::Holders(self.look(id))),
            Task::Release => {
                self.claim = None;
                Ok(Told::Reply(Reply::Done))
            }
            Task::WriteBack { id, nonce } => {
                let failed = write_back(id);
                // Recorded here: the caller may be gone, and the kernel reports the failure only once.
                if !failed.is_empty() {
                    note_unwritten(nonce);
                }
                Ok(Told::Unwritten(failed))
            }
        }
    }

    fn look(&self, id: DevId) -> Holders {
        let mut holders = holders::of_device(id.get());
        if let Some(claim) = &self.claim {
            holders.claimed.clone_from(&claim.taken);
            holders.dirty = claim.dirty();
        }
        holders
    }

    fn control(&mut self) -> Result<&mut Handler, Error> {
        match &mut self.control {
            Some(control) => Ok(control),
            none => Ok(none.insert((self.open)()?)),
        }
    }

    fn command(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        // Commands that need no ring must not wait for one.
        match command {
            Command::Sync { id } => match write_back(id).first() {
                None => Ok(Reply::Done),
                Some(failed) => Err(Error::of_command(Operation::Sync, Some(id), failed.errno)),
            },
            Command::ProveReady { id, size } => {
                ublk_ctrl::nodes::prove_ready(id, size, deadline).map(|()| Reply::Done)
            }
            Command::NoScheduler { id } => {
                ublk_ctrl::scheduler::no_scheduler(id).map(|()| Reply::Done)
            }
            _ => (self.control()?)(command, deadline),
        }
    }

    /// L42 The device is checked right before the destructive command. While the claim holds it open, its number cannot
    /// be reused in between.
    fn same(&mut self, nonce: u64, command: Command, deadline: Duration) -> Result<Reply, Error> {
        let (operation, dev) = (command.operation(), command.dev());
        let Some(id) = dev else {
            return Err(Error::Spec {
                message: format!("{operation}: no device given"),
            });
        };
        let until = deadline_in(deadline);
        match self.command(Command::Info { id }, deadline)? {
            Reply::Geometry(found) if found.server_flags() == nonce => {}
            _ => return Err(Error::NoSuchDevice { operation, dev }),
        }
        let left = until.saturating_duration_since(Instant::now());
        match command {
            // A delete also waits for the claim: release it once the driver has removed the device.
            Command::Delete { .. } | Command::DeleteAsync { .. } => {
                self.letting_go(command, left, &|| !is_listed(id))
            }
            // A stuck stop must not keep others from querying the users.
            Command::Stop { .. } => {
                let enough = Instant::now() + SLACK;
                self.letting_go(command, left, &|| Instant::now() >= enough)
            }
            _ => self.command(command, left),
        }
    }

    /// Issues a command and releases the claim meanwhile, once `when` returns true.
    fn letting_go(
        &mut self,
        command: Command,
        deadline: Duration,
        when: &(dyn Fn() -> bool + Sync),
    ) -> Result<Reply, Error> {
        let claim = Mutex::new(self.claim.take());
        let control = self.control()?;
        let ended = AtomicBool::new(false);
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                // There is no event for this.
                let _ = wait::until(wait::deadline_in(deadline), || {
                    let now = ended.load(Ordering::Acquire) || when();
                    Ok::<_, Infallible>(now.then_some(()))
                });
                if !ended.load(Ordering::Acquire)
                    && let Ok(mut claim) = claim.lock()
                {
                    *claim = None;
                }
            });
            let done = control(command, deadline);
            ended.store(true, Ordering::Release);
            done
        });
        // A process with a stuck command cannot exit, and must not be what the command waits for.
        if result.is_ok() && matches!(command, Command::Stop { .. }) {
            self.claim = claim.into_inner().unwrap_or_default();
        }
        result
    }
}

/// Whether the driver still shows the device; not once it is being deleted.
fn is_listed(id: DevId) -> bool {
    let listed = ublk_ctrl::nodes::list_devices();
    listed.is_ok_and(|ids| ids.contains(&id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;
    use ublk_core::Features;

    const ID: u32 = fakes::ID;

    /// A helper on a thread, whose driver has one device with nonce 7, and the commands that reach it.
    fn helper(delay: Duration) -> (Helper, mpsc::Receiver<Command>) {
        let (near, far) = Link::pair().unwrap();
        let (exit, alive) = UnixStream::pair().unwrap();
        let (sender, commands) = mpsc::channel();
        std::thread::spawn(move || {
            run(&far, || {
                let sender = sender.clone();
                Ok(Box::new(move |command, _| {
                    std::thread::sleep(delay);
                    if let Command::Info { .. } = command {
                        let info = fakes::geometry_in(1, 7, Features::NONE);
                        return Ok(Reply::Geometry(info));
                    }
                    let _ = sender.send(command);
                    Ok(Reply::Done)
                }))
            });
            drop(alive);
        });
        (Helper::new(Peer::thread(near, exit.into(), 4242)), commands)
    }

    /// L42 A destructive command reaches the intended device, and no later one with its number.
    #[test]
    fn l42_a_command_reaches_the_device_that_was_meant() {
        let id = DevId::new(ID).unwrap();
        let soon = Duration::from_secs(5);
        let (mut helper, commands) = helper(Duration::ZERO);
        for command in [
            Command::Stop { id },
            Command::Delete { id },
            Command::TryStop { id },
        ] {
            let other = helper.same(8, command, soon);
            assert!(
                matches!(other, Err(Error::NoSuchDevice { .. })),
                "{other:?}"
            );
            assert!(commands.try_recv().is_err());
            helper.same(7, command, soon).unwrap();
            assert_eq!(commands.try_recv(), Ok(command));
        }
        let of_none = helper.same(7, Command::Features, soon);
        assert!(matches!(of_none, Err(Error::Spec { .. })), "{of_none:?}");
    }

    /// L22 A wait that cannot succeed ends.
    #[test]
    fn l22_a_wait_without_hope_ends() {
        let (mut helper, _commands) = helper(Duration::from_secs(20));
        let begun = Instant::now();
        let mut looks = 0;
        let task = Task::Command(Command::Features);
        let given_up = helper.ask(task, Duration::from_secs(60), &mut || {
            looks += 1;
            looks == 2
        });
        let error = given_up.unwrap_err();
        assert!(
            matches!(
                error,
                Error::TimedOut {
                    abandoned: true,
                    ..
                }
            ),
            "{error}"
        );
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    /// L41 A device that does not exist has neither a claim nor users.
    #[test]
    fn l41_a_disk_that_is_not_there_is_not_claimed() {
        let (mut helper, _commands) = helper(Duration::ZERO);
        let id = DevId::new(1_048_575).unwrap();
        let soon = Duration::from_secs(5);
        let error = helper.claim(id, soon).unwrap_err();
        assert!(
            error.to_string().contains("missing in this /dev"),
            "{error}"
        );
        assert!(helper.look(id, soon).unwrap().is_empty());
        helper.release(soon).unwrap();
    }
}
