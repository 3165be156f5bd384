//! Block devices stacked on one of ours, as sysfs shows them: partitions, dm, md, loop, and what is stacked on those.
#![forbid(unsafe_code)]

use crate::sys::file::block_device;
use std::fs;
use std::path::{Path, PathBuf};

/// Most devices followed, so that the walk ends on a strange sysfs.
const MOST: usize = 256;

/// One block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    /// The kernel's name: `ublkb3p1`, `dm-0`.
    pub name: String,
    /// The user-visible name if it differs: `vg-data`.
    pub label: Option<String>,
    /// `major:minor`, if the device exists.
    pub number: Option<String>,
}

impl Layer {
    /// Its node in /dev.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.name)
    }
}

/// A ublk device with its partitions and everything stacked on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Layers {
    id: u32,
    sys: PathBuf,
    /// The disk and its partitions.
    pub own: Vec<Layer>,
    /// Stacked devices, lower layers first.
    pub upper: Vec<Layer>,
}

impl Layers {
    /// The layers of `/dev/ublkbID` on this machine. The disk's own name is included even if the disk is gone.
    pub fn of_device(id: u32) -> Self {
        Self::under(Path::new("/sys"), id)
    }

    /// As [`Self::of_device`], below another `/sys`.
    pub fn under(sys: &Path, id: u32) -> Self {
        let disk = format!("ublkb{id}");
        let mut own = vec![layer(sys, &disk)];
        let mut parts: Vec<String> = names(&sys.join("block").join(&disk))
            .filter(|name| is_of(name, id) && *name != disk)
            .collect();
        parts.sort();
        own.extend(parts.iter().map(|part| layer(sys, part)));
        let mut layers = Self {
            id,
            sys: sys.to_owned(),
            own,
            upper: Vec::new(),
        };
        layers.climb();
        layers
    }

    /// Adds stacked devices, layer by layer, until nothing new is found.
    fn climb(&mut self) {
        let class = self.sys.join("class/block");
        let loops = loops(&self.sys);
        // A disk that is gone no longer has `holders`, but the holders' `slaves` links to it remain.
        let mut found: Vec<String> = self.own.iter().flat_map(|l| self.holding(l)).collect();
        let mut next = 0;
        while self.upper.len() < MOST {
            let all = self.own.iter().chain(&self.upper);
            let Some(lower) = all.clone().nth(next).cloned() else {
                break;
            };
            next += 1;
            found.extend(names(&class.join(&lower.name).join("holders")));
            let on = |(_, file): &&(String, String)| self.names(file) || is_node(file, &lower);
            found.extend(loops.iter().filter(on).map(|(name, _)| name.clone()));
            for name in found.drain(..) {
                let known = self.own.iter().chain(&self.upper).any(|l| l.name == name);
                if !known {
                    self.upper.push(layer(&self.sys, &name));
                }
            }
        }
    }

    /// Devices whose `slaves` name this one.
    fn holding(&self, lower: &Layer) -> Vec<String> {
        let block = self.sys.join("block");
        names(&block)
            .filter(|name| {
                let slave = block.join(name).join("slaves").join(&lower.name);
                fs::symlink_metadata(slave).is_ok()
            })
            .collect()
    }

    /// Whether a path names the disk's or a partition's node, even one that was removed.
    pub fn names(&self, path: &str) -> bool {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let path = path.strip_suffix("//deleted").unwrap_or(path);
        path.strip_prefix("/dev/")
            .is_some_and(|name| is_of(name, self.id))
    }

    /// Whether `major:minor` is the number of any layer.
    pub fn has(&self, number: &str) -> bool {
        let mut all = self.own.iter().chain(&self.upper);
        all.any(|l| l.number.as_deref() == Some(number))
    }

    /// Whether `major:minor` is that of the disk or of a partition.
    pub fn is_own(&self, number: &str) -> bool {
        self.own.iter().any(|l| l.number.as_deref() == Some(number))
    }

    /// Whether a layer has this name.
    pub fn is_named(&self, name: &str) -> bool {
        self.own.iter().chain(&self.upper).any(|l| l.name == name)
    }

    /// The directory of sysfs.
    pub fn sys(&self) -> &Path {
        &self.sys
    }
}

/// Whether a name is that of device `id`'s disk or of a partition.
fn is_of(name: &str, id: u32) -> bool {
    let rest = name.strip_prefix(&format!("ublkb{id}"));
    rest.is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('p')
                .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    })
}

fn layer(sys: &Path, name: &str) -> Layer {
    let dir = sys.join("class/block").join(name);
    let read = |file: &str| {
        let text = fs::read_to_string(dir.join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    Layer {
        name: name.to_owned(),
        label: read("dm/name"),
        number: read("dev"),
    }
}

/// Loop devices and their backing files.
fn loops(sys: &Path) -> Vec<(String, String)> {
    let block = sys.join("block");
    let of = |name: String| {
        let file = fs::read_to_string(block.join(&name).join("loop/backing_file")).ok()?;
        Some((name, file.trim_end_matches('\n').to_owned()))
    };
    names(&block)
        .filter(|name| name.starts_with("loop"))
        .filter_map(of)
        .collect()
}

/// Whether a path resolves to this device.
fn is_node(path: &str, layer: &Layer) -> bool {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let found = || block_device(Path::new(path)).map(|(major, minor)| format!("{major}:{minor}"));
    Path::new(path) == layer.node() || (layer.number.is_some() && found() == layer.number)
}

/// The names in a directory; empty if it does not exist.
pub(crate) fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fake sysfs with these files.
    fn sysfs(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn names_are_those_of_one_device_only() {
        let layers = Layers::under(Path::new("/nonexistent"), 3);
        for path in ["/dev/ublkb3", "/dev/ublkb3p12", "/dev/ublkb3 (deleted)"] {
            assert!(layers.names(path), "{path}");
        }
        for path in [
            "/dev/ublkb31",
            "/dev/ublkb3p",
            "/dev/ublkb3px",
            "ublkb3",
            "/srv/ublkb3",
        ] {
            assert!(!layers.names(path), "{path}");
        }
        assert!(layers.is_named("ublkb3") && layers.upper.is_empty());
    }

    /// L41 Devices without a claim and devices two layers up are found.
    #[test]
    fn l41_layers_are_followed_upwards() {
        let sys = sysfs(&[
            ("class/block/ublkb3/dev", "259:3\n"),
            ("class/block/ublkb3p1/dev", "259:4\n"),
            ("block/ublkb3/ublkb3p1/partition", "1\n"),
            ("class/block/ublkb3p1/holders/dm-0", ""),
            ("class/block/dm-0/dev", "253:0\n"),
            ("class/block/dm-0/dm/name", "lin\n"),
            ("block/loop0/loop/backing_file", "/dev/dm-0\n"),
            ("block/loop1/loop/backing_file", "/dev/ublkb3 (deleted)\n"),
            ("block/loop2/loop/backing_file", "/srv/ublkb3\n"),
            ("block/md127/slaves/ublkb3", ""),
            ("class/block/loop0/dev", "7:0\n"),
        ]);
        let layers = Layers::under(sys.path(), 3);
        let own: Vec<&str> = layers.own.iter().map(|l| l.name.as_str()).collect();
        let mut upper: Vec<&str> = layers.upper.iter().map(|l| l.name.as_str()).collect();
        upper.sort_unstable();
        assert_eq!(own, ["ublkb3", "ublkb3p1"]);
        assert_eq!(upper, ["dm-0", "loop0", "loop1", "md127"]);
        assert!(layers.has("7:0") && layers.has("259:4") && !layers.has("7:1"));
        assert!(layers.is_own("259:4") && !layers.is_own("253:0"));
        let dm = layers.upper.iter().find(|l| l.name == "dm-0").unwrap();
        assert_eq!(dm.label.as_deref(), Some("lin"));
    }
}
