//! Idle devices cost little: their buffers are populated when requests arrive.

use anyhow::{Context, Result, ensure};

use crate::case::{Case, measured};
use crate::wait::secs;
use crate::{cli, json, run, sysfs};

/// Number of devices in one process.
const COUNT: u64 = 32;

/// Maximum memory of one device in bytes: ring, thread and the engine's state for 128 tags.
const MOST: u64 = 160 << 10;

/// Maximum cost of a write of 4 KiB: its page, and what is allocated with the first request. Not a huge page.
const WRITTEN: u64 = 64 << 10;

pub fn cases() -> Vec<Case> {
    let modes = [
        ("copy", (6, 0)),
        ("user-copy", (6, 5)),
        ("zero-copy", (6, 16)),
    ];
    let case = |(data, since): (&'static str, (u32, u32))| {
        let name = format!("idle_devices_cost_little_{}", data.replace('-', "_"));
        Case::new(name, move || little(data, since))
    };
    modes.into_iter().map(case).collect()
}

fn little(data: &str, since: (u32, u32)) -> Result<()> {
    if sysfs::kernel() < since {
        // The refusal is tested by `mode_…`.
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let program = program.to_str().context("a path")?;
    let count = COUNT.to_string();
    let output = run::good(program, &["--idle", &count, data])?;
    let said: serde_json::Value = serde_json::from_str(output.stdout.trim())?;
    let each = json::number(&said, "rss_each")?;
    let written = json::number(&said, "written_each")?;
    measured(format!(
        "idle {data}: {} KiB resident for each device of one queue of 128 tags, {} more after a write of 4 KiB, {} MiB of \
         buffers mapped, {} threads for {COUNT}",
        each >> 10,
        written >> 10,
        json::number(&said, "buffers_each")? >> 20,
        json::number(&said, "threads")?,
    ));
    ensure!(each <= MOST && written <= WRITTEN, "{said}");
    ensure!(json::number(&said, "threads")? <= COUNT, "{said}");
    cli::nothing_left(secs(20))
}
