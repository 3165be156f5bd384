//! A hand-over can always be undone or completed, whatever its surroundings; and a device whose agent died gets another
//! (L44, L49).

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;

use super::stop::Backing;
use crate::case::{self, Case};
use crate::cli::{self, Device, patience, ublkctl, ublkctl_json};
use crate::fs::Kind;
use crate::verifier::Load;
use crate::wait::{secs, until};
use crate::{json, procfs, run, sysfs};

/// Rounds in the usual run, and in a soak.
const MOUNTING: (usize, usize) = (6, 200);
const KILLED: (usize, usize) = (6, 50);
const FULL: (usize, usize) = (3, 50);

/// Directory of the records of root's devices.
const RUN: &str = "/run/ublkctl";

pub fn cases() -> Vec<Case> {
    let guest = "it covers the run directory of this machine";
    vec![
        Case::new("l44_upgrades_while_it_is_mounted_and_unmounted", mounting),
        Case::new("l44_upgrades_whose_caller_is_killed", killed),
        Case::new("l44_upgrades_with_a_full_run_directory", full).only_if(sysfs::in_guest(), guest),
        Case::new("l44_an_upgrade_with_few_descriptors", few_descriptors),
        Case::new("l49_a_device_without_an_agent_gets_one", no_agent),
        Case::new("l44_a_stopped_server_is_given_up", stopped),
    ]
}

fn device(backing: &Backing, more: &[&str]) -> Result<Device> {
    let args = [&["--recovery", "reissue", "--max-io", "64K"], more].concat();
    backing.spec("64M", &args).queues(2).depth(16).add()
}

fn serves(device: &Device) -> Result<()> {
    until("a device that serves", patience() + secs(40), || {
        let info = device.query()?;
        let live = info["state"] == "live" && info["server_alive"] == true;
        Ok((live && info["agent_alive"] == true).then_some(()))
    })
    .with_context(|| {
        device
            .query()
            .map_or_else(|e| e.to_string(), |i| i.to_string())
    })
}

/// Creates a file system, mounts it, writes, reads back and unmounts, repeatedly.
struct Mounting {
    end: Arc<AtomicBool>,
    thread: JoinHandle<Result<usize>>,
}

impl Mounting {
    fn start(device: &Device) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let (stop, node) = (Arc::clone(&end), device.path.clone());
        let thread = std::thread::spawn(move || {
            let at = std::env::temp_dir().join("ublk-e2e-mounting");
            fs::create_dir_all(&at)?;
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                Kind::Ext4.format(&node.to_string_lossy())?;
                mount(&node, &at, "ext4", MountFlags::empty(), None).context("mount")?;
                crate::fs::fill(&at, 7)?;
                crate::fs::compare(&at, 7)?;
                unmount(&at, UnmountFlags::empty()).context("umount")?;
                run::good("e2fsck", &["-f", "-n", &node.to_string_lossy()])?;
                rounds += 1;
            }
            Ok(rounds)
        });
        Self { end, thread }
    }

    fn stop(self) -> Result<usize> {
        self.end.store(true, Ordering::Relaxed);
        until("the end of who mounts", patience() + secs(60), || {
            Ok(self.thread.is_finished().then_some(()))
        })?;
        self.thread.join().map_err(|_| anyhow::anyhow!("a panic"))?
    }
}

/// L36 No server holds the last reference to a file system on its own device, and a hand-over waits for the character
/// device, not for the end of a process.
fn mounting() -> Result<()> {
    let backing = Backing::new("mounting");
    let device = device(&backing, &[])?;
    let id = device.id.to_string();
    let mounting = Mounting::start(&device);
    let rounds = case::rounds(MOUNTING.0, MOUNTING.1);
    for round in 0..rounds {
        ublkctl(&["upgrade", &id, "--deadline", "50"])?
            .good()
            .with_context(|| format!("upgrade {round}"))?;
        std::thread::sleep(Duration::from_millis(37 * (round as u64 % 9)));
    }
    let mounted = mounting.stop()?;
    case::measured(format!(
        "{rounds} upgrades beside {mounted} rounds of mount and umount"
    ));
    ensure!(mounted > 0, "nothing was mounted");
    device.delete()?;
    procfs::nothing_stuck(patience())
}

/// The caller is killed at some moment, with SIGKILL or SIGTERM: the device is served still or again, and nothing
/// fails.
fn killed() -> Result<()> {
    let backing = Backing::new("caller-killed");
    let device = device(&backing, &[])?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, 4, 64)?;
    let began = Instant::now();
    ublkctl(&["upgrade", &id])?.good()?;
    let whole = began.elapsed();
    let rounds = case::rounds(KILLED.0, KILLED.1);
    let (mut replaced, mut odd) = (0, 7u32);
    for round in 0..rounds {
        let at = || format!("upgrade {round}");
        load.more(20, secs(60)).with_context(at)?;
        let before = device.server_now()?;
        let mut upgrade = cli::command(&["upgrade", &id, "--deadline", "50"])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        odd = odd.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        std::thread::sleep(whole.mul_f64(f64::from(odd >> 16 & 0x3ff) / 1000.0));
        let signal = [Signal::KILL, Signal::TERM, Signal::INT][round % 3];
        procfs::kill(upgrade.id(), signal)?;
        upgrade.wait()?;
        serves(&device).with_context(at)?;
        // An upgrade that was not cut short is still running.
        until("the end of an upgrade", secs(60), || {
            Ok(ublkctl(&["upgrade", &id])?.good().is_ok().then_some(()))
        })
        .with_context(at)?;
        replaced += usize::from(device.server_now()? != before);
    }
    load.more(20, secs(60)).context("after the last upgrade")?;
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    case::measured(format!("{rounds} upgrades whose caller was killed"));
    ensure!(replaced == rounds, "{replaced} of {rounds}");
    known.check(&device.path).context("through the device")?;
    device.delete()
}

/// A small file system over the run directory, as long as the value lives.
struct Covered;

impl Covered {
    fn new() -> Result<Self> {
        cli::nothing_left(secs(10))?;
        if !Path::new(RUN).exists() {
            fs::DirBuilder::new().mode(0o700).create(RUN)?;
        }
        let options = c"size=256k,mode=700";
        mount("none", RUN, "tmpfs", MountFlags::empty(), options).context("tmpfs")?;
        Ok(Self)
    }

    /// Leaves no free byte.
    fn fill() -> Result<()> {
        let path = Path::new(RUN).join("ballast");
        let mut block = 65_536;
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)?;
        while block > 0 {
            if std::io::Write::write_all(&mut file, &vec![1; block]).is_err() {
                block /= 2;
            }
        }
        Ok(())
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let _ = unmount(RUN, UnmountFlags::DETACH);
    }
}

/// No space in the run directory: an upgrade that cannot reserve what it needs is refused, one that has begun is
/// completed, and a death is recovered from.
fn full() -> Result<()> {
    let covered = Covered::new()?;
    let backing = Backing::new("full");
    let device = device(&backing, &[])?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, 4, 64)?;
    Covered::fill()?;
    let rounds = case::rounds(FULL.0, FULL.1);
    let mut done = 0;
    for round in 0..rounds {
        let at = || format!("upgrade {round}");
        load.more(20, secs(60)).with_context(at)?;
        done += usize::from(ublkctl(&["upgrade", &id])?.code() == 0);
        serves(&device).with_context(at)?;
        Covered::fill()?;
    }
    device.kill_server("quiesced")?;
    ublkctl(&["recover", &id])?.good().context("without room")?;
    load.more(20, secs(60)).context("after the recovery")?;
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    case::measured(format!(
        "{done} of {rounds} upgrades went through without room for records"
    ));
    known.check(&device.path).context("through the device")?;
    device.delete()?;
    drop(covered);
    Ok(())
}

/// A caller with few descriptors: the upgrade is done, or refused before I/O is held.
fn few_descriptors() -> Result<()> {
    let backing = Backing::new("few");
    let device = device(&backing, &["--supervise"])?;
    let load = Load::start(&device.path, 4, 64)?;
    for limit in [8, 12, 16, 20, 24, 32] {
        load.more(20, secs(60))?;
        let line = format!(
            "ulimit -n {limit}; exec {} upgrade {}",
            cli::program(),
            device.id
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &line]);
        run::output(&mut command, secs(60))?;
        serves(&device).with_context(|| format!("{limit} descriptors"))?;
    }
    // Supervision is still active.
    procfs::kill(device.server_now()?, Signal::KILL)?;
    load.more(20, patience() + secs(60))?;
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    device.delete()
}

/// L49 The agent's death shows; `recover` gives the running server another one with all of its rights, which handles
/// the next death of the server.
fn no_agent() -> Result<()> {
    let backing = Backing::new("no-agent");
    let device = device(&backing, &["--supervise"])?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, 4, 64)?;
    for args in [&["recover", &id][..], &["recover", "--all"]] {
        let server = device.server_now()?;
        let agent = u32::try_from(json::number(&device.query()?, "agent_pid")?)?;
        procfs::kill(agent, Signal::KILL)?;
        let info = until("the death to show", secs(10), || {
            let info = device.query()?;
            Ok((info["agent_alive"] == false).then_some(info))
        })?;
        ensure!(
            info["server_alive"] == true && info["orphan"] == false,
            "{info}"
        );
        let next = json::text(&info, "next")?;
        ensure!(next.contains("agent is gone"), "{next}");
        ublkctl(args)?.good()?;
        let info = device.query()?;
        ensure!(
            info["agent_alive"] == true && info["next"].is_null(),
            "{info}"
        );
        ensure!(device.server_now()? == server, "it has another server");
        ensure!(json::find(&info, "health").is_some(), "{info}");
        load.more(20, secs(60))?;
        procfs::kill(server, Signal::KILL)?;
        until("another server", patience() + secs(20), || {
            let info = device.query()?;
            let other = info["server_alive"] == true && info["server_pid"] != server;
            Ok((info["state"] == "live" && other).then_some(()))
        })?;
        load.more(20, secs(60))?;
        ublkctl(&["upgrade", &id])?.good()?;
    }
    let known = load.stop(patience() + secs(30))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    let done = ublkctl_json(&["recover", "--all"])?;
    ensure!(done.as_array().is_some_and(Vec::is_empty), "{done}");
    known.check(&device.path)?;
    device.delete()
}

/// A stopped server: an agent that is terminated gives it up, and says so; the device is served again once the process
/// is killed.
fn stopped() -> Result<()> {
    let backing = Backing::new("stopped");
    let device = device(&backing, &[])?;
    let id = device.id.to_string();
    let info = device.query()?;
    let agent = u32::try_from(json::number(&info, "agent_pid")?)?;
    let server = device.server_now()?;
    procfs::stop(server)?;
    procfs::kill(agent, Signal::TERM)?;
    let gone = until("the agent to give up", secs(50), || {
        Ok((device.query()?["agent_alive"] == false).then_some(()))
    });
    let cause = device.query()?;
    // The end of the agent orphans its process group, and the kernel continues stopped members of one (setpgid(2)): the
    // server may have left by itself.
    let killed = procfs::kill(server, Signal::KILL);
    ensure!(killed.is_ok() || !Path::new(&format!("/proc/{server}")).exists());
    gone?;
    let text = json::text(&cause, "cause")?;
    ensure!(text.contains("does not release"), "{cause}");
    device.wait_state("quiesced", patience())?;
    ublkctl(&["recover", &id])?.good()?;
    serves(&device)?;
    device.delete()
}
