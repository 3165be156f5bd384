//! The helper role: runs control commands for somebody who must be able to return.
//!
//! A process with an unfinished control command cannot exit, and the open that proves readiness may
//! hang. So whoever is waited for lets a helper do both: past the deadline it reports and goes on,
//! and the helper stays behind. [`Helper`] is the near end, a [`Controller`] like any other.

use crate::link::{LINK_VERSION, Link, LinkError};
use crate::peer::{Messages, Peer, Role};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_ctrl::{CANCEL_GRACE, Command, Control, Controller, Error, Reply};

/// Beyond the command's own deadline and the cancelling: for two processes to be scheduled.
const SLACK: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Ask {
    version: u32,
    ticket: u64,
    command: Command,
    deadline: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    ticket: u64,
    result: Result<Reply, Error>,
}

/// A helper process, seen from the one it helps.
#[derive(Debug)]
pub struct Helper {
    peer: Peer,
    ticket: u64,
}

impl Helper {
    /// Starts a helper: `program` in its hidden role. It holds none of our files, so that left
    /// behind it keeps nobody's pipe open.
    ///
    /// # Errors
    /// [`Error::ControllerGone`] when it cannot be started.
    pub fn start(program: &Path) -> Result<Self, Error> {
        Peer::spawn(program, Role::Helper, Messages::Nowhere)
            .map(Self::new)
            .map_err(|e| Error::ControllerGone {
                message: format!("cannot start {}: {e}", program.display()),
            })
    }

    /// The near end of a helper that runs already.
    #[must_use]
    pub const fn new(peer: Peer) -> Self {
        Self { peer, ticket: 0 }
    }

    /// Its process.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.peer.pid
    }

    /// Hangs up and collects the process. One that is stuck is left behind.
    pub fn finish(self) {
        let soon = Instant::now() + SLACK;
        let mut peer = self.peer;
        peer.link.hang_up();
        let _ = crate::sys::poll::readable(&[peer.exit_fd()], Some(soon));
        let _ = peer.ended();
    }

    fn gone(&mut self, error: &LinkError) -> Error {
        let soon = Instant::now() + SLACK;
        // A helper that closed its link is about to end: its exit says why.
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

#[expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]
// SAFETY: replies are made by `Control` in the helper process, which is this very program and nobody else's.
unsafe impl Controller for Helper {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        self.ticket += 1;
        let ticket = self.ticket;
        let until = Instant::now() + deadline + CANCEL_GRACE + SLACK;
        let ask = Ask {
            version: LINK_VERSION,
            ticket,
            command,
            deadline,
        };
        if let Err(e) = self.peer.link.send(&ask) {
            return Err(self.gone(&e));
        }
        loop {
            match self.peer.link.recv::<Answer>(until) {
                Ok(answer) if answer.ticket == ticket => return answer.result,
                // Of a call that was given up.
                Ok(_) => {}
                Err(LinkError::TimedOut) => {
                    return Err(Error::TimedOut {
                        operation: command.operation(),
                        dev: command.dev(),
                        after: deadline,
                        abandoned: true,
                    });
                }
                Err(e) => return Err(self.gone(&e)),
            }
        }
    }
}

/// What answers commands in a helper.
pub type Handler = Box<dyn FnMut(Command, Duration) -> Result<Reply, Error>>;

/// The real control plane, on a ring of this process's one thread.
///
/// # Errors
/// As [`Control::open`].
pub fn control() -> Result<Handler, Error> {
    let mut control = Control::open()?;
    Ok(Box::new(move |command, deadline| {
        control.call(command, deadline)
    }))
}

/// Plays the role to its end, which is when the other side hangs up. `open` makes what answers when
/// the first command needs it.
pub fn run(link: &Link, mut open: impl FnMut() -> Result<Handler, Error>) -> i32 {
    let mut control = None;
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
        let result = answer(&mut control, &mut open, ask.command, ask.deadline);
        let reply = Answer {
            ticket: ask.ticket,
            result,
        };
        if link.send(&reply).is_err() {
            return 0;
        }
    }
}

fn answer(
    control: &mut Option<Handler>,
    open: &mut impl FnMut() -> Result<Handler, Error>,
    command: Command,
    deadline: Duration,
) -> Result<Reply, Error> {
    // What needs no ring must not wait for one.
    if let Command::Sync { id } = command {
        for point in crate::mounts::of_device(id.get()) {
            if let Err(e) = crate::sys::file::sync_file_system(std::path::Path::new(&point)) {
                tracing::warn!("{point}: {e}");
            }
        }
        return ublk_ctrl::nodes::sync(id).map(|()| Reply::Done);
    }
    if let Command::ProveReady { id, size } = command {
        return ublk_ctrl::nodes::prove_ready(id, size, deadline).map(|()| Reply::Done);
    }
    let control = match control {
        Some(control) => control,
        None => control.insert(open()?),
    };
    control(command, deadline)
}
