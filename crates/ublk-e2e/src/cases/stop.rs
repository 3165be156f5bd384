//! Stop and delete in every way: no data is lost, nothing hangs, and the users that prevent a stop are named.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, patience, ublkctl};
use crate::fs::{Kind, Mounted};
use crate::wait::{secs, until};
use crate::{pattern, procfs, sysfs};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for policy in ["none", "queue", "reissue"] {
        for verb in ["stop", "delete"] {
            all.push(Case::new(
                format!("l22_{verb}_writes_back_{policy}"),
                move || writes_back(policy, verb),
            ));
        }
    }
    all.push(Case::new("l22_mounted_devices_are_not_stopped", mounted));
    all.push(Case::new(
        "l22_what_waits_for_a_server_is_not_lost",
        waiting,
    ));
    all.push(Case::new("stop_if_unused", if_unused));
    all.push(Case::new("delete_async_does_not_wait", no_wait));
    all
}

/// A file for a file device, removed on drop.
#[derive(Debug)]
pub struct Backing(PathBuf);

impl Backing {
    /// A path for it; `add --create` creates it.
    pub fn new(name: &str) -> Self {
        let name = format!("ublk-e2e-{name}-{}.img", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_file(&path);
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A device of this size on it, with further arguments.
    pub fn spec(&self, size: &str, more: &[&str]) -> Spec {
        let path = self.0.to_str().unwrap_or_default();
        let mut spec = Spec::mem(size).with(&[path, "--create"]).with(more);
        spec.backend = "file";
        spec
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Number of bytes written to the page cache.
const LEN: usize = 4 << 20;

/// A buffered write without sync is in the backend after a stop. While somebody could still write, the stop is refused
/// unless forced.
fn writes_back(policy: &str, verb: &str) -> Result<()> {
    let backing = Backing::new("stop");
    let device = backing.spec("16M", &["--recovery", policy]).add()?;
    let mut data = vec![0; LEN];
    pattern::fill(&mut data, 0, 3);
    let node = File::options().write(true).open(&device.path)?;
    node.write_all_at(&data, 0)?;
    let id = device.id.to_string();
    let me = format!("open in process {}", std::process::id());
    cli::fails(&[verb, &id], code::FAILED, &[&me, "--force"])?;
    ensure!(device.query()?["state"] == "live");
    // A reader keeps dirty data in the cache.
    let reader = File::open(&device.path)?;
    drop(node);
    // An opener makes a delete wait, so this one closes it a little later.
    let closer = std::thread::spawn(move || {
        let gone = until("the end of the disk", secs(20), || {
            Ok((!sysfs::directory(device.id).exists()).then_some(()))
        });
        drop(reader);
        device.forget();
        gone
    });
    let output = ublkctl(&[verb, &id])?;
    closer.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    output.good()?;
    if verb == "stop" {
        ublkctl(&["delete", &id])?.good()?;
    }
    let mut found = vec![0; LEN];
    File::open(backing.path())?.read_exact_at(&mut found, 0)?;
    pattern::check(&found, 0, 3).context("what was written before the stop")
}

/// A mounted device that outlives its server is not stopped, and the message names the mount point.
fn mounted() -> Result<()> {
    let backing = Backing::new("mounted");
    let device = backing.spec("64M", &["--recovery", "reissue"]).add()?;
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    let at = mounted.at.to_str().context("plain")?.to_owned();
    let id = device.id.to_string();
    for verb in ["stop", "delete"] {
        cli::fails(&[verb, &id], code::FAILED, &["mounted at", &at, "--force"])?;
    }
    ensure!(device.query()?["state"] == "live");
    std::fs::write(mounted.at.join("file"), b"kept")?;
    mounted.unmount()?;
    ublkctl(&["stop", &id])?.good()?;
    ublkctl(&["delete", &id])?.good()?;
    device.forget();
    // The same file serves another device, and the written data is there; --force stops it while mounted.
    let path = backing.path().to_str().context("plain")?.to_owned();
    let mut spec = Spec::mem("64M").with(&["--recovery", "queue", &path]);
    spec.backend = "file";
    spec.size = String::new();
    let device = spec.add()?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    ensure!(std::fs::read(mounted.at.join("file"))? == b"kept");
    std::fs::write(mounted.at.join("late"), b"synced by force")?;
    let id = device.id.to_string();
    ublkctl(&["stop", "--force", &id])?.good()?;
    mounted.unmount()?;
    ublkctl(&["delete", &id])?.good()?;
    device.forget();
    let device = spec.add()?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    ensure!(std::fs::read(mounted.at.join("late"))? == b"synced by force");
    mounted.unmount()?;
    device.delete()
}

/// An open device without a server: its holders are named, and --force ends it.
fn waiting() -> Result<()> {
    let device = Spec::null("1G").with(&["--recovery", "queue"]).add()?;
    let id = device.id.to_string();
    let node = File::open(&device.path)?;
    device.kill_server("quiesced")?;
    let me = format!("process {}", std::process::id());
    for verb in ["stop", "delete"] {
        cli::fails(
            &[verb, &id],
            code::FAILED,
            &[&me, "ublkctl recover", "--force"],
        )?;
    }
    ublkctl(&["stop", "--force", &id])?.good()?;
    drop(node);
    device.delete()?;
    procfs::nothing_stuck(patience())
}

/// Linux 7.0 stops devices that are not open; before, the refusal names the feature.
fn if_unused() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let id = device.id.to_string();
    if sysfs::kernel() < (7, 0) {
        let parts = ["SAFE_STOP_DEV", "7.0"];
        cli::fails(&["stop", "--if-unused", &id], code::FAILED, &parts)?;
        ensure!(device.query()?["state"] == "live");
        return device.delete();
    }
    let node = File::open(&device.path)?;
    let me = format!("process {}", std::process::id());
    cli::fails(&["stop", "--if-unused", &id], code::FAILED, &["open", &me])?;
    ensure!(device.query()?["state"] == "live");
    drop(node);
    ublkctl(&["stop", "--if-unused", &id])?.good()?;
    device.wait_state("dead", secs(5))?;
    device.delete()
}

/// While somebody holds the block device open `delete --async` returns, and the number is free afterwards.
fn no_wait() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let id = device.id.to_string();
    let node = File::open(&device.path)?;
    ublkctl(&["delete", "--async", &id])?.good()?;
    drop(node);
    let number = device.id;
    device.forget();
    until("the number to be free", secs(10), || {
        Ok((!sysfs::directory(number).exists()).then_some(()))
    })?;
    cli::nothing_left(secs(10))?;
    let again: Device = Spec::mem("16M").with(&["--id", &id]).add()?;
    again.delete()
}
