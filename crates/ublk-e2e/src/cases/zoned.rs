//! Zoned devices of the tool: on memory and on a file, judged by fio's zone mode and by the block layer's own report.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl, ublkctl_json};
use crate::direct_io::Buffer;
use crate::fio::Fio;
use crate::volume::{Kind, Volume};
use crate::wait::{secs, until};
use crate::{pattern, run, sysfs};

const ZONE: u64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("zoned_mem_is_a_zoned_disk", memory),
        Case::new("zoned_file_keeps_its_pointers", file),
        Case::new("zoned_file_belongs_to_its_pointers", || {
            second_file(&["--zone-size", "1M"], ".zones", "write pointers")
        }),
        Case::new("integrity_file_belongs_to_its_metadata", || {
            second_file(&["--integrity", "crc16:8"], ".integrity", "metadata")
        }),
        Case::new("zoned_reset_works_on_a_full_disk", full),
    ]
}

/// Write pointers of all zones, in sectors from the zone's start, by `blkzone report`.
pub(super) fn pointers(node: &str) -> Result<Vec<u64>> {
    let output = run::good("blkzone", &["report", node])?;
    let pointer = |line: &str| {
        let (_, rest) = line.split_once("wptr 0x")?;
        let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
        u64::from_str_radix(&digits, 16).ok()
    };
    let all: Option<Vec<u64>> = output.stdout.lines().map(pointer).collect();
    all.with_context(|| format!("no report: {output}"))
}

/// fio writes, verifies and resets zones with its own view of the write pointers.
fn by_fio(device: &Device) -> Result<()> {
    let done = Fio::new(device.node())
        .set("zonemode", "zbd")
        .set("rw", "randwrite")
        .set("bs", "16k")
        .set("size", "8m")
        .set("iodepth", 8)
        .set("max_open_zones", 3)
        .set("verify", "crc32c")
        .run(1)?;
    ensure!(done.written > 0 && done.read > 0, "{done:?}");
    Ok(())
}

fn memory() -> Result<()> {
    let args = [
        "--zone-size",
        "1M",
        "--zone-capacity",
        "768K",
        "--conventional-zones",
        "2",
        "--max-open-zones",
        "4",
        "--max-active-zones",
        "6",
    ];
    let spec = Spec::mem("16M").queues(2).block_size(4096);
    let device = spec.clone().with(&args).add()?;
    ensure!(sysfs::text(device.id, "queue/zoned")? == "host-managed");
    ensure!(sysfs::number(device.id, "queue/nr_zones")? == 16);
    ensure!(sysfs::number(device.id, "queue/max_open_zones")? == 4);
    by_fio(&device)?;
    run::good("blkzone", &["reset", device.node()])?;
    ensure!(pointers(device.node())?[2..].iter().all(|at| *at == 0));
    device.delete()?;
    for (data, backend) in [("copy", "mem"), ("user-copy", "null")] {
        let spec = Spec {
            backend,
            ..spec.clone()
        };
        let spec = spec.with(&["--zone-size", "1M", "--data", data]);
        let args = spec.args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cli::fails(&args, code::USAGE, &["zoned"])?;
    }
    Ok(())
}

/// After the death of its server, and after an upgrade, a write pointer is where acknowledged writes end.
fn file() -> Result<()> {
    let storage = Volume::new(Kind::Ext4, 0)?;
    let path = storage.file("disk.img", 16 * ZONE)?;
    let args = ["--zone-size", "1M", "--recovery", "reissue"];
    let device = Spec::file(&path).block_size(4096).with(&args).add()?;
    let node = device.node().to_owned();
    let direct = device.open()?;
    let write = |at: u64, len: usize| -> Result<()> {
        let mut data = Buffer::new(len);
        pattern::fill(data.bytes_mut(), at, 1);
        Ok(direct.file().write_all_at(data.bytes(), at)?)
    };
    write(3 * ZONE, 64 << 10)?;
    ensure!(
        write(3 * ZONE + (128 << 10), 4096).is_err(),
        "not at the pointer"
    );
    let id = device.id.to_string();
    device.kill_server("quiesced")?;
    ublkctl(&["recover", &id])?.good()?;
    ensure!(pointers(&node)?[3] == 128, "{:?}", pointers(&node)?);
    write(3 * ZONE + (64 << 10), 4096)?;
    ublkctl(&["upgrade", &id])?.good()?;
    ensure!(pointers(&node)?[3] == 136, "{:?}", pointers(&node)?);
    direct.check_pattern(3 * ZONE, 68 << 10, 1)?;
    direct.check_zero(3 * ZONE + (68 << 10), 4096)?;
    by_fio(&device)?;
    drop(direct);
    device.delete()?;
    ensure!(Path::new(&format!("{}.zones", path.display())).exists());
    storage.remove()
}

/// The second file of a device is that of its data: nobody else writes to the data, by whatever path, and neither another
/// part of it, nor another device, nor the next server takes what is not theirs.
fn second_file(options: &[&str], suffix: &str, what: &str) -> Result<()> {
    let storage = Volume::new(Kind::Ext4, 0)?;
    let path = storage.file("disk.img", 16 * ZONE)?;
    let link = storage.path("link")?;
    std::os::unix::fs::symlink(&path, &link)?;
    let spec = |path: &Path, more: &[&str]| {
        let spec = Spec::file(path).block_size(4096);
        spec.with(options)
            .with(&["--recovery", "reissue"])
            .with(more)
    };
    let refused = |spec: &Spec, words: &str| -> Result<()> {
        let args = spec.args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        cli::fails(&args, code::FAILED, &[what, words])?;
        Ok(())
    };
    let device = spec(&link, &["--length", "8M"]).add()?;
    let second = PathBuf::from(format!("{}{suffix}", path.display()));
    ensure!(second.exists(), "it is not beside the file");
    let info = ublkctl_json(&["info", &device.id.to_string()])?;
    let shown = match suffix {
        ".zones" => info["zones"]["size"].clone(),
        _ => info["integrity"].clone(),
    };
    ensure!(
        shown == ZONE || shown == "crc16:8",
        "info does not tell: {info}"
    );
    device.open()?.write_pattern(0, 64 << 10, 1)?;
    let forced = ["--length", "8M", "--force"];
    refused(&spec(&path, &forced), "another server")?;
    device.delete()?;
    refused(&spec(&path, &["--offset", "8M"]), "offset 0")?;
    for path in [&path, &link] {
        refused(&Spec::file(path), "would not match")?;
    }
    let other = storage.file("other.img", 16 * ZONE)?;
    spec(&other, &["--length", "8M"]).add()?.delete()?;
    let device = spec(&path, &["--length", "8M"]).add()?;
    device.open()?.check_pattern(0, 64 << 10, 1)?;
    let (id, kept) = (device.id.to_string(), storage.path("kept")?);
    ublkctl(&["quiesce", &id])?.good()?;
    std::fs::rename(&second, &kept)?;
    std::fs::copy(format!("{}{suffix}", other.display()), &second)?;
    cli::fails(&["recover", &id], code::FAILED, &["of another file"])?;
    std::fs::rename(&kept, &second)?;
    ublkctl(&["recover", &id])?.good()?;
    device.open()?.check_pattern(0, 64 << 10, 1)?;
    device.delete()?;
    // An agent that tries again says why it has to.
    let device = spec(&path, &["--length", "8M", "--supervise"]).add()?;
    std::fs::rename(&second, &kept)?;
    crate::procfs::kill(device.server_now()?, rustix::process::Signal::KILL)?;
    until("the reason", cli::patience(), || {
        let info = device.query()?;
        let cause = info["cause"].as_str().unwrap_or_default();
        let told = cause.contains("recovery failed") && cause.contains("missing");
        Ok(told.then_some(()))
    })?;
    std::fs::rename(&kept, &second)?;
    device.wait_state("live", cli::patience() + secs(20))?;
    device.open()?.check_pattern(0, 64 << 10, 1)?;
    device.delete()?;
    std::fs::remove_file(&path)?;
    refused(
        &spec(&path, &["--create", "--size", "16M"]),
        "of another file than the one to be created",
    )?;
    storage.remove()
}

/// A disk without room fails the writes of a zoned device, and neither the reset of a zone, which gives room, nor its end.
fn full() -> Result<()> {
    let storage = Volume::new(Kind::Tmpfs, 8 << 20)?;
    let path = storage.file("disk.img", 16 * ZONE)?;
    let args = ["--zone-size", "1M", "--recovery", "reissue"];
    let device = Spec::file(&path).block_size(4096).with(&args).add()?;
    let direct = device.open()?;
    let zone = vec![7; usize::try_from(ZONE)?];
    let mut data = Buffer::new(zone.len());
    data.bytes_mut().copy_from_slice(&zone);
    let written = |zone: u64| direct.file().write_all_at(data.bytes(), zone * ZONE);
    let count = (0..16).take_while(|zone| written(*zone).is_ok()).count();
    ensure!((4..8).contains(&count), "{count} zones were written");
    let before = crate::volume::used(&path)?;
    run::good("blkzone", &["reset", "-c", "1", device.node()])?;
    ensure!(crate::volume::used(&path)? < before, "nothing was freed");
    ensure!(pointers(device.node())?[0] == 0);
    written(0)?;
    drop(direct);
    device.delete()?;
    storage.remove()
}
