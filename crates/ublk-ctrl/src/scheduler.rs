//! A device without the I/O scheduler that the kernel gave it.
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

/// What sysfs shows of a queue without a scheduler.
const NONE: &str = "[none]";

/// Reads the attribute and writes it, of descriptors that it was given.
const SCRIPT: &str = r#"read -r now || exit 1; case "$now" in *"[none]"*) ;; *) echo none;; esac"#;

impl Nodes {
    /// Takes the I/O scheduler away from a device that the kernel gave one: its only queue is sorted by `mq-deadline`
    /// else (block/elevator.c), which costs a fifth of a small request and does nothing for a device whose own medium
    /// is scheduled below it. Waits in the kernel until no request is in flight: in the process that serves the device
    /// [`Nodes::no_scheduler_by_child`] is the way.
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

    /// As [`Nodes::no_scheduler`], by a child process (`/bin/sh`) that has nothing of ours: killed in the middle, the
    /// process that serves the device ends, the kernel answers what it held, and the child ends, too. A thread that waited
    /// here in the kernel would keep the process, the process its queues, and these what is in flight (L80).
    ///
    /// A child that has not ended by then is left to itself: the scheduler goes when the requests are answered.
    ///
    /// # Errors
    /// As there, [`Error::TimedOut`] while requests are in flight, and [`Error::Refused`] with the errno of a shell that does
    /// not start.
    pub fn no_scheduler_by_child(&self, id: DevId, within: Duration) -> Result<(), Error> {
        let (ended, wait) = sync_channel(1);
        let path = self.scheduler(id);
        let thread = std::thread::Builder::new()
            .name("ublk-scheduler".into())
            .spawn(move || {
                // Nobody listens behind the deadline; the child has its end taken all the same.
                let _ = ended.send(child(&path));
            })
            .map_err(|e| refused(id, &e))?;
        match wait.recv_timeout(within) {
            Ok(set) => {
                // Its last word: it has nothing more to wait for.
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
    // An open waits for nothing, and knows the errno.
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
        // Our program takes the ends of all its children itself: what became of this one is not known.
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
#[path = "scheduler_tests.rs"]
mod tests;
