//! Storage for file devices: file systems of our own, and block devices.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::fs::unmount_idle;
use crate::wait::{secs, until};
use crate::{pattern, run};

/// The storage of a file device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file in memory.
    Tmpfs,
    /// A file of ext4 on a RAM disk.
    Ext4,
    /// A RAM disk itself.
    Block,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tmpfs, Self::Ext4, Self::Block];

    /// The name in the cases.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tmpfs => "file-tmpfs",
            Self::Ext4 => "file-ext4",
            Self::Block => "file-block",
        }
    }

    /// Whether deallocation of a range is possible and visible.
    pub const fn counts_blocks(self) -> bool {
        matches!(self, Self::Tmpfs | Self::Ext4)
    }
}

/// The RAM disks of brd, each of 128 MiB, populated on write.
const DISKS: [&str; 2] = ["/dev/ram0", "/dev/ram1"];
const DISK_KIB: u64 = 128 << 10;

/// A RAM disk, created on first use.
pub fn ram_disk(number: usize) -> Result<PathBuf> {
    let path = PathBuf::from(DISKS[number]);
    if !path.exists() {
        let size = format!("rd_size={DISK_KIB}");
        run::good("modprobe", &["brd", "rd_nr=2", &size])?;
        until("the RAM disk", secs(20), || Ok(path.exists().then_some(())))?;
    }
    Ok(path)
}

/// A mounted file system, or none; unmounted on drop.
#[derive(Debug)]
pub struct Volume {
    kind: Kind,
    at: PathBuf,
    mounted: bool,
}

impl Volume {
    /// Creates it, with room for `room` bytes on tmpfs.
    pub fn new(kind: Kind, room: u64) -> Result<Self> {
        let at = std::env::temp_dir().join(format!("ublk-e2e-{}", kind.name()));
        let mut place = Self {
            kind,
            at,
            mounted: false,
        };
        match kind {
            Kind::Block => return Ok(place),
            Kind::Tmpfs => {
                fs::create_dir_all(&place.at)?;
                let size = std::ffi::CString::new(format!("size={room}"))?;
                mount(
                    "none",
                    &place.at,
                    "tmpfs",
                    MountFlags::empty(),
                    size.as_c_str(),
                )
                .context("mount tmpfs")?;
            }
            Kind::Ext4 => {
                fs::create_dir_all(&place.at)?;
                let disk = ram_disk(0)?;
                let node = disk.to_string_lossy();
                let lazy = "lazy_itable_init=0,lazy_journal_init=0";
                run::good("mkfs.ext4", &["-q", "-F", "-E", lazy, &node])?;
                mount(&disk, &place.at, "ext4", MountFlags::empty(), None).context("mount ext4")?;
            }
        }
        place.mounted = true;
        Ok(place)
    }

    /// The path of a file in it, or of the disk.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        match self.kind {
            Kind::Block => ram_disk(1),
            _ => Ok(self.at.join(name)),
        }
    }

    /// A sparse file of `size` bytes in it, or the disk with that much zeroed.
    pub fn file(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.path(name)?;
        if self.kind == Kind::Block {
            let disk = OpenOptions::new().write(true).open(&path)?;
            let zeroes = vec![0; 1 << 20];
            for piece in 0..size >> 20 {
                disk.write_all_at(&zeroes, piece << 20)?;
            }
            disk.sync_all()?;
        } else {
            let file = File::create(&path).with_context(|| path.display().to_string())?;
            file.set_len(size)?;
        }
        Ok(path)
    }

    /// Unmounts.
    pub fn remove(mut self) -> Result<()> {
        if self.mounted {
            self.mounted = false;
            unmount_idle(&self.at)?;
        }
        Ok(())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            // The case has failed already.
            let _ = unmount(&self.at, UnmountFlags::DETACH);
        }
    }
}

/// Writes the pattern of `generation` into a file, behind the back of its device.
pub fn write_behind(path: &Path, at: u64, len: usize, offset: u64, generation: u64) -> Result<()> {
    let mut data = vec![0; len];
    pattern::fill(&mut data, offset, generation);
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&data, at)?;
    Ok(file.sync_all()?)
}

/// Checks that a file holds the pattern of `generation`, without its device.
pub fn check_behind(path: &Path, at: u64, len: usize, offset: u64, generation: u64) -> Result<()> {
    let mut data = vec![0; len];
    File::open(path)?.read_exact_at(&mut data, at)?;
    pattern::check(&data, offset, generation).context("in the file")
}

/// Bytes allocated to a file.
pub fn used(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}
