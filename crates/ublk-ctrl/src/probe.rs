//! Checks a host for what ublk needs, with a one-line fix for each problem.
#![forbid(unsafe_code)]

use crate::nodes::Nodes;
use core::fmt;
use std::fs::{OpenOptions, read_to_string};
use std::path::Path;
use ublk_core::Errno;
use ublk_core::kernel::{Fault, Release};

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Status {
    /// No problem.
    Good,
    /// Works, with a limit that may be reached.
    Warning,
    /// Devices cannot be created.
    Bad,
}

/// What is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Check {
    /// The driver is in the kernel.
    Module,
    /// `/dev/ublk-control` exists and opens.
    ControlNode,
    /// The sysctl `kernel.io_uring_disabled`.
    IoUring,
    /// `RLIMIT_MEMLOCK`.
    LockedMemory,
    /// The driver's `ublks_max`.
    DeviceLimit,
    /// The kernel's release, by which known faults are recognized.
    Kernel,
}

/// The outcome of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Finding {
    /// What was checked.
    pub check: Check,
    /// The result.
    pub status: Status,
    /// Details, in one line.
    pub detail: String,
    /// The fix, in one line; `None` if none is needed.
    pub fix: Option<String>,
}

impl Finding {
    fn new(check: Check, status: Status, detail: impl Into<String>) -> Self {
        Self {
            check,
            status,
            detail: detail.into(),
            fix: None,
        }
    }

    fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Module => "module",
            Self::ControlNode => "control node",
            Self::IoUring => "io_uring",
            Self::LockedMemory => "locked memory",
            Self::DeviceLimit => "device limit",
            Self::Kernel => "kernel",
        })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.status {
            Status::Good => "good",
            Status::Warning => "warning",
            Status::Bad => "bad",
        };
        write!(f, "{}: {word}: {}", self.check, self.detail)?;
        match &self.fix {
            Some(fix) => write!(f, "; {fix}"),
            None => Ok(()),
        }
    }
}

/// Whether the driver is loaded or built in (`/sys/module/ublk_drv`). Here and below, `root` is `/` except in tests.
#[must_use]
pub fn module_loaded(root: &Path) -> Finding {
    if root.join("sys/module/ublk_drv").is_dir() {
        return Finding::new(Check::Module, Status::Good, "ublk_drv is loaded");
    }
    Finding::new(Check::Module, Status::Bad, "ublk_drv is not loaded").fix(
        "modprobe ublk_drv (no such module: install the kernel's extra modules, or a kernel with \
         CONFIG_BLK_DEV_UBLK)",
    )
}

/// Whether the control node exists and the caller may open it.
#[must_use]
pub fn control_node(root: &Path) -> Finding {
    let (check, path) = (Check::ControlNode, Nodes::under(root).control());
    let bad = |detail: String| Finding::new(check, Status::Bad, detail);
    let name = path.display();
    match OpenOptions::new().read(true).write(true).open(&path) {
        Ok(_) => Finding::new(check, Status::Good, format!("{name} can be opened")),
        Err(error) => match Errno::from_io(&error) {
            Errno::ENOENT => bad(format!("{name} does not exist"))
                .fix("modprobe ublk_drv; in a container, pass the node in (--device)"),
            Errno::ENODEV | Errno::ENXIO => {
                bad(format!("{name} has no driver")).fix("modprobe ublk_drv")
            }
            Errno::EACCES | Errno::EPERM => bad(format!("{name}: permission denied"))
                .fix("run as root, or install udev/60-ublkctl.rules and join the group `ublk`"),
            errno => bad(format!("{name}: {errno}")).fix("see `dmesg`"),
        },
    }
}

/// What the sysctl `kernel.io_uring_disabled` (Linux 6.6) allows.
#[must_use]
pub fn io_uring_sysctl(root: &Path) -> Finding {
    let check = Check::IoUring;
    let read = |name: &str| {
        let text = read_to_string(root.join("proc/sys/kernel").join(name)).ok()?;
        text.trim().parse::<i64>().ok()
    };
    match read("io_uring_disabled") {
        None => Finding::new(check, Status::Good, "no sysctl restricts io_uring"),
        Some(0) => Finding::new(check, Status::Good, "kernel.io_uring_disabled is 0"),
        Some(1) => {
            let group = read("io_uring_group").filter(|g| *g >= 0);
            let name = group.map_or("no group".into(), |g| format!("group {g}"));
            let detail = format!("kernel.io_uring_disabled is 1: only root and {name} may use it");
            match may_use(root, group) {
                Some(true) => Finding::new(check, Status::Good, detail + ", and this process may"),
                told => {
                    let bad = told == Some(false);
                    let status = if bad { Status::Bad } else { Status::Warning };
                    let fix = match group {
                        Some(group) => format!("run as root, or join group {group}"),
                        None => "sysctl kernel.io_uring_disabled=0, or run as root".into(),
                    };
                    Finding::new(check, status, detail).fix(fix)
                }
            }
        }
        Some(value) => {
            let detail = format!(
                "kernel.io_uring_disabled is {value}: io_uring is disabled for all processes"
            );
            Finding::new(check, Status::Bad, detail).fix("sysctl kernel.io_uring_disabled=0")
        }
    }
}

/// Whether this process is permitted under `kernel.io_uring_disabled=1`; `None` if /proc does not tell.
fn may_use(root: &Path, group: Option<i64>) -> Option<bool> {
    const CAP_SYS_ADMIN: u64 = 1 << 21;
    let status = read_to_string(root.join("proc/self/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.map(str::trim)
    };
    let capabilities = u64::from_str_radix(field("CapEff:")?, 16).ok()?;
    // Real, effective, saved and file system gid; the last one counts.
    let own = field("Gid:")?.split_whitespace().last();
    let others = field("Groups:").unwrap_or_default().split_whitespace();
    let member = |group: i64| {
        let mut groups = others.chain(own).filter_map(|g| g.parse().ok());
        groups.any(|g: i64| g == group)
    };
    Some(capabilities & CAP_SYS_ADMIN != 0 || group.is_some_and(member))
}

/// One finding per known fault of this kernel's driver; a single good one if there is none.
#[must_use]
pub fn kernel_faults(root: &Path, release: Option<&Release>) -> Vec<Finding> {
    let check = Check::Kernel;
    let Some(release) = release else {
        return vec![Finding::new(check, Status::Good, "unknown release")];
    };
    let found: Vec<Finding> = release
        .faults()
        .map(|fault| {
            let detail = format!("{release}: {fault}");
            let status = match fault {
                Fault::AddCrashes => Status::Bad,
                Fault::UbsanReport if !panics_on_warnings(root) => {
                    let detail = detail + "; harmless while kernel.panic_on_warn is 0";
                    return Finding::new(check, Status::Good, detail);
                }
                _ => Status::Warning,
            };
            Finding::new(check, status, detail).fix(fault.remedy())
        })
        .collect();
    if found.is_empty() {
        let detail = format!("{release}: no known fault in the ublk driver");
        return vec![Finding::new(check, Status::Good, detail)];
    }
    found
}

fn panics_on_warnings(root: &Path) -> bool {
    let text = read_to_string(root.join("proc/sys/kernel/panic_on_warn"));
    text.is_ok_and(|text| text.trim() != "0")
}

/// Locked memory in bytes that a device with locked buffers needs at least: one queue of 128 tags of 1 MiB.
const MEMLOCK_WANTED: u64 = 128 << 20;

/// The process's limit of locked memory, which registered buffers count against (L59).
#[must_use]
pub fn memlock_limit() -> Finding {
    memlock(crate::sys::memlock_limit())
}

fn memlock(limit: Option<u64>) -> Finding {
    let check = Check::LockedMemory;
    match limit {
        None => Finding::new(check, Status::Good, "no limit"),
        Some(bytes) if bytes >= MEMLOCK_WANTED => {
            Finding::new(check, Status::Good, format!("{bytes} bytes"))
        }
        Some(bytes) => {
            let detail = format!(
                "{bytes} bytes may be locked, less than the {MEMLOCK_WANTED} that a queue of 128 tags \
                 needs; this matters for registered buffers of callers without CAP_IPC_LOCK"
            );
            Finding::new(check, Status::Warning, detail)
                .fix("ulimit -l unlimited, or LimitMEMLOCK=infinity in the systemd unit")
        }
    }
}

/// Number of devices, and the limit (`ublks_max`; L39).
#[must_use]
pub fn device_limit(root: &Path) -> Finding {
    let check = Check::DeviceLimit;
    let file = root.join("sys/module/ublk_drv/parameters/ublks_max");
    let limit = read_to_string(file).ok();
    let Some(limit) = limit.and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Finding::new(check, Status::Good, "the driver reports no limit");
    };
    let devices = Nodes::under(root).list_devices().map_or(0, |d| d.len());
    let detail = format!("{devices} devices, limit {limit}");
    if u64::try_from(devices).is_ok_and(|n| n < limit) {
        return Finding::new(check, Status::Good, detail);
    }
    let detail = detail
        + " (ublks_max counts all devices on Linux 6.3 to 6.14, only those of unprivileged users later)";
    Finding::new(check, Status::Warning, detail)
        .fix("delete devices, or echo 256 > /sys/module/ublk_drv/parameters/ublks_max")
}

#[cfg(test)]
mod tests;
