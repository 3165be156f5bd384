//! L41 Every user of a device is named, wherever it is, as is every process that can write to the device. A device in
//! use is not stopped, deleted, collected or shrunk.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl};
use crate::fs::Kind;
use crate::wait::{secs, until};
use crate::{pattern, run, sysfs};

/// Whether a mount of this namespace names this node as its source.
fn is_mounted(node: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').next() == Some(node)))
}

/// Kinds of users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum User {
    Ext4,
    Btrfs,
    Xfs,
    Dm,
    Lvm,
    Md,
    Swap,
    Loop,
    Namespace,
    Partition,
    Writer,
}

impl User {
    const ALL: [(Self, &'static str); 11] = [
        (Self::Ext4, "ext4"),
        (Self::Btrfs, "btrfs"),
        (Self::Xfs, "xfs"),
        (Self::Dm, "dm"),
        (Self::Lvm, "lvm"),
        (Self::Md, "md"),
        (Self::Swap, "swap"),
        (Self::Loop, "loop"),
        (Self::Namespace, "another_mount_namespace"),
        (Self::Partition, "a_partition"),
        (Self::Writer, "a_writer"),
    ];
}

pub fn cases() -> Vec<Case> {
    let all = User::ALL.into_iter();
    all.map(|(user, name)| {
        Case::new(format!("l41_in_use_by_{name}"), move || {
            for policy in ["none", "reissue"] {
                spared(user, policy).with_context(|| format!("{name}, recovery {policy}"))?;
            }
            Ok(())
        })
    })
    .collect()
}

/// The name of the device, by which `down` finds it.
const NAME: &str = "in-use";
/// Length of the data that is written, and read back at the end.
const LEN: usize = 64 << 10;

/// Every verb is refused with exit code 1 and names the user; the written data survives.
fn spared(user: User, policy: &str) -> Result<()> {
    let backing = Backing::new("in-use");
    // XFS needs at least 300 MiB.
    let more = ["--recovery", policy, "--name", NAME];
    let device = backing.spec("320M", &more).add()?;
    let config = Config::new(backing.path())?;
    let used = Used::begin(user, &device, true)?;
    used.write()?;
    let id = device.id.to_string();
    let parts: Vec<&str> = used.parts.iter().map(String::as_str).collect();
    let mut verbs: Vec<Vec<&str>> = vec![
        vec!["stop", &id],
        vec!["delete", &id],
        vec!["delete", "--async", NAME],
        vec!["down", config.path()],
    ];
    if sysfs::kernel() >= (6, 16) {
        verbs.push(vec!["resize", &id, "64M"]);
    }
    for args in &verbs {
        cli::fails(args, code::FAILED, &parts).with_context(|| args.join(" "))?;
    }
    ensure!(device.query()?["state"] == "live");
    cli::fails(&["gc", &id], code::FAILED, &["not an orphan"])?;
    used.check().context("after the refusals")?;
    let recoverable = policy != "none";
    if user == User::Swap && !recoverable {
        // No kernel can end swap on a disk that is gone.
        used.end()?;
        return device.delete();
    }
    // An orphan is not collected either.
    device.kill_server(if recoverable { "quiesced" } else { "dead" })?;
    until("an orphan", secs(10), || {
        Ok((device.query()?["orphan"] == true).then_some(()))
    })?;
    // The kernel may forget the name of a disk that is gone (7.3 does, 6.12 does not). Then the user cannot be named,
    // but the delete waits for it.
    let forgotten = user == User::Btrfs && !recoverable && !is_mounted(device.node())?;
    if forgotten {
        cli::fails(&["gc", &id, "--deadline", "3"], code::TIMED_OUT, &[])?;
    } else {
        cli::fails(&["gc", &id], code::FAILED, &parts).context("gc of an orphan")?;
    }
    if recoverable {
        cli::fails(&["delete", &id], code::FAILED, &parts).context("delete of an orphan")?;
        ublkctl(&["recover", &id])?.good()?;
        used.check().context("after a recovery")?;
        used.end()?;
        return device.delete();
    }
    used.end()?;
    if forgotten {
        until("the end of a delete", secs(20), || {
            Ok(cli::left_over().is_empty().then_some(()))
        })?;
    } else {
        ublkctl(&["gc", &id])?.good()?;
    }
    device.forget();
    cli::nothing_left(secs(10))?;
    let again = Spec::file(backing.path()).add()?;
    let used = Used::begin(user, &again, false)?;
    used.check().context("with the next device")?;
    used.end()?;
    again.delete()
}

/// A configuration with one device; removed on drop.
struct Config(String);

impl Config {
    fn new(image: &Path) -> Result<Self> {
        let path = std::env::temp_dir().join("in-use.toml");
        let text = format!(
            "[device.{NAME}]\nbackend = \"file\"\npath = \"{}\"\n",
            image.display()
        );
        fs::write(&path, text)?;
        Ok(Self(path.to_string_lossy().into_owned()))
    }

    fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A step that undoes something.
type Undo = Box<dyn FnOnce() -> Result<()>>;

/// A device in use.
struct Used {
    /// The required parts of a refusal.
    parts: Vec<String>,
    /// The file on it, or the device itself; swap keeps nothing.
    file: Option<PathBuf>,
    /// The last step first.
    undo: Vec<Undo>,
}

impl Used {
    /// Puts the device to use: newly set up, or as it was left.
    fn begin(user: User, device: &Device, fresh: bool) -> Result<Self> {
        let mut used = Self {
            parts: Vec::new(),
            file: None,
            undo: Vec::new(),
        };
        let node = device.node();
        match user {
            User::Ext4 => used.mount("ext4", node, fresh)?,
            User::Xfs => used.mount("xfs", node, fresh)?,
            User::Btrfs => {
                run::module("btrfs")?;
                used.mount("btrfs", node, fresh)?;
            }
            User::Dm => {
                let sectors = (320_u64 << 20) / 512;
                let table = format!("0 {sectors} linear {node} 0");
                run::module("dm_mod")?;
                run::good("dmsetup", &["create", "lin", "--table", &table])?;
                used.then(|| run::good("dmsetup", &["remove", "--retry", "lin"]).map(drop));
                used.mount("ext4", &dm_node("lin")?, fresh)?;
                used.parts.extend(["dm-".to_owned(), "(lin)".to_owned()]);
            }
            User::Lvm => used.lvm(node, fresh)?,
            User::Md => used.md(node, fresh)?,
            User::Swap => {
                if fresh {
                    run::good("mkswap", &[node])?;
                }
                run::good("swapon", &[node])?;
                let node = node.to_owned();
                used.then(move || run::good("swapoff", &[&node]).map(drop));
                used.parts.push("used by swap".to_owned());
            }
            User::Loop => {
                run::module("loop")?;
                let output = run::good("losetup", &["-f"])?;
                let name = output.stdout.trim().to_owned();
                run::good("losetup", &[&name, node])?;
                used.parts.push(name.trim_start_matches("/dev/").to_owned());
                let file = name.clone();
                used.then(move || run::good("losetup", &["-d", &name]).map(drop));
                used.file = Some(PathBuf::from(file));
            }
            User::Namespace => used.elsewhere(node, fresh)?,
            User::Partition => used.partition(device, fresh)?,
            User::Writer => {
                let holder = OpenOptions::new().write(true).open(node)?;
                used.then(move || {
                    drop(holder);
                    Ok(())
                });
                used.parts.push(format!("process {}", std::process::id()));
                used.file = Some(device.path.clone());
            }
        }
        Ok(used)
    }

    fn then(&mut self, step: impl FnOnce() -> Result<()> + 'static) {
        self.undo.push(Box::new(step));
    }

    /// Mounts a file system of a node, in this mount namespace.
    fn mount(&mut self, kind: &'static str, node: &str, fresh: bool) -> Result<()> {
        if fresh {
            match kind {
                "ext4" => Kind::Ext4.format(node)?,
                "xfs" => Kind::Xfs.format(node)?,
                _ => run::good(&format!("mkfs.{kind}"), &["-q", "-f", node]).map(drop)?,
            }
        }
        let at = std::env::temp_dir().join("in use");
        fs::create_dir_all(&at)?;
        mount(node, &at, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {node}"))?;
        self.parts.push(format!("mounted at {}", at.display()));
        self.file = Some(at.join("file"));
        self.then(move || {
            until("umount", secs(20), || {
                match unmount(&at, UnmountFlags::empty()) {
                    Ok(()) => Ok(Some(())),
                    Err(rustix::io::Errno::BUSY) => Ok(None),
                    Err(error) => Err(error).context("umount"),
                }
            })?;
            let _ = fs::remove_dir(&at);
            Ok(())
        });
        Ok(())
    }

    /// A logical volume, without udev.
    fn lvm(&mut self, node: &str, fresh: bool) -> Result<()> {
        run::module("dm_mod")?;
        if fresh {
            lvm(&["pvcreate", "-q", "-ff", "-y", node])?;
            lvm(&["vgcreate", "-q", "vg", node])?;
            lvm(&[
                "lvcreate", "-q", "-y", "-Wn", "-Zn", "-L", "64M", "-n", "data", "vg",
            ])?;
        } else {
            lvm(&["vgchange", "-q", "-ay", "vg"])?;
        }
        // The volume group of a dead disk is no longer found.
        self.then(|| {
            run::good("dmsetup", &["remove", "--retry", "vg-data"])?;
            let _ = fs::remove_dir_all("/dev/vg");
            Ok(())
        });
        self.mount("ext4", &dm_node("vg-data")?, fresh)?;
        self.parts.push("(vg-data)".to_owned());
        Ok(())
    }

    /// One half of a mirror.
    fn md(&mut self, node: &str, fresh: bool) -> Result<()> {
        run::module("raid1")?;
        if fresh {
            let args = ["--level=1", "--raid-devices=2", "--metadata=1.2"];
            let args = [
                &["--create", "/dev/md7", "--run"],
                &args[..],
                &[node, "missing"],
            ];
            run::good("mdadm", &args.concat())?;
        } else {
            run::good("mdadm", &["--assemble", "--run", "/dev/md7", node])?;
        }
        self.then(|| run::good("mdadm", &["--stop", "/dev/md7"]).map(drop));
        self.mount("ext4", "/dev/md7", fresh)?;
        self.parts.push("used by md7".to_owned());
        Ok(())
    }

    /// Mounts it in another mount namespace.
    fn elsewhere(&mut self, node: &str, fresh: bool) -> Result<()> {
        if fresh {
            Kind::Ext4.format(node)?;
        }
        let at = std::env::temp_dir().join("in-use-elsewhere");
        fs::create_dir_all(&at)?;
        let script = format!(
            "mount -t ext4 {node} {at} && : > {at}/mounted && exec sleep 600",
            at = at.display()
        );
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::null())
            .spawn()
            .context("unshare")?;
        let pid = child.id();
        let inside = PathBuf::from(format!("/proc/{pid}/root")).join(at.strip_prefix("/")?);
        let mut sleeper = Sleeper(child);
        let seen = inside.join("mounted");
        until("a mount elsewhere", secs(20), || {
            Ok(seen.exists().then_some(()))
        })?;
        self.parts = vec![
            format!("mounted at {}", at.display()),
            format!("mount namespace of process {pid}"),
        ];
        self.file = Some(inside.join("file"));
        self.then(move || {
            sleeper.end();
            // The namespace, and the mount with it, goes a moment after its last process.
            std::thread::sleep(std::time::Duration::from_millis(500));
            let _ = fs::remove_dir(&at);
            Ok(())
        });
        Ok(())
    }

    /// A file system on a partition.
    fn partition(&mut self, device: &Device, fresh: bool) -> Result<()> {
        let node = device.node();
        if fresh {
            let disk = OpenOptions::new().write(true).open(node)?;
            disk.write_all_at(&mbr(2048, 200_000), 0)?;
            disk.sync_all()?;
            drop(disk);
            run::good("blockdev", &["--rereadpt", node])?;
        }
        let part = format!("{node}p1");
        until("a partition", secs(20), || {
            Ok(Path::new(&part).exists().then_some(()))
        })?;
        self.mount("ext4", &part, fresh)
    }

    fn data() -> Vec<u8> {
        let mut data = vec![0; LEN];
        pattern::fill(&mut data, 0, 11);
        data
    }

    /// Writes the data for [`Used::check`], and syncs it.
    fn write(&self) -> Result<()> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        file.write_all_at(&Self::data(), 0)?;
        file.sync_all().context("fsync")
    }

    fn check(&self) -> Result<()> {
        let Some(path) = &self.file else {
            return Ok(());
        };
        let mut found = vec![0; LEN];
        let file = File::open(path).with_context(|| path.display().to_string())?;
        file.read_exact_at(&mut found, 0)?;
        pattern::check(&found, 0, 11)
    }

    /// Ends the use.
    fn end(mut self) -> Result<()> {
        while let Some(step) = self.undo.pop() {
            step()?;
        }
        Ok(())
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        // The case has failed already; report its own error.
        while let Some(step) = self.undo.pop() {
            let _ = step();
        }
    }
}

/// A process that only holds a mount namespace; killed on drop.
struct Sleeper(Child);

impl Sleeper {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.end();
    }
}

/// The kernel's own node of a dm device: nothing else creates one here.
fn dm_node(name: &str) -> Result<String> {
    let args = ["info", "-c", "--noheadings", "-o", "minor", name];
    let minor = run::good("dmsetup", &args)?;
    Ok(format!("/dev/dm-{}", minor.stdout.trim()))
}

/// Runs LVM so that it creates its nodes itself and keeps no list of devices.
fn lvm(args: &[&str]) -> Result<()> {
    let config = "activation { udev_sync=0 udev_rules=0 } devices { use_devicesfile=0 } backup { backup=0 archive=0 }";
    run::good("lvm", &[args, &["--config", config]].concat()).map(drop)
}

/// A partition table with one partition, in sectors.
fn mbr(start: u32, sectors: u32) -> [u8; 512] {
    let mut table = [0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
    table[446 + 12..446 + 16].copy_from_slice(&sectors.to_le_bytes());
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    table
}
