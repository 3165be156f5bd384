//! What a device costs that nobody uses: `ublk-e2e --idle COUNT DATA` makes devices in one process, and says how much memory
//! and how many threads they took.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use ublk::backends::Null;
use ublk::core::{DataMode, Mode};
use ublk::ctrl::ControlThread;
use ublk::{Builder, Device};

use crate::procfs;
use crate::wait::secs;

const GIB: u64 = 1 << 30;

fn used() -> Result<(u64, u64)> {
    let own = std::process::id();
    Ok((
        procfs::status(own, "VmRSS")?,
        procfs::status(own, "Threads")?,
    ))
}

/// Makes `count` devices of one queue of 128 tags, measures, and removes them.
pub fn idle(words: &[String]) -> Result<Value> {
    let [count, data] = words else {
        anyhow::bail!("--idle COUNT DATA");
    };
    let count: u64 = count.parse()?;
    let mode = Mode {
        data: data.parse::<DataMode>()?,
        batch: false,
    };
    // One controller for all: each of its own would have a thread and a ring.
    let control = Arc::new(Mutex::new(ControlThread::start(secs(30))?));
    let make = || -> Result<Device> {
        let builder = Builder::new(Null::new(GIB, 512)?).mode(mode);
        Ok(builder.controller(Arc::clone(&control)).start()?)
    };
    // The first one brings what all share.
    let mut devices = vec![make()?];
    let before = used()?;
    for _ in 0..count {
        devices.push(make().context("a device more")?);
    }
    let after = used()?;
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
        "threads": after.1 - before.1,
        "buffers_each": mapped / (count + 1),
    }))
}
