//! Commands that cannot complete (L27): a stopped server answers nothing, so the driver's commands wait. Every verb
//! returns within its deadline with exit code 3, says what to do, and its process really ends.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, patience, ublkctl, ublkctl_json};
use crate::direct_io::Direct;
use crate::wait::{secs, until};
use crate::{procfs, sysfs};

/// The deadline given to the tool.
const DEADLINE: u64 = 2;
/// The tool's own time on top of it, emulated and on a busy host.
const SLACK: Duration = secs(20);

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (verb, policy) in [
        ("stop", "none"),
        ("delete", "none"),
        ("upgrade", "reissue"),
        ("resize", "reissue"),
    ] {
        for end in [Signal::CONT, Signal::KILL] {
            let how = if end == Signal::CONT {
                "goes_on"
            } else {
                "is_killed"
            };
            all.push(Case::new(
                format!("l27_{verb}_with_a_silent_server_that_{how}"),
                move || silent(verb, policy, end),
            ));
        }
    }
    all
}

fn silent(verb: &str, policy: &str, end: Signal) -> Result<()> {
    if verb == "resize" && sysfs::kernel() < (6, 16) {
        // Refused before anything waits; see the cases of `resize`.
        return Ok(());
    }
    let device = Spec::null("1G").with(&["--recovery", policy]).add()?;
    let id = device.id.to_string();
    let server = device.server()?;
    procfs::stop(server)?;
    let path = device.path.clone();
    let reader = std::thread::spawn(move || {
        let _ = Direct::open_read(&path).and_then(|d| d.read(0, 4096).map(drop));
    });
    // The request is in flight once its thread waits for it.
    until("a request that waits", secs(10), || {
        Ok((!procfs::stuck().is_empty()).then_some(()))
    })?;
    let deadline = DEADLINE.to_string();
    let mut args = vec![verb, &id, "--deadline", &deadline];
    if verb == "resize" {
        args.insert(2, "2G");
    }
    let start = Instant::now();
    let output = ublkctl(&args)?;
    let took = start.elapsed();
    ensure!(took < secs(DEADLINE) + SLACK, "{took:?}: {output}");
    cli::failed(output, code::TIMED_OUT, &["ublkctl"])?;
    // Queries work all the while.
    ublkctl_json(&["list"])?;
    let info = ublkctl_json(&["info", &id])?;
    ensure!(info["id"] == device.id, "{info}");
    procfs::kill(server, end)?;
    until("the end of the request", patience() + secs(15), || {
        // With recovery it waits for the next server.
        if policy == "none" || reader.is_finished() {
            return Ok(reader.is_finished().then_some(()));
        }
        let _ = ublkctl(&["recover", &id, "--deadline", "5"])?;
        Ok(None)
    })
    .with_context(|| format!("{info}"))?;
    reader.join().map_err(|_| anyhow::anyhow!("a panic"))?;
    gone(device)
}

/// The remaining device goes, and so do the processes that were left behind.
fn gone(device: Device) -> Result<()> {
    let id = device.id.to_string();
    device.forget();
    let output = ublkctl(&["delete", "--force", &id])?;
    // The abandoned delete may have completed meanwhile.
    ensure!([0, code::NO_DEVICE].contains(&output.code()), "{output}");
    cli::nothing_left(patience() + secs(10))?;
    procfs::nothing_stuck(patience())
}
