//! Devices over several files: linear and striped.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl};
use crate::direct_io::Buffer;
use crate::fio::Fio;
use crate::fs::Kind as FileSystem;
use crate::volume::{Kind, Volume};
use crate::wait::{secs, until};
use crate::{json, pattern, sysfs};

const MEMBER: u64 = 8 << 20;
const CHUNK: u64 = 64 << 10;

/// Data mode, batch, first kernel.
type Mode = (&'static str, &'static str, (u32, u32));

const MODES: [Mode; 7] = [
    ("copy", "off", (6, 5)),
    ("get-data", "off", (6, 5)),
    ("user-copy", "off", (6, 5)),
    ("copy", "on", (7, 0)),
    ("zero-copy-manual", "off", (6, 15)),
    ("zero-copy", "off", (6, 16)),
    ("zero-copy", "on", (7, 0)),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("composed_stripe_keeps_data_in_every_mode", || {
            keeps_data("stripe", &MODES)
        }),
        // The mode decides how bytes travel, not where to: the one that copies, and the one that does so least.
        Case::new("composed_linear_keeps_data", || {
            keeps_data("linear", &[MODES[0], MODES[6]])
        }),
        Case::new("composed_stripe_keeps_a_file_system", file_system),
        Case::new("composed_failures_name_the_member", failures),
        Case::new("l43_composed_devices_know_their_members", recovered),
        Case::new("l41_composed_members_in_use_are_refused", in_use),
    ]
}

/// A device over these arguments.
fn spec(backend: &'static str, files: &[String]) -> Spec {
    Spec::files(backend, files).queues(2)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Member and position of a byte of the device.
fn place(backend: &str, offset: u64) -> (usize, u64) {
    let (number, within) = match backend {
        "stripe" => (offset / CHUNK, offset % CHUNK),
        _ => return (usize::from(offset >= MEMBER), offset % MEMBER),
    };
    (usize::from(number % 2 == 1), number / 2 * CHUNK + within)
}

/// In these modes, as far as the kernel has them, data that spans members is in the right place of each and is read back.
fn keeps_data(backend: &'static str, modes: &[Mode]) -> Result<()> {
    let storage = Volume::new(Kind::Ext4, 0)?;
    for &(data, batch, since) in modes {
        let members = ["a.img", "b.img"].map(|name| storage.file(name, MEMBER));
        let [a, b] = members;
        let members = [a?, b?];
        let spec = spec(backend, &members.clone().map(|m| text(&m)));
        let spec = spec.with(&["--data", data, "--batch", batch]);
        if sysfs::kernel() < since {
            let args = spec.args();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            cli::fails(&args, code::FAILED, &["kernel"])?;
            continue;
        }
        let device = spec.add().with_context(|| format!("{data}, {batch}"))?;
        checked(backend, &device, &members).with_context(|| format!("{data}, {batch}"))?;
        // The modes that copy most and least.
        if data == "copy" || batch == "on" {
            verified(&device).with_context(|| format!("{data}, {batch}"))?;
        }
        device.delete()?;
    }
    storage.remove()
}

fn checked(backend: &str, device: &Device, members: &[PathBuf; 2]) -> Result<()> {
    ensure!(sysfs::number(device.id, "size")? * 512 == 2 * MEMBER);
    let direct = device.open()?;
    // Not at a chunk's border, and across that of linear members.
    let (offset, len) = (MEMBER - (1 << 20) / 2 - 4096, 1 << 20);
    direct.write_pattern(offset, len, 3)?;
    direct.check_pattern(offset, len, 3)?;
    direct.file().sync_all()?;
    let mut wanted = Buffer::new(len);
    pattern::fill(wanted.bytes_mut(), offset, 3);
    let contents = [fs::read(&members[0])?, fs::read(&members[1])?];
    for (n, sector) in wanted.bytes().chunks_exact(512).enumerate() {
        let (member, at) = place(backend, offset + n as u64 * 512);
        let at = usize::try_from(at)?;
        ensure!(
            contents[member][at..at + 512] == *sector,
            "sector {n} is not at {at} of member {member}"
        );
    }
    ensure!(json::text(&device.query()?, "backend")? == backend);
    Ok(())
}

/// Several clients write and verify.
fn verified(device: &Device) -> Result<()> {
    Fio::new(device.node())
        .set("rw", "randwrite")
        .set("bsrange", "4k-256k")
        .set("size", "1m")
        .set("offset_increment", "4m")
        .set("iodepth", 16)
        .set("numjobs", 2)
        .set("fsync", 8)
        .set("verify", "crc32c")
        .run(2)
        .map(drop)
}

/// A stripe in the mode that the tool chooses holds a file system.
fn file_system() -> Result<()> {
    let storage = Volume::new(Kind::Ext4, 0)?;
    let members = ["a.img", "b.img", "c.img"].map(|name| Ok(text(&storage.file(name, 16 << 20)?)));
    let members = members.into_iter().collect::<Result<Vec<_>>>()?;
    let device = spec("stripe", &members).with(&["--chunk", "4K"]).add()?;
    ensure!(sysfs::number(device.id, "queue/minimum_io_size")? == 4096);
    FileSystem::Ext4.make(&device)?;
    FileSystem::Ext4.check(&device)?;
    device.delete()?;
    storage.remove()
}

/// A request that fails because of one member says which, in the log of the device.
fn failures() -> Result<()> {
    let storage = Volume::new(Kind::Ext4, 0)?;
    let (a, b) = (
        storage.file("a.img", MEMBER)?,
        storage.file("b.img", MEMBER)?,
    );
    let log = std::env::temp_dir().join("ublk-e2e-composed.log");
    let args = ["--log", &text(&log)];
    let device = spec("stripe", &[text(&a), text(&b)]).with(&args).add()?;
    let direct = device.open()?;
    fs::OpenOptions::new().write(true).open(&b)?.set_len(4096)?;
    ensure!(direct.read(0, 1 << 20).is_err(), "data is missing");
    direct.read(0, 4096)?;
    until("the member's name in the log", secs(10), || {
        let said = fs::read_to_string(&log)?;
        Ok(said
            .contains(&format!("failed on {}: ", b.display()))
            .then_some(()))
    })?;
    let said = fs::read_to_string(&log)?;
    ensure!(
        !said.contains(&text(&a)),
        "the other member is sound: {said}"
    );
    fs::remove_file(&log)?;
    drop(direct);
    device.delete()?;
    storage.remove()
}

/// After its server's death the device continues with the same files only; an upgrade keeps their locks.
fn recovered() -> Result<()> {
    let storage = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let (a, b) = (
        storage.file("a.img", MEMBER)?,
        storage.file("b.img", MEMBER)?,
    );
    let members = [text(&a), text(&b)];
    let device = spec("linear", &members)
        .with(&["--recovery", "reissue"])
        .add()?;
    let id = device.id.to_string();
    device.open()?.write_pattern(MEMBER - 4096, 8192, 1)?;
    device.kill_server("quiesced")?;
    let old = storage.path("old.img")?;
    fs::rename(&b, &old)?;
    storage.file("b.img", MEMBER)?;
    cli::fails(
        &["recover", &id],
        code::FAILED,
        &["b.img", "is not the file"],
    )?;
    fs::rename(&old, &b)?;
    ublkctl(&["recover", &id])?.good()?;
    device.open()?.check_pattern(MEMBER - 4096, 8192, 1)?;
    fs::rename(&b, &old)?;
    ublkctl(&["upgrade", &id])?.good()?;
    device.open()?.check_pattern(MEMBER - 4096, 8192, 1)?;
    let locked = rustix::fs::flock(
        &fs::File::open(&old)?,
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    );
    ensure!(locked.is_err(), "the lock of the second member was lost");
    device.delete()?;
    storage.remove()
}

/// Bytes of a file are in one device only; windows that do not overlap may be members of one device, or of several.
fn in_use() -> Result<()> {
    let storage = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let a = text(&storage.file("a.img", MEMBER)?);
    let window = |offset: &str, length: &str| format!("{a}:{offset}:{length}");
    let both = [window("4M", "1M"), window("0", "1M")];
    let device = spec("linear", &both).add()?;
    ensure!(sysfs::number(device.id, "size")? * 512 == 2 << 20);
    device.open()?.write_pattern(0, 2 << 20, 1)?;
    let refused = |files: &[String], parts: &[&str], code| {
        let args = [&["add".to_owned(), "linear".to_owned()], files].concat();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cli::fails(&args, code, parts)
    };
    let parts = ["already used by", &device.path.to_string_lossy()];
    refused(&[window("512K", "1M")], &parts, code::FAILED)?;
    refused(
        &[window("2M", "1M"), window("2M", "512")],
        &["same bytes"],
        code::USAGE,
    )?;
    spec("linear", &[window("2M", "1M")]).add()?.delete()?;
    device.open()?.check_pattern(0, 2 << 20, 1)?;
    device.delete()?;
    storage.remove()
}
