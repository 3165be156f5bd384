//! Disables a device's I/O scheduler.
#![forbid(unsafe_code)]

use crate::nodes::Nodes;
use crate::{Error, Operation};
use core::time::Duration;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::sync_channel;
use ublk_core::{DevId, Errno};

/// The content of the sysfs attribute for a queue without a scheduler.
const NONE: &str = "[none]";

/// Reads and writes the attribute through inherited descriptors.
const SCRIPT: &str = r#"read -r now || exit 1; case "$now" in *"[none]"*) ;; *) echo none;; esac"#;

impl Nodes {
    /// Disables the I/O scheduler of a device. The kernel gives a single queue `mq-deadline` by default
    /// (block/elevator.c), which costs a fifth of a small request and does nothing for a device whose backing medium
    /// has a scheduler of its own. Blocks in the kernel until no request is in flight: a process that serves the device
    /// must use [`Nodes::no_scheduler_by_child`].
    ///
    /// # Errors
    /// [`Error::Refused`] with the errno of sysfs, [`Error::NoPermission`].
    pub fn no_scheduler(&self, id: DevId) -> Result<(), Error> {
        let path = self.scheduler(id);
        let set = fs::read_to_string(&path).and_then(|schedulers| {
            if schedulers.contains(NONE) {
                return Ok(());
            }
            fs::write(&path, "none")
        });
        set.map_err(|e| refused(id, &e))
    }

    /// As [`Nodes::no_scheduler`], in a child process (`/bin/sh`) that inherits nothing of ours. If the serving process
    /// is killed meanwhile, it exits, the kernel fails its requests, and the child ends, too. A thread of our own that
    /// blocked here in the kernel would keep the process from exiting, and therefore its requests from being failed
    /// (L80).
    ///
    /// A child that has not ended by the deadline is left running: it disables the scheduler once the requests are
    /// answered.
    ///
    /// # Errors
    /// As there, [`Error::TimedOut`] while requests are in flight, and [`Error::Refused`] with the errno of starting
    /// the shell.
    pub fn no_scheduler_by_child(&self, id: DevId, within: Duration) -> Result<(), Error> {
        let (ended, wait) = sync_channel(1);
        let path = self.scheduler(id);
        let thread = std::thread::Builder::new()
            .name("ublk-scheduler".into())
            .spawn(move || {
                // After the deadline nobody receives this, but the thread still reaps the child.
                let _ = ended.send(child(&path));
            })
            .map_err(|e| refused(id, &e))?;
        match wait.recv_timeout(within) {
            Ok(set) => {
                // This was the thread's last action, so joining does not block.
                let _ = thread.join();
                set.map_err(|e| refused(id, &e))
            }
            Err(_) => Err(Error::TimedOut {
                operation: Operation::NoScheduler,
                dev: Some(id),
                after: within,
                abandoned: false,
            }),
        }
    }
}

fn child(path: &Path) -> io::Result<()> {
    // Opened here because an open does not block and reports its errno.
    let (read, write) = (
        File::open(path)?,
        OpenOptions::new().write(true).open(path)?,
    );
    let status = Command::new("/bin/sh")
        .args(["-c", SCRIPT])
        .current_dir("/")
        .stdin(read)
        .stdout(write)
        .stderr(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        // The program reaps all children itself, so this child's exit status is unknown.
        Err(e) if e.raw_os_error() == Some(libc::ECHILD) => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
        Err(e) => Err(e),
    }
}

fn refused(id: DevId, error: &io::Error) -> Error {
    Error::of_command(Operation::NoScheduler, Some(id), Errno::from_io(error))
}

/// [`Nodes::no_scheduler_by_child`] in `/sys`.
///
/// # Errors
/// As there.
pub fn no_scheduler_by_child(id: DevId, within: Duration) -> Result<(), Error> {
    Nodes::default().no_scheduler_by_child(id, within)
}

/// [`Nodes::no_scheduler`] in `/sys`.
///
/// # Errors
/// As there.
pub fn no_scheduler(id: DevId) -> Result<(), Error> {
    Nodes::default().no_scheduler(id)
}

#[cfg(test)]
mod tests;
