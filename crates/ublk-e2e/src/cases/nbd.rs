//! NBD devices against nbdkit: file systems, a server that dies, policies, moves, recovery.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

use crate::case::{Case, measured, rounds};
use crate::cli::{self, Device, Spec, patience, ublkctl, ublkctl_json};
use crate::fio::Fio;
use crate::fs::{Kind, Mounted, compare, fill};
use crate::verifier::Load;
use crate::wait::{secs, until};
use crate::{json, procfs, run, sysfs};

const SIZE: &str = "96M";
pub(super) const SIZE_BYTES: u64 = 96 << 20;
/// The first kernel that registers the pages of requests by itself.
pub(super) const ZERO_COPY: (u32, u32) = (6, 16);
/// XFS takes no less than 300 MB.
const ROOM: &str = "320M";

pub fn cases() -> Vec<Case> {
    let guest = "sockets and servers of the test guest";
    let in_guest = |case: Case| case.only_if(sysfs::in_guest(), guest);
    let mut all: Vec<_> = [Kind::Ext4, Kind::Xfs]
        .into_iter()
        .map(|kind| Case::new(format!("nbd_serves_{}", kind.name()), move || serves(kind)))
        .collect();
    all.extend([
        Case::new("nbd_data_is_verified_in_every_mode", modes),
        Case::new("l71_a_killed_nbd_server_costs_no_request_unix", || {
            killed(false, "copy")
        }),
        Case::new("l71_a_killed_nbd_server_costs_no_request_tcp", || {
            killed(true, "copy")
        }),
        Case::new("l71_a_mounted_file_system_outlives_its_nbd_server", mounted),
        Case::new("nbd_stop_does_not_wait_for_the_server", stops),
        Case::new("nbd_policy_and_server_change_on_a_live_device", changes),
        Case::new("l71_each_outage_of_an_idle_device_has_its_own_time", idle),
        Case::new("nbd_devices_recover_and_upgrade", recovers),
        Case::new("nbd_servers_are_refused_with_a_reason", refused),
    ]);
    if sysfs::kernel() >= ZERO_COPY {
        all.push(Case::new(
            "l71_a_killed_nbd_server_costs_no_request_zero_copy",
            || killed(true, "zero-copy"),
        ));
    }
    all.into_iter().map(in_guest).collect()
}

/// A running nbdkit, killed on drop.
pub(super) struct Nbdkit {
    child: Child,
    args: Vec<String>,
    socket: Option<PathBuf>,
    /// Directory of the certificates, with TLS.
    certificates: Option<PathBuf>,
}

impl Nbdkit {
    /// Starts one and waits until it listens.
    pub(super) fn start(socket: Option<&Path>, args: &[&str]) -> Result<Self> {
        Self::start_with(socket, None, args)
    }

    /// The same; it demands TLS if there is a directory with certificates.
    pub(super) fn start_with(
        socket: Option<&Path>,
        certificates: Option<&Path>,
        args: &[&str],
    ) -> Result<Self> {
        let mut all = ["-f", "--exit-with-parent", "--log=null"]
            .map(str::to_owned)
            .to_vec();
        match socket {
            Some(path) => {
                let _ = fs::remove_file(path);
                all.extend(["-U".to_owned(), path.display().to_string()]);
            }
            None => {
                let _ = run::good("ifconfig", &["lo", "up"]);
                all.extend(["-p", "10809"].map(str::to_owned));
            }
        }
        if let Some(directory) = certificates {
            all.extend(["--tls=require", "--tls-verify-peer"].map(str::to_owned));
            all.push(format!("--tls-certificates={}", directory.display()));
        }
        all.extend(args.iter().map(|word| (*word).to_owned()));
        let mut server = Self {
            child: std::process::Command::new("nbdkit").args(&all).spawn()?,
            args: all,
            socket: socket.map(Path::to_owned),
            certificates: certificates.map(Path::to_owned),
        };
        server.listens()?;
        Ok(server)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn listens(&mut self) -> Result<()> {
        let uri = self.uri();
        until("nbdkit", secs(60), || {
            if let Some(status) = self.child.try_wait()? {
                anyhow::bail!("nbdkit ended: {status}");
            }
            Ok((ublkctl(&["nbd", "info", &uri])?.code() == 0).then_some(()))
        })
    }

    pub(super) fn uri(&self) -> String {
        let plain = match &self.socket {
            Some(path) => format!("nbd+unix:///?socket={}", path.display()),
            None => "nbd://127.0.0.1/".to_owned(),
        };
        let Some(directory) = &self.certificates else {
            return plain;
        };
        let mark = if self.socket.is_some() { '&' } else { '?' };
        let tls = plain.replacen("nbd", "nbds", 1);
        format!("{tls}{mark}tls-certificates={}", directory.display())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again, as it was.
    pub(super) fn again(&mut self) -> Result<()> {
        if let Some(path) = &self.socket {
            let _ = fs::remove_file(path);
        }
        self.child = std::process::Command::new("nbdkit")
            .args(&self.args)
            .spawn()?;
        Ok(())
    }
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(path) = &self.socket {
            let _ = fs::remove_file(path);
        }
    }
}

pub(super) fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nbd-{name}"))
}

/// A file for nbdkit's file plugin, which survives a kill; removed on drop.
pub(super) struct Disk(pub(super) PathBuf);

impl Disk {
    pub(super) fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("nbd-{name}.img"));
        fs::File::create(&path)?.set_len(SIZE_BYTES)?;
        Ok(Self(path))
    }

    pub(super) fn word(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

pub(super) fn spec(uri: &str) -> Spec {
    Spec {
        backend: "nbd",
        size: String::new(),
        block_size: 0,
        more: vec![uri.to_owned()],
        ..Spec::mem("")
    }
}

pub(super) fn nbd(device: &Device, key: &str) -> Result<serde_json::Value> {
    let info = ublkctl_json(&["info", &device.id.to_string()])?;
    let nbd = json::find(&info, "nbd").context("no nbd in info")?;
    Ok(nbd.get(key).cloned().unwrap_or_default())
}

/// A file system is created, filled, unmounted and compared; its discards reach the server.
fn serves(kind: Kind) -> Result<()> {
    let server = Nbdkit::start(Some(&socket("fs")), &["memory", ROOM])?;
    let device = spec(&server.uri()).add()?;
    kind.make(&device)?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    fill(&mounted.at, 40)?;
    mounted.unmount()?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    compare(&mounted.at, 40)?;
    run::good("fstrim", &[&mounted.at.to_string_lossy()])?;
    compare(&mounted.at, 40)?;
    mounted.unmount()?;
    kind.check(&device)?;
    device.delete()
}

/// Verified I/O of small and large requests in every mode; filters of the server that leave out what others offer.
fn modes() -> Result<()> {
    let filters: [&[&str]; 6] = [
        &[],
        &["--filter=fua", "--filter=nozero"],
        &["--filter=noextents", "--filter=blocksize-policy"],
        &["--filter=delay"],
        &[],
        &["--filter=blocksize-policy"],
    ];
    let options: [&[&str]; 6] = [
        &[],
        &["fuamode=emulate", "zeromode=none"],
        &["blocksize-minimum=4096", "blocksize-maximum=256K"],
        &["rdelay=1ms"],
        &[],
        &["blocksize-minimum=4096"],
    ];
    let with: [&[&str]; 6] = [
        &["--data", "copy", "--batch", "on"],
        &["--data", "copy", "--batch", "off"],
        &["--data", "user-copy"],
        &["--data", "get-data"],
        &["--data", "zero-copy"],
        &["--data", "zero-copy-manual"],
    ];
    for ((filter, option), args) in filters.iter().zip(options).zip(with) {
        let at = || format!("{args:?} with {filter:?}");
        if args.contains(&"on") && sysfs::kernel() < (7, 0) {
            continue;
        }
        let all = [filter, &["memory", SIZE][..], option].concat();
        let zero_copy = args.iter().any(|word| word.starts_with("zero-copy"));
        if zero_copy && sysfs::kernel() < ZERO_COPY {
            continue;
        }
        // Over TCP replies in chunks are requested, but not in zero copy.
        let path = socket("modes");
        let socket = (!zero_copy).then_some(path.as_path());
        let server = Nbdkit::start(socket, &all).with_context(at)?;
        let device = spec(&server.uri()).with(args).add().with_context(at)?;
        for (block, size) in [("4k", "4M"), ("64k", "16M"), ("1m", "16M")] {
            let job = Fio::new(device.node()).set("rw", "randrw").set("bs", block);
            let job = job.set("iodepth", 8).set("direct", 1).set("size", size);
            job.set("verify", "crc32c").run(1).with_context(at)?;
        }
        run::good("blkdiscard", &["-z", "-l", "8M", device.node()]).with_context(at)?;
        device.open()?.check_zero(0, 8 << 20)?;
        device.delete().with_context(at)?;
    }
    Ok(())
}

/// Every acknowledged write is there although the server is killed again and again; no request fails.
fn killed(tcp: bool, data: &str) -> Result<()> {
    let disk = Disk::new("killed")?;
    let path = socket("killed");
    let at = (!tcp).then_some(path.as_path());
    let mut server = Nbdkit::start(at, &["file", &disk.word()])?;
    let device = spec(&server.uri()).queues(2).depth(16);
    let device = device.with(&["--data", data]).add()?;
    let connections = nbd(&device, "connections")?;
    let load = Load::start(&device.path, 6, 256)?;
    let kills = rounds(8, 50);
    for number in 0..kills {
        let at = || format!("kill {number}");
        load.more(60, secs(60)).with_context(at)?;
        server.kill()?;
        server.again()?;
    }
    load.more(60, secs(60)).context("after the last kill")?;
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    known.check(&device.path).context("through the device")?;
    let (reconnects, replayed) = (nbd(&device, "reconnects")?, nbd(&device, "replayed")?);
    measured(format!(
        "{kills} kills of the server: {connections} connections, {reconnects} reconnects, {replayed} requests replayed"
    ));
    device.delete()?;
    known.check(&disk.0).context("in the file")?;
    procfs::nothing_stuck(patience())
}

/// A mounted file system with dirty pages waits for its server and then continues.
fn mounted() -> Result<()> {
    let disk = Disk::new("mounted")?;
    let mut server = Nbdkit::start(Some(&socket("mounted")), &["file", &disk.word()])?;
    let device = spec(&server.uri()).with(&["--retry", "forever"]).add()?;
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    for number in 0..rounds(3, 20) {
        fill(&mounted.at, 20)?;
        server.kill()?;
        std::thread::sleep(secs(1));
        ensure!(nbd(&device, "state")?.as_str() == Some("reconnecting") || number > 0);
        let begun = Instant::now();
        server.again()?;
        until("the server again", secs(60), || {
            Ok((nbd(&device, "state")?.as_str() == Some("up")).then_some(()))
        })?;
        if number == 0 {
            measured(format!(
                "connected again after {} ms",
                begun.elapsed().as_millis()
            ));
        }
        compare(&mounted.at, 20)?;
    }
    mounted.unmount()?;
    Kind::Ext4.check(&device)?;
    device.delete()
}

/// L78 Without a server a plain stop loses nothing and says why it cannot; a forced one ends within its deadline.
fn stops() -> Result<()> {
    let mut server = Nbdkit::start(Some(&socket("stops")), &["memory", SIZE])?;
    let device = spec(&server.uri()).with(&["--retry", "forever"]).add()?;
    let id = device.id.to_string();
    server.kill()?;
    let path = device.path.clone();
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(path)?;
        file.read_exact(&mut [0; 4096])
    });
    until("a request that waits", secs(30), || {
        let info = ublkctl_json(&["info", &id])?;
        Ok((json::number(&info, "in_hand")? > 0).then_some(()))
    })?;
    let begun = Instant::now();
    // The server's last flush failed, so its data may be incomplete.
    let delete = ["delete", &id, "--force", "--deadline", "60"];
    cli::fails(&delete, 1, &["is deleted", "not written back"])?;
    ensure!(begun.elapsed() < secs(50), "{:?}", begun.elapsed());
    let read = reader.join().map_err(|_| anyhow::anyhow!("a panic"))?;
    ensure!(read.is_err(), "nobody could have answered");
    device.forget();
    cli::nothing_left(patience())
}

/// Another policy holds for requests that wait already; moves to other servers under load lose nothing.
fn changes() -> Result<()> {
    let disk = Disk::new("changes")?;
    let (one, two) = (socket("one"), socket("two"));
    let mut first = Nbdkit::start(Some(&one), &["file", &disk.word()])?;
    let device = spec(&first.uri()).depth(16).add()?;
    let id = device.id.to_string();
    let mut second = Nbdkit::start(Some(&two), &["file", &disk.word()])?;
    let load = Load::start(&device.path, 6, 256)?;
    load.more(60, secs(60))?;
    let third = Nbdkit::start(Some(&socket("three")), &["file", &disk.word()])?;
    // Two moves at once: one comes after the other, none undoes the other's.
    let moves = [third.uri(), second.uri()].map(|uri| {
        let id = id.clone();
        std::thread::spawn(move || ublkctl(&["nbd", "move", &id, &uri])?.good())
    });
    for one in moves {
        one.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    }
    ublkctl(&["nbd", "move", &id, &second.uri()])?.good()?;
    drop(third);
    first.kill()?;
    load.more(60, secs(60)).context("after the moves")?;
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    ensure!(nbd(&device, "reconnects")?.as_u64() == Some(0));
    known.check(&device.path)?;
    let small = Nbdkit::start(Some(&one), &["memory", "1M"])?;
    cli::fails(&["nbd", "move", &id, &small.uri()], 1, &["1048576 bytes"])?;
    drop(small);
    // Seen before the device is asked.
    let sealed = Nbdkit::start(Some(&one), &["-r", "file", &disk.word()])?;
    let begun = Instant::now();
    let refused = ["nbd", "move", &id, &sealed.uri()];
    cli::fails(&refused, 1, &["stays with", "read-only"])?;
    ensure!(begun.elapsed() < secs(15), "{:?}", begun.elapsed());
    drop(sealed);
    let info = ublkctl_json(&["info", &id])?;
    ensure!(json::text(&info, "uri")? == second.uri(), "{info}");
    second.kill()?;
    let path = device.path.clone();
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(path)?;
        file.read_exact(&mut [0; 1 << 20])
    });
    std::thread::sleep(secs(1));
    ublkctl(&["nbd", "retry", &id, "never"])?.good()?;
    let read = reader.join().map_err(|_| anyhow::anyhow!("a panic"))?;
    ensure!(read.is_err(), "nobody could have answered");
    ensure!(nbd(&device, "state")?.as_str() == Some("failing"));
    second.again()?;
    until("the server again", secs(60), || {
        Ok((nbd(&device, "state")?.as_str() == Some("up")).then_some(()))
    })?;
    known.check(&device.path).context("after the outage")?;
    device.delete()?;
    known.check(&disk.0).context("in the file")
}

/// L71 The retry time starts with each outage, even if no request saw the end of the previous one.
fn idle() -> Result<()> {
    let mut server = Nbdkit::start(Some(&socket("idle")), &["memory", SIZE])?;
    let device = spec(&server.uri()).with(&["--retry", "3"]).add()?;
    let up = || -> Result<()> {
        until("the server again", secs(60), || {
            Ok((nbd(&device, "state")?.as_str() == Some("up")).then_some(()))
        })
    };
    let reconnects = |wanted: u64| {
        until("another connection", secs(60), || {
            Ok((nbd(&device, "reconnects")?.as_u64() == Some(wanted)).then_some(()))
        })
    };
    up()?;
    server.kill()?;
    server.again()?;
    reconnects(1)?;
    std::thread::sleep(secs(4));
    server.kill()?;
    std::thread::sleep(secs(1));
    let path = device.path.clone();
    let reader = std::thread::spawn(move || {
        let mut file = fs::File::open(path)?;
        file.read_exact(&mut [0; 4096])
    });
    std::thread::sleep(std::time::Duration::from_millis(500));
    server.again()?;
    let read = reader.join().map_err(|_| anyhow::anyhow!("a panic"))?;
    read.context("a request of the second outage")?;
    reconnects(2)?;
    device.delete()
}

/// A killed ublk server is replaced and connects again; so does an upgrade.
fn recovers() -> Result<()> {
    let disk = Disk::new("recovers")?;
    let server = Nbdkit::start(Some(&socket("recovers")), &["file", &disk.word()])?;
    let args = ["--recovery", "reissue", "--supervise"];
    let device = spec(&server.uri()).with(&args).depth(16).add()?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, 6, 256)?;
    for _ in 0..3 {
        load.more(60, secs(60))?;
        let before = device.server_now()?;
        procfs::kill(before, rustix::process::Signal::KILL)?;
        until("another server", secs(60), || {
            Ok(device
                .server_now()
                .ok()
                .filter(|now| *now != before && *now != 0))
        })?;
    }
    load.more(60, secs(60)).context("after the kills")?;
    ublkctl(&["upgrade", &id])?.good()?;
    load.more(60, secs(60)).context("after the upgrade")?;
    let errors = load.done().errors;
    let known = load.stop(patience())?;
    ensure!(errors == 0, "{errors} requests failed");
    known.check(&device.path)?;
    device.delete()?;
    known.check(&disk.0).context("in the file")
}

/// Bad URIs are usage errors; servers that are not there, refuse or have too little fail with a hint.
fn refused() -> Result<()> {
    let gone = "nbd+unix:///?socket=/nowhere";
    cli::fails(&["add", "nbd", "http://x/"], 2, &["not an NBD URI"])?;
    cli::fails(
        &["add", "nbd", gone],
        1,
        &["cannot connect", "--wait-for-server"],
    )?;
    cli::fails(&["nbd", "list", gone], 1, &["cannot connect"])?;
    cli::fails(&["add", "nbd", "nbds://127.0.0.1/"], 2, &["--tls-ca"])?;
    let server = Nbdkit::start(Some(&socket("refused")), &["-e", "disk", "memory", "0"])?;
    cli::fails(&["add", "nbd", &server.uri()], 1, &["0 bytes"])?;
    drop(server);
    let begun = Instant::now();
    cli::fails(
        &["add", "nbd", gone, "--wait-for-server", "2"],
        3,
        &["cannot connect"],
    )?;
    ensure!(begun.elapsed() >= secs(2));
    cli::nothing_left(patience())
}
