//! A device under systemd: its configuration, its unit, its line in fstab.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cli::{ublkctl, ublkctl_json};
use crate::wait::{secs, until};
use crate::{json, run};

/// Where the configurations of the units are.
const CONFIGURATIONS: &str = "/etc/ublkctl";
/// Where drop-ins of units are.
const UNITS: &str = "/run/systemd/system";
/// The mounts of boot.
const FSTAB: &str = "/etc/fstab";

/// Whether this machine is the guest with systemd.
pub fn here() -> bool {
    Path::new("/guest.conf").exists() && Path::new("/run/systemd/system").is_dir()
}

/// Runs systemctl, which must succeed.
pub fn systemctl(args: &[&str]) -> Result<String> {
    Ok(run::good("systemctl", args)?.stdout)
}

/// A property of a unit.
pub fn property(unit: &str, name: &str) -> Result<String> {
    let text = systemctl(&["show", "--value", "--property", name, unit])?;
    Ok(text.trim().to_owned())
}

/// The journal of a unit, for messages.
pub fn journal(unit: &str) -> String {
    let args = ["--no-pager", "-q", "-o", "cat", "-n", "40", "-u", unit];
    run::good("journalctl", &args).map_or_else(|e| e.to_string(), |o| o.stdout)
}

/// A file device with its own unit; everything is removed on drop.
pub struct Served {
    /// Its name.
    pub name: String,
    /// The unit.
    pub unit: String,
    /// Its node.
    pub node: PathBuf,
    /// The file below it.
    pub file: PathBuf,
    /// Its number.
    pub id: u32,
    mount: Option<Mount>,
}

/// A mount in fstab.
struct Mount {
    unit: String,
    at: PathBuf,
    fstab: String,
}

impl Served {
    /// Writes the configuration of a device with a new file of this size, and a drop-in for its unit.
    pub fn new(name: &str, id: u32, size: u64, more: &str, drop_in: &str) -> Result<Self> {
        let file = PathBuf::from(format!("/var/lib/ublk-e2e/{name}.img"));
        fs::create_dir_all(file.parent().context("a directory")?)?;
        fs::File::create(&file)?.set_len(size)?;
        Self::over(name, id, &file, more, drop_in)
    }

    /// Like `new`, for an existing file or device.
    pub fn over(name: &str, id: u32, file: &Path, more: &str, drop_in: &str) -> Result<Self> {
        let served = Self {
            name: name.to_owned(),
            unit: format!("ublkctl@{name}.service"),
            node: PathBuf::from(format!("/dev/ublkb{id}")),
            file: file.to_owned(),
            id,
            mount: None,
        };
        fs::create_dir_all(CONFIGURATIONS)?;
        let path = file.display();
        let text =
            format!("[device.{name}]\nbackend = \"file\"\npath = \"{path}\"\nid = {id}\n{more}");
        fs::write(served.configuration(), text)?;
        let directory = served.drop_ins();
        fs::create_dir_all(&directory)?;
        fs::write(directory.join("test.conf"), drop_in)?;
        systemctl(&["daemon-reload"])?;
        Ok(served)
    }

    fn configuration(&self) -> PathBuf {
        Path::new(CONFIGURATIONS).join(format!("{}.toml", self.name))
    }

    fn drop_ins(&self) -> PathBuf {
        Path::new(UNITS).join(format!("{}.d", self.unit))
    }

    /// Creates an ext4 in the file, and a line in fstab that mounts the device. Does not mount it.
    pub fn with_file_system(self) -> Result<Self> {
        let node = self.node.clone();
        self.with_file_system_at(&node)
    }

    /// Like `with_file_system`, with `source` in the line.
    pub fn with_file_system_at(mut self, source: &Path) -> Result<Self> {
        let file = self.file.to_string_lossy().into_owned();
        run::good("mkfs.ext4", &["-q", "-F", &file])?;
        let (name, node) = (&self.name, source.display());
        let at = PathBuf::from(format!("/mnt/{name}"));
        fs::create_dir_all(&at)?;
        let before = fs::read_to_string(FSTAB)?;
        let options = format!(
            "noauto,x-systemd.wants={},x-systemd.before=user.slice",
            self.unit
        );
        let line = format!("{node} {} ext4 {options} 0 0\n", at.display());
        fs::write(FSTAB, format!("{before}{line}"))?;
        systemctl(&["daemon-reload"])?;
        self.mount = Some(Mount {
            unit: format!("mnt-{name}.mount"),
            at,
            fstab: before,
        });
        Ok(self)
    }

    /// Starts the unit.
    pub fn start(&self) -> Result<()> {
        systemctl(&["start", &self.unit])
            .map(drop)
            .with_context(|| journal(&self.unit))
    }

    /// Stops the unit.
    pub fn stop(&self) -> Result<()> {
        systemctl(&["stop", &self.unit]).map(drop)
    }

    /// The mount unit of the fstab line.
    pub fn mount_unit(&self) -> Result<&str> {
        let mount = self.mount.as_ref().context("no file system was made")?;
        Ok(&mount.unit)
    }

    /// Mounts with systemd; returns the mount point.
    pub fn mount(&self) -> Result<&Path> {
        let mount = self.mount.as_ref().context("no file system was made")?;
        systemctl(&["start", &mount.unit])
            .with_context(|| format!("{}{}", journal(&mount.unit), journal(&self.unit)))?;
        ensure!(self.is_mounted()?, "{} is not mounted", mount.at.display());
        Ok(&mount.at)
    }

    /// Unmounts with systemd.
    pub fn unmount(&self) -> Result<()> {
        systemctl(&["stop", self.mount_unit()?])?;
        ensure!(
            !self.is_mounted()?,
            "{} is still mounted",
            self.node.display()
        );
        Ok(())
    }

    /// Whether the kernel has the device mounted at fstab's mount point.
    pub fn is_mounted(&self) -> Result<bool> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let at = self.mount.as_ref().map(|m| m.at.display().to_string());
        let wanted = format!("{} {} ", self.node.display(), at.unwrap_or_default());
        Ok(mounts.lines().any(|line| line.starts_with(&wanted)))
    }

    /// The process of the server.
    pub fn server(&self) -> Result<u32> {
        self.number("server_pid")
    }

    /// A number in the output of `info`.
    pub fn number(&self, key: &str) -> Result<u32> {
        let info = ublkctl_json(&["info", &self.id.to_string()])?;
        Ok(u32::try_from(json::number(&info, key)?)?)
    }

    /// The state of the device, `None` if it does not exist.
    pub fn state(&self) -> Result<Option<String>> {
        let output = ublkctl(&["info", &self.id.to_string(), "--json"])?;
        if output.code() == crate::cli::code::NO_DEVICE {
            return Ok(None);
        }
        let info = serde_json::from_str(&output.good()?.stdout)?;
        json::text(&info, "state").map(Some)
    }

    /// How often systemd has restarted the unit.
    pub fn restarts(&self) -> Result<u32> {
        Ok(property(&self.unit, "NRestarts")?.parse()?)
    }

    /// Waits until systemd has restarted it this often, and it serves.
    pub fn back(&self, restarts: u32, limit: Duration) -> Result<()> {
        let back = until(&format!("restart {restarts}"), limit, || {
            let good = self.restarts()? == restarts
                && property(&self.unit, "ActiveState")? == "active"
                && self.state()?.as_deref() == Some("live");
            Ok(good.then_some(()))
        });
        back.with_context(|| journal(&self.unit))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // The case has its result; the check for left-overs finds what cannot be cleaned up.
        if let Some(mount) = self.mount.take() {
            let _ = systemctl(&["stop", &mount.unit]);
            let _ = fs::write(FSTAB, mount.fstab);
        }
        let _ = systemctl(&["stop", &self.unit]);
        let _ = systemctl(&["reset-failed", &self.unit]);
        let _ = ublkctl(&["down", "--force", &self.configuration().to_string_lossy()]);
        let _ = fs::remove_dir_all(self.drop_ins());
        let _ = fs::remove_file(self.configuration());
        if self.file.starts_with("/var/lib/ublk-e2e") {
            let _ = fs::remove_file(&self.file);
        }
        let _ = systemctl(&["daemon-reload"]);
    }
}

/// Waits until a property of a unit contains this.
pub fn says(unit: &str, name: &str, part: &str, limit: Duration) -> Result<()> {
    let heard = until(&format!("{name} of {unit}: {part}"), limit, || {
        Ok(property(unit, name)?.contains(part).then_some(()))
    });
    heard.with_context(|| {
        let now = property(unit, name).unwrap_or_default();
        format!("it says {now:?}\n{}", journal(unit))
    })
}

/// Enough time for a unit to come back in an emulated guest.
pub const BACK: Duration = secs(60);
