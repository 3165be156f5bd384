//! File systems that write zone by zone, on zoned devices: made, filled, checked, and over a server that is killed.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::mount::MountFlags;

use super::zoned::pointers;
use crate::case::Case;
use crate::cli::{Spec, ublkctl};
use crate::direct_io::Buffer;
use crate::fs::{Kind, Mounted, compare, fill};
use crate::volume::{self, Volume};
use crate::wait::{secs, until};
use crate::{pattern, run};

/// Files of a load.
const FILES: usize = 21;

/// 64 zones of 16 MiB.
const SIZE: u64 = 1 << 30;

const ZONES: [&str; 2] = ["--zone-size", "16M"];

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for kind in [Kind::ZonedBtrfs, Kind::ZonedF2fs] {
        let name = kind.name();
        all.push(Case::new(format!("zoned_{name}_keeps_files"), move || {
            keeps_files(kind)
        }));
        let killed = format!("zoned_{name}_survives_its_server");
        all.push(Case::new(killed, move || survives(kind)));
    }
    all.push(Case::new("zoned_zonefs_files_end_at_the_pointers", zonefs));
    all.push(Case::new("zoned_zbd_tools_drive_the_zones", by_zbd));
    all
}

/// What a kind needs: f2fs keeps its own data in conventional zones.
fn with_zones(spec: &Spec, kind: Kind) -> Spec {
    let spec = spec.clone().block_size(4096).with(&ZONES);
    match kind {
        Kind::ZonedF2fs => spec.with(&["--conventional-zones", "8"]),
        _ => spec,
    }
}

fn keeps_files(kind: Kind) -> Result<()> {
    let device = with_zones(&Spec::mem("1G").queues(2), kind).add()?;
    kind.make(&device)?;
    // Its own checker counts other free segments than mkfs.f2fs (1.15) until the kernel has written the file system.
    if kind != Kind::ZonedF2fs {
        kind.check(&device).context("as made")?;
    }
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    fill(&mounted.at, FILES)?;
    mounted.unmount()?;
    kind.check(&device).context("as filled")?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    compare(&mounted.at, FILES)?;
    fs::remove_dir_all(mounted.at.join("dir1"))?;
    mounted.unmount()?;
    kind.check(&device).context("after the remount")?;
    device.delete()
}

/// The server dies while files are written: another one goes on where acknowledged writes end, and nothing is lost.
fn survives(kind: Kind) -> Result<()> {
    let storage = Volume::new(volume::Kind::Ext4, 0)?;
    let spec = Spec::file(&storage.file("disk.img", SIZE)?);
    let spec = with_zones(&spec, kind).with(&["--recovery", "reissue"]);
    let device = spec.add()?;
    kind.make(&device)?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    let at = mounted.at.clone();
    let writer = thread::spawn(move || fill(&at, FILES));
    let id = device.id.to_string();
    for _ in 0..3 {
        let begun = fs::read_dir(&mounted.at)?.count();
        until("more files", secs(30), || {
            let more = fs::read_dir(&mounted.at)?.count() > begun || writer.is_finished();
            Ok(more.then_some(()))
        })?;
        device.kill_server("quiesced")?;
        ublkctl(&["recover", &id])?.good()?;
    }
    writer.join().map_err(|_| anyhow!("panic"))??;
    mounted.unmount()?;
    kind.check(&device)?;
    let mounted = Mounted::new(&device, kind, MountFlags::empty())?;
    compare(&mounted.at, FILES)?;
    mounted.unmount()?;
    device.delete()?;
    storage.remove()
}

/// The superblock of zonefs (fs/zonefs/zonefs.h): magic, checksum, and permissions of root's.
fn superblock() -> Vec<u8> {
    let mut block = vec![0; 4096];
    block[..4].copy_from_slice(b"SFOZ");
    // s_perm, behind s_crc, the label of 64 bytes, the UUID, the features and the owner.
    block[104..108].copy_from_slice(&0o640_u32.to_le_bytes());
    let sum = crc32(&block);
    block[4..8].copy_from_slice(&sum.to_le_bytes());
    block
}

/// CRC32 of Ethernet, bit by bit, as `crc32(~0, …)` of the kernel has it: without the inversion at the end.
fn crc32(data: &[u8]) -> u32 {
    data.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            let shifted = sum >> 1;
            if sum & 1 == 0 {
                shifted
            } else {
                shifted ^ 0xedb8_8320
            }
        })
    })
}

/// zonefs shows each zone as a file: its length is the write pointer, appending moves it, truncating resets it.
fn zonefs() -> Result<()> {
    run::module("zonefs")?;
    let spec = Spec::mem("64M").block_size(4096);
    let spec = spec.with(&["--zone-size", "4M", "--conventional-zones", "1"]);
    let device = spec.add()?;
    let node = device.node().to_owned();
    let mut raw = File::options().write(true).open(&node)?;
    raw.write_all(&superblock())?;
    raw.sync_all()?;
    drop(raw);
    let mounted = Mounted::new(&device, Kind::Zonefs, MountFlags::empty())?;
    let zone = mounted.at.join("seq/3");
    let mut data = Buffer::new(128 << 10);
    pattern::fill(data.bytes_mut(), 0, 1);
    let mut file = File::options();
    let mut file = file.append(true).custom_flags(libc::O_DIRECT).open(&zone)?;
    file.write_all(data.bytes())?;
    ensure!(fs::metadata(&zone)?.len() == 128 << 10);
    let at = pointers(&node)?;
    ensure!(at.get(4) == Some(&256), "{at:?}");
    let mut found = vec![0; 128 << 10];
    let mut reader = File::open(&zone)?;
    reader.seek(SeekFrom::Start(0))?;
    reader.read_exact(&mut found)?;
    ensure!(found == data.bytes(), "other data");
    file.set_len(0)?;
    let at = pointers(&node)?;
    ensure!(at.get(4) == Some(&0), "{at:?}");
    drop((file, reader));
    mounted.unmount()?;
    device.delete()
}

/// zbd opens, closes, finishes and resets zones, and reports what became of them.
fn by_zbd() -> Result<()> {
    // Conditions of a zone in the report (include/uapi/linux/blkzoned.h).
    const EMPTY: &str = ", 0x1, ";
    const EXPLICITLY_OPEN: &str = ", 0x3, ";
    const FULL: &str = ", 0xe, ";
    let spec = Spec::mem("64M").block_size(4096);
    let device = spec
        .with(&["--zone-size", "4M", "--max-open-zones", "2"])
        .add()?;
    let zbd = |operation: &str, zone: u64| -> Result<String> {
        let at = (zone << 22).to_string();
        let range = ["-ofst", &at, "-len", "4194304", device.node()];
        let mut args = vec![operation];
        args.extend(range);
        run::good("zbd", &args)?;
        let report = run::good(
            "zbd",
            &[
                "report",
                "-csv",
                "-ofst",
                &at,
                "-len",
                "4194304",
                device.node(),
            ],
        )?;
        Ok(report.stdout)
    };
    for (operation, state) in [
        ("open", EXPLICITLY_OPEN),
        ("close", EMPTY),
        ("open", EXPLICITLY_OPEN),
        ("finish", FULL),
        ("reset", EMPTY),
    ] {
        let report = zbd(operation, 5)?;
        ensure!(
            report.contains(state),
            "{operation}: no {state} in {report}"
        );
    }
    device.delete()
}
