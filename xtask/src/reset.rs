//! `vm-reset`: removes left-over guests and caches.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cmd, paths};

/// Kills guests that an interrupted run has left behind, then removes `target/vm`.
///
/// # Errors
/// The directory cannot be removed.
pub fn run() -> Result<()> {
    let directory = paths::vm();
    if !directory.exists() {
        println!("nothing to remove");
        return Ok(());
    }
    for entry in fs::read_dir(&directory)? {
        end_guest(&entry?.path())?;
    }
    fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())?;
    println!("removed {}", directory.display());
    Ok(())
}

/// Kills the guest named by a run's directory, if it still is that run's guest.
fn end_guest(directory: &Path) -> Result<()> {
    let Ok(pid) = fs::read_to_string(directory.join("qemu.pid")) else {
        return Ok(());
    };
    // The pid may have been reused: the command line must name this run.
    let command = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).into_owned();
    let ours = directory.join("initramfs.cpio").display().to_string();
    if command.contains("qemu-system") && command.contains(&ours) {
        println!(
            "ending the guest of {} (pid {})",
            directory.display(),
            pid.trim()
        );
        cmd::run(Command::new("kill").args(["-KILL", pid.trim()]))?;
    }
    Ok(())
}
