//! The server as a process: threads, mounts, idleness.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{Device, Spec, cpus, ublkctl};
use crate::fs::{Kind, Mounted};
use crate::wait::{secs, until};
use crate::{json, procfs};

/// The flag that PR_SET_IO_FLUSHER sets (`PF_MEMALLOC_NOIO`, include/linux/sched.h).
const NOIO: u64 = 0x0008_0000;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for queues in [1, 2, 4] {
        all.push(Case::new(
            format!("l37_queue_threads_are_io_flushers_q{queues}"),
            move || io_flushers(queues),
        ));
        all.push(Case::new(
            format!("queue_threads_are_pinned_q{queues}"),
            move || pinned(queues),
        ));
    }
    all.push(Case::new("l48_servers_keep_no_file_system_busy", no_pins));
    all.push(Case::new("l55_an_idle_server_does_not_wake", || idle(&[])));
    all.push(Case::new("l55_an_idle_server_that_polls_sleeps", || {
        idle(&["--poll", "fixed:1000"])
    }));
    all.push(Case::new("l23_nothing_is_inherited", nothing_inherited));
    all
}

/// L37 Threads that serve must not wait for I/O in allocations: it could be their own.
fn io_flushers(queues: usize) -> Result<()> {
    let device = Spec::mem("16M").queues(queues).add()?;
    let threads = procfs::threads(device.server()?);
    let flushers = threads.iter().filter(|t| t.flags & NOIO != 0).count();
    let wanted = queues.min(cpus());
    ensure!(
        flushers >= wanted,
        "{flushers} of {threads:?}, {wanted} queues"
    );
    let reports = queue_reports(&device)?;
    let said = reports.iter().filter(|q| q["io_flusher"] == true).count();
    ensure!(said == wanted, "info says {said}");
    device.delete()
}

fn queue_reports(device: &Device) -> Result<Vec<serde_json::Value>> {
    let info = device.query()?;
    let health = json::find(&info, "health").context("no health in info")?;
    let queues = health.get("queues").and_then(|q| q.as_array());
    Ok(queues.context("no queues in health")?.clone())
}

/// Each queue's thread runs on the CPUs that submit to its queue.
fn pinned(queues: usize) -> Result<()> {
    let device = Spec::mem("16M").queues(queues).add()?;
    let list = |value: &serde_json::Value| -> BTreeSet<u64> {
        let numbers = value.as_array().into_iter().flatten();
        numbers.filter_map(serde_json::Value::as_u64).collect()
    };
    let affinity = json::find(&device.info, "affinity").context("no affinity in info")?;
    let wanted: BTreeSet<_> = affinity
        .as_array()
        .context("a list")?
        .iter()
        .map(list)
        .collect();
    ensure!(wanted.len() == queues.min(cpus()), "affinity {affinity}");
    let all: BTreeSet<u64> = wanted.iter().flatten().copied().collect();
    ensure!(all.len() == cpus(), "the queues share {all:?}");
    let said: BTreeSet<_> = queue_reports(&device)?
        .iter()
        .map(|q| list(&q["pinned"]))
        .collect();
    ensure!(said == wanted, "pinned {said:?}, affinity {wanted:?}");
    // As the kernel reports it for the threads.
    let server = device.server()?;
    let mut found = BTreeSet::new();
    for thread in procfs::threads(server)
        .iter()
        .filter(|t| t.flags & NOIO != 0)
    {
        let text = fs::read_to_string(format!("/proc/{server}/task/{}/status", thread.id))?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("Cpus_allowed_list:"));
        found.insert(procfs::cpu_list(line.context("Cpus_allowed_list")?));
    }
    ensure!(
        wanted.is_subset(&found),
        "threads on {found:?}, affinity {wanted:?}"
    );
    device.delete()
}

/// L36 L48 Servers do not keep the mounts of the time they start: neither another device's server, nor the next server
/// of the same device. If `/` is not a shared mount an unmount is not propagated, so a server with a copy of the mounts
/// would keep every file system of that moment busy for its whole life.
fn no_pins() -> Result<()> {
    let backing = Backing::new("pins");
    let device = backing.spec("64M", &["--recovery", "reissue"]).add()?;
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    let other = Spec::mem("1M").add()?;
    device.kill_server("quiesced")?;
    ublkctl(&["recover", &device.id.to_string()])?.good()?;
    mounted.unmount()?;
    // Refused while a file system uses the device, in any namespace.
    let alone = || {
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&device.path)
    };
    let free = until("the device to be free", secs(5), || Ok(alone().ok()));
    drop(free.with_context(|| format!("{:?}", alone().err()))?);
    other.delete()?;
    device.delete()
}

/// Context switches of all threads of a process.
fn switches(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for thread in procfs::threads(pid) {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{}/status", thread.id))?;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.context("switches")?.trim().parse::<u64>()?;
    }
    Ok(sum)
}

/// CPU time of a process in hundredths of a second.
fn ticks(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").context("fields")?;
    // utime and stime, fields 14 and 15 of proc(5), counted from the state, which is the third.
    let times = fields.split_whitespace().skip(11).take(2);
    times.map(|t| Ok(t.parse::<u64>()?)).sum()
}

/// L55 Without requests nothing runs: no timer in the server, and no polling.
fn idle(args: &[&str]) -> Result<()> {
    let device = Spec::mem("16M").queues(4).with(args).add()?;
    let server = device.server()?;
    let direct = device.open()?;
    direct.write_pattern(0, 65_536, 1)?;
    // Programs that scan new devices have finished; only the window itself is measured.
    let window = Duration::from_millis(700);
    let (mut woken, mut run) = (u64::MAX, u64::MAX);
    for _ in 0..4 {
        let before = (switches(server)?, ticks(server)?);
        std::thread::sleep(window);
        (woken, run) = (switches(server)? - before.0, ticks(server)? - before.1);
        if (woken, run) == (0, 0) {
            break;
        }
    }
    ensure!(woken == 0, "{woken} wake-ups in {window:?} without I/O");
    ensure!(run == 0, "{run} ticks of work in {window:?} without I/O");
    // And it still works.
    direct.check_pattern(0, 65_536, 1)?;
    ensure!(switches(server)? > 0);
    drop(direct);
    device.delete()
}

/// L23 Only the server holds the char device, its descriptors and its rings, no other process of the tool.
fn nothing_inherited() -> Result<()> {
    let device = Spec::mem("16M").queues(2).add()?;
    let server = device.server()?;
    let node = format!("/dev/ublkc{}", device.id);
    let mut holders = BTreeSet::new();
    for process in procfs::processes() {
        let entries = fs::read_dir(format!("/proc/{}/fd", process.id));
        let links = entries.into_iter().flatten().flatten();
        let mut targets = links.filter_map(|e| fs::read_link(e.path()).ok());
        let maps = fs::read_to_string(format!("/proc/{}/maps", process.id)).unwrap_or_default();
        if targets.any(|t| t.to_string_lossy() == node) || maps.contains(&node) {
            holders.insert(process.id);
        }
    }
    ensure!(
        holders.iter().all(|h| *h == server),
        "{node} is held by {holders:?}, server {server}"
    );
    ensure!(
        !holders.is_empty(),
        "nobody holds {node}: this check sees nothing"
    );
    device.delete()
}
