//! ext4 and XFS on a device: make, mount, fill, unmount, check, mount again, compare.

use anyhow::{Context, Result};
use rustix::mount::MountFlags;

use super::matrix;
use crate::case::Case;
use crate::cli::Spec;
use crate::fs::{Kind, Mounted, compare, fill};

pub fn cases() -> Vec<Case> {
    let mut all = vec![Case::new("simple_ext4_keeps_files", || {
        file_system(Kind::Ext4, 2, 512, 7)
    })];
    for (queues, block) in matrix() {
        for kind in [Kind::Ext4, Kind::Xfs] {
            let name = format!("{}_make_fill_remount_check_q{queues}_b{block}", kind.name());
            all.push(Case::new(name, move || {
                file_system(kind, queues, block, 14)
            }));
        }
    }
    all
}

fn file_system(kind: Kind, queues: usize, block: u32, files: usize) -> Result<()> {
    // mkfs.xfs refuses less than 300 MiB.
    let size = match kind {
        Kind::Ext4 => "96M",
        _ => "320M",
    };
    let device = Spec::mem(size).queues(queues).block_size(block).add()?;
    kind.make(&device)?;
    kind.check(&device).context("as made")?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    fill(&mounted.at, files)?;
    compare(&mounted.at, files).context("from the page cache")?;
    mounted.unmount()?;
    kind.check(&device).context("as filled")?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    compare(&mounted.at, files).context("after the remount")?;
    std::fs::remove_dir_all(mounted.at.join("dir1"))?;
    mounted.unmount()?;
    kind.check(&device).context("after the remount")?;
    device.delete()
}
