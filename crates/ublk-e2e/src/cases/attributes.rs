//! The attributes that the kernel shows are those that the backend declares.

use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;
use ublk::{Backend, Limits};
use ublk_backends::{Memory, Null};

use super::matrix;
use crate::case::Case;
use crate::cli::{self, Device, Spec};
use crate::embed::Embedded;
use crate::fs::{Kind, Mounted};
use crate::{json, run, sysfs};

pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = matrix()
        .map(|(queues, block)| {
            Case::new(
                format!("l06_attributes_are_as_declared_q{queues}_b{block}"),
                move || attributes(queues, block),
            )
        })
        .collect();
    all.push(Case::new(
        "l06_cache_and_fua_are_as_declared",
        cache_and_fua,
    ));
    all.push(Case::new("simple_read_only_is_read_only", read_only));
    all.push(Case::new("scheduler_is_none_or_the_kernels", schedulers));
    all.push(Case::new(
        "l03_largest_request_is_as_asked",
        largest_request,
    ));
    all
}

/// Checks the value of an attribute.
fn shows(id: u32, name: &str, wanted: u64) -> Result<()> {
    let found = sysfs::number(id, name)?;
    ensure!(found == wanted, "{name} is {found}, declared {wanted}");
    Ok(())
}

fn check(device: &Device, limits: &Limits, depth: u64) -> Result<()> {
    let id = device.id;
    // Size in sectors of 512 bytes, whatever the block size (L02).
    shows(id, "size", limits.size / 512)?;
    shows(
        id,
        "queue/logical_block_size",
        limits.logical_block_size.into(),
    )?;
    shows(
        id,
        "queue/physical_block_size",
        limits.physical_block_size.into(),
    )?;
    shows(
        id,
        "queue/discard_granularity",
        limits.discard_granularity.into(),
    )?;
    shows(id, "queue/discard_max_hw_bytes", limits.max_discard)?;
    shows(id, "queue/discard_max_bytes", limits.max_discard)?;
    shows(id, "queue/write_zeroes_max_bytes", limits.max_write_zeroes)?;
    shows(id, "queue/rotational", 0)?;
    shows(id, "queue/fua", u64::from(limits.fua))?;
    shows(id, "ro", u64::from(limits.read_only))?;
    let cache = sysfs::text(id, "queue/write_cache")?;
    let wanted = if limits.volatile_cache {
        "write back"
    } else {
        "write through"
    };
    ensure!(
        cache == wanted,
        "write_cache is {cache:?}, declared {wanted:?}"
    );
    scheduler(device, "[none]")?;
    // A scheduler would have requests of its own: without one the tags are the requests.
    shows(id, "queue/nr_requests", depth)?;
    for (key, value) in [
        ("size", limits.size),
        ("block_size", limits.logical_block_size.into()),
        ("depth", depth),
    ] {
        let said = json::number(&device.info, key)?;
        ensure!(said == value, "info says {key} {said}, declared {value}");
    }
    Ok(())
}

/// Checks the I/O scheduler of the device.
fn scheduler(device: &Device, wanted: &str) -> Result<()> {
    let schedulers = sysfs::text(device.id, "queue/scheduler")?;
    ensure!(
        schedulers.contains(wanted),
        "{schedulers:?}, wanted {wanted}"
    );
    Ok(())
}

/// A device of one queue has no I/O scheduler either, unless the kernel's choice was requested; a new server changes
/// nothing.
fn schedulers() -> Result<()> {
    let device = Spec::null("1G").add()?;
    scheduler(&device, "[none]")?;
    device.delete()?;
    let kernel = ["--scheduler", "kernel", "--recovery", "reissue"];
    let device = Spec::null("1G").with(&kernel).add()?;
    scheduler(&device, "[mq-deadline]")?;
    device.kill_server("quiesced")?;
    cli::ublkctl(&["recover", &device.id.to_string()])?.good()?;
    scheduler(&device, "[mq-deadline]")?;
    device.delete()
}

/// L06 Attributes and limits reach the driver, including those of the backend. L02 in sectors.
fn attributes(queues: usize, block: u32) -> Result<()> {
    let memory = Memory::new(64 << 20, block)?;
    let device = Spec::mem("64M")
        .queues(queues)
        .depth(96)
        .block_size(block)
        .add()?;
    check(&device, &memory.limits(), 96)?;
    device.delete()?;
    let null = Null::new(1 << 40, block)?;
    let device = Spec::null("1T")
        .queues(queues)
        .depth(32)
        .block_size(block)
        .add()?;
    check(&device, &null.limits(), 32)?;
    device.delete()
}

/// L06 A volatile cache and FUA are reported to the kernel, or it would never send a FLUSH.
fn cache_and_fua() -> Result<()> {
    for (cache, fua) in [(false, false), (true, false), (true, true)] {
        let args = [format!("cache={cache}"), format!("fua={fua}")];
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let embedded = Embedded::start(1, &args)?;
        let found = sysfs::text(embedded.id, "queue/write_cache")?;
        let wanted = if cache { "write back" } else { "write through" };
        ensure!(
            found == wanted,
            "write_cache is {found:?}, declared {wanted:?}"
        );
        shows(embedded.id, "queue/fua", u64::from(fua))?;
        embedded.remove()?;
    }
    Ok(())
}

/// A read-only device refuses data, discards and zeroes, and read-write mounts.
fn read_only() -> Result<()> {
    let device = Spec::mem("64M").queues(2).with(&["--read-only"]).add()?;
    shows(device.id, "ro", 1)?;
    let said = run::good("blockdev", &["--getro", device.node()])?;
    ensure!(said.stdout.trim() == "1", "{said}");
    let refused = |error: &anyhow::Error| {
        let kind = error
            .downcast_ref::<std::io::Error>()
            .map(std::io::Error::kind);
        matches!(
            kind,
            Some(ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
        )
    };
    let write = device.open().and_then(|d| d.write_pattern(0, 4096, 1));
    let error = write
        .err()
        .context("a write to a read-only device passed")?;
    ensure!(refused(&error), "refused with {error:#}");
    for args in [&["-f", device.node()], &["-z", device.node()]] {
        let done = run::good("blkdiscard", args);
        ensure!(done.is_err(), "blkdiscard {args:?} passed");
    }
    ensure!(Mounted::new(&device, Kind::Ext4, MountFlags::empty()).is_err());
    let direct = crate::direct_io::Direct::open_read(&device.path)?;
    direct.check_zero(0, 1 << 20)?;
    drop(direct);
    device.delete()
}

/// L03 The largest request is the requested one, and arrives in one piece.
fn largest_request() -> Result<()> {
    for (word, bytes) in [("4K", 4096_u64), ("64K", 64 << 10), ("1M", 1 << 20)] {
        let device = Spec::mem("32M").with(&["--max-io", word]).add()?;
        shows(device.id, "queue/max_hw_sectors_kb", bytes >> 10)?;
        ensure!(json::number(&device.info, "max_io_bytes")? == bytes);
        let direct = device.open()?;
        direct.write_pattern(0, 2 << 20, 3)?;
        direct.check_pattern(0, 2 << 20, 3)?;
        drop(direct);
        device.delete()?;
    }
    Ok(())
}
