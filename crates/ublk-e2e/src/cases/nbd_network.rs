//! NBD devices whose network dies: a cable that is cut, long outages, many connections, little memory. The long runs
//! are those of a soak.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::mount::MountFlags;

use super::nbd::{Disk, Nbdkit, SIZE_BYTES, ZERO_COPY, nbd, socket, spec};
use crate::case::{self, Case, measured, rounds};
use crate::cli::{Device, patience, ublkctl};
use crate::fs::{Kind, Mounted, compare, fill};
use crate::verifier::{BLOCK, Load};
use crate::wait::{secs, until};
use crate::{procfs, run, sysfs};

/// Addresses of the two ends of the cable.
const HERE: &str = "10.99.0.1";
const THERE: &str = "10.99.0.2";

/// Blocks of the load.
const BLOCKS: usize = 256;

/// Memory in bytes that is left besides the disk of the server.
const ROOM: u64 = 96 << 20;

pub fn cases() -> Vec<Case> {
    let guest = "sockets and servers of the test guest";
    let in_guest = |case: Case| case.only_if(sysfs::in_guest(), guest);
    let mut all = vec![
        Case::new("l78_a_cut_cable_costs_no_nbd_request", || cut("copy")),
        Case::new(
            "l71_a_file_system_under_load_outlives_its_nbd_server_unix",
            || mounted_under_load(true, 1),
        ),
        Case::new(
            "l71_a_file_system_under_load_outlives_its_nbd_server_tcp",
            || mounted_under_load(false, 1),
        ),
        Case::new(
            "l71_a_file_system_under_load_outlives_its_nbd_server_four_connections",
            || mounted_under_load(true, 4),
        ),
        Case::new("l71_dirty_pages_wait_for_their_nbd_server", outage),
        Case::new("nbd_connections_come_and_go", connections),
        Case::new("nbd_devices_come_and_come_back_quickly", quick),
        Case::new("nbd_memory_pressure_waits_for_the_server", pressure),
    ];
    if sysfs::kernel() >= ZERO_COPY {
        all.push(Case::new(
            "l78_a_cut_cable_costs_no_nbd_request_zero_copy",
            || cut("zero-copy"),
        ));
    }
    all.into_iter().map(in_guest).collect()
}

/// A server in a network namespace of its own, at the other end of a cable.
struct Far {
    child: Child,
}

impl Far {
    fn start(disk: &Disk) -> Result<Self> {
        run::good("modprobe", &["veth"])?;
        let mut command = std::process::Command::new("busybox");
        command.args(["unshare", "-n", "nbdkit", "-f", "--exit-with-parent"]);
        // With several threads nbdkit 1.32 may abort when a connection ends while one of them answers
        // (`raw_send_socket`, server/connections.c), and nobody starts it again here.
        command.args([
            "--threads=1",
            "--log=null",
            "-p",
            "10809",
            "file",
            &disk.word(),
        ]);
        let server = Self {
            child: command.spawn()?,
        };
        let pid = server.child.id().to_string();
        until("a network namespace", secs(30), || {
            let theirs = fs::read_link(format!("/proc/{pid}/ns/net"))?;
            Ok((theirs != fs::read_link("/proc/self/ns/net")?).then_some(()))
        })?;
        // The kernel names the other end.
        run::good("busybox", &["ip", "link", "add", "cable0", "type", "veth"])?;
        run::good(
            "busybox",
            &[
                "ip", "link", "set", "veth0", "netns", &pid, "name", "cable1",
            ],
        )?;
        run::good("ifconfig", &["cable0", HERE, "up"])?;
        server.there(&["ifconfig", "cable1", THERE, "up"])?;
        until("nbdkit", secs(60), || {
            let uri = Self::uri();
            Ok((ublkctl(&["nbd", "info", &uri])?.code() == 0).then_some(()))
        })?;
        Ok(server)
    }

    fn uri() -> String {
        format!("nbd://{THERE}/")
    }

    /// Runs a command at the other end.
    fn there(&self, words: &[&str]) -> Result<()> {
        let pid = self.child.id().to_string();
        let enter = ["nsenter", "-t", &pid, "-n"];
        run::good("busybox", &[&enter, words].concat())?;
        Ok(())
    }

    /// Cuts the cable at the other end, or mends it: packets are dropped, no socket is closed.
    fn cable(&self, whole: bool) -> Result<()> {
        let state = if whole { "up" } else { "down" };
        self.there(&["ip", "link", "set", "cable1", state])
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = run::good("busybox", &["ip", "link", "del", "cable0"]);
    }
}

/// A short cut is TCP's to bridge; a long one is noticed by the request's deadline, and costs no request either.
fn cut(data: &str) -> Result<()> {
    let disk = Disk::new("cut")?;
    let far = Far::start(&disk)?;
    let args = ["--request-timeout", "4", "--retry", "60", "--data", data];
    let device = spec(&Far::uri()).with(&args).depth(16).add()?;
    let load = Load::start(&device.path, 6, BLOCKS)?;
    let large = Large::start(&device)?;
    load.more(60, secs(60))?;
    far.cable(false)?;
    std::thread::sleep(secs(1));
    far.cable(true)?;
    load.more(60, secs(60)).context("after the short cut")?;
    let short = nbd(&device, "reconnects")?;
    let cuts = rounds(1, 10);
    for number in 0..cuts {
        far.cable(false)?;
        until("a lost connection", secs(30), || {
            Ok((nbd(&device, "state")?.as_str() == Some("reconnecting")).then_some(()))
        })?;
        far.cable(true)?;
        load.more(60, secs(60))
            .with_context(|| format!("after the long cut {number}"))?;
    }
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    let last = large.stop()?;
    let (all, replayed) = (nbd(&device, "reconnects")?, nbd(&device, "replayed")?);
    ensure!(all.as_u64() >= Some(cuts as u64), "{all} reconnects");
    measured(format!(
        "{cuts} cuts of the cable, {data}: {all} reconnects, {short} of them in a cut of a second, {replayed} requests replayed, \
         {last} large writes"
    ));
    known.check(&device.path)?;
    // An old connection that came back late would have undone the last one.
    let direct = device.open()?;
    direct.check_pattern(LARGE.0, LARGE.1, last)?;
    drop(direct);
    device.delete()?;
    known.check(&disk.0).context("in the file")
}

/// A range behind the load's, written by one large request after the other.
const LARGE: (u64, usize) = (32 << 20, 1 << 20);

/// Writes one range again and again, each time with other data.
struct Large {
    ends: Arc<AtomicBool>,
    writer: JoinHandle<Result<u64>>,
}

impl Large {
    fn start(device: &Device) -> Result<Self> {
        let direct = device.open()?;
        let ends = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ends);
        let writer = std::thread::spawn(move || {
            let mut generation = 0;
            while !told.load(Ordering::Relaxed) {
                generation += 1;
                direct.write_pattern(LARGE.0, LARGE.1, generation)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(generation)
        });
        Ok(Self { ends, writer })
    }

    /// Ends it. Returns which write was the last.
    fn stop(self) -> Result<u64> {
        self.ends.store(true, Ordering::Relaxed);
        self.writer.join().map_err(|_| anyhow!("a panic"))?
    }
}

/// A server that is killed again and again below a mounted file system: no request of the file system's user fails, and
/// the file holds what was acknowledged.
fn mounted_under_load(unix: bool, connections: usize) -> Result<()> {
    let disk = Disk::new("under-load")?;
    let path = socket("under-load");
    let mut server = Nbdkit::start(unix.then_some(path.as_path()), &["file", &disk.word()])?;
    let device = spec(&server.uri()).queues(connections).depth(16).add()?;
    let made = nbd(&device, "connections")?;
    ensure!(made.as_u64() == Some(connections as u64), "{made}");
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    let file = mounted.at.join("load");
    allocate(&file)?;
    let load = Load::start(&file, 6, BLOCKS)?;
    let kills = rounds(3, 50);
    for number in 0..kills {
        load.more(40, secs(60))
            .with_context(|| format!("kill {number}"))?;
        server.kill()?;
        server.again()?;
    }
    load.more(40, secs(60)).context("after the last kill")?;
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    known.check(&file)?;
    let replayed = nbd(&device, "replayed")?;
    measured(format!(
        "{kills} kills below a mounted file system, {connections} connections: {replayed} requests replayed"
    ));
    mounted.unmount()?;
    Kind::Ext4.check(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    known.check(&file).context("mounted again")?;
    mounted.unmount()?;
    device.delete()
}

/// A file whose blocks all exist.
fn allocate(path: &Path) -> Result<()> {
    let file = fs::File::create(path)?;
    file.write_all_at(&vec![0; BLOCKS * BLOCK], 0)?;
    file.sync_all()?;
    Ok(())
}

/// While this exists, the kernel does not report tasks that wait for I/O: they are meant to wait.
struct Patient(String);

impl Patient {
    const LIMIT: &str = "/proc/sys/kernel/hung_task_timeout_secs";

    fn new() -> Result<Self> {
        let before = fs::read_to_string(Self::LIMIT)?;
        fs::write(Self::LIMIT, "0")?;
        Ok(Self(before))
    }
}

impl Drop for Patient {
    fn drop(&mut self) {
        let _ = fs::write(Self::LIMIT, self.0.trim());
    }
}

/// Dirty pages wait as long as the server is away, and are written when it is back.
fn outage() -> Result<()> {
    let away = Duration::from_secs(rounds(15, 300) as u64);
    let disk = Disk::new("away")?;
    let mut server = Nbdkit::start(Some(&socket("away")), &["file", &disk.word()])?;
    let device = spec(&server.uri()).with(&["--retry", "forever"]).add()?;
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    fill(&mounted.at, 20)?;
    server.kill()?;
    let writer = {
        let at = mounted.at.clone();
        std::thread::spawn(move || fill(&at, 30))
    };
    let patient = Patient::new()?;
    std::thread::sleep(away);
    ensure!(!writer.is_finished(), "nobody could have written it");
    let begun = Instant::now();
    server.again()?;
    let written = writer.join().map_err(|_| anyhow::anyhow!("a panic"))?;
    written.context("written after the outage")?;
    drop(patient);
    measured(format!(
        "an outage of {} s: everything written {} ms after its end",
        away.as_secs(),
        begun.elapsed().as_millis()
    ));
    compare(&mounted.at, 30)?;
    mounted.unmount()?;
    Kind::Ext4.check(&device)?;
    device.delete()
}

/// Connections are made and ended again and again, under load; neither side keeps one of them.
fn connections() -> Result<()> {
    let disk = Disk::new("connections")?;
    let server = Nbdkit::start(Some(&socket("connections")), &["file", &disk.word()])?;
    let device = spec(&server.uri()).depth(16).add()?;
    let (id, uri) = (device.id.to_string(), server.uri());
    let load = Load::start(&device.path, 2, BLOCKS)?;
    load.more(20, secs(60))?;
    let (ours, theirs) = (descriptors(device.server()?)?, descriptors(server.pid())?);
    let times = rounds(10, 1000);
    for number in 0..times {
        let at = || format!("connection {number}");
        match number % 2 {
            0 => ublkctl(&["nbd", "move", &id, &uri])?,
            _ => ublkctl(&["nbd", "info", &uri])?,
        }
        .good()
        .with_context(at)?;
    }
    load.more(20, secs(60)).context("after all connections")?;
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    known.check(&device.path)?;
    until("closed connections", secs(30), || {
        let now = (descriptors(device.server()?)?, descriptors(server.pid())?);
        Ok((now.0 <= ours && now.1 <= theirs).then_some(()))
    })?;
    device.delete()
}

/// Open descriptors of a process.
fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Memory that only write-back to the device can free: the server of the device needs none of it to go on, also while
/// it connects again.
fn pressure() -> Result<()> {
    let disk = Disk::new("pressure")?;
    let mut server = Nbdkit::start(Some(&socket("pressure")), &["file", &disk.word()])?;
    let device = spec(&server.uri()).with(&["--retry", "forever"]).add()?;
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    let hog = hog(procfs::available()?.saturating_sub(ROOM + SIZE_BYTES))?;
    let mut least = u64::MAX;
    for number in 0..rounds(1, 10) {
        let at = || format!("round {number}");
        let writer = dirty(&mounted)?;
        server.kill()?;
        std::thread::sleep(secs(1));
        server.again()?;
        until("everything written", secs(100), || {
            least = least.min(procfs::available()?);
            Ok(writer.is_finished().then_some(()))
        })
        .with_context(at)?;
        let written = writer.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        written.with_context(at)?;
        alive(&device).with_context(at)?;
    }
    drop(hog);
    measured(format!(
        "dirty pages with {} MiB of memory left: no deadlock",
        least >> 20
    ));
    mounted.unmount()?;
    Kind::Ext4.check(&device)?;
    device.delete()
}

/// Writes more through the page cache than there is memory for, beside the file of the server's disk.
fn dirty(mounted: &Mounted) -> Result<JoinHandle<Result<()>>> {
    let at = mounted.at.join("dirty");
    let file = fs::File::create(at)?;
    Ok(std::thread::spawn(move || {
        let piece = vec![0x3c; 1 << 20];
        for number in 0..64 {
            file.write_all_at(&piece, number << 20)?;
        }
        file.sync_all()?;
        Ok(())
    }))
}

/// Takes memory that nobody can reclaim, since there is no swap.
fn hog(len: u64) -> Result<rustix::fd::OwnedFd> {
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
    let hog = memfd_create("hog", MemfdFlags::empty())?;
    fallocate(&hog, FallocateFlags::empty(), 0, len).context("memory to take")?;
    Ok(hog)
}

/// The device answers.
fn alive(device: &Device) -> Result<()> {
    let mut block = vec![0; BLOCK];
    fs::File::open(&device.path)?.read_exact_at(&mut block, 0)?;
    Ok(())
}

/// From `add` to the first block, and from the moment a server listens again to the answer of a request that waits for it.
fn quick() -> Result<()> {
    let path = socket("quick");
    let mut server = Nbdkit::start(Some(&path), &["memory", "96M"])?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        let device = spec(&server.uri()).add()?;
        device.open()?.read(0, 4096)?;
        times.push(start.elapsed());
        device.delete()?;
    }
    times.sort();
    let device = spec(&server.uri()).with(&["--retry", "forever"]).add()?;
    let mut back = Vec::new();
    for _ in 0..3 {
        server.kill()?;
        let direct = device.open()?;
        let reader = std::thread::spawn(move || direct.read(0, 4096).map(|_| Instant::now()));
        std::thread::sleep(secs(1));
        ensure!(
            !reader.is_finished(),
            "a request without a server is answered"
        );
        server.again()?;
        while UnixStream::connect(&path).is_err() {
            std::thread::sleep(Duration::from_millis(1));
            ensure!(
                !reader.is_finished(),
                "a request without a server is answered"
            );
        }
        let listens = Instant::now();
        let answered = reader.join().map_err(|_| anyhow!("a panic"))??;
        back.push(answered.saturating_duration_since(listens));
    }
    back.sort();
    measured(format!(
        "an NBD device on a unix socket: {} ms from `add` to the first block, {} ms from a server that listens again to \
         the answer; aims 200 and 100 ms",
        times[2].as_millis(),
        back[1].as_millis()
    ));
    // With room for a busy host.
    let limit = secs(if case::emulated() { 10 } else { 1 });
    ensure!(times[2] < limit && back[1] < limit, "{times:?}, {back:?}");
    device.delete()
}
