//! Devices that outlive their server (L30, L34).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{self, Device, Spec, code, patience, ublkctl, ublkctl_json};
use crate::embed::Embedded;
use crate::wait::{secs, until};
use crate::{json, procfs, sysfs};

/// The policies that wait for a server, with the state of a waiting device.
const POLICIES: [(&str, &str); 3] = [
    ("queue", "quiesced"),
    ("reissue", "quiesced"),
    ("fail", "fail-io"),
];

/// The points at which the roles of a recovery can be killed.
const POINTS: [&str; 6] = [
    "recover:locked",
    "recover:started",
    "server:assigned",
    "server:armed",
    "recover:armed",
    "recover:ended",
];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (policy, state) in POLICIES {
        all.push(Case::new(
            format!("l34_recover_{policy}_twice"),
            move || with(policy, || twice(policy, state)),
        ));
        all.push(
            Case::new(
                format!("l34_kill_at_every_step_of_recover_{policy}"),
                move || with(policy, || at_every_step(policy, state)),
            )
            .only_if(
                sysfs::in_guest(),
                "kill points are built for the guest only",
            ),
        );
        all.push(Case::new(
            format!("l30_a_signal_leaves_the_device_{policy}"),
            move || with(policy, || signal(policy, state)),
        ));
    }
    all.push(Case::new("l34_only_what_waits_is_recovered", refused));
    all.push(Case::new("l34_recover_all", recover_all));
    all.push(Case::new("l34_a_supervised_device_comes_back", supervised));
    all.push(Case::new(
        "l34_a_signal_to_a_supervised_server_brings_another",
        signalled,
    ));
    all.push(Case::new("l34_a_foreign_device_is_not_recovered", foreign));
    all.push(Case::new(
        "l40_a_state_file_of_others_is_not_trusted",
        tampered,
    ));
    all
}

/// Whether this kernel supports the policy `fail`.
fn has_fail() -> bool {
    sysfs::kernel() >= (6, 13)
}

fn add(policy: &str) -> Result<Device> {
    Spec::null("1G")
        .queues(2)
        .with(&["--recovery", policy])
        .add()
}

/// Runs the body if the kernel supports the policy; otherwise the refusal must name it.
pub fn with(policy: &str, body: impl FnOnce() -> Result<()>) -> Result<()> {
    if policy != "fail" || has_fail() {
        return body();
    }
    let args = ["add", "null", "--recovery", policy];
    cli::fails(&args, code::FAILED, &["USER_RECOVERY_FAIL_IO", "6.13"])?;
    Ok(())
}

/// A direct read of the first block, on its own thread.
fn reader(device: &Device) -> JoinHandle<Result<()>> {
    let path = device.path.clone();
    std::thread::spawn(move || {
        crate::direct_io::Direct::open_read(&path)?.read(0, 4096)?;
        Ok(())
    })
}

fn end<T>(thread: JoinHandle<T>) -> Result<T> {
    until("the end of a reader", patience() + secs(10), || {
        Ok(thread.is_finished().then_some(()))
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("a panic"))
}

fn recover(device: &Device) -> Result<()> {
    let output = ublkctl(&["recover", &device.id.to_string()])?.good()?;
    ensure!(
        output.stdout == format!("{}\n", device.path.display()),
        "{output}"
    );
    device.wait_state("live", secs(1))?;
    end(reader(device))?.context("I/O after the recovery")
}

/// Kill, check, recover, twice: a recovered device is as good as a new one.
fn twice(policy: &str, state: &str) -> Result<()> {
    let device = add(policy)?;
    ensure!(
        json::text(&device.info, "recovery")? == policy,
        "{}",
        device.info
    );
    for round in 0..2 {
        let before = device.server_now()?;
        device.kill_server(state)?;
        let info = device.query()?;
        ensure!(info["orphan"] == true, "round {round}: {info}");
        let next = json::text(&info, "next")?;
        ensure!(next.contains("ublkctl recover"), "{next}");
        let waiting = reader(&device);
        if policy == "fail" {
            let failed = end(waiting)?;
            ensure!(failed.is_err(), "a read went through without a server");
            recover(&device)?;
        } else {
            // It waits in the kernel; all that can be seen is that it has not ended.
            std::thread::sleep(std::time::Duration::from_millis(50));
            ensure!(
                !waiting.is_finished(),
                "a read did not wait for the next server"
            );
            recover(&device)?;
            end(waiting)?.context("the read that waited")?;
        }
        ensure!(device.server_now()? != before);
        let info = device.query()?;
        ensure!(info["orphan"] == false && info["phase"] == "live", "{info}");
    }
    // A waiting device can be deleted, too.
    device.kill_server(state)?;
    device.delete()?;
    procfs::nothing_stuck(patience())
}

/// L31 Each process of a recovery is killed at each of its steps: the device waits again or is live, and the next
/// recovery succeeds.
fn at_every_step(policy: &str, state: &str) -> Result<()> {
    let device = add(policy)?;
    let id = device.id.to_string();
    for point in POINTS {
        device.kill_server(state)?;
        let mut command = cli::command(&["recover", &id, "--deadline", "20"]);
        command.env("UBLK_KILL_AT", point);
        let output = crate::run::output(&mut command, secs(60))?;
        ensure!(output.code() == code::FAILED, "{point}: {output}");
        // The server that lost its agent gives up.
        device
            .wait_state(state, patience())
            .with_context(|| point.to_owned())?;
        recover(&device).with_context(|| format!("after {point}"))?;
    }
    device.delete()
}

/// SIGTERM to the server or the agent: the device is left to the next server, and not stopped.
fn signal(policy: &str, state: &str) -> Result<()> {
    let device = add(policy)?;
    for who in ["server_pid", "agent_pid"] {
        let pid = u32::try_from(json::number(&device.query()?, who)?)?;
        procfs::kill(pid, Signal::TERM)?;
        device
            .wait_state(state, patience())
            .with_context(|| who.to_owned())?;
        until("the end of its processes", secs(10), || {
            Ok((device.query()?["orphan"] == true).then_some(()))
        })?;
        ensure!(device.query()?["phase"] == "left", "{}", device.query()?);
        recover(&device).with_context(|| who.to_owned())?;
    }
    device.delete()
}

/// Recovery is refused for live devices, those without recovery, stopped ones and missing ones.
fn refused() -> Result<()> {
    let device = add("reissue")?;
    let id = device.id.to_string();
    cli::fails(
        &["recover", &id],
        code::FAILED,
        &["is live", "ublkctl upgrade"],
    )?;
    ublkctl(&["stop", &id])?.good()?;
    cli::fails(
        &["recover", &id],
        code::FAILED,
        &["stopped", "ublkctl delete"],
    )?;
    device.delete()?;
    let device = Spec::null("1G").add()?;
    let id = device.id.to_string();
    procfs::kill(device.server()?, Signal::KILL)?;
    device.wait_state("dead", patience())?;
    cli::fails(&["recover", &id], code::FAILED, &["without recovery"])?;
    device.delete()?;
    cli::fails(&["recover", &id], code::NO_DEVICE, &["no ublk device"])?;
    let args = ["add", "mem", "--size", "1M", "--recovery", "queue"];
    cli::fails(&args, code::USAGE, &["memory device"])?;
    Ok(())
}

/// Every waiting device of ours is recovered, others are left alone.
fn recover_all() -> Result<()> {
    let (one, two, live) = (add("queue")?, add("reissue")?, add("queue")?);
    one.kill_server("quiesced")?;
    two.kill_server("quiesced")?;
    let server = live.server_now()?;
    let done = ublkctl_json(&["recover", "--all"])?;
    let done = done.as_array().context("a list")?;
    let mut ids: Vec<_> = done.iter().filter_map(|d| d["id"].as_u64()).collect();
    ids.sort_unstable();
    ensure!(ids == [u64::from(one.id), u64::from(two.id)], "{ids:?}");
    ensure!(live.server_now()? == server);
    for device in [one, two, live] {
        device.wait_state("live", secs(1))?;
        device.delete()?;
    }
    Ok(())
}

/// Without any command: the agent brings the device back, and a waiting request completes.
fn supervised() -> Result<()> {
    let args = ["add", "null", "--supervise"];
    cli::fails(&args, code::USAGE, &["--recovery"])?;
    let spec = Spec::null("1G").with(&["--recovery", "reissue", "--supervise"]);
    let device = spec.add()?;
    let agent = json::number(&device.info, "agent_pid")?;
    for round in 0..3 {
        let before = device.server_now()?;
        procfs::kill(before, Signal::KILL)?;
        let waiting = reader(&device);
        until("another server", patience() + secs(20), || {
            let info = device.query()?;
            let other = info["server_alive"] == true && info["server_pid"] != before;
            Ok((info["state"] == "live" && other).then_some(()))
        })
        .with_context(|| format!("round {round}"))?;
        end(waiting)?.context("the read that waited")?;
        ensure!(json::number(&device.query()?, "agent_pid")? == agent);
    }
    device.delete()
}

/// A signal to the server of a supervised device is a death like any other: the next server takes over, and no request
/// fails. SIGHUP has no effect.
fn signalled() -> Result<()> {
    for more in [&["--batch", "off"][..], &["--batch", "auto"]] {
        let backing = Backing::new("signalled");
        let spec = backing.spec("16M", &["--recovery", "reissue", "--supervise"]);
        let device = spec.with(more).add()?;
        let agent = json::number(&device.info, "agent_pid")?;
        let (path, stop) = (device.path.clone(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&stop);
        let load = std::thread::spawn(move || {
            let direct = crate::direct_io::Direct::open(&path)?;
            let mut rounds = 0;
            while !told.load(Ordering::Relaxed) {
                direct.write_pattern(0, 256 << 10, rounds)?;
                direct.check_pattern(0, 256 << 10, rounds)?;
                rounds += 1;
            }
            Ok(rounds)
        });
        for signal in [Signal::TERM, Signal::INT, Signal::TERM] {
            let before = device.server_now()?;
            procfs::kill(before, signal)?;
            until("another server", patience() + secs(20), || {
                let info = device.query()?;
                let other = info["server_alive"] == true && info["server_pid"] != before;
                Ok((info["state"] == "live" && other).then_some(()))
            })
            .with_context(|| format!("{signal:?}, {more:?}"))?;
            ensure!(json::number(&device.query()?, "agent_pid")? == agent);
        }
        let before = device.server_now()?;
        procfs::kill(before, Signal::HUP)?;
        std::thread::sleep(secs(1));
        ensure!(device.server_now()? == before, "ended by SIGHUP");
        stop.store(true, Ordering::Relaxed);
        let rounds: Result<u64> = end(load)?;
        let rounds = rounds.with_context(|| format!("{more:?}"))?;
        ensure!(rounds > 0, "nothing was written");
        device.delete()?;
    }
    Ok(())
}

/// A recoverable device of another program: shown, deleted on request, never recovered.
fn foreign() -> Result<()> {
    let embedded = Embedded::start(1, &["recovery=queue"])?;
    let id = embedded.id.to_string();
    embedded.kill()?;
    until("a quiesced device", patience(), || {
        let info = ublkctl_json(&["info", &id])?;
        Ok((info["state"] == "quiesced").then_some(()))
    })?;
    let info = ublkctl_json(&["info", &id])?;
    ensure!(info["foreign"] == true && info["orphan"] == true, "{info}");
    let output = cli::fails(
        &["recover", &id],
        code::FAILED,
        &["not created by this ublkctl"],
    )?;
    ensure!(!output.stderr.contains("recover --all"));
    let done = ublkctl_json(&["recover", "--all"])?;
    ensure!(done.as_array().is_some_and(Vec::is_empty), "{done}");
    ublkctl(&["delete", &id])?.good()?;
    cli::nothing_left(secs(10))
}

/// L40 A state file that is a link, is writable by others, belongs to another user or has another version is not used,
/// and the message says so.
fn tampered() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let device = add("queue")?;
    let id = device.id.to_string();
    let path = format!("/run/ublkctl/{id}.json");
    let aside = format!("/run/ublkctl/{id}.aside");
    device.kill_server("quiesced")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
    cli::fails(
        &["recover", &id],
        code::FAILED,
        &["not trusted", "can write"],
    )?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&path, &aside)?;
    std::os::unix::fs::symlink(&aside, &path)?;
    cli::fails(&["recover", &id], code::FAILED, &["not trusted", "link"])?;
    std::fs::rename(&aside, &path)?;
    // Root wrote it; anybody else who could have may have named any file to be served.
    std::os::unix::fs::chown(&path, Some(1), Some(1))?;
    for verb in ["recover", "upgrade"] {
        cli::fails(
            &[verb, &id],
            code::FAILED,
            &["not trusted", "belongs to another user"],
        )?;
    }
    std::os::unix::fs::chown(&path, Some(0), Some(0))?;
    let text = std::fs::read_to_string(&path)?;
    let newer = text.replacen("\"version\": ", "\"version\": 9", 1);
    ensure!(newer != text, "no version in {text}");
    std::fs::write(&path, newer)?;
    cli::fails(&["recover", &id], code::FAILED, &["version 9"])?;
    std::fs::write(&path, &text)?;
    recover(&device)?;
    // A live device whose record was written by another version keeps its server.
    let server = device.server_now()?;
    let text = std::fs::read_to_string(&path)?;
    std::fs::write(&path, text.replacen("\"version\": ", "\"version\": 9", 1))?;
    cli::fails(&["upgrade", &id], code::FAILED, &["version 9"])?;
    std::fs::write(&path, &text)?;
    ensure!(device.server_now()? == server, "it has another server");
    end(reader(&device))?.context("I/O after an upgrade that was refused")?;
    device.delete()
}
