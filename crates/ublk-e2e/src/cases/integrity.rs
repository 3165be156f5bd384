//! Devices with integrity metadata: protection information that the kernel makes and verifies, and metadata of clients.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl};
use crate::direct_io::{Buffer, Direct};
use crate::fio::Fio;
use crate::metadata_client as client;
use crate::volume::{Kind, Volume};
use crate::{pattern, run, sysfs};

/// The argument, block size, bytes of metadata per block, and the kernel's name.
const FORMATS: [(&str, u32, u64, &str); 5] = [
    ("ip:8", 512, 8, "T10-DIF-TYPE3-IP"),
    ("crc16:8", 4096, 8, "T10-DIF-TYPE3-CRC"),
    ("crc16:64:reftag", 512, 64, "T10-DIF-TYPE1-CRC"),
    ("crc64:16:reftag", 4096, 16, "EXT-DIF-TYPE1-CRC64"),
    ("none:16", 512, 16, "nop"),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("integrity_kernel_makes_and_verifies", by_kernel),
        Case::new("integrity_of_a_null_device_is_as_asked_for", of_null),
        Case::new("integrity_damage_is_eilseq", damaged),
        Case::new("integrity_refuses_what_does_not_combine", refusals),
        Case::new("integrity_on_file_survives_its_server", on_file),
        Case::new("integrity_on_file_is_refused_by_name", on_file_refusals),
    ]
}

fn spec(format: &'static str, block: u32) -> Spec {
    let spec = Spec::mem("16M").queues(2).block_size(block);
    spec.with(&["--integrity", format])
}

/// Adds the device. `None` where the kernel lacks the feature, which the tool must say.
fn device(spec: &Spec) -> Result<Option<Device>> {
    if sysfs::kernel() >= (7, 0) {
        return spec.add().map(Some);
    }
    refused(spec, code::FAILED, "INTEGRITY")?;
    Ok(None)
}

fn refused(spec: &Spec, code: i32, part: &str) -> Result<()> {
    let args = spec.args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    cli::fails(&args, code, &[part]).map(drop)
}

/// The kernel makes protection information of each format, gets it back, and finds it right; blocks that were never written,
/// or were discarded, are not verified.
fn by_kernel() -> Result<()> {
    for (format, block, bytes, name) in FORMATS {
        let Some(device) = device(&spec(format, block))? else {
            continue;
        };
        let id = device.id;
        ensure!(sysfs::text(id, "integrity/format")? == name, "{format}");
        let interval = sysfs::number(id, "integrity/protection_interval_bytes")?;
        ensure!(interval == u64::from(block), "{format}: {interval}");
        let direct = device.open()?;
        direct.write_pattern(4096, 1 << 20, 1)?;
        direct.check_pattern(4096, 1 << 20, 1)?;
        direct.check_zero(8 << 20, 64 << 10)?;
        let mut data = Buffer::new(4096);
        let mut metadata = vec![0; usize::try_from(4096 / u64::from(block) * bytes)?];
        let read = client::read(direct.file(), 8192, &mut data, &mut metadata)?;
        ensure!(read == Ok(()), "{format}: {read:?}");
        ensure!(metadata.iter().any(|byte| *byte != 0xff), "{format}: none");
        run::good("blkdiscard", &["-o", "4096", "-l", "65536", device.node()])?;
        direct.check_zero(4096, 65536)?;
        let read = client::read(direct.file(), 8192, &mut data, &mut metadata)?;
        ensure!(read == Ok(()), "{format}: {read:?}");
        ensure!(metadata.iter().all(|byte| *byte == 0xff), "{format}: old");
        drop(direct);
        device.delete()?;
    }
    let Some(device) = device(&spec("crc16:8:reftag", 4096).with(&["--batch", "on"]))? else {
        return Ok(());
    };
    Fio::new(device.node())
        .set("rw", "randrw")
        .set("bs", "16k")
        .set("size", "2m")
        .set("offset_increment", "4m")
        .set("iodepth", 16)
        .set("numjobs", 2)
        .set("verify", "crc32c")
        .run(2)?;
    device.delete()
}

/// What the driver is told of the metadata is in sysfs, and a null device passes every check of the block layer.
fn of_null() -> Result<()> {
    for (format, expected) in [
        ("none:8", ["nop", "0", "0", "512"]),
        ("ip:64:offset=56", ["T10-DIF-TYPE3-IP", "1", "0", "512"]),
        (
            "crc16:8:reftag:incapable",
            ["T10-DIF-TYPE1-CRC", "0", "0", "512"],
        ),
        (
            "crc64:16:interval=4096:tag=8",
            ["EXT-DIF-TYPE3-CRC64", "1", "8", "4096"],
        ),
    ] {
        let block = if format.contains("4096") { 4096 } else { 512 };
        let spec = Spec::null("16M").block_size(block);
        let Some(device) = device(&spec.with(&["--integrity", format]))? else {
            return Ok(());
        };
        for (name, expected) in [
            "format",
            "device_is_integrity_capable",
            "tag_size",
            "protection_interval_bytes",
        ]
        .into_iter()
        .zip(expected)
        {
            let found = sysfs::text(device.id, &format!("integrity/{name}"))?;
            ensure!(found == expected, "{format}: {name} is {found}");
        }
        let direct = device.open()?;
        direct.write_pattern(1 << 20, 1 << 20, 1)?;
        direct.read(1 << 20, 1 << 20)?;
        drop(direct);
        device.delete()?;
    }
    Ok(())
}

/// CRC16 of T10 DIF, bit by bit.
fn crc16(data: &[u8]) -> u16 {
    data.iter().fold(0, |sum, byte| {
        (0..8).fold(sum ^ u16::from(*byte) << 8, |sum: u16, _| {
            let shifted = sum << 1;
            if sum & 0x8000 == 0 {
                shifted
            } else {
                shifted ^ 0x8bb7
            }
        })
    })
}

fn read_error(direct: &Direct, offset: u64) -> Option<i32> {
    let error = direct.read(offset, 512).err()?;
    let error = error.downcast_ref::<std::io::Error>()?;
    error.raw_os_error()
}

/// Stored metadata that does not match its data is EILSEQ for the reader, and only that block. What a client writes is what it
/// reads, and what the kernel made is the checksum of the data.
fn damaged() -> Result<()> {
    let Some(device) = device(&spec("crc16:8", 512))? else {
        return Ok(());
    };
    let direct = device.open()?;
    let mut data = Buffer::new(512);
    let mut metadata = [0; 8];
    direct.write_pattern(0, 4096, 1)?;
    let read = client::read(direct.file(), 512, &mut data, &mut metadata)?;
    ensure!(read == Ok(()), "{read:?}");
    ensure!(
        metadata[..2] == crc16(data.bytes()).to_be_bytes(),
        "{metadata:?}"
    );
    let good = metadata;
    metadata[0] ^= 1;
    let written = client::write(direct.file(), 512, &data, &metadata)?;
    ensure!(written == Ok(()), "{written:?}");
    ensure!(read_error(&direct, 512) == Some(libc::EILSEQ), "not EILSEQ");
    direct.check_pattern(0, 512, 1)?;
    direct.check_pattern(1024, 512, 1)?;
    let mut found = [0; 8];
    let read = client::read(direct.file(), 512, &mut data, &mut found)?;
    ensure!(read == Ok(()) && found == metadata, "{read:?} {found:?}");
    let written = client::write(direct.file(), 512, &data, &good)?;
    ensure!(written == Ok(()), "{written:?}");
    direct.check_pattern(0, 4096, 1)?;
    // Data without metadata: the old one is gone, and nothing is verified.
    let switch = format!("/sys/block/ublkb{}/integrity/write_generate", device.id);
    fs::write(&switch, "0").context(switch)?;
    pattern::fill(data.bytes_mut(), 512, 2);
    direct.write_pattern(512, 512, 2)?;
    direct.check_pattern(512, 512, 2)?;
    let read = client::read(direct.file(), 512, &mut data, &mut found)?;
    ensure!(read == Ok(()) && found == [0xff; 8], "{read:?} {found:?}");
    drop(direct);
    device.delete()
}

/// What the driver or the backend cannot do together is refused by name.
fn refusals() -> Result<()> {
    for data in ["copy", "get-data"] {
        let spec = spec("crc16:8", 512).with(&["--data", data]);
        refused(&spec, code::USAGE, "user copy only")?;
    }
    let spec = |format| spec(format, 512);
    refused(&spec("crc64:8"), code::USAGE, "16 with crc64")?;
    refused(&spec("none:8:reftag"), code::USAGE, "reference tag")?;
    refused(&spec("crc32:8"), code::USAGE, "CHECKSUM:BYTES")?;
    let zoned = spec("crc16:8").with(&["--zone-size", "1M"]);
    refused(&zoned, code::USAGE, "zoned")?;
    let fault = Spec {
        backend: "fault",
        ..Spec::mem("1M")
    };
    let fault = fault.with(&["--integrity", "crc16:8"]);
    refused(&fault, code::USAGE, "memory and file devices")
}

fn flips_a_byte(path: &Path, at: u64) -> Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(file.sync_all()?)
}

/// Where the metadata begins in its file.
const METADATA_AT: u64 = 1 << 20;

/// What the kernel has made is beside the data after a kill, an upgrade, a resize and a new start of the device; metadata that is
/// damaged on the disk is EILSEQ for its reader, and what does not match after a kill is taken away.
fn on_file() -> Result<()> {
    let storage = Volume::new(Kind::Ext4, 0)?;
    let path = storage.file("disk.img", 32 << 20)?;
    let side = PathBuf::from(format!("{}.integrity", path.display()));
    let args = ["--integrity", "crc16:8:reftag", "--recovery", "reissue"];
    let spec = Spec::file(&path).block_size(512).with(&args);
    let half = spec.clone().with(&["--length", "16M"]);
    let Some(device) = device(&half)? else {
        return storage.remove();
    };
    let id = device.id.to_string();
    let direct = device.open()?;
    let kept = |direct: &Direct| -> Result<()> {
        let (mut data, mut metadata) = (Buffer::new(4096), vec![0; 64]);
        let read = client::read(direct.file(), 8192, &mut data, &mut metadata)?;
        ensure!(read == Ok(()), "{read:?}");
        for (block, tuple) in data.bytes().chunks(512).zip(metadata.chunks(8)) {
            ensure!(tuple[..2] == crc16(block).to_be_bytes(), "{tuple:?}");
        }
        direct.check_pattern(0, 1 << 20, 1)
    };
    direct.write_pattern(0, 1 << 20, 1)?;
    kept(&direct)?;
    device.kill_server("quiesced")?;
    // The server before it noted that this region may be torn.
    flips_a_byte(&side, METADATA_AT + (1 << 20) / 512 * 8 - 8)?;
    ublkctl(&["recover", &id])?.good()?;
    kept(&direct)?;
    direct.check_pattern((1 << 20) - 512, 512, 1)?;
    ublkctl(&["upgrade", &id])?.good()?;
    kept(&direct)?;
    ublkctl(&["resize", &id, "32M"])?.good()?;
    kept(&direct)?;
    direct.write_pattern(31 << 20, 64 << 10, 2)?;
    direct.check_pattern(31 << 20, 64 << 10, 2)?;
    drop(direct);
    device.delete()?;
    // It ended cleanly: nothing is checked, so the damage stays for its reader.
    flips_a_byte(&side, METADATA_AT + 8)?;
    let device = spec.add()?;
    let direct = device.open()?;
    ensure!(read_error(&direct, 512) == Some(libc::EILSEQ), "not EILSEQ");
    direct.check_pattern(1024, 1 << 19, 1)?;
    direct.check_pattern(31 << 20, 64 << 10, 2)?;
    direct.write_pattern(512, 512, 3)?;
    direct.check_pattern(512, 512, 3)?;
    drop(direct);
    device.delete()?;
    storage.remove()
}

/// Metadata of another device, and data without its metadata, are refused by name.
fn on_file_refusals() -> Result<()> {
    if sysfs::kernel() < (7, 0) {
        return Ok(());
    }
    let storage = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let path = storage.file("disk.img", 4 << 20)?;
    let side = PathBuf::from(format!("{}.integrity", path.display()));
    let plain = Spec::file(&path).block_size(512);
    let with = |format| plain.clone().with(&["--integrity", format]);
    let device = with("crc16:8").with(&["--recovery", "reissue"]).add()?;
    let direct = device.open()?;
    direct.write_pattern(0, 4096, 1)?;
    direct.check_pattern(0, 4096, 1)?;
    let id = device.id.to_string();
    device.kill_server("quiesced")?;
    let away = side.with_extension("away");
    fs::rename(&side, &away)?;
    cli::fails(&["recover", &id], code::FAILED, &["metadata is missing"])?;
    fs::rename(&away, &side)?;
    ublkctl(&["recover", &id])?.good()?;
    direct.check_pattern(0, 4096, 1)?;
    drop(direct);
    device.delete()?;
    refused(&plain, code::FAILED, "would not match")?;
    refused(&with("crc64:16"), code::FAILED, "--integrity crc16:8")?;
    let short = with("crc16:8").with(&["--length", "1M"]);
    refused(&short, code::FAILED, "a device of 4194304 bytes")?;
    let name = side.display().to_string();
    let other = storage.file("other.img", 4 << 20)?;
    let other = Spec::file(&other).block_size(512);
    let other = other.with(&["--integrity", "crc16:8", "--integrity-file", &name]);
    let first = with("crc16:8").add()?;
    refused(&other, code::FAILED, "another server")?;
    first.delete()?;
    flips_a_byte(&side, 100)?;
    refused(&with("crc16:8"), code::FAILED, "header")?;
    fs::write(&side, "no metadata")?;
    refused(&with("crc16:8"), code::FAILED, "not a file of integrity")?;
    plain.add()?.delete()?;
    storage.remove()
}
