//! Mounted file systems of a device, in every accessible mount namespace (L36, L41, L48).
#![forbid(unsafe_code)]

use crate::in_use::layers::{Layers, names};
use crate::sys::file::block_device;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A mount point of a file system.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    /// The path, as processes in that namespace see it.
    pub point: PathBuf,
    /// Pid and name of a process in that mount namespace; `None` for the caller's namespace.
    pub namespace: Option<(u32, String)>,
}

impl Mount {
    /// A path that reaches the mount point from the caller's namespace, through `/proc/PID/root`.
    #[must_use]
    pub fn reach(&self) -> PathBuf {
        match &self.namespace {
            None => self.point.clone(),
            Some((pid, _)) => {
                let inside = self.point.strip_prefix("/").unwrap_or(&self.point);
                Path::new(&format!("/proc/{pid}/root")).join(inside)
            }
        }
    }
}

/// Mount points of file systems on any of these devices, in the mount namespaces of all processes in /proc.
pub(crate) fn of_layers(layers: &Layers) -> Vec<Mount> {
    let mut seen = BTreeSet::new();
    let mut found: Vec<Mount> = Vec::new();
    let own = std::process::id();
    let others = names(Path::new("/proc")).filter_map(|name| name.parse().ok());
    for pid in std::iter::once(own).chain(others) {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        // The inode identifies the namespace.
        let Ok(namespace) = fs::read_link(dir.join("ns/mnt")) else {
            continue;
        };
        if !seen.insert(namespace) {
            continue;
        }
        let table = fs::read(dir.join("mountinfo")).unwrap_or_default();
        for point in points(&table, layers, &dir.join("root")) {
            // A mount that propagated to several namespaces is reported once.
            if found.iter().any(|m| m.point == point) {
                continue;
            }
            let name = || fs::read_to_string(dir.join("comm")).unwrap_or_default();
            found.push(Mount {
                point,
                namespace: (pid != own).then(|| (pid, name().trim().to_owned())),
            });
        }
    }
    found
}

/// The fields used from a line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Line {
    number: String,
    point: PathBuf,
    kind: String,
    source: PathBuf,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ');
        let number = fields.nth(2)?;
        let point = fields.nth(1)?;
        // A dash terminates the optional fields.
        fields.find(|f| *f == b"-")?;
        let (kind, source) = (fields.next()?, fields.next()?);
        Some(Self {
            number: String::from_utf8_lossy(number).into_owned(),
            point: unescape(point),
            kind: String::from_utf8_lossy(kind).into_owned(),
            source: unescape(source),
        })
    }
}

/// Decodes a path from /proc, which escapes space, tab, newline and backslash as a backslash and three octal digits.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Mount points of the file systems on one of `layers`. `root` is the root directory for the table's paths.
fn points<'a>(
    mountinfo: &'a [u8],
    layers: &'a Layers,
    root: &'a Path,
) -> impl Iterator<Item = PathBuf> + 'a {
    let lines = mountinfo.split(|b| *b == b'\n').filter_map(Line::parse);
    let on = move |line: &Line| layers.has(&line.number) || by_source(line, layers, root);
    lines.filter(on).map(|line| line.point)
}

/// Whether a file system with an anonymous device number (btrfs and the like) is on one of `layers`, judged by its
/// mount source. Multi-device file systems list all devices: bcachefs in the source, separated by colons, btrfs in
/// sysfs.
fn by_source(line: &Line, layers: &Layers, root: &Path) -> bool {
    let source = line.source.as_os_str().as_bytes();
    if !line.number.starts_with("0:") && !layers.names(&line.source.to_string_lossy()) {
        return false;
    }
    source.split(|b| *b == b':').any(|part| {
        let text = String::from_utf8_lossy(part);
        let Some(inside) = text.strip_prefix('/') else {
            return false;
        };
        let number = || block_device(&root.join(inside)).map(|(a, b)| format!("{a}:{b}"));
        let name = || text.strip_prefix("/dev/").unwrap_or_default().to_owned();
        layers.names(&text)
            || layers.is_named(&name())
            || number()
                .is_some_and(|n| layers.has(&n) || (line.kind == "btrfs" && is_sibling(&n, layers)))
    })
}

/// Whether the device with this number is a member of the same btrfs as one of `layers`.
fn is_sibling(number: &str, layers: &Layers) -> bool {
    let all = layers.sys().join("fs/btrfs");
    names(&all).any(|uuid| {
        let devices = all.join(uuid).join("devices");
        let mut ours = false;
        let mut theirs = false;
        for name in names(&devices) {
            ours |= layers.is_named(&name);
            let dev = fs::read_to_string(layers.sys().join("class/block").join(&name).join("dev"));
            theirs |= dev.is_ok_and(|dev| dev.trim() == number);
        }
        ours && theirs
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> (tempfile::TempDir, Layers) {
        let sys = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("class/block/ublkb0/dev", "259:3\n"),
            ("class/block/ublkb0p1/dev", "259:4\n"),
            ("block/ublkb0/ublkb0p1/dev", "259:4\n"),
        ] {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let layers = Layers::under(sys.path(), 0);
        (sys, layers)
    }

    fn found(table: &str, layers: &Layers) -> Vec<String> {
        let points = points(table.as_bytes(), layers, Path::new("/nonexistent"));
        points.map(|p| p.display().to_string()).collect()
    }

    /// L36 A file system on the device is found in the mount table.
    #[test]
    fn l36_own_mounts_are_detected() {
        let table = "36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw\n\
                     40 35 259:3 / /mnt/mine rw - ext4 /dev/ublkb0 rw\n\
                     41 35 259:4 / /mnt/part rw - xfs /dev/ublkb0p1 rw\n";
        let (_sys, layers) = layers();
        assert_eq!(found(table, &layers), ["/mnt/mine", "/mnt/part"]);
        assert!(found("short\n", &layers).is_empty());
    }

    /// L41 btrfs has an anonymous device number, so it is found by its mount source. So is a file system whose disk is
    /// gone.
    #[test]
    fn l41_mounts_without_a_device_number_are_found_by_their_source() {
        let table = "50 35 0:44 / /mnt/b rw shared:7 - btrfs /dev/ublkb0 rw,subvolid=5\n\
                     51 35 0:45 / /mnt/c rw - bcachefs /dev/sda:/dev/ublkb0p1 rw\n\
                     52 35 0:46 / /mnt/d rw - tmpfs ublkb0 rw\n\
                     53 35 0:47 / /mnt/e rw - btrfs /dev/ublkb01 rw\n";
        let (_sys, layers) = layers();
        assert_eq!(found(table, &layers), ["/mnt/b", "/mnt/c"]);
        let gone = Layers::under(Path::new("/nonexistent"), 0);
        let table = "50 35 259:9 / /mnt/x rw - ext4 /dev/ublkb0 rw\n";
        assert_eq!(found(table, &gone), ["/mnt/x"]);
    }

    /// L48 A space in a mount point is `\040` in the table.
    #[test]
    fn l48_mount_points_are_unescaped() {
        let table = "40 35 259:3 / /mnt/my\\040disk\\134x rw - ext4 /dev/ublkb0 rw\n";
        let (_sys, layers) = layers();
        assert_eq!(found(table, &layers), ["/mnt/my disk\\x"]);
        for (text, path) in [("a\\0", "a\\0"), ("\\", "\\"), ("\\999", "\\999")] {
            assert_eq!(unescape(text.as_bytes()), Path::new(path));
        }
    }

    #[test]
    fn a_mount_elsewhere_is_reached_through_its_process() {
        let mut mount = Mount {
            point: "/mnt/a".into(),
            namespace: None,
        };
        assert_eq!(mount.reach(), Path::new("/mnt/a"));
        mount.namespace = Some((7, "sh".to_owned()));
        assert_eq!(mount.reach(), Path::new("/proc/7/root/mnt/a"));
    }
}
