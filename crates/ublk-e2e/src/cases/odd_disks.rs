//! File devices on unusual disks: slow ones that do not say so, and ones with large blocks.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::case::{Case, measured};
use crate::cli::{self, Spec, code, ublkctl};
use crate::fio::Fio;
use crate::volume::{self, Kind, Volume};
use crate::wait::{secs, until};
use crate::{json, run, sysfs};

const SIZE: u64 = 16 << 20;

pub fn cases() -> Vec<Case> {
    let in_guest =
        |case: Case| case.only_if(sysfs::in_guest(), "disks are made in the test guest only");
    vec![
        in_guest(Case::new(
            "l81_requests_to_a_slow_disk_wait_side_by_side",
            slow,
        )),
        in_guest(Case::new("l83_small_blocks_over_large_ones", small_blocks)),
        in_guest(Case::new(
            "l82_what_is_on_a_file_has_its_block_size",
            block_size,
        )),
        Case::new("file_tails_and_links_are_named", named),
        in_guest(Case::new("mem_zeroes_over_nothing_take_nothing", zeroes)),
    ]
}

/// A disk that takes 100 ms for each request, without support for RWF_NOWAIT.
struct Slow;

impl Slow {
    fn over(disk: &Path) -> Result<Self> {
        let sectors = fs::read_to_string("/sys/block/ram1/size")?;
        let table = format!("0 {} delay {} 0 100", sectors.trim(), disk.display());
        run::good("modprobe", &["dm_delay"])?;
        run::good("dmsetup", &["create", "slow", "--table", &table])?;
        run::good("dmsetup", &["mknodes"])?;
        Ok(Self)
    }

    fn node() -> PathBuf {
        PathBuf::from("/dev/mapper/slow")
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = run::good("dmsetup", &["remove", "slow"]);
    }
}

/// Random 4 KiB reads per second, 16 at a time.
fn reads(file: &str) -> Result<f64> {
    const SECONDS: u32 = 4;
    let done = Fio::new(file)
        .set("rw", "randread")
        .set("bs", "4k")
        .set("iodepth", 16)
        .set("direct", 1)
        .set("time_based", 1)
        .set("runtime", SECONDS)
        .run(1)?;
    let kib = u32::try_from(done.read >> 10)?;
    Ok(f64::from(kib) / 4.0 / f64::from(SECONDS))
}

/// L81 Requests wait for a disk concurrently, on a file system and on the disk itself, although neither supports
/// RWF_NOWAIT: as fast as without us.
fn slow() -> Result<()> {
    let disk = volume::ram_disk(1)?;
    // Filled first, while the disk is fast.
    run::good(
        "mkfs.ext4",
        &[
            "-q",
            "-F",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
            &disk.to_string_lossy(),
        ],
    )?;
    let at = std::env::temp_dir().join("ublk-e2e-slow");
    fs::create_dir_all(&at)?;
    mount(&disk, &at, "ext4", MountFlags::empty(), None)?;
    let path = at.join("disk.img");
    fs::write(&path, vec![7; usize::try_from(SIZE)?])?;
    unmount(&at, UnmountFlags::empty())?;
    let slow = Slow::over(&disk)?;
    mount(Slow::node(), &at, "ext4", MountFlags::empty(), None)?;
    let served = || -> Result<()> {
        let own = reads(&path.to_string_lossy())?;
        for args in [&[][..], &["--data", "copy"], &["--data", "user-copy"]] {
            let device = Spec::file(&path).with(args).add()?;
            let found = reads(device.node())?;
            device.delete()?;
            measured(format!(
                "a file on a disk of 100 ms: {own:.0} reads a second, by a device {args:?} {found:.0}"
            ));
            ensure!(
                found > own * 0.7,
                "{found} reads a second by a device, {own} without"
            );
        }
        Ok(())
    };
    let result = served();
    until("umount", secs(20), || {
        Ok(unmount(&at, UnmountFlags::empty()).ok())
    })?;
    result?;
    let own = reads("/dev/mapper/slow")?;
    let device = Spec::file(&Slow::node()).add()?;
    let found = reads(device.node())?;
    device.delete()?;
    measured(format!(
        "a disk of 100 ms: {own:.0} reads a second, by a device {found:.0}"
    ));
    drop(slow);
    ensure!(
        found > own * 0.7,
        "{found} reads a second by a device, {own} without"
    );
    Ok(())
}

/// L83 Blocks of 512 bytes on a disk with 4096: unaligned zeroes and discards work, by write-zeroes or by writing.
fn small_blocks() -> Result<()> {
    let args = [
        "nr_devices=1",
        "memory_backed=1",
        "bs=4096",
        "gb=1",
        "discard=1",
    ];
    run::good("modprobe", &[&["null_blk"], &args[..]].concat())?;
    let disk = PathBuf::from("/dev/nullb0");
    until("the disk", secs(20), || Ok(disk.exists().then_some(())))?;
    let served = || -> Result<()> {
        ensure!(fs::read_to_string("/sys/block/nullb0/queue/logical_block_size")?.trim() == "4096");
        let device = Spec::file(&disk).block_size(512).add()?;
        let direct = device.open()?;
        for (at, len) in [
            (512, 512),
            (3584, 1024),
            (512, 65_536),
            (4096, 8192),
            (1 << 20, 4608),
        ] {
            let (o, l) = (at.to_string(), len.to_string());
            direct.write_pattern(0, 2 << 20, 3)?;
            run::good("blkdiscard", &["-z", "-o", &o, "-l", &l, device.node()])?;
            direct.check_zero(at, usize::try_from(len)?)?;
            direct.check_pattern(at + len, 4096, 3)?;
            direct.write_pattern(0, 2 << 20, 4)?;
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(direct.file(), flags, at, len)?;
            direct.check_zero(at, usize::try_from(len)?)?;
            direct.check_pattern(at + len, 4096, 4)?;
            run::good("blkdiscard", &["-o", &o, "-l", &l, device.node()])?;
            direct.check_pattern(at + len, 4096, 4)?;
        }
        drop(direct);
        device.delete()
    };
    let result = served();
    run::good("rmmod", &["null_blk"])?;
    result
}

/// L82 A partition table written with blocks of 512 bytes is found by the next device on a disk of 4096, with the
/// reason reported.
fn block_size() -> Result<()> {
    let args = ["nr_devices=1", "memory_backed=1", "bs=4096", "gb=1"];
    run::good("modprobe", &[&["null_blk"], &args[..]].concat())?;
    let disk = PathBuf::from("/dev/nullb0");
    until("the disk", secs(20), || Ok(disk.exists().then_some(())))?;
    let served = || -> Result<()> {
        let block = |args: &[&str], said: &str| -> Result<u64> {
            let args = [&["add", "file", "/dev/nullb0"], args].concat();
            let output = ublkctl(&args)?.good()?;
            ensure!(
                output.stderr.contains(said) && output.stderr.is_empty() == said.is_empty(),
                "{output}"
            );
            let id = output
                .stdout
                .trim()
                .trim_start_matches("/dev/ublkb")
                .to_owned();
            let size = sysfs::number(id.parse()?, "queue/logical_block_size");
            ublkctl(&["delete", &id])?.good()?;
            size
        };
        ensure!(block(&[], "")? == 4096);
        let file = OpenOptions::new().read(true).write(true).open(&disk)?;
        file.write_all_at(b"EFI PART", 512)?;
        file.sync_all()?;
        drop(file);
        ensure!(block(&[], "GPT")? == 512);
        // An explicit option takes precedence.
        ensure!(block(&["--block-size", "4K"], "")? == 4096);
        Ok(())
    };
    let result = served();
    run::good("rmmod", &["null_blk"])?;
    result
}

/// `add` reports bytes that are not a whole block, and dangling links.
fn named() -> Result<()> {
    let place = Volume::new(Kind::Tmpfs, 32 << 20)?;
    let file = place.file("disk.img", SIZE + 100)?;
    let name = file.to_string_lossy().into_owned();
    let output = ublkctl(&["add", "file", &name])?.good()?;
    ensure!(output.stderr.contains("the last 100 bytes"), "{output}");
    let id = output
        .stdout
        .trim()
        .trim_start_matches("/dev/ublkb")
        .to_owned();
    ensure!(sysfs::number(id.parse()?, "size")? * 512 == SIZE);
    ublkctl(&["delete", &id])?.good()?;
    let link = place.path("link")?;
    std::os::unix::fs::symlink(place.path("none")?, &link)?;
    let link = link.to_string_lossy().into_owned();
    let create = ["add", "file", &link, "--create", "--size", "1M"];
    cli::fails(&create, code::FAILED, &["symbolic link", "missing file"])?;
    cli::fails(&["add", "file", &link], code::FAILED, &["symbolic link"])?;
    ensure!(!place.path("none")?.exists(), "the link was followed");
    place.remove()
}

/// `blkdiscard -z` of a memory device larger than the machine ends, and takes no memory.
fn zeroes() -> Result<()> {
    let device = Spec::mem("64G").add()?;
    let direct = device.open()?;
    direct.write_pattern(1 << 30, 1 << 20, 1)?;
    direct.read(1 << 20, 1 << 20)?;
    run::good("blkdiscard", &["-z", device.node()])?;
    direct.check_zero(1 << 30, 1 << 20)?;
    ensure!(json::text(&device.query()?, "state")? == "live");
    let status = fs::read_to_string(format!("/proc/{}/status", device.server()?))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib: u64 = line
        .and_then(|l| l.trim().strip_suffix(" kB"))
        .context("VmRSS")?
        .parse()?;
    measured(format!("zeroes over 64 GiB of nothing: {kib} KiB resident"));
    ensure!(kib < 128 << 10, "{kib} KiB resident");
    drop(direct);
    device.delete()
}
