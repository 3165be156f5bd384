//! Finds other users of a file or a disk, for callers to act on.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, Metadata, TryLockError};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Another user of a file or a disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum User {
    /// It has a mounted file system, or one of its partitions has.
    Mount {
        /// The mount point, as this process sees it.
        at: String,
    },
    /// It is swap space of this machine.
    Swap,
    /// A device is stacked on it.
    Device {
        /// Its device node.
        node: String,
    },
    /// A process serves it as a ublk device, or is about to.
    Server {
        /// The process id.
        pid: u32,
        /// The block device, if it exists already.
        node: Option<String>,
    },
    /// A process holds a lock on it (flock).
    Process {
        /// The process id.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// It is locked or claimed by somebody who is not visible from here.
    Unknown,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { at } => write!(f, "mounted at {at}"),
            Self::Swap => f.write_str("swap space of this machine"),
            Self::Device { node } => write!(f, "in use by {node}"),
            Self::Server {
                pid,
                node: Some(node),
            } => write!(f, "served as {node} by process {pid}"),
            Self::Server { pid, node: None } => write!(f, "about to be served by process {pid}"),
            Self::Process { pid, name } => write!(f, "locked by process {pid} ({name})"),
            Self::Unknown => f.write_str("claimed by a user that is not visible from here"),
        }
    }
}

/// Takes an advisory lock (flock), exclusive unless the device is read-only, for as long as the file is open. False if
/// somebody else holds it.
pub(crate) fn lock(file: &fs::File, read_only: bool) -> bool {
    let lock = if read_only {
        file.try_lock_shared()
    } else {
        file.try_lock()
    };
    // File systems without locks cannot report other users.
    !matches!(lock, Err(TryLockError::WouldBlock))
}

/// The users of a regular file besides this process; `locked` if its lock was refused.
pub(crate) fn of_file(file: &fs::File, path: &Path, locked: bool) -> Vec<User> {
    let Ok(meta) = file.metadata() else {
        return Vec::new();
    };
    let mut users = BTreeSet::new();
    if locked {
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        users.extend(lockers(&locks, &meta).into_iter().map(described));
        if users.is_empty() {
            users.insert(User::Unknown);
        }
    }
    users.extend(loops(&meta).into_iter().map(|node| User::Device { node }));
    if is_swap(path, &meta) {
        users.insert(User::Swap);
    }
    users.into_iter().collect()
}

/// The holders of a block device.
pub(crate) fn of_block(path: &Path, meta: &Metadata) -> Vec<User> {
    let mut users = BTreeSet::new();
    let device = meta.rdev();
    let number = format!("{}:{}", libc::major(device), libc::minor(device));
    let directory = format!("/sys/dev/block/{number}");
    let mut numbers = vec![number];
    let mut directories = vec![Path::new(&directory).to_owned()];
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        if let Ok(partition) = fs::read_to_string(entry.path().join("dev")) {
            numbers.push(partition.trim().to_owned());
            directories.push(entry.path());
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mounts = mounted(&mounts, &numbers).into_iter();
    users.extend(mounts.map(|at| User::Mount { at }));
    let holders = directories.iter().flat_map(|directory| {
        fs::read_dir(directory.join("holders"))
            .into_iter()
            .flatten()
    });
    for holder in holders.flatten() {
        let node = format!("/dev/{}", holder.file_name().to_string_lossy());
        users.insert(User::Device { node });
    }
    if is_swap(path, meta) {
        users.insert(User::Swap);
    }
    users.extend(openers(device));
    if users.is_empty() {
        users.insert(User::Unknown);
    }
    users.into_iter().collect()
}

/// Processes with a flock on the file, from /proc/locks (`1: FLOCK ADVISORY WRITE 123 fe:00:456 0 EOF`).
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
        // A waiter's line has an arrow after the number.
        if words.get(1) != Some(&"FLOCK") || words.get(5) != Some(&file.as_str()) {
            return None;
        }
        words.get(4)?.parse().ok()
    };
    locks.lines().filter_map(holder).collect()
}

/// Describes a process by the device it serves, else by its name. A process of our own program that serves nothing yet
/// is about to.
fn described(pid: u32) -> User {
    let program = |pid: &str| fs::metadata(format!("/proc/{pid}/exe")).ok();
    let node = served_by(pid);
    let ours = || {
        let (theirs, ours) = (program(&pid.to_string()), program("self"));
        theirs.zip(ours).is_some_and(|(a, b)| same(&a, &b)) && pid != std::process::id()
    };
    if node.is_some() || ours() {
        return User::Server { pid, node };
    }
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = name.trim().to_owned();
    User::Process { pid, name }
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

/// Other processes that serve a ublk device, or are about to, and have this block device open.
fn openers(device: u64) -> Vec<User> {
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
        if descriptors.any(has)
            && let user @ User::Server { .. } = described(pid)
        {
            users.push(user);
        }
    }
    users
}

/// Mount points of the devices with these numbers: by the file system's device number, and by its source device for
/// file systems with a number of their own (btrfs).
fn mounted(mountinfo: &str, numbers: &[String]) -> Vec<String> {
    let point = |line: &str| {
        let (fields, more) = line.split_once(" - ")?;
        let mut fields = fields.split(' ');
        let number = fields.nth(2)?;
        let point = unescaped(fields.nth(1)?);
        let from = || {
            let source = unescaped(more.split(' ').nth(1)?);
            let meta = fs::metadata(source).ok()?;
            let device = meta.rdev();
            let block = meta.file_type().is_block_device();
            block.then(|| format!("{}:{}", libc::major(device), libc::minor(device)))
        };
        let is = |number: &str| numbers.iter().any(|n| n == number);
        (is(number) || from().is_some_and(|from| is(&from))).then_some(point)
    };
    mountinfo.lines().filter_map(point).collect()
}

/// Decodes a field of mountinfo, in which blanks, tabs, newlines and backslashes are three octal digits (L48).
fn unescaped(field: &str) -> String {
    let mut text = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        let code = digits.and_then(|d| u8::from_str_radix(d, 8).ok());
        match code.filter(|_| first == b'\\') {
            Some(code) => {
                text.push(code);
                rest = behind.get(3..).unwrap_or_default();
            }
            None => {
                text.push(first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether two metadata belong to the same file.
fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Device nodes of loop devices on the file.
fn loops(meta: &Metadata) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file"));
        let Ok(backing) = backing else { continue };
        let other = fs::metadata(backing.trim_end_matches('\n'));
        if other.is_ok_and(|other| same(&other, meta)) {
            names.push(format!("/dev/{}", entry.file_name().to_string_lossy()));
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
    use std::time::{Duration, Instant};

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
        assert_eq!(mounted(table, &["98:0".to_owned()]), ["/mnt/parent"]);
        assert!(mounted(table, &["98:1".to_owned()]).is_empty());
        assert!(loops(&meta).is_empty() && !is_swap(file.path(), &meta));
    }

    /// L48 Paths in the kernel's table may contain blanks.
    #[test]
    fn l48_mount_points_are_read_with_their_blanks() {
        let table = "36 35 98:0 / /mnt/a\\040b\\134c rw shared:1 - ext4 /dev/x rw\n";
        assert_eq!(mounted(table, &["98:0".to_owned()]), ["/mnt/a b\\c"]);
        assert_eq!(unescaped("plain\\04"), "plain\\04");
    }

    /// A second user of the file learns of the first; readers do not learn of readers.
    #[test]
    fn a_second_user_is_told_of_the_first() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let open = |read_only| {
            let file = fs::File::open(file.path()).expect("it is there");
            let users = match lock(&file, read_only) {
                true => Vec::new(),
                false => of_file(&file, Path::new("x"), true),
            };
            (file, users)
        };
        let (reader, users) = open(true);
        assert!(users.is_empty(), "{users:?}");
        let (another, users) = open(true);
        assert!(users.is_empty(), "{users:?}");
        let (_refused, users) = open(false);
        let me = std::process::id();
        assert!(
            matches!(users[..], [User::Process { pid, .. }] if pid == me),
            "{users:?}"
        );
        drop((reader, another));
        // A child that another test forks keeps its parent's locks until it executes its program.
        let deadline = Instant::now() + Duration::from_secs(10);
        let _writer = loop {
            let (writer, users) = open(false);
            if users.is_empty() {
                break writer;
            }
            assert!(Instant::now() < deadline, "still told of {users:?}");
            std::thread::sleep(Duration::from_millis(1));
        };
        let (_reader, users) = open(true);
        assert!(users.len() == 1, "{users:?}");
    }
}
