//! A backing store is identified by more than its path (L43): the file or disk that a device was created with, and the
//! holder of its lock.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use rustix::fs::{FlockOperation, flock};

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl};
use crate::volume::{self, Kind, Volume};
use crate::wait::{secs, until};
use crate::{json, run, sysfs};

const SIZE: u64 = 16 << 20;
const PIECE: usize = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("l43_another_file_is_not_recovered", recovered),
        Case::new("l43_a_renamed_file_is_served_on", renamed),
        Case::new("l43_a_renamed_file_is_supervised_on", supervised),
        Case::new("l43_another_disk_is_not_recovered", disk).only_if(
            sysfs::in_guest(),
            "loop devices are made in the test guest only",
        ),
    ]
}

/// A device on a file with a pattern, and another file to take its place.
struct Renamed {
    place: Volume,
    path: PathBuf,
    old: PathBuf,
    device: Device,
}

impl Renamed {
    fn new(args: &[&str]) -> Result<Self> {
        let place = Volume::new(Kind::Tmpfs, 64 << 20)?;
        let path = place.file("disk.img", SIZE)?;
        let args = [&["--recovery", "reissue"], args].concat();
        let device = Spec::file(&path).with(&args).add()?;
        device.open()?.write_pattern(0, PIECE, 1)?;
        let old = place.path("old.img")?;
        Ok(Self {
            place,
            path,
            old,
            device,
        })
    }

    /// Puts another file of the same size in its place.
    fn rename(&self) -> Result<()> {
        let new = self.place.file("new.img", SIZE)?;
        fs::rename(&self.path, &self.old)?;
        Ok(fs::rename(new, &self.path)?)
    }

    /// Whether nobody else can take the lock of the renamed file.
    fn is_locked(&self) -> Result<bool> {
        let file = fs::File::open(&self.old)?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Checks that the device has its data, and writes to the same file.
    fn same(&self, generation: u64) -> Result<()> {
        let direct = self.device.open()?;
        direct.check_pattern(0, PIECE, generation)?;
        direct.write_pattern(0, PIECE, generation + 1)?;
        volume::check_behind(&self.old, 0, PIECE, 0, generation + 1)
    }

    fn remove(self) -> Result<()> {
        self.device.delete()?;
        ensure!(
            fs::read(&self.path)?.iter().all(|byte| *byte == 0),
            "the other file was written"
        );
        self.place.remove()
    }
}

/// With the server dead only the path remains: another file there is refused, with both named, until the first is back
/// or the new one accepted.
fn recovered() -> Result<()> {
    let renamed = Renamed::new(&[])?;
    let id = renamed.device.id.to_string();
    renamed.device.kill_server("quiesced")?;
    renamed.rename()?;
    let parts = ["disk.img", "is not the file", "inode", "--accept-backing"];
    cli::fails(&["recover", &id], code::FAILED, &parts)?;
    ensure!(json::text(&renamed.device.query()?, "state")? == "quiesced");
    // With the old one back it continues.
    fs::rename(&renamed.path, renamed.place.path("new.img")?)?;
    fs::rename(&renamed.old, &renamed.path)?;
    ublkctl(&["recover", &id])?.good()?;
    renamed.device.open()?.check_pattern(0, PIECE, 1)?;
    // The override accepts the present file, which is the device's file from then on.
    renamed.device.kill_server("quiesced")?;
    fs::rename(&renamed.path, &renamed.old)?;
    fs::rename(renamed.place.path("new.img")?, &renamed.path)?;
    ublkctl(&["recover", &id, "--accept-backing"])?.good()?;
    renamed.device.open()?.check_zero(0, PIECE)?;
    ublkctl(&["upgrade", &id])?.good()?;
    renamed.device.open()?.check_zero(0, PIECE)?;
    renamed.remove()
}

/// While the old server lives, its open file is passed on with its lock, wherever its path leads; there is no warning.
fn renamed() -> Result<()> {
    let renamed = Renamed::new(&[])?;
    let id = renamed.device.id.to_string();
    renamed.rename()?;
    for round in 1..4 {
        let output = ublkctl(&["upgrade", &id])?.good()?;
        ensure!(!output.stderr.contains("served as"), "{output}");
        ensure!(!output.stderr.contains("locked by"), "{output}");
        renamed.same(round)?;
        ensure!(
            renamed.is_locked()?,
            "the lock is free after upgrade {round}"
        );
    }
    if sysfs::kernel() >= (6, 16) {
        // The size is that of the open file, not of the one at the path.
        let longer = fs::OpenOptions::new().write(true).open(&renamed.old)?;
        longer.set_len(2 * SIZE)?;
        let output = ublkctl(&["resize", &id, "--fill"])?.good()?;
        ensure!(
            sysfs::number(renamed.device.id, "size")? * 512 == 2 * SIZE,
            "{output}"
        );
        renamed.same(4)?;
        ensure!(renamed.is_locked()?, "the lock is free after a resize");
    }
    renamed.remove()
}

/// The agent of a supervised device keeps the file open: the next server continues with it, and nobody can take its
/// lock in between.
fn supervised() -> Result<()> {
    let renamed = Renamed::new(&["--supervise"])?;
    renamed.rename()?;
    for round in 1..3 {
        let before = renamed.device.server_now()?;
        crate::procfs::kill(before, rustix::process::Signal::KILL)?;
        until("another server", cli::patience() + secs(20), || {
            ensure!(renamed.is_locked()?, "the lock was free");
            let info = renamed.device.query()?;
            let live = json::text(&info, "state")? == "live";
            let other = json::number(&info, "server_pid").is_ok_and(|pid| pid != u64::from(before));
            Ok((live && other).then_some(()))
        })?;
        renamed.same(round)?;
    }
    renamed.remove()
}

/// A disk that was recreated under the same number is another disk.
fn disk() -> Result<()> {
    if !std::path::Path::new("/dev/loop0").exists() {
        run::good("modprobe", &["loop"])?;
    }
    let place = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let attach = |name: &str| -> Result<()> {
        let file = place.file(name, SIZE)?;
        run::good("losetup", &["/dev/loop1", &file.to_string_lossy()]).map(drop)
    };
    attach("one.img")?;
    let node = PathBuf::from("/dev/loop1");
    let device = Spec::file(&node).with(&["--recovery", "reissue"]).add()?;
    device.open()?.write_pattern(0, PIECE, 1)?;
    let id = device.id.to_string();
    // Claimed by the server, and by the next one, without a gap.
    let claims = || {
        let claim = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&node);
        claim.is_err()
    };
    ensure!(claims(), "nobody has claimed the disk");
    let output = ublkctl(&["upgrade", &id])?.good()?;
    ensure!(!output.stderr.contains("in use"), "{output}");
    ensure!(claims(), "nobody has claimed the disk after the upgrade");
    device.open()?.check_pattern(0, PIECE, 1)?;
    device.kill_server("quiesced")?;
    run::good("losetup", &["-d", "/dev/loop1"])?;
    // Every process that had it open has closed it by then.
    until("the loop device for another file", secs(20), || {
        Ok(attach("two.img").ok())
    })?;
    let parts = ["/dev/loop1", "disk sequence number", "--accept-backing"];
    let refused = cli::fails(&["recover", &id], code::FAILED, &parts);
    device.delete()?;
    run::good("losetup", &["-d", "/dev/loop1"])?;
    refused?;
    place.remove()
}
