//! Random kills (L31): whichever process is killed, at any moment, nothing hangs and nothing is left behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::{self, Case};
use crate::cli::{self, Device, Spec, code, patience, ublkctl, ublkctl_json};
use crate::wait::{secs, until};
use crate::{json, pattern, procfs, run, sysfs};

/// A verb, and the points at which its processes can be killed.
type Verb = (&'static str, &'static [&'static str]);

const VERBS: [Verb; 4] = [
    (
        "add",
        &[
            "add:intent",
            "add:added",
            "add:parameters",
            "server:assigned",
            "server:armed",
            "start:armed",
            "start:started",
            "start:ready",
        ],
    ),
    (
        "recover",
        &[
            "recover:locked",
            "recover:started",
            "server:assigned",
            "server:armed",
            "recover:armed",
            "recover:ended",
        ],
    ),
    (
        "upgrade",
        &[
            "upgrade:before",
            "upgrade:quiesced",
            "upgrade:asked",
            "recover:locked",
            "recover:started",
            "server:assigned",
            "server:armed",
            "recover:armed",
            "recover:ended",
        ],
    ),
    ("delete", &["delete:stopped", "delete:deleted"]),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("l31_kill_at_every_step_of_upgrade", every_step_of_upgrade).only_if(
            sysfs::in_guest(),
            "kill points are built for the guest only",
        ),
        Case::new("l31_kills_at_random_leave_nothing", at_random).only_if(
            sysfs::in_guest(),
            "kill points are built for the guest only",
        ),
    ]
}

/// A repeatable random number generator.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = pattern::word(self.0, 77);
        usize::try_from(self.0 >> 16).unwrap_or(0) % bound
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn recoverable(policy: &str) -> Result<Device> {
    Spec::null("1G").with(&["--recovery", policy]).add()
}

/// Runs a verb that is killed at a point.
fn killed(args: &[&str], point: &str) -> Result<()> {
    let mut command = cli::command(&[args, &["--deadline", "20"]].concat());
    command.env("UBLK_KILL_AT", point);
    run::output(&mut command, secs(60)).map(|_| ())
}

/// L31 Each process of an upgrade is killed at each of its steps: the device lives on with one server or the other, or
/// waits for the next.
fn every_step_of_upgrade() -> Result<()> {
    let device = recoverable("reissue")?;
    let id = device.id.to_string();
    for point in VERBS[2].1 {
        killed(&["upgrade", &id], point).with_context(|| (*point).to_owned())?;
        back(&device).with_context(|| (*point).to_owned())?;
        device
            .open()?
            .read(0, 4096)
            .with_context(|| (*point).to_owned())?;
    }
    device.delete()
}

/// Waits until the device is live with a server, and recovers it if it waits for one.
fn back(device: &Device) -> Result<()> {
    let id = device.id.to_string();
    until("a device that is served", patience() + secs(20), || {
        let info = device.query()?;
        if info["state"] == "live" && info["server_alive"] == true && info["phase"] == "live" {
            return Ok(Some(()));
        }
        if info["state"] == "quiesced" || info["server_alive"] == false {
            // Refused while its old processes are still exiting.
            let output = ublkctl(&["recover", &id, "--deadline", "10"])?;
            ensure!([0, code::FAILED, 3].contains(&output.code()), "{output}");
        }
        Ok(None)
    })
    .with_context(|| {
        device
            .query()
            .map_or_else(|e| e.to_string(), |i| i.to_string())
    })
}

/// Removes what is left after a round, in the supported ways.
fn tidy() -> Result<()> {
    let entries = || -> Result<Vec<Value>> {
        Ok(ublkctl_json(&["list"])?
            .as_array()
            .context("a list")?
            .clone())
    };
    until("the end of what was killed", patience() + secs(10), || {
        let settled = |e: &Value| e["orphan"] == true || e["server_alive"] == true;
        let others = |e: &&Value| e["backend"] != "mem";
        Ok(entries()?.iter().filter(others).all(settled).then_some(()))
    })?;
    for entry in entries()? {
        if entry["backend"] == "mem" {
            continue;
        }
        ensure!(entry["foreign"] == false, "nobody's: {entry}");
        let id = json::number(&entry, "id")?.to_string();
        let args = ["delete", &id];
        let verb: &[&str] = if entry["orphan"] == true {
            &["gc", &id]
        } else {
            &args
        };
        ublkctl(verb)?.good()?;
    }
    ublkctl(&["gc"])?.good()?;
    let found = ublkctl_json(&["gc"])?;
    ensure!(
        found["orphans"].as_array().is_some_and(Vec::is_empty),
        "{found}"
    );
    Ok(())
}

fn at_random() -> Result<()> {
    let rounds = case::rounds(12, 200);
    // Another seed each time; a failing round prints it.
    let seed = u64::from(std::process::id());
    let mut random = Random(seed);
    // An uninvolved device: deaths around it must not change it.
    let bystander = Spec::mem("16M").add()?;
    bystander.open()?.write_pattern(0, 65_536, 9)?;
    let (server, agent) = (
        bystander.server()?,
        u32::try_from(json::number(&bystander.info, "agent_pid")?)?,
    );
    // Allocated memory only: pages of the program are mapped in on first use.
    let held =
        |pid| -> Result<_> { Ok((procfs::footprint(pid)?, procfs::status(pid, "RssAnon")?)) };
    let before = (held(server)?, held(agent)?);
    for round in 0..rounds {
        let (verb, points) = random.of(&VERBS);
        let point = random.of(points);
        let policy = random.of(&["queue", "reissue"]);
        let what =
            || format!("round {round} of seed {seed}: {verb} of {policy}, killed at {point}");
        one(&mut random, verb, point, policy).with_context(what)?;
        tidy().with_context(what)?;
    }
    let after = (held(server)?, held(agent)?);
    ensure!(
        before.0.0 == after.0.0 && before.1.0 == after.1.0,
        "descriptors, mappings and threads before: {before:?}, after: {after:?}"
    );
    for (before, after) in [(before.0.1, after.0.1), (before.1.1, after.1.1)] {
        // Room for two huge pages, which the kernel may use instead of small ones.
        ensure!(
            after <= before + (4 << 20),
            "memory grew from {before} to {after} bytes"
        );
    }
    bystander.open()?.check_pattern(0, 65_536, 9)?;
    bystander.delete()?;
    cli::nothing_left(patience())?;
    procfs::nothing_stuck(patience())?;
    case::measured(format!(
        "{rounds} kills at random, seed {seed}: nothing left"
    ));
    Ok(())
}

/// One round: a verb is killed at a point; sometimes another process dies a little later, too.
fn one(random: &mut Random, verb: &str, point: &str, policy: &str) -> Result<()> {
    if verb == "add" {
        return killed(&["add", "null", "--recovery", policy], point);
    }
    let device = recoverable(policy)?;
    let id = device.id.to_string();
    let agent = u32::try_from(json::number(&device.info, "agent_pid")?)?;
    let pids = [device.server()?, agent];
    if verb == "recover" {
        device.kill_server("quiesced")?;
    }
    let also = random.below(3);
    let pause = Duration::from_millis(random.below(40) as u64);
    let other = std::thread::spawn(move || {
        if let Some(pid) = pids.get(also) {
            // The moment is the point: this does not wait for anything.
            std::thread::sleep(pause);
            // It may have exited already.
            let _ = procfs::kill(*pid, Signal::KILL);
        }
    });
    let done = killed(&[verb, &id], point);
    other.join().map_err(|_| anyhow::anyhow!("a panic"))?;
    device.forget();
    done
}
