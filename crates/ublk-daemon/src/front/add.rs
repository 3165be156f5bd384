//! `add`: starts an agent and waits until the device serves, or reports why it does not.

use super::reserve::{reserve, run_directory};
use super::{by_helper, notify};
use crate::agent;
use crate::backend;
use crate::failure::starting;
use crate::failure::{Failure, FailureKind};
use crate::link::message::{AddRequest, FromAgent, Lifetime, RecoverRequest, ToAgent};
use crate::link::peer::{Messages, Peer, Role, Standing, this_program};
use crate::link::{LINK_VERSION, LinkError};
use crate::log;
use crate::names;
use crate::policy;
use crate::report::Added;
use crate::shm;
use crate::signals::Signals;
use crate::spec::AddSpec;
use crate::state::Store;
use crate::sys::poll;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ChildStderr;
use std::time::{Duration, Instant};
use ublk_core::{DevId, Features, Limits, deadline_in};
use ublk_ctrl::Controller;

/// How long an agent that closed its link may take to exit, so that its exit can be reported.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Deadline for starting another agent for a device.
const ANOTHER: Duration = Duration::from_secs(30);

/// Checks a device whose backend has these limits against the rules of tool and driver, before anything is started.
///
/// # Errors
/// The violated rule, as a usage failure.
pub fn check(spec: &AddSpec, limits: Limits) -> Result<(), Failure> {
    policy::check(spec)?;
    shm::check(spec)?;
    if let Some(name) = &spec.name {
        names::check(name)?;
    }
    agent::check(spec, limits, Features::NONE, 0)?;
    Ok(())
}

/// Creates a device and returns once it serves. Depending on [`Lifetime`], the agent continues without the front, or
/// ends when the returned value is dropped.
///
/// # Errors
/// The agent's reason, a deadline, or how the agent ended when it gave no reason (L33).
pub fn add(
    program: &Path,
    spec: AddSpec,
    lifetime: Lifetime,
    log: Option<PathBuf>,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    let until = deadline_in(deadline);
    let _name = reserve(spec.name.as_deref(), until)?;
    check(&spec, backend::limits_of(&spec, until)?)?;
    let left = until.saturating_duration_since(Instant::now());
    add_checked(program, spec, lifetime, log, left)
}

/// Like [`add`]; the caller has reserved the name and checked the device.
pub(super) fn add_checked(
    program: &Path,
    spec: AddSpec,
    lifetime: Lifetime,
    log: Option<PathBuf>,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    if let Some(name) = &spec.name {
        names::free(
            name,
            super::named(name).or_else(|| others(program, name, deadline)),
        )?;
        let store = Store::of_user()?;
        // The command that started to add it may have been killed.
        if store.is_adding(name) {
            return Err(
                Failure::failed(format!("a device named {name} is being added"))
                    .hint("check `ublkctl list`, then try again"),
            );
        }
    }
    run_directory()?;
    let until = deadline_in(deadline);
    let request = AddRequest {
        version: LINK_VERSION,
        spec: Box::new(spec),
        lifetime,
        log: log.map(|log| std::path::absolute(&log).unwrap_or(log)),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    };
    let mut device = Foreground::start(program, lifetime, &ToAgent::Add(request))?;
    let added = device.wait_until_live(until, |agent| {
        Failure::timed_out(format!(
            "the device was not ready in time; agent process {agent} was told to clean up"
        ))
        .hint(
            "the kernel reads the partition table of a new disk, from a slow one too: --no-partition-scan leaves that out, \
             --deadline waits longer; `ublkctl list` shows what is left, `ublkctl doctor` checks this machine",
        )
    })?;
    Ok((added, device))
}

/// Starts a new server for a device whose server is gone and returns once it serves; with `replace` it replaces the
/// running server. The configuration comes from the state store; with `accept_backing` the file or disk may differ from
/// the one that the device was created with.
///
/// # Errors
/// Why the device cannot be recovered; it then keeps waiting, for another attempt or a delete.
pub fn recover(
    program: &Path,
    id: DevId,
    replace: bool,
    allow_errors: bool,
    accept_backing: bool,
    deadline: Duration,
) -> Result<Added, Failure> {
    let request = RecoverRequest {
        replace,
        allow_errors,
        accept_backing,
        ..recovery_request(id, Lifetime::Own, deadline)
    };
    ask_agent(program, request, deadline).map(|(added, _)| added)
}

/// Recovers a waiting device; `lifetime` says when its agent ends.
pub(super) fn recover_in_front(
    program: &Path,
    id: DevId,
    lifetime: Lifetime,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    ask_agent(program, recovery_request(id, lifetime, deadline), deadline)
}

/// The request to an agent to ensure that a device has a server and an agent.
fn recovery_request(id: DevId, lifetime: Lifetime, deadline: Duration) -> RecoverRequest {
    RecoverRequest {
        version: LINK_VERSION,
        id: id.get(),
        replace: false,
        size: None,
        allow_errors: false,
        accept_backing: false,
        lifetime,
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Replaces the server of a live device by one that serves `size` bytes, and gives the device that size.
pub(super) fn replace(
    program: &Path,
    id: DevId,
    size: u64,
    accept_backing: bool,
    deadline: Duration,
) -> Result<Added, Failure> {
    let request = RecoverRequest {
        replace: true,
        size: Some(size),
        accept_backing,
        ..recovery_request(id, Lifetime::Own, deadline)
    };
    ask_agent(program, request, deadline).map(|(added, _)| added)
}

/// Starts an agent with a request, and waits until the device serves.
fn ask_agent(
    program: &Path,
    request: RecoverRequest,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    run_directory()?;
    if let Ok(id) = DevId::new(request.id) {
        ublk_ctrl::nodes::can_serve(id)?;
    }
    let until = deadline_in(deadline);
    let (lifetime, id) = (request.lifetime, request.id);
    let mut device = Foreground::start(program, lifetime, &ToAgent::Recover(request))?;
    // The agent gives up at the deadline and reports why; leave a moment for its message.
    let added = device.wait_until_live(until + LAST_WORDS, |agent| no_new_server(id, agent))?;
    Ok((added, device))
}

/// The failure of a device that got no new server by the deadline.
fn no_new_server(id: u32, agent: u32) -> Failure {
    Failure::timed_out(format!(
        "device {id} got no new server in time; agent process {agent} was told to give up"
    ))
    .hint(format!(
        "its files, or its NBD server, may not answer; --deadline waits longer, `ublkctl info {id}` shows what the device has"
    ))
}

/// The foreign device that a link with this name leads to: another user's device has the name. Names of our own devices
/// are in their records.
fn others(program: &Path, name: &str, deadline: Duration) -> Option<u32> {
    let id = DevId::new(names::resolve(name)?).ok()?;
    match by_helper(program, |helper| helper.info(id, deadline)) {
        Ok(info) if super::look::record(&info).is_some() => None,
        Err(failure) if failure.kind == FailureKind::NoSuchDevice => None,
        _ => Some(id.get()),
    }
}

/// A device whose agent is held by this process.
#[derive(Debug)]
pub struct Foreground {
    agent: Peer,
    messages: Option<ChildStderr>,
    signals: Option<Signals>,
    serves: Option<Added>,
    lifetime: Lifetime,
    /// Whether a signal arrived and was passed to the agent.
    told: bool,
}

impl Foreground {
    /// Starts an agent and sends its first message.
    fn start(program: &Path, lifetime: Lifetime, word: &ToAgent) -> Result<Self, Failure> {
        // On a signal, a device that is being created is removed; one that is being recovered continues.
        let signals = match (lifetime, word) {
            (Lifetime::Own, ToAgent::Recover(_)) => None,
            _ => Signals::take_in_front().ok(),
        };
        Self::with_signals(program, lifetime, signals, word)
    }

    fn with_signals(
        program: &Path,
        lifetime: Lifetime,
        signals: Option<Signals>,
        word: &ToAgent,
    ) -> Result<Self, Failure> {
        let written = serde_json::to_vec(word);
        written.map_err(|e| {
            Failure::new(
                FailureKind::Usage,
                format!("cannot encode the request: {e}"),
            )
            .hint("use file names that are valid UTF-8")
        })?;
        let standing = match lifetime {
            Lifetime::Own => Standing::Alone,
            Lifetime::Front | Lifetime::Left => Standing::Beside,
        };
        let mut agent =
            Peer::spawn(program, Role::Agent, standing, Messages::Pipe).map_err(|e| {
                Failure::failed(format!("cannot start the agent: {e}")).hint(starting())
            })?;
        let messages = agent.take_messages();
        // If the agent died at once, the missing answer reveals it.
        let _ = agent.link.send(word);
        Ok(Self {
            agent,
            messages,
            signals,
            serves: None,
            lifetime,
            told: false,
        })
    }

    /// Waits until the device or its processes are gone. SIGINT and SIGTERM end them according to the [`Lifetime`].
    ///
    /// # Errors
    /// Why the device ended, unless it was requested.
    pub fn wait(mut self) -> Result<(), Failure> {
        if let Some(added) = &self.serves {
            notify::serves(added);
        }
        loop {
            match self.receive(None) {
                Ok(Some(FromAgent::Gone)) => return Ok(()),
                Ok(Some(FromAgent::Failed(failure))) => return Err(failure),
                Ok(_) => {}
                Err(failure) => self.another_agent(failure)?,
            }
        }
    }

    /// Starts another agent for the device of an agent that died. The new agent attaches to its server or, if that died
    /// too, starts a new one (L49). If this fails, the agent's death is the reported failure.
    fn another_agent(&mut self, death: Failure) -> Result<(), Failure> {
        let id = self.serves.as_ref().and_then(|a| DevId::new(a.id).ok());
        let Some(id) = id else {
            return Err(death);
        };
        tracing::error!("{death}; starting another agent for device {id}");
        let request = recovery_request(id, self.lifetime, ANOTHER);
        let program = this_program();
        let mut next = Self::with_signals(
            &program,
            self.lifetime,
            self.signals.take(),
            &ToAgent::Recover(request),
        )?;
        let until = Instant::now() + ANOTHER + LAST_WORDS;
        match next.wait_until_live(until, |agent| no_new_server(id.get(), agent)) {
            Ok(_) => {
                *self = next;
                Ok(())
            }
            Err(failure) => {
                tracing::error!("{failure}");
                Err(death)
            }
        }
    }

    /// `late` is the failure of the deadline, about the agent process.
    fn wait_until_live(
        &mut self,
        until: Instant,
        late: impl FnOnce(u32) -> Failure,
    ) -> Result<Added, Failure> {
        match self.receive(Some(until))? {
            // The device was about to serve when the signal arrived.
            Some(FromAgent::Live(_)) if self.told => self.taken_back(until),
            Some(FromAgent::Live(added)) => {
                self.serves = Some(added.clone());
                Ok(added)
            }
            Some(FromAgent::Failed(failure)) => {
                // The agent has removed the device; wait for its exit, too.
                self.last_words();
                Err(failure)
            }
            Some(FromAgent::Gone) => {
                Err(Failure::failed("the agent ended before the device served"))
            }
            None => Err(late(self.agent.pid)),
        }
    }

    /// Detaches a device from this process, whose caller now knows its name. A device that is not kept is removed
    /// again.
    ///
    /// # Errors
    /// The agent is gone.
    pub fn keep(self) -> Result<(), Failure> {
        let kept = self.agent.link.send(&ToAgent::Keep);
        kept.map_err(|e| Failure::failed(format!("agent process {}: {e}", self.agent.pid)))
    }

    /// Removes the device again and waits until it is gone.
    ///
    /// # Errors
    /// It is still there at the deadline.
    pub fn take_back(mut self, within: Duration) -> Result<(), Failure> {
        let _ = self.agent.link.send(&ToAgent::Leave);
        match self.receive(Some(Instant::now() + within))? {
            Some(FromAgent::Gone) => Ok(()),
            Some(FromAgent::Failed(failure)) => Err(failure),
            _ => Err(Failure::timed_out("it is not removed yet")),
        }
    }

    fn taken_back(&mut self, until: Instant) -> Result<Added, Failure> {
        let until = until.max(Instant::now() + LAST_WORDS);
        Err(match self.receive(Some(until))? {
            Some(FromAgent::Gone) => Failure::failed("interrupted; the device was removed again"),
            Some(FromAgent::Failed(failure)) => failure,
            _ => Failure::timed_out("interrupted; the device is still being removed")
                .hint("see `ublkctl list`"),
        })
    }

    /// The agent's next message; `None` at the deadline. Meanwhile passes messages on to standard error, and signals to
    /// the agent.
    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<FromAgent>, Failure> {
        loop {
            let mut fds = vec![self.agent.link.as_fd()];
            fds.extend(self.signals.as_ref().map(AsFd::as_fd));
            fds.extend(self.messages.as_ref().map(AsFd::as_fd));
            let ready = poll::readable(&fds, deadline)
                .map_err(|e| Failure::failed(format!("cannot wait: {e}")))?;
            if !ready.contains(&true) {
                return Ok(None);
            }
            if self.signals.is_some() && ready.get(1) == Some(&true) {
                if let Some(signals) = &mut self.signals {
                    signals.clear();
                }
                self.told = true;
                notify::stopping();
                let _ = self.agent.link.send(&ToAgent::Leave);
            }
            if self.messages.is_some() && ready.last() == Some(&true) {
                self.pass_on();
            }
            if ready.first() == Some(&true) {
                match self.agent.link.try_recv() {
                    Ok(None) => {}
                    Ok(word) => {
                        // Pass on messages that were printed before this one.
                        self.pass_on_all(Instant::now());
                        return Ok(word);
                    }
                    Err(e) => return Err(self.died(&e)),
                }
            }
        }
    }

    /// Passes on available messages without waiting for more.
    fn pass_on(&mut self) {
        let mut buf = [0; 4096];
        let read = self.messages.as_mut().map(|m| m.read(&mut buf));
        match read {
            Some(Ok(n)) if n > 0 => {
                let _ = log::Stderr.write_all(&buf[..n]);
            }
            _ => self.messages = None,
        }
    }

    /// Passes on messages until there are none, or the deadline.
    fn pass_on_all(&mut self, deadline: Instant) {
        while let Some(messages) = &self.messages {
            match poll::readable(&[messages.as_fd()], Some(deadline)).as_deref() {
                Ok([true]) => self.pass_on(),
                _ => return,
            }
        }
    }

    fn last_words(&mut self) -> Option<String> {
        let soon = Instant::now() + LAST_WORDS;
        let _ = poll::readable(&[self.agent.exit_fd()], Some(soon));
        self.pass_on_all(Instant::now());
        self.agent.ended()
    }

    fn died(&mut self, error: &LinkError) -> Failure {
        match self.last_words() {
            Some(end) => Failure::failed(format!(
                "the agent ended without reporting an error ({end})"
            ))
            .hint("see its messages above; `ublkctl list` shows what is left"),
            None => Failure::failed(format!("agent process {}: {error}", self.agent.pid)),
        }
    }
}
