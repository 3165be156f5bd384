//! Who holds a block device: mounts, swap, other devices on top, open descriptors by process.
#![forbid(unsafe_code)]

use crate::mounts;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Who holds a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Holders {
    /// Where its file systems are mounted, in the mount namespace of this process.
    pub mounts: Vec<String>,
    /// Devices made on top of it, and swap.
    pub devices: Vec<String>,
    /// Processes that have it or one of its partitions open.
    pub processes: Vec<Holder>,
}

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Its descriptors.
    pub descriptors: Vec<u32>,
}

impl Holders {
    /// Whether nobody holds it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty() && self.devices.is_empty() && self.processes.is_empty()
    }
}

impl std::fmt::Display for Holders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        parts.extend(self.mounts.iter().map(|m| format!("mounted at {m}")));
        parts.extend(self.devices.iter().map(|d| format!("used by {d}")));
        for p in &self.processes {
            let mut text = format!("open in process {} ({}), descriptor", p.pid, p.name);
            for fd in &p.descriptors {
                let _ = write!(text, " {fd}");
            }
            parts.push(text);
        }
        f.write_str(&parts.join("; "))
    }
}

/// Who holds `/dev/ublkbID` or a partition of it now. Processes of others are seen by root only.
#[must_use]
pub fn of_device(id: u32) -> Holders {
    Holders {
        mounts: mounts::of_device(id),
        devices: devices(id),
        processes: processes(&mounts::numbers(id)),
    }
}

/// Names below `holders` in sysfs, and swap.
fn devices(id: u32) -> Vec<String> {
    let block = format!("/sys/block/ublkb{id}");
    let mut found = Vec::new();
    let mut dirs = vec![format!("{block}/holders")];
    for entry in fs::read_dir(&block).into_iter().flatten().flatten() {
        dirs.push(format!("{}/holders", entry.path().display()));
    }
    for dir in dirs {
        let names = fs::read_dir(dir).into_iter().flatten().flatten();
        found.extend(names.map(|n| n.file_name().to_string_lossy().into_owned()));
    }
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let node = format!("/dev/ublkb{id}");
    let mine = |line: &&str| {
        let path = line.split_whitespace().next().unwrap_or_default();
        let rest = path.strip_prefix(&node);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('p'))
    };
    found.extend(swaps.lines().filter(mine).map(|_| "swap".to_owned()));
    found
}

/// Processes with a descriptor of one of these block devices (`major:minor`).
fn processes(numbers: &[String]) -> Vec<Holder> {
    let mut found: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let of = |name: std::ffi::OsString| name.to_str()?.parse::<u32>().ok();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = of(process.file_name()) else {
            continue;
        };
        let fds = fs::read_dir(process.path().join("fd"));
        for fd in fds.into_iter().flatten().flatten() {
            // A link to the open file itself, not to its name.
            let Ok(meta) = fs::metadata(fd.path()) else {
                continue;
            };
            if meta.file_type().is_block_device() && numbers.contains(&number(meta.rdev())) {
                found.entry(pid).or_default().extend(of(fd.file_name()));
            }
        }
    }
    let named = |(pid, mut descriptors): (u32, Vec<u32>)| {
        descriptors.sort_unstable();
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        Holder {
            pid,
            name: name.trim().to_owned(),
            descriptors,
        }
    };
    found.into_iter().map(named).collect()
}

/// A device number as sysfs writes it.
fn number(rdev: u64) -> String {
    format!("{}:{}", libc::major(rdev), libc::minor(rdev))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process is found by the device behind its descriptor; a character device is none.
    #[test]
    fn holders_are_found_by_their_descriptors() {
        let null = fs::File::open("/dev/null").unwrap();
        let rdev = null.metadata().unwrap().rdev();
        assert_eq!(number(rdev), "1:3");
        assert!(processes(&["1:3".to_owned()]).is_empty());
        assert!(of_device(1_048_575).is_empty());
        let holders = Holders {
            mounts: vec!["/mnt".to_owned()],
            devices: vec!["dm-0".to_owned()],
            processes: vec![Holder {
                pid: 7,
                name: "fio".to_owned(),
                descriptors: vec![3, 5],
            }],
        };
        assert_eq!(
            holders.to_string(),
            "mounted at /mnt; used by dm-0; open in process 7 (fio), descriptor 3 5"
        );
    }
}
