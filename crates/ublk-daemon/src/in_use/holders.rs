//! Finds who uses a block device (L41).
//!
//! The kernel answers two questions. *Does anybody claim the device?* An exclusive open of the disk fails with EBUSY
//! for every mount, swap, dm, md, LIO or other claim on the disk or one of its partitions, in any namespace;
//! [`Claim::ask`] tries this. *Who is it?* The tables of /proc and /sys name the claimers, and also the users without a
//! claim: loop devices, nvmet, and processes that have the device open.
//!
//! A process that has the device open only for reading (udev, blkid) loses nothing by a stop and does not prevent one;
//! a process that can write does.
#![forbid(unsafe_code)]

use crate::in_use::layers::{Layer, Layers, names};
use crate::in_use::mounts::{self, Mount};
use crate::in_use::openers::{self, Opener};
use crate::sys::file::{block_device, dirty_pages};
use std::fmt::Write;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most entries of each kind that are reported.
const MOST: usize = 32;

/// The users of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct Holders {
    /// Claimed nodes: the disk or its partitions.
    pub claimed: Vec<String>,
    /// Mount points of its file systems, in all mount namespaces.
    pub mounts: Vec<Mount>,
    /// Stacked devices, swap, exports.
    pub devices: Vec<String>,
    /// Processes that have the disk or a partition open.
    pub processes: Vec<Opener>,
    /// Dirty bytes in its page cache.
    pub dirty: u64,
}

impl Holders {
    /// Whether the device has no users.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claimed.is_empty()
            && self.mounts.is_empty()
            && self.devices.is_empty()
            && self.processes.is_empty()
    }

    /// Whether every claim on the device is attributed to a user.
    #[must_use]
    pub fn is_explained(&self) -> bool {
        self.claimed.is_empty() || !self.mounts.is_empty() || !self.devices.is_empty()
    }

    /// The users that would lose data by a stop: all except processes that only read.
    #[must_use]
    pub fn losing(&self) -> Self {
        let mut losing = self.clone();
        losing.processes.retain(|p| p.writes);
        losing
    }

    /// The same without these processes.
    #[must_use]
    pub fn without(mut self, pids: &[u32]) -> Self {
        self.processes.retain(|p| !pids.contains(&p.pid));
        self
    }
}

impl std::fmt::Display for Holders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.mounts.iter().map(|m| match &m.namespace {
            None => format!("mounted at {}", printable(&m.point)),
            Some((pid, name)) => format!(
                "mounted at {} in the mount namespace of process {pid} ({name})",
                printable(&m.point)
            ),
        }));
        parts.extend(self.devices.iter().map(|d| format!("used by {d}")));
        for p in &self.processes {
            let how = if p.writes { "open" } else { "open for reading" };
            let mut text = format!("{how} in process {} ({})", p.pid, p.name);
            if !p.descriptors.is_empty() {
                text += ", descriptor";
            }
            for fd in &p.descriptors {
                let _ = write!(text, " {fd}");
            }
            parts.push(text);
        }
        if !self.is_explained() {
            parts.push(format!(
                "claimed ({}) by the kernel or by a process that cannot be seen from here",
                self.claimed.join(", ")
            ));
        }
        f.write_str(&parts.join("; "))
    }
}

/// Escapes a path for a one-line message.
fn printable(path: &Path) -> String {
    path.display().to_string().escape_debug().to_string()
}

/// The users of `/dev/ublkbID` and its partitions, as far as /proc and /sys show them. Does not look for claims;
/// [`Claim::ask`] does. The disk may already be gone.
#[must_use]
pub fn of_device(id: u32) -> Holders {
    let layers = Layers::of_device(id);
    let mut holders = Holders {
        mounts: mounts::of_layers(&layers),
        devices: devices(&layers),
        processes: openers::of_layers(&layers),
        ..Holders::default()
    };
    holders.mounts.truncate(MOST);
    holders.devices.truncate(MOST);
    // Users that lose data come first, so that truncation does not drop them.
    holders.processes.sort_by_key(|p| !p.writes);
    holders.processes.truncate(MOST);
    for process in &mut holders.processes {
        process.descriptors.truncate(MOST);
    }
    holders
}

/// Stacked devices, swap and exports.
fn devices(layers: &Layers) -> Vec<String> {
    let named = |layer: &Layer| match &layer.label {
        Some(label) => format!("{} ({label})", layer.name),
        None => layer.name.clone(),
    };
    let mut found: Vec<String> = layers.upper.iter().map(named).collect();
    let swaps = fs::read("/proc/swaps").unwrap_or_default();
    found.extend(swaps.split(|b| *b == b'\n').filter_map(|line| {
        let path = mounts::unescape(line.split(u8::is_ascii_whitespace).next()?);
        is_on(&path, layers).then(|| "swap".to_owned())
    }));
    found.extend(exports(layers));
    found
}

/// Whether a path is a node of the device or of a stacked device.
fn is_on(path: &Path, layers: &Layers) -> bool {
    layers.names(&path.to_string_lossy())
        || block_device(path).is_some_and(|(a, b)| layers.has(&format!("{a}:{b}")))
}

/// The nvmet namespaces that export the device; nvmet does not claim it.
fn exports(layers: &Layers) -> Vec<String> {
    let all = layers.sys().join("kernel/config/nvmet/subsystems");
    let mut found = Vec::new();
    for subsystem in names(&all) {
        let spaces = all.join(&subsystem).join("namespaces");
        for space in names(&spaces) {
            let read = |file: &str| fs::read_to_string(spaces.join(&space).join(file));
            let enabled = read("enable").is_ok_and(|text| text.trim() == "1");
            let path = read("device_path").map(|text| PathBuf::from(text.trim()));
            if enabled && path.is_ok_and(|path| is_on(&path, layers)) {
                found.push(format!("nvmet ({subsystem}, namespace {space})"));
            }
        }
    }
    found
}

/// An open disk. While it is held exclusively, nobody else can claim it or a partition; while it is open at all, its
/// number is not reused.
#[derive(Debug)]
pub struct Claim {
    disk: File,
    /// Open partitions, whose page caches are separate.
    parts: Vec<File>,
    /// Nodes that somebody else claims; empty if we hold the claim.
    pub taken: Vec<String>,
}

impl Claim {
    /// Opens the disk, exclusively if nobody claims it. May block until the disk's server answers, so call it in a
    /// helper.
    ///
    /// # Errors
    /// Errors of `open(2)` except EBUSY.
    pub fn ask(id: u32) -> io::Result<Self> {
        let node = PathBuf::from(format!("/dev/ublkb{id}"));
        let disk = exclusively(&node)
            .map(Some)
            .or_else(|e| match e.raw_os_error() {
                Some(libc::EBUSY) => Ok(None),
                _ => Err(e),
            })?;
        let layers = Layers::of_device(id);
        let parts: Vec<PathBuf> = layers.own.iter().skip(1).map(Layer::node).collect();
        let opened = |parts: &[PathBuf]| parts.iter().filter_map(|p| File::open(p).ok()).collect();
        if let Some(disk) = disk {
            return Ok(Self {
                disk,
                parts: opened(&parts),
                taken: Vec::new(),
            });
        }
        let busy = |node: &&PathBuf| {
            let error = exclusively(node).err();
            error.is_some_and(|e| e.raw_os_error() == Some(libc::EBUSY))
        };
        // A claim on a partition also claims the disk, and a claim on the disk also claims every partition.
        let mut taken: Vec<&PathBuf> = parts.iter().filter(busy).collect();
        if taken.len() == parts.len() {
            taken.insert(0, &node);
        }
        taken.truncate(MOST);
        Ok(Self {
            disk: File::open(&node)?,
            parts: opened(&parts),
            taken: taken.iter().map(|t| t.display().to_string()).collect(),
        })
    }

    /// Dirty bytes in its page cache; 0 if the kernel does not tell.
    #[must_use]
    pub fn dirty(&self) -> u64 {
        let all = std::iter::once(&self.disk).chain(&self.parts);
        let pages: u64 = all.map(|f| dirty_pages(f).unwrap_or_default()).sum();
        pages.saturating_mul(ublk_ctrl::page_size().into())
    }
}

fn exclusively(node: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opener(writes: bool) -> Opener {
        Opener {
            pid: 7,
            name: "fio".to_owned(),
            descriptors: vec![3, 5],
            writes,
        }
    }

    #[test]
    fn holders_are_told_in_one_line() {
        assert!(of_device(1_048_575).is_empty());
        let holders = Holders {
            mounts: vec![
                Mount {
                    point: "/mnt/a b".into(),
                    namespace: None,
                },
                Mount {
                    point: "/data\n".into(),
                    namespace: Some((9, "sh".to_owned())),
                },
            ],
            devices: vec!["dm-0 (lin)".to_owned()],
            processes: vec![opener(true)],
            claimed: vec!["/dev/ublkb3".to_owned()],
            dirty: 0,
        };
        assert_eq!(
            holders.to_string(),
            "mounted at /mnt/a b; mounted at /data\\n in the mount namespace of process 9 (sh); used by dm-0 (lin); \
             open in process 7 (fio), descriptor 3 5"
        );
    }

    /// L41 A claim counts even if its holder is unknown; a process that only reads does not prevent a stop.
    #[test]
    fn l41_claims_count_without_a_name_and_readers_do_not() {
        let mut holders = Holders {
            processes: vec![opener(false)],
            ..Holders::default()
        };
        assert!(holders.losing().is_empty() && !holders.is_empty());
        assert!(holders.to_string().contains("open for reading"));
        holders.claimed.push("/dev/ublkb3p1".to_owned());
        assert!(!holders.losing().is_empty() && !holders.is_explained());
        assert!(holders.to_string().contains("claimed (/dev/ublkb3p1)"));
        assert!(holders.clone().without(&[7]).processes.is_empty());
        holders.devices.push("swap".to_owned());
        assert!(holders.is_explained());
    }
}
