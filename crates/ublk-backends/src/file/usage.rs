//! Who else uses a file: found out to be told, never to refuse.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, Metadata, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Takes an advisory lock (flock), exclusive unless the device is read-only, and tells who keeps it from us; tells
/// loop devices and swap space, too. The lock is held as long as the file is open.
pub(crate) fn look(file: &fs::File, path: &Path, read_only: bool, notes: &mut Vec<String>) {
    let lock = if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    let Ok(meta) = file.metadata() else { return };
    if let Err(TryLockError::WouldBlock) = lock {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let pids = lockers(&locks, &meta);
        let mut users: Vec<_> = pids.into_iter().map(describe).collect();
        if users.is_empty() {
            users.push("another process".to_owned());
        }
        notes.push(format!("the file is locked by {}", users.join(" and ")));
    }
    for name in loops(&meta) {
        notes.push(format!("the file is in use by /dev/{name}"));
    }
    if is_swap(path, &meta) {
        notes.push("the file is swap space of this machine".to_owned());
    }
}

/// Says who has claimed a block device.
pub(crate) fn of_block(path: &Path, meta: &Metadata) -> String {
    let mut users = BTreeSet::new();
    let device = meta.rdev();
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let directory = format!("/sys/dev/block/{number}");
    let mut numbers = vec![number];
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        if let Ok(partition) = fs::read_to_string(entry.path().join("dev")) {
            numbers.push(partition.trim().to_owned());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    users.extend(mounted(&mounts, &numbers));
    let holders = fs::read_dir(format!("{directory}/holders"));
    for holder in holders.into_iter().flatten().flatten() {
        users.insert(format!("/dev/{}", holder.file_name().to_string_lossy()));
    }
    if is_swap(path, meta) {
        users.insert("the swap of this machine".to_owned());
    }
    users.extend(openers(device));
    if users.is_empty() {
        users.insert("somebody who has claimed it".to_owned());
    }
    let users: Vec<_> = users.into_iter().collect();
    format!("the block device is in use: {}", users.join(", "))
}

/// Processes with a flock on the file, by /proc/locks (`1: FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF`).
fn lockers(locks: &str, meta: &Metadata) -> Vec<u32> {
    let device = meta.dev();
    let file = format!(
        "{:02x}:{:02x}:{}",
        libc::major(device),
        libc::minor(device),
        meta.ino()
    );
    let holder = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        // A waiter's line has an arrow behind the number.
        if words.get(1) != Some(&"FLOCK") || words.get(5) != Some(&file.as_str()) {
            return None;
        }
        words.get(4)?.parse().ok()
    };
    locks.lines().filter_map(holder).collect()
}

/// A process by what it serves, else by its name.
fn describe(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match served_by(pid) {
        Some(device) => format!("the server of {device} (process {pid})"),
        None => format!("process {pid} ({})", name.trim()),
    }
}

/// The ublk device that a process serves.
fn served_by(pid: u32) -> Option<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    descriptors
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .find_map(|target| {
            let number = target.to_str()?.strip_prefix("/dev/ublkc")?.to_owned();
            Some(format!("/dev/ublkb{number}"))
        })
}

/// Other processes that serve a ublk device and have this block device open.
fn openers(device: u64) -> Vec<String> {
    let mut users = Vec::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_str().and_then(|n| n.parse().ok());
        let Some(pid) = pid.filter(|pid| *pid != std::process::id()) else {
            continue;
        };
        let has = |entry: fs::DirEntry| {
            fs::metadata(entry.path()).is_ok_and(|meta| meta.rdev() == device)
        };
        let descriptors = fs::read_dir(process.path().join("fd"));
        let mut descriptors = descriptors.into_iter().flatten().flatten();
        if descriptors.any(has) && served_by(pid).is_some() {
            users.push(describe(pid));
        }
    }
    users
}

/// Mount points of the devices with these numbers.
fn mounted(mountinfo: &str, numbers: &[String]) -> Vec<String> {
    let point = |line: &str| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let point = fields.nth(1)?;
        numbers
            .iter()
            .any(|n| n == number)
            .then(|| format!("mounted at {point}"))
    };
    mountinfo.lines().filter_map(point).collect()
}

/// Whether two metadata are of one file.
fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Loop devices over the file.
fn loops(meta: &Metadata) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        let Ok(backing) = backing else { continue };
        let other = fs::metadata(backing.trim_end_matches('\n'));
        if other.is_ok_and(|other| same(&other, meta)) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names
}

/// Whether the file is swap space.
fn is_swap(path: &Path, meta: &Metadata) -> bool {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().skip(1).any(|line| {
        let swap = line.split_whitespace().next().map(Path::new);
        swap == Some(path)
            || swap
                .and_then(|swap| fs::metadata(swap).ok())
                .is_some_and(|swap| same(&swap, meta))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_of_the_kernel_are_understood() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let meta = file.as_file().metadata().expect("its data");
        let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
        let table = format!(
            "1: FLOCK  ADVISORY  WRITE 77 {major:02x}:{minor:02x}:{ino} 0 EOF\n\
             1: -> FLOCK  ADVISORY  WRITE 78 {major:02x}:{minor:02x}:{ino} 0 EOF\n\
             2: FLOCK  ADVISORY  READ 79 {major:02x}:{minor:02x}:{other} 0 EOF\n\
             3: POSIX  ADVISORY  WRITE 80 {major:02x}:{minor:02x}:{ino} 0 EOF\n",
            ino = meta.ino(),
            other = meta.ino() + 1,
        );
        assert_eq!(lockers(&table, &meta), [77]);
        let table = "36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw\n";
        assert_eq!(
            mounted(table, &["98:0".to_owned()]),
            ["mounted at /mnt/parent"]
        );
        assert!(mounted(table, &["98:1".to_owned()]).is_empty());
        assert!(loops(&meta).is_empty() && !is_swap(file.path(), &meta));
    }

    /// A second user of the file is told of the first one, readers are not told of readers.
    #[test]
    fn a_second_user_is_told_of_the_first() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = |read_only| {
            let mut notes = Vec::new();
            let file = fs::File::open(file.path()).expect("it is there");
            look(&file, Path::new("x"), read_only, &mut notes);
            (file, notes)
        };
        let (reader, notes) = open(true);
        assert!(notes.is_empty(), "{notes:?}");
        let (another, notes) = open(true);
        assert!(notes.is_empty(), "{notes:?}");
        let (_writer, notes) = open(false);
        let pid = format!("process {}", std::process::id());
        assert!(notes.len() == 1 && notes[0].contains(&pid), "{notes:?}");
        drop((reader, another));
        let (_writer, notes) = open(false);
        assert!(notes.is_empty(), "{notes:?}");
        let (_reader, notes) = open(true);
        assert!(notes.len() == 1, "{notes:?}");
    }
}
