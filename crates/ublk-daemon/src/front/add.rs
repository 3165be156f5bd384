//! `add`: starts an agent and waits until the device serves, or for the reason why not.

use crate::agent;
use crate::engine;
use crate::link::{LINK_VERSION, LinkError};
use crate::peer::{Messages, Peer, Role};
use crate::signals::Signals;
use crate::state::Store;
use crate::sys::poll;
use crate::wire::{AddRequest, AddSpec, Added, Failure, FromAgent, ToAgent};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an agent that hung up may take to end, so that its end can be told.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Checks a device by the rules of backends and driver, before anything is started.
///
/// # Errors
/// The rule that is broken, as a usage failure.
pub fn check(spec: &AddSpec) -> Result<(), Failure> {
    let limits = engine::limits_of(spec)?;
    agent::check(spec, limits, 0)?;
    Ok(())
}

/// Makes a device and returns once it serves. The agent goes on without the front; with
/// `foreground` it is given back, and the device lives no longer than it is held.
///
/// # Errors
/// The agent's reason, a deadline, or how the agent ended when it gave no reason (L33).
pub fn add(
    program: &Path,
    spec: AddSpec,
    foreground: bool,
    log: Option<PathBuf>,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    check(&spec)?;
    Store::of_user()?.prepare()?;
    let until = Instant::now() + deadline;
    let signals = if foreground {
        Signals::take().ok()
    } else {
        None
    };
    let mut agent = Peer::spawn(program, Role::Agent, Messages::Inherit)
        .map_err(|e| Failure::failed(format!("cannot start the agent: {e}")))?;
    let request = AddRequest {
        version: LINK_VERSION,
        spec,
        foreground,
        log: log.map(|log| std::path::absolute(&log).unwrap_or(log)),
        deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
    };
    // An agent that died at once is found by the answer that does not come.
    let _ = agent.link.send(&ToAgent::Add(request));
    let added = live(&mut agent, until)?;
    Ok((added, Foreground { agent, signals }))
}

fn live(agent: &mut Peer, until: Instant) -> Result<Added, Failure> {
    match agent.link.recv::<FromAgent>(until) {
        Ok(FromAgent::Live(added)) => Ok(added),
        Ok(FromAgent::Failed(failure)) => {
            // It has taken back what it made; let it be gone, too.
            let _ = poll::readable(&[agent.exit_fd()], Some(Instant::now() + LAST_WORDS));
            let _ = agent.ended();
            Err(failure)
        }
        Ok(FromAgent::Gone) => Err(Failure::failed("the agent ended before the device served")),
        Err(LinkError::TimedOut) => Err(Failure::timed_out(format!(
            "the device did not serve in time; agent process {} was told to take it back",
            agent.pid
        ))
        .hint("see `ublkctl list` for what is left, and `ublkctl doctor`")),
        Err(e) => Err(died(agent, &e)),
    }
}

fn died(agent: &mut Peer, error: &LinkError) -> Failure {
    let _ = poll::readable(&[agent.exit_fd()], Some(Instant::now() + LAST_WORDS));
    match agent.ended() {
        Some(end) => Failure::failed(format!("the agent ended without a word ({end})"))
            .hint("its messages are above; `ublkctl list` shows what is left"),
        None => Failure::failed(format!("agent process {}: {error}", agent.pid)),
    }
}

/// A device whose agent is held by this process.
#[derive(Debug)]
pub struct Foreground {
    agent: Peer,
    signals: Option<Signals>,
}

impl Foreground {
    /// Waits until the device is gone. SIGINT and SIGTERM have it stopped and deleted.
    ///
    /// # Errors
    /// Why the device ended, if nobody asked for it.
    pub fn wait(mut self) -> Result<(), Failure> {
        loop {
            let mut fds = vec![self.agent.link.as_fd()];
            fds.extend(self.signals.as_ref().map(AsFd::as_fd));
            let ready = poll::readable(&fds, None)
                .map_err(|e| Failure::failed(format!("cannot wait: {e}")))?;
            if ready.get(1) == Some(&true) {
                if let Some(signals) = &mut self.signals {
                    signals.clear();
                }
                let _ = self.agent.link.send(&ToAgent::Leave);
            }
            if ready.first() != Some(&true) {
                continue;
            }
            match self.agent.link.try_recv::<FromAgent>() {
                Ok(None | Some(FromAgent::Live(_))) => {}
                Ok(Some(FromAgent::Gone)) => return Ok(()),
                Ok(Some(FromAgent::Failed(failure))) => return Err(failure),
                Err(e) => return Err(died(&mut self.agent, &e)),
            }
        }
    }
}
