//! Hands a device that is in use from one agent to the next.
//!
//! The current agent listens for its successor. On request it *yields*: it passes the lock of the device and its front
//! to the successor, and takes no further action, but stays alive. When the successor reports that it has the device,
//! the agent exits silently. If the successor dies before that, the agent manages the device again; if I/O was already
//! held, it continues where the successor stopped. No hand-over can leave a device unmanaged (L44).
#![forbid(unsafe_code)]

use super::Agent;
use crate::failure::{Failure, FailureKind};
use crate::link::listener::{self, Listener};
use crate::link::message::Lifetime;
use crate::link::{LINK_VERSION, Link, LinkError};
use crate::state::{Lock, Store};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the current agent may take to yield.
const YIELD: Duration = Duration::from_secs(5);

/// Messages from a successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum ToPredecessor {
    /// Requests the device.
    TakeOver {
        /// [`LINK_VERSION`] of the successor.
        version: u32,
        /// The device's nonce.
        nonce: u64,
    },
    /// I/O is held from now on.
    Holding,
    /// The successor owns the device.
    Done,
}

/// Messages from the current agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
enum FromPredecessor {
    /// Passes an object with a descriptor.
    Yours {
        /// What it is.
        held: Held,
    },
    /// Everything has been passed.
    Yielding {
        /// What ends the processes of the device.
        lifetime: Lifetime,
    },
    /// The request is refused.
    Refused {
        /// The reason.
        why: String,
    },
}

/// Objects that an agent holds for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Held {
    /// The lock of the device.
    Lock,
    /// The link to the front that it serves for.
    Front,
    /// The target of messages.
    Messages,
}

/// The current agent's side.
#[derive(Debug, Default)]
pub(super) struct Heir {
    listener: Option<Listener>,
    successor: Option<Link>,
    state: State,
}

/// The state of the hand-over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Own,
    Yielding,
    /// The successor holds the device's I/O.
    Held,
    Yielded,
    /// The successor ended while it held the device's I/O.
    Deserted,
}

impl Heir {
    /// Listens for successors.
    pub(super) fn listen(&mut self, mut listener: Listener) {
        if let Err(e) = listener.publish() {
            tracing::warn!("this agent cannot receive hand-over requests: {e}");
        }
        *self = Self {
            listener: Some(listener),
            ..Self::default()
        };
    }

    /// The descriptor to poll: for a successor, or for its next message.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.successor {
            Some(successor) => Some(successor.as_fd()),
            None => self.listener.as_ref().map(AsFd::as_fd),
        }
    }

    /// Whether a successor is taking over the device.
    pub(super) const fn is_yielding(&self) -> bool {
        matches!(self.state, State::Yielding | State::Held)
    }

    /// Whether a successor owns the device.
    pub(super) const fn has_yielded(&self) -> bool {
        matches!(self.state, State::Yielded)
    }

    /// Whether a successor died with the device's I/O held.
    pub(super) const fn is_deserted(&self) -> bool {
        matches!(self.state, State::Deserted)
    }

    /// Notes that the device serves again.
    pub(super) fn is_served(&mut self) {
        self.state = State::Own;
    }

    /// Stops listening and removes the socket, unless it belongs to a successor.
    pub(super) fn close(&mut self) {
        if let Some(listener) = self.listener.take()
            && !self.has_yielded()
        {
            listener.remove();
        }
        self.successor = None;
    }
}

impl Agent<'_> {
    /// Handles a message of the successor.
    pub(super) fn hear_successor(&mut self) {
        let Some(successor) = &self.heir.successor else {
            self.heir.successor = self.heir.listener.as_ref().and_then(Listener::accept);
            return;
        };
        let word = match successor.try_recv() {
            Ok(None) => return,
            Ok(Some(word)) => word,
            Err(e) => return self.forsaken(&e),
        };
        match word {
            ToPredecessor::TakeOver { version, nonce } => self.yield_to(version, nonce),
            ToPredecessor::Holding if self.heir.is_yielding() => self.heir.state = State::Held,
            ToPredecessor::Done if self.heir.is_yielding() => self.heir.state = State::Yielded,
            other => tracing::warn!("unexpected message from the next agent: {other:?}"),
        }
    }

    /// Handles the loss of the successor.
    fn forsaken(&mut self, error: &LinkError) {
        self.heir.successor = None;
        if self.heir.state == State::Held {
            tracing::error!(
                "the hand-over failed while I/O was held ({error}): this agent starts another server"
            );
            self.heir.state = State::Deserted;
        } else if self.heir.is_yielding() {
            tracing::info!("the hand-over was abandoned before I/O was held");
            self.heir.state = State::Own;
        }
    }

    fn yield_to(&mut self, version: u32, nonce: u64) {
        let Some(successor) = &self.heir.successor else {
            return;
        };
        let ours = self.device.as_ref().map(|d| d.record.nonce);
        let why = match (ours, &self.lock) {
            _ if version != LINK_VERSION => Some(LinkError::Version(version).to_string()),
            (Some(ours), _) if ours != nonce => Some("it is another device".to_owned()),
            (_, None) => Some("its agent is exiting".to_owned()),
            _ => None,
        };
        if let Some(why) = why {
            let _ = successor.send(&FromPredecessor::Refused { why });
            return;
        }
        let mut fds = Vec::new();
        if let Some(lock) = &self.lock {
            fds.push((Held::Lock, lock.as_fd()));
        }
        let stderr = io::stderr();
        if let Some(front) = self
            .inputs
            .front
            .as_ref()
            .filter(|_| self.inputs.lifetime != Lifetime::Own)
        {
            fds.push((Held::Front, front.as_fd()));
            fds.push((Held::Messages, stderr.as_fd()));
        }
        let lifetime = self.inputs.lifetime;
        let given = fds.into_iter().try_for_each(|(held, fd)| {
            successor.send_with(&FromPredecessor::Yours { held }, &[fd])
        });
        match given.and_then(|()| successor.send(&FromPredecessor::Yielding { lifetime })) {
            Ok(()) => self.heir.state = State::Yielding,
            Err(e) => tracing::warn!("cannot send to the next agent: {e}"),
        }
    }
}

/// The current agent, seen from its successor. If it is dropped before [`Predecessor::done`], that agent manages the
/// device again.
#[derive(Debug)]
pub(super) struct Predecessor {
    link: Link,
    /// What ends the processes of the device.
    pub(super) lifetime: Lifetime,
    /// The front that it serves.
    pub(super) front: Option<Link>,
    /// The target of that front's messages.
    pub(super) messages: Option<OwnedFd>,
}

impl Predecessor {
    /// Asks the current agent for the device; `None` if no agent listens, because it is gone or of an earlier version.
    ///
    /// # Errors
    /// The agent refuses, does not answer, or hangs up because an earlier caller has the device.
    pub(super) fn ask(
        store: &Store,
        id: u32,
        nonce: u64,
        deadline: Instant,
    ) -> Result<Option<(Self, Lock)>, Failure> {
        let path = store.next_socket(id);
        let Ok(link) = listener::connect(&path) else {
            return Ok(None);
        };
        let version = LINK_VERSION;
        let deaf = |e: LinkError| {
            match e {
            LinkError::Closed => Failure::new(
                FailureKind::Busy,
                format!("the agent of device {id} hung up during the request: another command replaced it, or it ended"),
            )
            .hint(format!(
                "`ublkctl info {id}` shows the current processes; run the command again to replace those"
            )),
            e => Failure::timed_out(format!("the agent of device {id} does not hand it over: {e}")).hint(format!(
                "the agent (see `ublkctl info {id}`) may be stopped, which `kill -CONT` ends, or busy with another command; if it \
                 does not answer, kill it with SIGKILL, which its server survives, and try again"
            )),
        }
        };
        link.send(&ToPredecessor::TakeOver { version, nonce })
            .map_err(deaf)?;
        let mut lock = None;
        let mut predecessor = Self {
            link,
            lifetime: Lifetime::Own,
            front: None,
            messages: None,
        };
        let until = deadline.min(Instant::now() + YIELD);
        loop {
            let held = match predecessor.link.recv(until).map_err(deaf)? {
                FromPredecessor::Yours { held } => held,
                FromPredecessor::Yielding { lifetime } => {
                    predecessor.lifetime = lifetime;
                    break;
                }
                FromPredecessor::Refused { why } => {
                    return Err(Failure::failed(format!(
                        "the agent of device {id} does not hand it over: {why}"
                    ))
                    .hint(format!(
                        "if the agent runs another version of ublkctl, kill it with SIGKILL (`ublkctl info {id}` shows it) \
                         and upgrade again; its server keeps serving meanwhile"
                    )));
                }
            };
            let Some(fd) = predecessor.link.take_descriptor() else {
                continue;
            };
            match held {
                Held::Lock => lock = Some(Lock::of_descriptor(fd)),
                Held::Front => predecessor.front = Some(Link::from_fd(fd)),
                Held::Messages => predecessor.messages = Some(fd),
            }
        }
        let lock = lock.ok_or_else(|| {
            Failure::failed(format!(
                "the agent of device {id} did not hand over its lock"
            ))
        })?;
        Ok(Some((predecessor, lock)))
    }

    /// Reports that the device's I/O is held from now on.
    ///
    /// # Errors
    /// The agent is gone, so there is no way back.
    pub(super) fn holding(&self) -> Result<(), LinkError> {
        self.link.send(&ToPredecessor::Holding)
    }

    /// Reports that the device has changed hands.
    pub(super) fn done(&self) {
        if let Err(e) = self.link.send(&ToPredecessor::Done) {
            tracing::debug!("the previous agent is already gone: {e}");
        }
    }
}

/// Moves this process, and all that it starts from then on, into the control group of another process, so that the
/// device's service contains its processes.
///
/// # Errors
/// Control groups are not version 2, or permission is denied.
pub(super) fn join_group(of: u32) -> io::Result<()> {
    let text = fs::read_to_string(format!("/proc/{of}/cgroup"))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let group = group.ok_or(io::ErrorKind::NotFound)?;
    let path = Path::new("/sys/fs/cgroup").join(group).join("cgroup.procs");
    fs::write(path, std::process::id().to_string())
}
