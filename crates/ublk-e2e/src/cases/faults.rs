//! How requests reach the backend, and how its failures are reported, with devices of a program that embeds the facade.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::case::Case;
use crate::direct_io::Buffer;
use crate::embed::Embedded;
use crate::{json, run};

pub fn cases() -> Vec<Case> {
    let mut all = vec![
        Case::new("simple_flush_reaches_the_backend", flush),
        Case::new("l07_flush_on_fsync_of_a_file", fsync_of_a_file),
        Case::new("l07_fua_is_kept", fua),
        Case::new("l07_a_failed_flush_fails_fsync", failed_flush),
        Case::new("errors_keep_their_errno", errors),
    ];
    for queues in [1, 4] {
        all.push(Case::new(
            format!("l25_a_panic_is_contained_q{queues}"),
            move || panic_is_contained(queues),
        ));
    }
    all
}

/// L07 fsync of the device becomes a FLUSH if a volatile cache was declared, and only then.
fn flush() -> Result<()> {
    for cache in [true, false] {
        let mut embedded = Embedded::start(2, &[&format!("cache={cache}")])?;
        let file = File::options().write(true).open(&embedded.path)?;
        for round in 1..=3 {
            file.write_all_at(&[1; 4096], 4096 * round)?;
            file.sync_all()?;
            let flushes = embedded.count("flushes")?;
            let wanted = if cache { round } else { 0 };
            ensure!(
                flushes == wanted,
                "{flushes} flushes after {round} fsyncs, cache {cache}"
            );
            ensure!(embedded.count("writes")? >= round);
        }
        drop(file);
        embedded.remove()?;
    }
    Ok(())
}

fn fsync_of_a_file() -> Result<()> {
    let mut embedded = Embedded::start(2, &["cache=true", "size=67108864"])?;
    let node = embedded.path.to_string_lossy().into_owned();
    run::good("mkfs.ext4", &["-q", "-F", &node])?;
    let at = std::env::temp_dir().join("ublk-e2e-fsync");
    std::fs::create_dir_all(&at)?;
    mount(&embedded.path, &at, "ext4", MountFlags::empty(), None).context("mount")?;
    let counted = (|| -> Result<()> {
        let mut file = File::create(at.join("file"))?;
        file.write_all(&[7; 10_000])?;
        let before = embedded.count("flushes")?;
        file.sync_all()?;
        let after = embedded.count("flushes")?;
        ensure!(
            after > before,
            "fsync: {before} flushes before, {after} after"
        );
        Ok(())
    })();
    unmount(&at, UnmountFlags::empty()).context("umount")?;
    std::fs::remove_dir(&at)?;
    counted?;
    embedded.remove()
}

/// L07 A durable write is one with FUA if that was declared, and a write followed by a FLUSH if only the cache was.
fn fua() -> Result<()> {
    for fua in [true, false] {
        let mut embedded = Embedded::start(1, &["cache=true", &format!("fua={fua}")])?;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
            .open(&embedded.path)?;
        let buffer = Buffer::new(4096);
        file.write_all_at(buffer.bytes(), 8192)?;
        let (durable, flushes) = (embedded.count("fua_writes")?, embedded.count("flushes")?);
        if fua {
            ensure!(durable >= 1, "no write had FUA; {flushes} flushes");
        } else {
            ensure!(
                durable == 0 && flushes >= 1,
                "{durable} with FUA, {flushes} flushes"
            );
        }
        drop(file);
        embedded.remove()?;
    }
    Ok(())
}

/// L07 A FLUSH that fails is not acknowledged.
fn failed_flush() -> Result<()> {
    let mut embedded = Embedded::start(1, &["cache=true"])?;
    let file = File::options().write(true).open(&embedded.path)?;
    file.write_all_at(&[1; 4096], 0)?;
    embedded.ask("fail flush 5 1")?;
    ensure!(
        file.sync_all().is_err(),
        "fsync passed though the flush failed"
    );
    file.write_all_at(&[2; 4096], 0)?;
    file.sync_all().context("the next flush does not fail")?;
    drop(file);
    embedded.remove()
}

fn errors() -> Result<()> {
    let mut embedded = Embedded::start(2, &[])?;
    let direct = embedded.open()?;
    for (operation, errno) in [
        ("write", libc::ENOSPC),
        ("read", libc::EIO),
        ("read", libc::ETIMEDOUT),
    ] {
        embedded.ask(&format!("fail {operation} {errno} 1"))?;
        let result = match operation {
            "write" => direct.write_pattern(0, 4096, 1),
            _ => direct.read(0, 4096).map(drop),
        };
        let error = result
            .err()
            .with_context(|| format!("{operation} passed"))?;
        let found = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error);
        ensure!(
            found == Some(errno),
            "{operation}: {error:#}, expected errno {errno}"
        );
        direct
            .write_pattern(0, 4096, 2)
            .context("the next one does not fail")?;
        direct.check_pattern(0, 4096, 2)?;
    }
    ensure!(json::number(&embedded.ask("health")?, "errors")? >= 3);
    drop(direct);
    embedded.remove()
}

/// L25 A panic in the backend is answered with EIO and counted; the device serves on.
fn panic_is_contained(queues: usize) -> Result<()> {
    let mut embedded = Embedded::start(queues, &[])?;
    let direct = embedded.open()?;
    for round in 1..=3 {
        embedded.ask("panic write 1")?;
        let error = direct
            .write_pattern(0, 4096, 1)
            .err()
            .context("the write passed")?;
        let found = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::raw_os_error);
        ensure!(found == Some(libc::EIO), "{error:#}");
        for place in 0..64 {
            direct.write_pattern(place * 4096, 4096, round)?;
        }
        direct.check_pattern(0, 64 * 4096, round)?;
        let health = embedded.ask("health")?;
        ensure!(json::number(&health, "panics")? == round, "{health}");
    }
    drop(direct);
    embedded.remove()
}
