//! Left-overs of dead processes, and names (L31).

use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::Case;
use crate::cli::{self, Spec, code, patience, ublkctl, ublkctl_json};
use crate::embed::Embedded;
use crate::wait::{secs, until};
use crate::{json, procfs, run, sysfs};

/// The points at which the processes of an `add` can be killed.
const ADD: [&str; 8] = [
    "add:intent",
    "add:added",
    "add:parameters",
    "server:assigned",
    "server:armed",
    "start:armed",
    "start:started",
    "start:ready",
];

/// The points for a `delete`, and for a terminated agent.
const DELETE: [&str; 2] = ["delete:stopped", "delete:deleted"];
const LEAVE: [&str; 4] = [
    "stop:before",
    "stop:stopped",
    "delete:before",
    "delete:deleted",
];

pub fn cases() -> Vec<Case> {
    let guest = "kill points are built for the guest only";
    let inside = sysfs::in_guest();
    let mut all = Vec::new();
    for policy in ["none", "reissue"] {
        all.push(
            Case::new(
                format!("l31_kill_at_every_step_of_add_{policy}"),
                move || kill_add(policy),
            )
            .only_if(inside, guest),
        );
        all.push(
            Case::new(
                format!("l31_kill_at_every_step_of_delete_{policy}"),
                move || kill_delete(policy),
            )
            .only_if(inside, guest),
        );
    }
    all.push(Case::new("l31_kill_at_every_step_of_leaving", kill_leave).only_if(inside, guest));
    all.push(Case::new("l31_gc_removes_what_it_is_told", gc));
    all.push(Case::new("a_name_stays_across_recovery", names));
    all
}

/// No record of a device is left.
fn no_records() -> Result<()> {
    let entries = std::fs::read_dir("/run/ublkctl")
        .into_iter()
        .flatten()
        .flatten();
    let left: Vec<_> = entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".json") || name.ends_with(".sock"))
        .collect();
    ensure!(left.is_empty(), "{left:?} is left in /run/ublkctl");
    Ok(())
}

fn entries() -> Result<Vec<Value>> {
    let listed = ublkctl_json(&["list"])?;
    Ok(listed.as_array().context("a list")?.clone())
}

/// Every device is attributed, recovered if possible, and removed; no file stays.
fn tidy() -> Result<()> {
    for entry in entries()? {
        let id = json::number(&entry, "id")?.to_string();
        ensure!(entry["foreign"] == false, "nobody's: {entry}");
        if entry["state"] == "quiesced" {
            ublkctl(&["recover", &id])?.good()?;
        }
        ublkctl(&["delete", &id])?.good()?;
    }
    cli::nothing_left(patience() + secs(5))?;
    ublkctl(&["gc"])?.good()?;
    no_records()
}

/// Waits until the remaining processes of the tool settle: none runs, or a server serves on without its agent.
fn settle() -> Result<()> {
    until("the end of what was killed", patience() + secs(10), || {
        let orphaned = |e: &Value| e["orphan"] == true || e["server_alive"] == true;
        Ok(entries()?.iter().all(orphaned).then_some(()))
    })
}

fn kill_add(policy: &str) -> Result<()> {
    for point in ADD {
        let args = ["add", "null", "--recovery", policy];
        let mut command = cli::command(&args);
        command.env("UBLK_KILL_AT", point);
        let output = run::output(&mut command, secs(60))?;
        ensure!(output.code() == code::FAILED, "{point}: {output}");
        settle().with_context(|| point.to_owned())?;
        tidy().with_context(|| point.to_owned())?;
    }
    Ok(())
}

fn kill_delete(policy: &str) -> Result<()> {
    for point in DELETE {
        let device = Spec::null("1G").with(&["--recovery", policy]).add()?;
        // Without an agent only the command cleans up.
        let agent = u32::try_from(json::number(&device.info, "agent_pid")?)?;
        procfs::kill(agent, Signal::KILL)?;
        let mut command = cli::command(&["delete", &device.id.to_string()]);
        command.env("UBLK_KILL_AT", point);
        let output = run::output(&mut command, secs(60))?;
        ensure!(!output.status.success(), "{point}: {output}");
        device.forget();
        settle().with_context(|| point.to_owned())?;
        tidy().with_context(|| point.to_owned())?;
    }
    Ok(())
}

/// The agent of a device without recovery is killed while it exits.
fn kill_leave() -> Result<()> {
    for point in LEAVE {
        let mut command = cli::command(&["add", "null"]);
        command.env("UBLK_KILL_AT", point);
        run::output(&mut command, secs(60))?.good()?;
        let listed = entries()?;
        let agent = ublkctl_json(&["info", &json::number(&listed[0], "id")?.to_string()])?;
        let agent = u32::try_from(json::number(&agent, "agent_pid")?)?;
        procfs::kill(agent, Signal::TERM)?;
        until("the end of the agent", secs(20), || {
            Ok((!Path::new(&format!("/proc/{agent}")).exists()).then_some(()))
        })?;
        settle().with_context(|| point.to_owned())?;
        tidy().with_context(|| point.to_owned())?;
    }
    Ok(())
}

/// Orphans of three kinds: dead, waiting, foreign. Only those requested are removed.
fn gc() -> Result<()> {
    let dead = Spec::null("1G").add()?;
    let waiting = Spec::null("1G").with(&["--recovery", "queue"]).add()?;
    let live = Spec::null("1G").add()?;
    let embedded = Embedded::start(1, &["recovery=queue"])?;
    let foreign = embedded.id;
    embedded.kill()?;
    dead.kill_server("dead")?;
    waiting.kill_server("quiesced")?;
    let orphans = |found: &Value, key: &str| -> Vec<u64> {
        let list = found[key].as_array().into_iter().flatten();
        list.filter_map(|e| e["id"].as_u64().or(e.as_u64()))
            .collect()
    };
    until("three orphans", patience(), || {
        let found = ublkctl_json(&["gc"])?;
        ensure!(orphans(&found, "removed").is_empty(), "{found}");
        let ids = orphans(&found, "orphans");
        let all = [dead.id, waiting.id, foreign].map(u64::from);
        Ok((ids == all).then_some(()))
    })?;
    let text = ublkctl(&["gc"])?.good()?.stdout;
    ensure!(
        text.contains("ublkctl recover") && text.contains("not created by"),
        "{text}"
    );
    cli::fails(
        &["gc", &live.id.to_string()],
        code::FAILED,
        &["not an orphan"],
    )?;
    let found = ublkctl_json(&["gc", "--all"])?;
    ensure!(
        orphans(&found, "removed") == [u64::from(dead.id)],
        "{found}"
    );
    let ids = [waiting.id.to_string(), foreign.to_string()];
    let found = ublkctl_json(&["gc", &ids[0], &ids[1]])?;
    ensure!(orphans(&found, "orphans").is_empty(), "{found}");
    ensure!(live.query()?["state"] == "live");
    dead.forget();
    waiting.forget();
    live.delete()?;
    no_records()
}

/// The link of a name: it leads to the device, is accepted instead of its number, survives a recovery, and goes with
/// the device.
fn names() -> Result<()> {
    let named = ["--name", "disk-1", "--recovery", "reissue"];
    let device = Spec::null("1G").with(&named).add()?;
    let link = Path::new("/dev/ublkctl/disk-1");
    let leads = || link.canonicalize().context("the link");
    ensure!(leads()? == device.path);
    let info = ublkctl_json(&["info", "disk-1"])?;
    ensure!(
        info["id"] == device.id && info["name"] == "disk-1",
        "{info}"
    );
    let again = ["add", "null", "--name", "disk-1"];
    cli::fails(&again, code::FAILED, &["disk-1", "belongs to device"])?;
    let bad = ["add", "null", "--name", "../disk"];
    cli::fails(&bad, code::USAGE, &["not a valid device name"])?;
    device.kill_server("quiesced")?;
    ublkctl(&["recover", "disk-1"])?.good()?;
    ensure!(leads()? == device.path);
    let deleted = ublkctl(&["delete", "/dev/ublkctl/disk-1"])?.good()?;
    device.forget();
    let left = std::fs::read_link(link);
    ensure!(left.is_err(), "{left:?} is left after {deleted}");
    Ok(())
}
