//! File systems on a device: make, mount, fill, compare, check.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::cli::Device;
use crate::wait::{secs, until};
use crate::{pattern, run};

/// Kinds of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs; its module is loaded when one is made.
    Btrfs,
    /// btrfs on a zoned device.
    ZonedBtrfs,
    /// f2fs on a zoned device.
    ZonedF2fs,
    /// zonefs, which no program makes.
    Zonefs,
}

impl Kind {
    /// The kernel's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs | Self::ZonedBtrfs => "btrfs",
            Self::ZonedF2fs => "f2fs",
            Self::Zonefs => "zonefs",
        }
    }

    /// Creates one on a device.
    pub fn make(self, device: &Device) -> Result<()> {
        self.format(device.node())
    }

    /// Creates one on a device or in a file.
    pub fn format(self, node: &str) -> Result<()> {
        let args: &[&str] = match self {
            // Blocks of page size, also on a small device: a block of the load is then in one page of the backing
            // store, and a server killed while it writes several pages tears none.
            Self::Ext4 => &[
                "-q",
                "-F",
                "-b",
                "4096",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
            ],
            Self::Xfs | Self::Btrfs => &["-q", "-f"],
            Self::ZonedBtrfs => &["-q", "-f", "-O", "zoned", "-d", "single", "-m", "single"],
            Self::ZonedF2fs => &["-q", "-f", "-m"],
            Self::Zonefs => &[],
        };
        if !matches!(self, Self::Ext4 | Self::Xfs) {
            run::module(self.name())?;
        }
        let program = format!("mkfs.{}", self.name());
        run::good(&program, &[args, &[node]].concat())?;
        Ok(())
    }

    /// Checks it without changing it.
    pub fn check(self, device: &Device) -> Result<()> {
        match self {
            Self::Ext4 => run::good("e2fsck", &["-f", "-n", device.node()])?,
            Self::Xfs => run::good("xfs_repair", &["-n", device.node()])?,
            Self::Btrfs | Self::ZonedBtrfs => {
                run::good("btrfs", &["check", "--readonly", device.node()])?
            }
            Self::ZonedF2fs => run::good("fsck.f2fs", &["--dry-run", device.node()])?,
            Self::Zonefs => return Ok(()),
        };
        Ok(())
    }
}

/// A mounted file system; unmounted on drop.
#[derive(Debug)]
pub struct Mounted {
    /// The mount point.
    pub at: PathBuf,
    gone: bool,
}

impl Mounted {
    /// Mounts a device below the temporary directory.
    pub fn new(device: &Device, kind: Kind, flags: MountFlags) -> Result<Self> {
        Self::at(device.node(), kind.name(), flags)
    }

    /// Mounts a node of a device that the tool did not create.
    pub fn node(node: &str, kind: &str) -> Result<Self> {
        Self::at(node, kind, MountFlags::empty())
    }

    fn at(node: &str, kind: &str, flags: MountFlags) -> Result<Self> {
        let name = node.trim_start_matches("/dev/");
        let at = std::env::temp_dir().join(format!("ublk-e2e-{name}"));
        fs::create_dir_all(&at)?;
        mount(node, &at, kind, flags, None).with_context(|| format!("mount {node} as {kind}"))?;
        Ok(Self { at, gone: false })
    }

    /// Unmounts, which writes everything back.
    pub fn unmount(mut self) -> Result<()> {
        self.gone = true;
        unmount_idle(&self.at)
    }
}

/// Unmounts a directory and removes it. Another process may still be using it, such as a scanner of the host.
pub fn unmount_idle(at: &Path) -> Result<()> {
    until("umount", secs(20), || {
        match unmount(at, UnmountFlags::empty()) {
            Ok(()) => Ok(Some(())),
            Err(rustix::io::Errno::BUSY) => Ok(None),
            Err(error) => Err(error).context("umount"),
        }
    })?;
    let _ = fs::remove_dir(at);
    Ok(())
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.gone {
            let _ = unmount(&self.at, UnmountFlags::DETACH);
        }
    }
}

/// Sizes of the files that fill a file system: empty, small, odd, large.
const SIZES: [usize; 7] = [0, 1, 511, 4096, 70_001, 1 << 20, 3 << 20];

fn file(at: &Path, number: usize) -> PathBuf {
    at.join(format!("dir{}", number % 5))
        .join(format!("file{number}"))
}

/// The content of a file.
fn contents(number: usize) -> Vec<u8> {
    let len = SIZES[number % SIZES.len()];
    let mut data = vec![0; len.next_multiple_of(8)];
    pattern::fill(&mut data, (number as u64) << 32, 1);
    data.truncate(len);
    data
}

/// Writes `count` files and syncs every one.
pub fn fill(at: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let path = file(at, number);
        fs::create_dir_all(path.parent().context("a directory")?)?;
        let mut file = File::create(&path).with_context(|| path.display().to_string())?;
        file.write_all(&contents(number))?;
        file.sync_all().context("fsync")?;
    }
    Ok(())
}

/// Compares all files with what [`fill`] wrote.
pub fn compare(at: &Path, count: usize) -> Result<()> {
    for number in 0..count {
        let path = file(at, number);
        let mut found = Vec::new();
        File::open(&path)
            .and_then(|mut f| f.read_to_end(&mut found))
            .with_context(|| path.display().to_string())?;
        ensure!(found == contents(number), "{} differs", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L90 A changed, a truncated or a missing file is detected.
    #[test]
    fn l90_changed_files_are_seen() {
        let at = std::env::temp_dir().join(format!("ublk-e2e-fs-{}", std::process::id()));
        fill(&at, 8).expect("a plain directory");
        compare(&at, 8).expect("as written");
        let path = file(&at, 4);
        let good = fs::read(&path).expect("there");
        let mut bad = good.clone();
        bad[70_000] ^= 1;
        for data in [&bad[..], &good[..70_000], &[]] {
            fs::write(&path, data).expect("writable");
            assert!(compare(&at, 8).is_err(), "{} bytes", data.len());
        }
        fs::write(&path, &good).expect("writable");
        compare(&at, 8).expect("as before");
        fs::remove_file(&path).expect("ours");
        assert!(compare(&at, 8).is_err());
        fs::remove_dir_all(&at).expect("ours");
    }
}
