//! Measures the time from the start of `add` to the end of a first read.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::plan::Row;

const BLOCK: usize = 4096;

/// Runs the row's `add`, reads a block with direct I/O, and removes the device.
///
/// # Errors
/// One of the steps failed.
pub fn measure(row: &Row) -> Result<String> {
    let (program, arguments) = row.server.split_first().context("no server")?;
    // Right after boot, a guest without random instructions has no random numbers for seconds. Waiting for them is part
    // of the boot, not of `add`.
    let mut random = [0];
    File::open("/dev/random")?
        .read_exact(&mut random)
        .context("/dev/random")?;
    let start = Instant::now();
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| program.clone())?;
    let added = start.elapsed();
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || !device.starts_with("/dev/") {
        bail!("{}: {} {device}", row.server.join(" "), output.status);
    }
    let read = read(&device);
    let usable = start.elapsed();
    let deleted = Command::new(program).args(["delete", &device]).status()?;
    read.with_context(|| device.clone())?;
    if !deleted.success() {
        bail!("delete {device}: {deleted}");
    }
    Ok(format!(
        "@usable {} {device} {} {}",
        row.name,
        added.as_micros(),
        usable.as_micros()
    ))
}

fn read(device: &str) -> Result<()> {
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
