//! Options that the block layer sees: parameters, descriptors, threads, faults by plan, and I/O that is held.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::case::Case;
use crate::cli::{self, Spec, code, ublkctl};
use crate::fio::Fio;
use crate::volume::{Kind, Volume};
use crate::wait::secs;
use crate::{json, sysfs};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("parameters_replace_those_of_the_backend", parameters),
        Case::new("l01_wide_descriptors_keep_data", descriptors),
        Case::new("threads_fewer_than_queues_serve_all", threads),
        Case::new("fault_device_fails_by_plan", faults),
        Case::new("quiesce_holds_io_until_recover", quiesce),
    ]
}

/// Runs `add`, which must fail.
fn refused(spec: &Spec, code: i32, parts: &[&str]) -> Result<()> {
    let args = spec.args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    cli::fails(&args, code, parts).map(drop)
}

/// What is asked for is in sysfs, and what the driver would refuse is refused by name.
fn parameters() -> Result<()> {
    let args = [
        "--io-min",
        "8K",
        "--io-opt",
        "64K",
        "--io-boundary",
        "128K",
        "--rotational",
        "--no-partition-scan",
    ];
    let device = Spec::mem("16M").with(&args).add()?;
    for (name, value) in [
        ("queue/minimum_io_size", 8 << 10),
        ("queue/optimal_io_size", 64 << 10),
        ("queue/chunk_sectors", 256),
        ("queue/rotational", 1),
    ] {
        let found = sysfs::number(device.id, name)?;
        ensure!(found == value, "{name} is {found}, not {value}");
    }
    let direct = device.open()?;
    direct.write_pattern(4096, 1 << 20, 1)?;
    direct.check_pattern(4096, 1 << 20, 1)?;
    drop(direct);
    device.delete()?;
    let device = Spec::mem("16M").with(&["--virt-boundary", "4K"]).add()?;
    ensure!(sysfs::number(device.id, "queue/virt_boundary_mask")? == 4095);
    device.delete()?;
    let odd = Spec::mem("16M").with(&["--io-min", "3K"]);
    refused(&odd, code::USAGE, &["minimum I/O size", "power of two"])
}

/// With descriptors of 64 and 256 bytes every tag of every queue has its own. A kernel without them says so.
fn descriptors() -> Result<()> {
    for (bytes, batch) in [("64", "off"), ("256", "on")] {
        let args = ["--descriptor-size", bytes, "--batch", batch];
        let spec = Spec::mem("16M").queues(2).with(&args);
        if sysfs::kernel() < (7, 3) {
            refused(&spec, code::FAILED, &["IO_DESC_SIZE"])?;
            continue;
        }
        let device = spec.add()?;
        verify(device.node())?;
        device.delete()?;
    }
    let odd = Spec::mem("16M").with(&["--descriptor-size", "60"]);
    refused(&odd, code::USAGE, &["multiple of 8"])
}

fn verify(node: &str) -> Result<()> {
    let done = Fio::new(node)
        .set("rw", "randwrite")
        .set("bs", "4k")
        .set("size", "4m")
        .set("offset_increment", "4m")
        .set("iodepth", 64)
        .set("numjobs", 2)
        .set("verify", "crc32c")
        .run(2)?;
    ensure!(done.written == 8 << 20, "{done:?}");
    Ok(())
}

/// One thread serves four queues.
fn threads() -> Result<()> {
    let spec = Spec::mem("16M").queues(4).with(&["--total-threads", "1"]);
    let device = spec.add()?;
    verify(device.node())?;
    let info = device.query()?;
    let queues = json::find(&info, "queues").context("queues")?.clone();
    let health = json::find(&info, "health").context("health")?;
    let all = json::find(health, "queues").and_then(|q| q.as_array());
    let all = all.context("queues of the health")?;
    ensure!(queues.as_u64() == Some(all.len() as u64), "{info}");
    ensure!(all.iter().all(|q| q["thread"] == 0), "one thread: {info}");
    device.delete()
}

/// Selected requests fail with the errno of the plan, or are late; all others are served.
fn faults() -> Result<()> {
    let base = Spec {
        backend: "fault",
        ..Spec::mem("16M")
    };
    let args = [
        "--error-rate",
        "100",
        "--errno",
        "ENOSPC",
        "--on",
        "write",
        "--range",
        "1M:4K",
    ];
    let device = base.clone().with(&args).add()?;
    let direct = device.open()?;
    direct.write_pattern(0, 1 << 20, 1)?;
    direct.check_pattern(0, 1 << 20, 1)?;
    let failed = direct.write_pattern(1 << 20, 4096, 1);
    let failed = failed.err().context("it is selected")?;
    let errno = failed
        .downcast_ref::<std::io::Error>()
        .and_then(std::io::Error::raw_os_error);
    ensure!(errno == Some(libc::ENOSPC), "{failed:#}");
    direct.check_zero(1 << 20, 4096)?;
    drop(direct);
    device.delete()?;
    let device = base.with(&["--delay", "300ms", "--on", "read"]).add()?;
    let direct = device.open()?;
    let begun = Instant::now();
    direct.read(0, 4096)?;
    ensure!(begun.elapsed() >= Duration::from_millis(300), "not delayed");
    drop(direct);
    device.delete()
}

/// I/O waits from `quiesce` to `recover`, and no request fails.
fn quiesce() -> Result<()> {
    let storage = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let file = storage.file("disk.img", 16 << 20)?;
    let device = Spec::file(&file).with(&["--recovery", "queue"]).add()?;
    let id = device.id.to_string();
    if sysfs::kernel() < (6, 16) {
        cli::fails(&["quiesce", &id], code::FAILED, &["6.16"])?;
        device.delete()?;
        return storage.remove();
    }
    device.open()?.write_pattern(0, 1 << 20, 1)?;
    ublkctl(&["quiesce", &id])?.good()?;
    ublkctl(&["quiesce", &id])?.good()?;
    ensure!(json::text(&device.query()?, "state")? == "quiesced");
    let direct = device.open()?;
    let late = std::thread::spawn(move || direct.check_pattern(0, 1 << 20, 1));
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!late.is_finished(), "it was not held");
    ublkctl(&["recover", &id])?.good()?;
    late.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    device.delete()?;
    let device = Spec::mem("16M").add()?;
    let id = device.id.to_string();
    cli::fails(&["quiesce", &id], code::FAILED, &["recovery"])?;
    device.delete()?;
    // Its requests fail meanwhile: asked for, that is a success.
    let device = Spec::file(&file).with(&["--recovery", "fail"]).add()?;
    let id = device.id.to_string();
    cli::fails(&["quiesce", &id], code::FAILED, &["--allow-errors"])?;
    for _ in 0..2 {
        ublkctl(&["quiesce", "--allow-errors", &id])?.good()?;
        ensure!(json::text(&device.query()?, "state")? == "fail-io");
    }
    ublkctl(&["recover", &id])?.good()?;
    device.delete()?;
    cli::nothing_left(secs(10))?;
    storage.remove()
}
