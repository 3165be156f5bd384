//! The cost of an idle device: `ublk-e2e --idle COUNT DATA` creates devices in one process, and reports the memory and
//! threads they took, and the additional cost of one small write to each.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use ublk::backends::Null;
use ublk::core::{DataMode, Mode};
use ublk::ctrl::ControlThread;
use ublk::{Builder, Device};

use crate::direct_io::Direct;
use crate::procfs;
use crate::wait::{secs, until};

const GIB: u64 = 1 << 30;

/// How long the number of threads must stay the same before it counts.
const STEADY: Duration = Duration::from_millis(200);

/// Resident bytes and threads, once the number of threads is stable: a joined thread still counts until the kernel has
/// removed it from its list.
fn used() -> Result<(u64, u64)> {
    let own = std::process::id();
    let (mut seen, mut since) = (procfs::status(own, "Threads")?, Instant::now());
    until("a steady number of threads", secs(10), || {
        let now = procfs::status(own, "Threads")?;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        Ok((since.elapsed() >= STEADY).then_some(()))
    })?;
    Ok((
        procfs::status(own, "VmRSS")?,
        procfs::status(own, "Threads")?,
    ))
}

/// Creates `count` devices of one queue of 128 tags, measures, and removes them.
pub fn idle(args: &[String]) -> Result<Value> {
    let [count, data] = args else {
        anyhow::bail!("--idle COUNT DATA");
    };
    let count: u64 = count.parse()?;
    let mode = Mode::new(data.parse::<DataMode>()?);
    // One controller for all: each would have a thread and a ring of its own.
    let control = Arc::new(Mutex::new(ControlThread::start(secs(30))?));
    let make = || -> Result<Device> {
        let (null, control) = (Null::new(GIB, 512)?, Arc::clone(&control));
        Ok(match mode.data {
            DataMode::ZeroCopy => Builder::new(null).mode(mode).controller(control).start()?,
            // Behind an `Arc`, which cannot be blind: its buffers are used.
            _ => Builder::new(Arc::new(null))
                .mode(mode)
                .controller(control)
                .start()?,
        })
    };
    // The first one creates what all share.
    let mut devices = vec![make()?];
    let before = used()?;
    for _ in 0..count {
        devices.push(make().context("a device more")?);
    }
    let after = used()?;
    for device in &devices {
        Direct::open(&device.path())?.write_pattern(0, 4096, 1)?;
    }
    let written = used()?;
    let mapped: u64 = devices
        .iter()
        .map(|device| {
            device
                .health()
                .queues
                .iter()
                .map(|q| q.buffer_bytes)
                .sum::<u64>()
        })
        .sum();
    for device in devices {
        device.remove()?;
    }
    Ok(json!({
        "devices": count,
        "rss_each": after.0.saturating_sub(before.0) / count.max(1),
        "written_each": written.0.saturating_sub(after.0) / count.max(1),
        "threads": after.1 - before.1,
        "buffers_each": mapped / (count + 1),
    }))
}
