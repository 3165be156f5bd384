//! A new server under load: after a death, and replacing a working one (L14, L34, L35).

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

use super::recovery::with;
use super::stop::Backing;
use crate::case::{self, Case};
use crate::cli::{self, Device, code, patience, ublkctl, ublkctl_json};
use crate::fs::{Kind, Mounted};
use crate::verifier::{BLOCK, Load};
use crate::wait::{secs, until};
use crate::{json, procfs, sysfs};

/// Threads and blocks of the load. Fewer threads than tags: kernels before 6.16 only notice a death through an idle
/// tag.
const THREADS: usize = 6;
const BLOCKS: usize = 256;

/// Number of deaths of a case, and of upgrades: in the usual run, and in a soak.
const DEATHS: u64 = 4;
const UPGRADES: (usize, usize) = (8, 50);
const MOUNTED: (usize, usize) = (5, 50);

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for policy in ["queue", "reissue", "fail"] {
        all.push(Case::new(
            format!("l14_kill_under_verified_load_{policy}"),
            move || with(policy, || kills(policy)),
        ));
    }
    for policy in ["queue", "reissue"] {
        all.push(Case::new(
            format!("l35_upgrade_under_verified_load_{policy}"),
            move || upgrades(policy),
        ));
    }
    all.push(Case::new(
        "l84_contract_upgrade_of_a_batch_device_is_refused",
        batch,
    ));
    for policy in ["queue", "reissue"] {
        let guest = "kill points are built for the guest only";
        let name = format!("l31_kill_at_every_step_of_upgrade_{policy}");
        all.push(Case::new(name, move || at_every_step(policy)).only_if(sysfs::in_guest(), guest));
    }
    all.push(Case::new("l35_upgrade_of_a_mounted_file_system", mounted));
    all.push(Case::new(
        "l35_upgrades_that_lose_requests_are_refused",
        refused,
    ));
    all
}

/// Without QUIESCE only `reissue` keeps every request.
fn can_quiesce() -> bool {
    sysfs::kernel() >= (6, 16)
}

fn device(backing: &Backing, policy: &str) -> Result<Device> {
    let spec = backing.spec("64M", &["--recovery", policy, "--max-io", "64K"]);
    spec.queues(2).depth(16).add()
}

/// Every acknowledged write is there after each death and recovery, and none is older; requests only fail as the policy
/// says.
fn kills(policy: &str) -> Result<()> {
    let state = if policy == "fail" {
        "fail-io"
    } else {
        "quiesced"
    };
    let backing = Backing::new("kills");
    let device = device(&backing, policy)?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, THREADS, BLOCKS)?;
    for death in 0..DEATHS {
        load.more(150, secs(60))
            .with_context(|| format!("before death {death}"))?;
        device.kill_server(state)?;
        ublkctl(&["recover", &id])?.good()?;
    }
    load.more(150, secs(60))
        .context("after the last recovery")?;
    let known = load.stop(patience() + secs(30))?;
    let errors = known.done.errors;
    match policy {
        "reissue" => ensure!(errors == 0, "{errors} requests failed"),
        // The dead server may have held one request of each thread.
        "queue" => ensure!(
            errors <= DEATHS * THREADS as u64,
            "{errors} requests failed"
        ),
        _ => ensure!(errors > 0, "nothing failed without a server"),
    }
    known.check(&device.path).context("through the device")?;
    device.delete()?;
    known.check(backing.path()).context("in the file")?;
    procfs::nothing_stuck(patience())
}

/// Upgrades one after the other; returns their pauses in milliseconds, sorted.
fn series(device: &Device, load: &Load, count: usize) -> Result<Vec<u64>> {
    let id = device.id.to_string();
    let mut pauses = Vec::new();
    for number in 0..count {
        let at = || format!("upgrade {number}");
        load.more(40, secs(60)).with_context(at)?;
        let before = device.server_now()?;
        let added = ublkctl_json(&["upgrade", &id]).with_context(at)?;
        ensure!(json::number(&added, "server_pid")? != u64::from(before));
        pauses.push(json::number(&added, "pause_us")?.div_ceil(1000));
    }
    load.more(40, secs(60)).context("after the last upgrade")?;
    pauses.sort_unstable();
    Ok(pauses)
}

/// Reports the pauses. In emulation the limit leaves room for a busy host; the printed numbers matter.
fn told(what: &str, pauses: &[u64]) -> Result<()> {
    let (aim, limit) = if case::emulated() {
        (500, 3000)
    } else {
        (50, 50)
    };
    let at = |percent: usize| pauses[(pauses.len() * percent).div_ceil(100).saturating_sub(1)];
    case::measured(format!(
        "{what}: {} upgrades, I/O held p50 {} ms, p99 {} ms; aim {aim} ms",
        pauses.len(),
        at(50),
        at(99)
    ));
    ensure!(
        at(99) < limit,
        "I/O held for {} ms, limit {limit} ms",
        at(99)
    );
    Ok(())
}

/// No request fails, none is lost, while servers replace each other.
fn upgrades(policy: &str) -> Result<()> {
    let backing = Backing::new("upgrades");
    let device = device(&backing, policy)?;
    let id = device.id.to_string();
    if policy == "queue" && !can_quiesce() {
        let parts = ["6.16", "--allow-errors"];
        cli::fails(&["upgrade", &id], code::FAILED, &parts)?;
        return device.delete();
    }
    let load = Load::start(&device.path, THREADS, BLOCKS)?;
    let pauses = series(&device, &load, case::rounds(UPGRADES.0, UPGRADES.1))?;
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    told(&format!("raw device, {policy}"), &pauses)?;
    known.check(&device.path).context("through the device")?;
    device.delete()?;
    known.check(backing.path()).context("in the file")
}

/// L84 The driver fails new requests while a batch device is held (7.3.4 does), so an upgrade is refused, and the
/// device serves on; before 7.3 there is no such device.
fn batch() -> Result<()> {
    let backing = Backing::new("upgrades-batch");
    let args = ["--recovery", "reissue", "--batch", "on", "--max-io", "64K"];
    let spec = backing.spec("64M", &args).queues(2).depth(16);
    if sysfs::kernel() < (7, 3) {
        let args = spec.args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cli::fails(&args, code::FAILED, &["batch"])?;
        return Ok(());
    }
    let device = spec.add()?;
    let load = Load::start(&device.path, THREADS, BLOCKS)?;
    load.more(40, secs(60))?;
    let before = device.server_now()?;
    let id = device.id.to_string();
    let parts = ["batch mode", "--allow-errors"];
    cli::fails(&["upgrade", &id], code::FAILED, &parts)?;
    ensure!(device.server_now()? == before, "it was touched");
    load.more(40, secs(60)).context("after the refusal")?;
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    known.check(&device.path).context("through the device")?;
    device.delete()
}

/// The points at which the processes of an upgrade can be killed, in order.
const STEPS: [&str; 10] = [
    "upgrade:before",
    "upgrade:held",
    "upgrade:asked",
    "upgrade:quiesced",
    "recover:locked",
    "recover:started",
    "server:assigned",
    "server:armed",
    "recover:armed",
    "recover:ended",
];

/// L31 L44 Whichever process is killed at whichever step of an upgrade: the old server serves on, or the old agent
/// replaces it; every acknowledged write is there. Requests only fail if a new server that has begun to serve leaves
/// again, and only under a policy that says so.
fn at_every_step(policy: &str) -> Result<()> {
    if policy == "queue" && !can_quiesce() {
        // It is refused there, which another case tests.
        return Ok(());
    }
    let backing = Backing::new("upgrade-steps");
    let device = device(&backing, policy)?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, THREADS, BLOCKS)?;
    let (mut serves_on, mut revived) = (0, 0);
    for point in STEPS {
        let missing = if can_quiesce() {
            "upgrade:asked"
        } else {
            "upgrade:held upgrade:quiesced"
        };
        if missing.contains(point) {
            continue;
        }
        let at = || point.to_owned();
        load.more(40, secs(60)).with_context(at)?;
        let before = device.server_now()?;
        let mut command = cli::command(&["upgrade", &id, "--deadline", "20"]);
        command.env("UBLK_KILL_AT", point);
        let output = crate::run::output(&mut command, secs(60))?;
        ensure!(output.code() == code::FAILED, "{point}: {output}");
        let server = until("a server", patience() + secs(20), || {
            let info = device.query()?;
            let live = info["state"] == "live" && info["server_alive"] == true;
            // Without a server the driver names none.
            let server = info["server_pid"].as_u64().unwrap_or_default();
            // The old server continues only if it has not been asked to leave yet.
            let other = server != u64::from(before);
            Ok((live && other == (point != "upgrade:before")).then_some(server))
        });
        match server.with_context(at)? == u64::from(before) {
            true => serves_on += 1,
            false => revived += 1,
        }
    }
    load.more(40, secs(60)).context("after the last step")?;
    let known = load.stop(patience() + secs(30))?;
    let failed = if policy == "queue" { THREADS as u64 } else { 0 };
    ensure!(known.done.errors <= failed, "{:?}", known.done);
    ensure!(
        serves_on == 1 && revived >= 6,
        "{serves_on} served on, {revived} revived"
    );
    known.check(&device.path).context("through the device")?;
    device.delete()?;
    known.check(backing.path()).context("in the file")?;
    cli::nothing_left(secs(10))
}

/// The same below a mounted file system, whose log and metadata must survive, too.
fn mounted() -> Result<()> {
    let backing = Backing::new("upgrade-fs");
    let device = device(&backing, "reissue")?;
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    let file = mounted.at.join("load");
    zeroes(&file)?;
    let load = Load::start(&file, 4, BLOCKS)?;
    let pauses = series(&device, &load, case::rounds(MOUNTED.0, MOUNTED.1))?;
    crate::fs::fill(&mounted.at, 7)?;
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    told("mounted ext4, reissue", &pauses)?;
    mounted.unmount()?;
    Kind::Ext4.check(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    known.check(&mounted.at.join("load"))?;
    crate::fs::compare(&mounted.at, 7)?;
    mounted.unmount()?;
    device.delete()
}

fn zeroes(path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; BLOCKS * BLOCK], 0)?;
    Ok(file.sync_all()?)
}

/// An upgrade is refused for devices without recovery, those that fail I/O by policy, and those without a server.
fn refused() -> Result<()> {
    let backing = Backing::new("refused");
    let device = backing.spec("16M", &[]).add()?;
    let id = device.id.to_string();
    cli::fails(&["upgrade", &id], code::FAILED, &["without recovery"])?;
    device.delete()?;
    cli::fails(&["upgrade", &id], code::NO_DEVICE, &["no ublk device"])?;
    let device = cli::Spec::null("1G")
        .with(&["--recovery", "reissue"])
        .add()?;
    let id = device.id.to_string();
    device.kill_server("quiesced")?;
    cli::fails(
        &["upgrade", &id],
        code::FAILED,
        &["no server to replace", "recover"],
    )?;
    device.delete()?;
    if sysfs::kernel() >= (6, 16) {
        let device = cli::Spec::null("1G").with(&["--recovery", "fail"]).add()?;
        let id = device.id.to_string();
        cli::fails(&["upgrade", &id], code::FAILED, &["policy `fail`"])?;
        ublkctl(&["upgrade", "--allow-errors", &id])?.good()?;
        device.wait_state("live", Duration::from_secs(1))?;
        device.delete()?;
    }
    Ok(())
}
