//! Resizing a device in use.

use std::fs::{File, OpenOptions};

use anyhow::{Context, Result, ensure};
use rustix::mount::MountFlags;

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl};
use crate::embed::Embedded;
use crate::fs::{Kind, Mounted, compare, fill};
use crate::verifier::Load;
use crate::wait::{secs, until};
use crate::{run, sysfs};

const MIB: u64 = 1 << 20;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("resize_up_and_down", up_and_down),
        Case::new("resize_of_a_file_that_grew_under_load", grown),
        Case::new("resize_of_a_mounted_file_system", mounted),
        Case::new("resize_is_refused_by_name", refused),
        Case::new("resize_by_a_program_with_a_file_that_grew", by_a_program),
    ]
}

/// Whether the driver supports it; if not, checks that the refusal says so.
fn can() -> Result<bool> {
    if sysfs::kernel() >= (6, 16) {
        return Ok(true);
    }
    let device = Spec::null("1G").with(&["--recovery", "reissue"]).add()?;
    let id = device.id.to_string();
    let parts = ["UPDATE_SIZE", "6.16"];
    cli::fails(&["resize", &id, "2G"], code::FAILED, &parts)?;
    device.delete()?;
    Ok(false)
}

/// The size in bytes according to the kernel.
fn size(device: &Device) -> Result<u64> {
    Ok(sysfs::number(device.id, "size")? * 512)
}

fn has(device: &Device, bytes: u64) -> Result<()> {
    let found = size(device)?;
    ensure!(found == bytes, "{found} bytes, expected {bytes}");
    let seen = device.query()?["size"].as_u64();
    ensure!(seen == Some(bytes), "info says {seen:?}");
    Ok(())
}

fn up_and_down() -> Result<()> {
    if !can()? {
        return Ok(());
    }
    let device = Spec::null("1G").with(&["--recovery", "queue"]).add()?;
    let id = device.id.to_string();
    let server = device.server_now()?;
    ublkctl(&["resize", &id, "2G"])?.good()?;
    has(&device, 2048 * MIB)?;
    ensure!(
        device.server_now()? != server,
        "the old server knows no end but the old"
    );
    // The part beyond the old end is served.
    device.open()?.read(2047 * MIB, 4096)?;
    ublkctl(&["resize", &id, "512M"])?.good()?;
    has(&device, 512 * MIB)?;
    let node = File::open(&device.path)?;
    let me = format!("process {}", std::process::id());
    cli::fails(
        &["resize", &id, "256M"],
        code::FAILED,
        &["last", &me, "--force"],
    )?;
    ublkctl(&["resize", "--force", &id, "256M"])?.good()?;
    drop(node);
    has(&device, 256 * MIB)?;
    // The next server uses the present size, not the one at creation.
    device.kill_server("quiesced")?;
    ublkctl(&["recover", &id])?.good()?;
    has(&device, 256 * MIB)?;
    device.delete()
}

/// A file that has grown, with requests in flight: none fails, none is lost.
fn grown() -> Result<()> {
    if !can()? {
        return Ok(());
    }
    let backing = Backing::new("grown");
    let device = backing.spec("32M", &["--recovery", "reissue"]).add()?;
    let id = device.id.to_string();
    let load = Load::start(&device.path, 4, 128)?;
    load.more(50, secs(60))?;
    let longer = OpenOptions::new().write(true).open(backing.path())?;
    longer.set_len(64 * MIB)?;
    cli::fails(&["resize", &id, "65M"], code::USAGE, &["grow the file"])?;
    ublkctl(&["resize", &id, "--fill"])?.good()?;
    has(&device, 64 * MIB)?;
    load.more(50, secs(60))?;
    let known = load.stop(secs(60))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    known.check(&device.path)?;
    device.open()?.write_pattern(63 * MIB, 65_536, 5)?;
    device.open()?.check_pattern(63 * MIB, 65_536, 5)?;
    ublkctl(&["resize", &id, "32M"])?.good()?;
    has(&device, 32 * MIB)?;
    longer.set_len(32 * MIB)?;
    // The device fits the shorter file again, also for its next server.
    device.kill_server("quiesced")?;
    ublkctl(&["recover", &id])?.good()?;
    known.check(&device.path)?;
    device.delete()
}

/// An embedding program under load: its file has grown, and its device grows with the same server. Only if there is
/// space, and only if the backend supports it.
fn by_a_program() -> Result<()> {
    let backing = Backing::new("program");
    File::create(backing.path())?.set_len(16 * MIB)?;
    let word = format!("file={}", backing.path().display());
    let mut device = Embedded::start(2, &[&word])?;
    let mib = |count: u64| format!("resize {}", count * MIB);
    let refused = |device: &mut Embedded, count: u64, why: &str| -> Result<()> {
        let error = device.ask(&mib(count)).err().context("it was done")?;
        ensure!(format!("{error:#}").contains(why), "{error:#}");
        let bytes = sysfs::number(device.id, "size")? * 512;
        ensure!(bytes == 16 * MIB, "{bytes} bytes");
        Ok(())
    };
    refused(&mut device, 32, "no space")?;
    let longer = OpenOptions::new().write(true).open(backing.path())?;
    longer.set_len(32 * MIB)?;
    if sysfs::kernel() < (6, 16) {
        refused(&mut device, 32, "6.16")?;
        return device.remove();
    }
    let load = Load::start(&device.path, 4, 128)?;
    load.more(50, secs(60))?;
    device.ask(&mib(32))?;
    let direct = device.open()?;
    direct.write_pattern(32 * MIB - 65_536, 65_536, 5)?;
    direct.check_pattern(32 * MIB - 65_536, 65_536, 5)?;
    ensure!(direct.write_pattern(32 * MIB, 512, 5).is_err(), "behind");
    load.more(50, secs(60))?;
    device.ask(&mib(24))?;
    ensure!(direct.read(24 * MIB, 512).is_err(), "behind the new end");
    direct.write_pattern(24 * MIB - 512, 512, 6)?;
    device.ask(&mib(16))?;
    let known = load.stop(secs(60))?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    known.check(&device.path)?;
    drop(direct);
    device.remove()?;
    // Memory was reserved once at creation.
    let mut device = Embedded::start(1, &[])?;
    refused(&mut device, 32, "cannot have")?;
    // It can shrink: that needs nothing of the backend.
    device.ask(&mib(8))?;
    let bytes = sysfs::number(device.id, "size")? * 512;
    ensure!(bytes == 8 * MIB, "{bytes} bytes");
    device.remove()
}

/// The mounted file system on top grows into the new space, and is not shrunk by accident.
fn mounted() -> Result<()> {
    if !can()? {
        return Ok(());
    }
    let backing = Backing::new("resize-fs");
    let device = backing.spec("64M", &["--recovery", "reissue"]).add()?;
    let id = device.id.to_string();
    Kind::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Kind::Ext4, MountFlags::empty())?;
    fill(&mounted.at, 5)?;
    let file = OpenOptions::new().write(true).open(backing.path())?;
    file.set_len(128 * MIB)?;
    ublkctl(&["resize", &id, "128M"])?.good()?;
    run::good("resize2fs", &[device.node()])?;
    let at = mounted.at.to_str().context("plain")?;
    cli::fails(&["resize", &id, "64M"], code::FAILED, &["mounted at", at])?;
    fill(&mounted.at, 14)?;
    compare(&mounted.at, 14)?;
    mounted.unmount()?;
    Kind::Ext4.check(&device)?;
    device.delete()
}

/// Cases in which a resize is refused, with the reason.
fn refused() -> Result<()> {
    if !can()? {
        return Ok(());
    }
    let mem = Spec::mem("16M").add()?;
    cli::fails(
        &["resize", &mem.id.to_string(), "32M"],
        code::USAGE,
        &["memory device"],
    )?;
    mem.delete()?;
    let device = Spec::null("1G").add()?;
    let id = device.id.to_string();
    let parts = ["without recovery", "--recovery reissue"];
    cli::fails(&["resize", &id, "2G"], code::FAILED, &parts)?;
    cli::fails(&["resize", &id], code::USAGE, &["<SIZE>"])?;
    cli::fails(&["resize", &id, "--fill"], code::USAGE, &["give a size"])?;
    device.delete()?;
    cli::fails(&["resize", &id, "2G"], code::NO_DEVICE, &["no ublk device"])?;
    // Older kernels crash if this reaches a device without a disk.
    let device = Spec::null("1G").with(&["--recovery", "queue"]).add()?;
    let id = device.id.to_string();
    device.kill_server("quiesced")?;
    cli::fails(
        &["resize", &id, "2G"],
        code::FAILED,
        &["is quiesced", "recover the device first"],
    )?;
    ublkctl(&["stop", &id])?.good()?;
    until("a dead device", secs(5), || {
        Ok((device.query()?["state"] == "dead").then_some(()))
    })?;
    cli::fails(
        &["resize", &id, "2G"],
        code::FAILED,
        &["is dead", "only a live device"],
    )?;
    device.delete()
}
