//! Finds processes that have a block device open: by descriptor, by mapping, or as a registered file of an io_uring.
#![forbid(unsafe_code)]

use crate::in_use::layers::{Layers, names};
use crate::link::peer::Role;
use crate::sys::file::block_device;
use crate::sys::title;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Opener {
    /// The pid.
    pub pid: u32,
    /// The command name.
    pub name: String,
    /// The descriptors; empty if the process has only mapped the device or registered it with an io_uring.
    pub descriptors: Vec<u32>,
    /// Whether the process can write to the device.
    pub writes: bool,
}

/// Processes that have the disk or a partition open. Only root sees other users' processes.
pub(crate) fn of_layers(layers: &Layers) -> Vec<Opener> {
    let pids = names(Path::new("/proc")).filter_map(|name| name.parse().ok());
    pids.filter_map(|pid| of_process(pid, layers)).collect()
}

fn of_process(pid: u32, layers: &Layers) -> Option<Opener> {
    let dir = Path::new("/proc").join(pid.to_string());
    if is_errand(&dir) {
        return None;
    }
    // Descriptors, and whether each can write.
    let mut found: BTreeMap<u32, bool> = BTreeMap::new();
    let mut elsewhere = None;
    for name in names(&dir.join("fd")) {
        let Ok(fd) = name.parse::<u32>() else {
            continue;
        };
        let link = dir.join("fd").join(&name);
        let Ok(target) = fs::read_link(&link) else {
            continue;
        };
        let info = || fs::read_to_string(dir.join("fdinfo").join(&name)).unwrap_or_default();
        if target.as_os_str() == "anon_inode:[io_uring]" {
            if registered(&info(), layers) {
                elsewhere = Some(true);
            }
        } else if layers.names(&target.to_string_lossy()) || is_own(&link, layers) {
            found.insert(fd, can_write(&info()));
        }
    }
    let maps = fs::read_to_string(dir.join("maps")).unwrap_or_default();
    if let Some(writes) = mapped(&maps, layers) {
        elsewhere = Some(elsewhere.unwrap_or(false) | writes);
    }
    if found.is_empty() && elsewhere.is_none() {
        return None;
    }
    let name = fs::read_to_string(dir.join("comm")).unwrap_or_default();
    Some(Opener {
        pid,
        name: name.trim().to_owned(),
        writes: elsewhere == Some(true) || found.values().any(|writes| *writes),
        descriptors: found.into_keys().collect(),
    })
}

/// Whether a process is a helper or an agent of this program. These open devices to inspect them and to write them
/// back; one that is stuck doing so does not count as a user.
fn is_errand(process: &Path) -> bool {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    let is =
        |role: &Role| line.starts_with(format!("{}{}", title::PROGRAM, role.name()).as_bytes());
    let file = |exe: &Path| fs::metadata(exe).map(|m| (m.dev(), m.ino())).ok();
    [Role::Helper, Role::Agent].iter().any(is)
        && file(&process.join("exe")) == file(Path::new("/proc/self/exe"))
}

/// Whether an open file is the device, whatever its path.
fn is_own(link: &Path, layers: &Layers) -> bool {
    block_device(link).is_some_and(|(a, b)| layers.is_own(&format!("{a}:{b}")))
}

/// Whether a descriptor can write, according to fdinfo. Unparsable input counts as writable.
fn can_write(info: &str) -> bool {
    let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
    let flags = flags.and_then(|f| i32::from_str_radix(f.trim(), 8).ok());
    flags.is_none_or(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// Whether an io_uring has the device as a registered file, according to fdinfo: `    3: /dev/ublkb0`.
fn registered(info: &str, layers: &Layers) -> bool {
    info.lines().any(|line| {
        let file = line.split_once(": ").map(|(_, file)| file.trim());
        file.is_some_and(|file| layers.names(file))
    })
}

/// `Some` if a process has mapped the device, with whether the mapping is writable.
fn mapped(maps: &str, layers: &Layers) -> Option<bool> {
    let lines = maps.lines().filter(|line| {
        let path = line.find('/').and_then(|at| line.get(at..));
        path.is_some_and(|path| layers.names(path))
    });
    let writes = |line: &str| {
        let rights = line.split_whitespace().nth(1).unwrap_or_default();
        rights.contains('w') && rights.contains('s')
    };
    lines.map(writes).reduce(|a, b| a | b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Layers {
        Layers::under(Path::new("/nonexistent"), 3)
    }

    /// L41 Readers are distinguished from writers.
    #[test]
    fn l41_descriptors_that_write_are_told_apart() {
        assert!(!can_write("pos:\t0\nflags:\t0100000\nmnt_id:\t5\n"));
        assert!(can_write("pos:\t0\nflags:\t0100002\n"));
        assert!(can_write("pos:\t0\nflags:\t0140001\n"));
        assert!(can_write("what is this"));
    }

    /// L41 A device without an open descriptor may still be mapped or registered with a ring.
    #[test]
    fn l41_mappings_and_rings_are_users() {
        let maps = "7f00-7f01 rw-p 00000000 00:00 0 \n\
                    7f10-7f20 r--s 00000000 00:06 99                 /dev/ublkb3\n";
        assert_eq!(mapped(maps, &layers()), Some(false));
        let maps = "7f10-7f20 rw-s 00000000 00:06 99   /dev/ublkb3p1 (deleted)\n";
        assert_eq!(mapped(maps, &layers()), Some(true));
        let maps = "7f10-7f20 rw-s 00000000 00:06 99   /dev/ublkb31\n";
        assert_eq!(mapped(maps, &layers()), None);
        let info =
            "SqMask:\t0x3f\nUserFiles:\t2\n    0: /dev/null\n    1: /dev/ublkb3\nUserBufs:\t0\n";
        assert!(registered(info, &layers()));
        assert!(!registered("    1: /dev/ublkb30\n", &layers()));
    }

    #[test]
    fn a_process_is_found_by_its_descriptors() {
        let me = of_process(std::process::id(), &layers());
        assert_eq!(me, None);
    }
}
