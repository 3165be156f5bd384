//! NBD devices against qemu-nbd and nbd-server: file systems, verified I/O, what discards leave, snapshots. A soak tries
//! every file system with every server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::MountFlags;

use super::nbd::{ZERO_COPY, nbd, spec};
use crate::case::{Case, Set, set};
use crate::cli::{self, Device, patience, ublkctl, ublkctl_json};
use crate::fio::Fio;
use crate::fs::{Kind, Mounted, compare, fill};
use crate::wait::{secs, until};
use crate::{json, run, sysfs};

/// XFS takes no less than 300 MB; little of it is ever written.
const SIZE: u64 = 320 << 20;

/// Files of the load.
const FILES: usize = 20;

pub fn cases() -> Vec<Case> {
    let guest = "sockets and servers of the test guest";
    let mut all = vec![
        Case::new("nbd_qemu_nbd_serves_raw_images", raw),
        Case::new("nbd_qemu_nbd_serves_qcow2_with_a_snapshot", snapshot),
        Case::new("nbd_nbd_server_serves_files", file),
        Case::new("l72_nbd_servers_may_admit_fewer_clients", few),
    ];
    if sysfs::kernel() >= ZERO_COPY {
        all.push(Case::new("nbd_qemu_nbd_serves_zero_copy", zero_copy));
    }
    all.into_iter()
        .map(|case| case.only_if(sysfs::in_guest(), guest))
        .collect()
}

/// A directory with an image and a socket, and the server that serves the one at the other; all go with the value.
struct Place {
    directory: PathBuf,
    server: Option<Served>,
}

enum Served {
    Child(Child),
    /// In the background, by its number.
    Daemon(String),
}

impl Place {
    fn new(name: &str) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("nbd-{name}"));
        fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            server: None,
        })
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.path("socket"))
    }

    /// A sparse file.
    fn raw(&self) -> Result<String> {
        let path = self.path("disk");
        fs::File::create(&path)?.set_len(SIZE)?;
        Ok(path)
    }

    /// Starts qemu-nbd on an image.
    fn qemu_nbd(&mut self, args: &[&str], image: &str) -> Result<()> {
        let socket = format!("--socket={}", self.path("socket"));
        let common = ["--persistent", "--shared=4", "--export-name=disk", &socket];
        let mut command = Command::new("qemu-nbd");
        command.args(common).args(args).arg(image);
        self.server = Some(Served::Child(command.spawn()?));
        self.listens()
    }

    /// Starts nbd-server on a file.
    fn nbd_server(&mut self, file: &str) -> Result<()> {
        let (conf, pid) = (self.path("conf"), self.path("pid"));
        let text = format!(
            "[generic]\nunixsock = {}\n[disk]\nexportname = {file}\nflush = true\nfua = true\ntrim = true\n",
            self.path("socket")
        );
        fs::write(&conf, text)?;
        run::good("nbd-server", &["-C", &conf, "-p", &pid])?;
        until("nbd-server", secs(30), || {
            Ok(Path::new(&pid).exists().then_some(()))
        })?;
        let pid = fs::read_to_string(&pid)?.trim().to_owned();
        self.server = Some(Served::Daemon(pid));
        self.listens()
    }

    fn listens(&mut self) -> Result<()> {
        let uri = self.uri();
        until("the NBD server", secs(60), || {
            if let Some(Served::Child(child)) = &mut self.server
                && let Some(status) = child.try_wait()?
            {
                bail!("qemu-nbd ended: {status}");
            }
            Ok((ublkctl(&["nbd", "info", &uri])?.code() == 0).then_some(()))
        })
    }

    /// Ends the server politely: it writes what it has.
    fn stop(&mut self) -> Result<()> {
        match self.server.take() {
            Some(Served::Child(mut child)) => {
                run::good("kill", &[&child.id().to_string()])?;
                until("the end of qemu-nbd", secs(30), || {
                    Ok(child.try_wait()?.map(drop))
                })?;
            }
            Some(Served::Daemon(pid)) => {
                run::good("kill", &[&pid])?;
            }
            None => {}
        }
        let _ = fs::remove_file(self.path("socket"));
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The file systems of a case: its own, and all of them in a soak.
fn kinds(own: Kind) -> Vec<Kind> {
    match set() {
        Set::Soak => vec![Kind::Ext4, Kind::Xfs, Kind::Btrfs],
        _ => vec![own],
    }
}

/// A file system is made, filled, compared after another mount, trimmed and checked.
fn holds(device: &Device, kind: Kind) -> Result<()> {
    kind.make(device)?;
    let mounted = Mounted::new(device, kind, MountFlags::empty())?;
    fill(&mounted.at, FILES)?;
    mounted.unmount()?;
    let mounted = Mounted::new(device, kind, MountFlags::empty())?;
    compare(&mounted.at, FILES)?;
    run::good("fstrim", &[&mounted.at.to_string_lossy()])?;
    compare(&mounted.at, FILES)?;
    mounted.unmount()?;
    kind.check(device)
}

/// Verified I/O with flushes in between, small and large requests.
fn verified(device: &Device) -> Result<()> {
    for (block, size) in [("4k", "2M"), ("256k", "8M")] {
        let job = Fio::new(device.node()).set("rw", "randrw").set("bs", block);
        let job = job.set("iodepth", 8).set("size", size).set("fsync", 16);
        job.set("verify", "crc32c").run(1)?;
    }
    Ok(())
}

/// Everything that one server is asked for.
fn served(place: &Place, own: Kind) -> Result<Device> {
    let device = spec(&place.uri()).add()?;
    verified(&device).context("verified I/O")?;
    run::good("blkdiscard", &["-z", "-l", "8M", device.node()])?;
    device.open()?.check_zero(0, 8 << 20)?;
    for kind in kinds(own) {
        holds(&device, kind).with_context(|| kind.name())?;
    }
    Ok(device)
}

/// What is discarded is gone from the server's file.
fn discarded(device: &Device, file: &str) -> Result<()> {
    let before = fs::metadata(file)?.blocks();
    run::good("blkdiscard", &[device.node()])?;
    let after = fs::metadata(file)?.blocks();
    ensure!(after < before / 8, "{before} blocks before, {after} after");
    Ok(())
}

fn raw() -> Result<()> {
    let mut place = Place::new("raw")?;
    let file = place.raw()?;
    place.qemu_nbd(&["--format=raw", "--discard=unmap"], &file)?;
    let device = served(&place, Kind::Ext4)?;
    let info = ublkctl_json(&["nbd", "info", &place.uri()])?;
    let is = |key: &str, value: &serde_json::Value| json::find(&info, key) == Some(value);
    let told = is("extended_headers", &true.into()) && is("complete", &true.into());
    ensure!(told && json::number(&info, "data")? > 0, "{info}");
    discarded(&device, &file)?;
    device.delete()
}

/// L72 A server that allows several connections and admits fewer clients than the device has queues.
fn few() -> Result<()> {
    let mut place = Place::new("few")?;
    let file = place.raw()?;
    place.qemu_nbd(&["--format=raw", "--shared=2"], &file)?;
    let uri = place.uri();
    let words = ["have no connection", "--shared=5"];
    cli::fails(&["add", "nbd", &uri, "--queues", "4"], 1, &words)?;
    spec(&uri).queues(2).add()?.delete()?;
    cli::nothing_left(patience())
}

/// In zero copy replies in chunks are not asked for; a server with extended headers is the same one without.
fn zero_copy() -> Result<()> {
    let mut place = Place::new("zero-copy")?;
    let file = place.raw()?;
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=4", "--bind=127.0.0.1"]);
    command.args(["--port=10811", "--format=raw", "--discard=unmap", &file]);
    place.server = Some(Served::Child(command.spawn()?));
    let uri = "nbd://127.0.0.1:10811/";
    until("the NBD server", secs(60), || {
        Ok((ublkctl(&["nbd", "info", uri])?.code() == 0).then_some(()))
    })?;
    let device = spec(uri).with(&["--data", "zero-copy"]).add()?;
    let direct = device.open()?;
    for (generation, len) in (1..).zip([4096, 128 << 10, 1 << 20]) {
        direct.write_pattern(0, len, generation)?;
        direct.check_pattern(0, len, generation)?;
    }
    run::good("blkdiscard", &[device.node()])?;
    direct.check_zero(0, 1 << 20)?;
    drop(direct);
    let state = nbd(&device, "state")?;
    ensure!(state == "up", "{state}");
    device.delete()
}

fn file() -> Result<()> {
    let mut place = Place::new("server")?;
    let file = place.raw()?;
    place.nbd_server(&file)?;
    let device = served(&place, Kind::Xfs)?;
    discarded(&device, &file)?;
    device.delete()
}

/// The image's snapshot holds what the file system held then, whatever is written later.
fn snapshot() -> Result<()> {
    let mut place = Place::new("qcow2")?;
    let image = place.path("disk");
    let size = SIZE.to_string();
    run::good("qemu-img", &["create", "-q", "-f", "qcow2", &image, &size])?;
    let write = ["--format=qcow2", "--discard=unmap"];
    place.qemu_nbd(&write, &image)?;
    served(&place, Kind::Btrfs)?.delete()?;
    place.stop()?;
    run::good("qemu-img", &["snapshot", "-c", "before", &image])?;
    place.qemu_nbd(&write, &image)?;
    let device = spec(&place.uri()).add()?;
    run::good("blkdiscard", &["-z", device.node()])?;
    device.open()?.check_zero(0, 8 << 20)?;
    device.delete()?;
    place.stop()?;
    let read = ["--format=qcow2", "--read-only", "--load-snapshot=before"];
    place.qemu_nbd(&read, &image)?;
    let device = spec(&place.uri()).add()?;
    let mounted = Mounted::new(&device, Kind::Btrfs, MountFlags::RDONLY)?;
    compare(&mounted.at, FILES)?;
    mounted.unmount()?;
    device.delete()
}
