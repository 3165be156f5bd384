//! Measures the time from the start of `add` to the end of a first read.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::plan::Row;

const BLOCK: usize = 4096;

/// A device that a row's `add` has made.
#[derive(Debug)]
pub struct Added<'a> {
    program: &'a str,
    path: String,
}

impl<'a> Added<'a> {
    /// Runs the row's `add`.
    ///
    /// # Errors
    /// It fails, or does not print the path of a device.
    pub fn new(row: &'a Row) -> Result<Self> {
        let (program, arguments) = row.server.split_first().context("no server")?;
        let output = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| program.clone())?;
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || !path.starts_with("/dev/") {
            bail!("{}: {} {path}", row.server.join(" "), output.status);
        }
        Ok(Self { program, path })
    }

    /// Path of the device.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Removes the device.
    ///
    /// # Errors
    /// `delete` fails.
    pub fn delete(&self) -> Result<()> {
        let mut command = Command::new(self.program);
        let deleted = command.args(["delete", &self.path]).status()?;
        if !deleted.success() {
            bail!("delete {}: {deleted}", self.path);
        }
        Ok(())
    }
}

/// Runs the row's `add`, reads a block with direct I/O, and removes the device.
///
/// # Errors
/// One of the steps failed.
pub fn measure(row: &Row) -> Result<String> {
    // Right after boot, a guest without random instructions has no random numbers for seconds. Waiting for them is part
    // of the boot, not of `add`.
    let mut random = [0];
    File::open("/dev/random")?
        .read_exact(&mut random)
        .context("/dev/random")?;
    let start = Instant::now();
    let device = Added::new(row)?;
    let added = start.elapsed();
    let read = read(device.path());
    let usable = start.elapsed();
    let deleted = device.delete();
    read.with_context(|| device.path().to_owned())?;
    deleted?;
    Ok(format!(
        "@usable {} {} {} {}",
        row.name,
        device.path(),
        added.as_micros(),
        usable.as_micros()
    ))
}

/// Reads the first block of a device with direct I/O.
///
/// # Errors
/// There is none such, or the read fails.
pub fn read(device: &str) -> Result<()> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)?;
    let mut memory = vec![0; 2 * BLOCK];
    let skip = memory.as_ptr().align_offset(BLOCK);
    let block = memory
        .get_mut(skip..skip + BLOCK)
        .context("no aligned block")?;
    file.read_exact_at(block, 0)?;
    Ok(())
}
