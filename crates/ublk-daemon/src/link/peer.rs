//! Starts roles as processes and watches for their end.

use crate::link::{Link, LinkError};
use crate::state::RUN_DIR_VARIABLE;
use crate::sys::{process, surroundings, title};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

/// The roles that are processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Owns the control ring of one device and watches its server.
    Agent,
    /// Owns the data rings of one device.
    Server,
    /// Runs control commands for somebody who must be able to return.
    Helper,
}

impl Role {
    /// The hidden subcommand.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Agent => "__agent",
            Self::Server => "__server",
            Self::Helper => "__helper",
        }
    }

    /// What people know it as.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Server => "server",
            Self::Helper => "helper",
        }
    }

    /// The role of a hidden subcommand.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Agent, Self::Server, Self::Helper]
            .into_iter()
            .find(|role| role.word() == word)
    }
}

/// Where a role's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Messages {
    /// To the standard error of the process that starts it.
    Inherit,
    /// To a pipe that the process that starts it reads: the role, and the roles it starts, hold no
    /// file of the caller's caller, who may wait for its end (`$(ublkctl add … 2>&1)`).
    Pipe,
    /// Nowhere: the role speaks on its link, and may be left behind holding no file of its caller.
    Nowhere,
}

/// Where a role stands among the sessions of the machine. Either way no signal of a terminal reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// In a session of its own, without a terminal: it outlives whoever starts it.
    Alone,
    /// In its caller's session, in a process group of its own. The scheduler weighs sessions against each other
    /// (autogroups, sched(7)): a wake-up from one into another costs some 300 instructions more than one within.
    Beside,
}

/// A started role.
pub struct Peer {
    /// The link to it.
    pub link: Link,
    /// Its process.
    pub pid: u32,
    /// Readable once it has ended.
    exit: OwnedFd,
    reap: Reap,
}

enum Reap {
    Spawned(Child),
    Forked,
    /// Another process's child.
    Adopted,
    #[cfg(test)]
    Thread,
}

impl Peer {
    /// Starts `program` (a ublkctl) in a role, with the link as its standard input. Every other
    /// descriptor of ours is closed on exec. The process is not copied: std spawns it by
    /// `posix_spawn`, so this holds for a process with rings, too.
    ///
    /// # Errors
    /// When no process or descriptor is left, or the program is not there.
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
            .arg(role.word())
            .env_clear()
            .envs(environment(std::env::vars_os()))
            .stdin(Stdio::from(theirs.into_fd()))
            .stdout(Stdio::null())
            .stderr(match messages {
                Messages::Inherit => Stdio::inherit(),
                Messages::Pipe => Stdio::piped(),
                Messages::Nowhere => Stdio::null(),
            })
            .spawn()?;
        let pid = child.id();
        // Not reaped yet, so the pid is still that child's.
        let exit = process::pidfd(pid)?;
        Ok(Self {
            link,
            pid,
            exit,
            reap: Reap::Spawned(child),
        })
    }

    /// A child made by our one fork.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn forked(pid: u32, link: Link) -> io::Result<Self> {
        Ok(Self {
            link,
            pid,
            exit: process::pidfd(pid)?,
            reap: Reap::Forked,
        })
    }

    /// A role that another process started.
    ///
    /// # Errors
    /// When no descriptor is left, or the process has ended.
    pub fn adopted(pid: u32, link: Link) -> io::Result<Self> {
        Ok(Self {
            link,
            pid,
            exit: process::pidfd(pid)?,
            reap: Reap::Adopted,
        })
    }

    /// A role played by a thread of a test; `exit` can be read once it has ended.
    #[cfg(test)]
    pub(crate) const fn thread(link: Link, exit: OwnedFd, pid: u32) -> Self {
        Self {
            link,
            pid,
            exit,
            reap: Reap::Thread,
        }
    }

    /// A descriptor that can be read once the process has ended.
    #[must_use]
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.exit.as_fd()
    }

    /// The messages of a role that writes them to a pipe. Given once.
    pub fn take_messages(&mut self) -> Option<ChildStderr> {
        match &mut self.reap {
            Reap::Spawned(child) => child.stderr.take(),
            _ => None,
        }
    }

    /// How the process ended, `None` while it runs.
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

    /// The exit code of an ended process, if it had one.
    pub fn exit_code(&mut self) -> Option<i32> {
        match &mut self.reap {
            Reap::Spawned(child) => child.try_wait().ok().flatten()?.code(),
            _ => None,
        }
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// ESRCH when it has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        process::signal(self.exit.as_fd(), signal)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({})", self.pid)
    }
}

/// What a role needs of the environment: where the state is, by a path that holds wherever it runs, and what messages
/// are wanted. The rest, which may hold secrets, is none of its business.
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

/// The program whose hidden subcommands are the roles: this one.
#[must_use]
pub fn this_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L45 Of the environment a role has what it needs, with paths that hold elsewhere.
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
