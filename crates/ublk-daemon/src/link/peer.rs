//! Starts roles as processes and watches for their exit.

use crate::link::{Link, LinkError};
use crate::log::journal;
use crate::state::RUN_DIR_VARIABLE;
use crate::sys::{process, surroundings, title};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

/// Roles that run as processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Owns the control ring of one device and watches its server.
    Agent,
    /// Owns the data rings of one device.
    Server,
    /// Runs control commands that may block, for a caller that must not.
    Helper,
}

impl Role {
    /// The hidden subcommand that starts the role.
    #[must_use]
    pub const fn arg(self) -> &'static str {
        match self {
            Self::Agent => "__agent",
            Self::Server => "__server",
            Self::Helper => "__helper",
        }
    }

    /// The name used in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Helper => "helper",
        }
    }

    /// Parses the name of a hidden subcommand.
    #[must_use]
    pub fn parse(arg: &str) -> Option<Self> {
        [Self::Agent, Self::Server, Self::Helper]
            .into_iter()
            .find(|role| role.arg() == arg)
    }
}

/// Where a role's log messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// To its parent's standard error.
    Inherit,
    /// To a pipe that the parent reads. Thus the role and its children hold no file of the caller's caller, which may
    /// wait for that file to be closed (`$(ublkctl add … 2>&1)`).
    Pipe,
    /// Nowhere: the role reports over its link and holds no file of its parent.
    Nowhere,
}

/// The session that a role runs in. Either way it receives no signals from a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A session of its own without a terminal: the role outlives its parent.
    Alone,
    /// The parent's session, in a process group of its own. The scheduler groups tasks by session (autogroups,
    /// sched(7)): a wake-up across sessions costs some 300 instructions more than one within.
    Beside,
}

/// A started role.
pub struct Peer {
    /// The link to it.
    pub link: Link,
    /// Its process.
    pub pid: u32,
    /// Pidfd; readable once the process has exited.
    exit: OwnedFd,
    reap: Reap,
}

enum Reap {
    Spawned(Child),
    Forked,
    /// A child of another process.
    Adopted,
    #[cfg(test)]
    Thread,
}

impl Peer {
    /// Starts `program` (a ublkctl) in a role, with the link as its standard input. All our other descriptors are
    /// closed on exec. std uses `posix_spawn` and does not copy the process, so a process with rings may call this,
    /// too.
    ///
    /// # Errors
    /// Processes or descriptors run out, or the program does not exist.
    pub fn spawn(
        program: &Path,
        role: Role,
        standing: Standing,
        messages: Messages,
    ) -> Result<Self, LinkError> {
        let (link, theirs) = Link::pair()?;
        surroundings::keep_children();
        let mut command = Command::new(program);
        if standing == Standing::Beside {
            command.process_group(0);
        }
        let child = command
            .arg0(format!("{}{}", title::PROGRAM, role.name()))
            .arg(role.arg())
            .env_clear()
            .envs(environment(std::env::vars_os()))
            .envs(journal::is_behind_stderr().then_some((journal::VARIABLE, "1")))
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(match messages {
                Messages::Inherit => Stdio::inherit(),
                Messages::Pipe => Stdio::piped(),
                Messages::Nowhere => Stdio::null(),
            })
            .spawn()?;
        let pid = child.id();
        // The child is not reaped yet, so the pid is still its own.
        let exit = process::pidfd(pid)?;
        Ok(Self {
            link,
            pid,
            exit,
            reap: Reap::Spawned(child),
        })
    }

    /// Wraps a child created by our own fork.
    ///
    /// # Errors
    /// Descriptors run out.
    pub fn forked(pid: u32, link: Link) -> io::Result<Self> {
        Ok(Self {
            link,
            pid,
            exit: process::pidfd(pid)?,
            reap: Reap::Forked,
        })
    }

    /// Wraps a role that another process started.
    ///
    /// # Errors
    /// Descriptors run out, or the process has exited.
    pub fn adopted(pid: u32, link: Link) -> io::Result<Self> {
        Ok(Self {
            link,
            pid,
            exit: process::pidfd(pid)?,
            reap: Reap::Adopted,
        })
    }

    /// A role that runs as a thread of a test; `exit` is readable once it has ended.
    #[cfg(test)]
    pub(crate) const fn thread(link: Link, exit: OwnedFd, pid: u32) -> Self {
        Self {
            link,
            pid,
            exit,
            reap: Reap::Thread,
        }
    }

    /// A descriptor that is readable once the process has exited.
    #[must_use]
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }

    /// Takes the pipe with the messages of a role that was started with one.
    pub fn take_messages(&mut self) -> Option<ChildStderr> {
        match &mut self.reap {
            Reap::Spawned(child) => child.stderr.take(),
            _ => None,
        }
    }

    /// How the process exited; `None` while it runs.
    pub fn ended(&mut self) -> Option<String> {
        let status = match &mut self.reap {
            Reap::Spawned(child) => child.try_wait(),
            Reap::Forked => process::reap(self.pid),
            Reap::Adopted => {
                let how = "exit status known to its parent only";
                return self.is_over().then(|| how.to_owned());
            }
            #[cfg(test)]
            Reap::Thread => return self.is_over().then(|| "thread".to_owned()),
        };
        match status {
            Ok(status) => status.map(|s| s.to_string()),
            Err(e) => Some(format!("exit status unknown: {e}")),
        }
    }

    fn is_over(&self) -> bool {
        let now = Some(std::time::Instant::now());
        let ready = crate::sys::poll::readable(&[self.exit.as_fd()], now);
        matches!(ready.as_deref(), Ok([true]))
    }

    /// The exit code, if the process exited with one.
    pub fn exit_code(&mut self) -> Option<i32> {
        match &mut self.reap {
            Reap::Spawned(child) => child.try_wait().ok().flatten()?.code(),
            _ => None,
        }
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// ESRCH if it has exited.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        process::signal(self.exit.as_fd(), signal)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.pid)
    }
}

/// The environment variables that a role needs: the state directory as an absolute path, and the log level. Others may
/// hold secrets and are removed.
fn environment(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> impl Iterator<Item = (OsString, OsString)> {
    const KEPT: [&str; 3] = ["XDG_RUNTIME_DIR", "XDG_STATE_HOME", "RUST_BACKTRACE"];
    all.filter_map(|(name, value)| {
        let text = name.to_str()?;
        if text == RUN_DIR_VARIABLE {
            let path = std::path::absolute(&value).map_or(value, PathBuf::into_os_string);
            return Some((name, path));
        }
        (KEPT.contains(&text) || text.starts_with("UBLK")).then_some((name, value))
    })
}

/// The path of this program, whose hidden subcommands are the roles.
#[must_use]
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L45 A role inherits only the variables that it needs, with absolute paths.
    #[test]
    fn l45_the_environment_stays_with_the_caller() {
        let all = [
            ("PASSWORD", "secret"),
            ("LD_PRELOAD", "x.so"),
            ("PATH", "/bin"),
            ("UBLKCTL_LOG", "debug"),
            ("UBLKCTL_RUN_DIR", "here"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
        ];
        let all = all.map(|(name, value)| (name.into(), value.into()));
        let kept: Vec<(OsString, OsString)> = environment(all.into_iter()).collect();
        let here = std::env::current_dir().unwrap().join("here");
        let wanted: [(OsString, OsString); 3] = [
            ("UBLKCTL_LOG".into(), "debug".into()),
            ("UBLKCTL_RUN_DIR".into(), here.into()),
            ("XDG_RUNTIME_DIR".into(), "/run/user/7".into()),
        ];
        assert_eq!(kept, wanted);
    }
}
