//! File devices of the tool: what they refuse, what they warn about, and how they handle a full disk.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::file_matrix::errno_of;
use crate::case::{Case, measured};
use crate::cli::{self, Spec, code};
use crate::direct_io::Buffer;
use crate::run::Output;
use crate::volume::{self, Kind, Volume};
use crate::wait::secs;
use crate::{json, run, sysfs};

const SIZE: u64 = 16 << 20;

pub fn cases() -> Vec<Case> {
    let in_guest = |case: Case| {
        case.only_if(
            sysfs::in_guest(),
            "RAM disks are made in the test guest only",
        )
    };
    vec![
        Case::new("simple_file_create_and_serve", create),
        Case::new("file_disk_full_reaches_the_client_tmpfs", || {
            full(Kind::Tmpfs)
        }),
        in_guest(Case::new("file_disk_full_reaches_the_client_ext4", || {
            full(Kind::Ext4)
        })),
        Case::new("file_read_only", read_only),
        Case::new("l13_file_windows", windows),
        in_guest(Case::new("l41_file_in_use_is_refused", in_use)),
        in_guest(Case::new("file_buffered_keeps_data", buffered)),
        in_guest(Case::new("file_keeps_a_file_system", file_system)),
        Case::new("l07_file_flushes_share_syncs", shared_syncs),
        in_guest(Case::new("file_limits_are_the_disks", limits)),
    ]
}

fn add(args: &[&str]) -> Result<Output> {
    cli::ublkctl(&[&["add", "file"], args].concat())
}

fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `--create` makes a sparse file of the size and serves it. It never touches an existing file, and removes its own if
/// no device comes of it.
fn create() -> Result<()> {
    let place = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let file = place.path("new.img")?;
    let name = path(&file);
    let create = ["--create", "--size", "1G"];
    let device = Spec::file(&file).with(&create).add()?;
    ensure!(sysfs::number(device.id, "size")? * 512 == 1 << 30);
    ensure!(volume::used(&file)? == 0, "not sparse");
    let direct = device.open()?;
    direct.check_zero(0, 1 << 20)?;
    direct.write_pattern((1 << 30) - 4096, 4096, 1)?;
    direct.check_pattern((1 << 30) - 4096, 4096, 1)?;
    drop(direct);
    device.delete()?;
    volume::check_behind(&file, (1 << 30) - 4096, 4096, (1 << 30) - 4096, 1)?;
    cli::failed(
        add(&[&[name.as_str()], &create[..]].concat())?,
        code::FAILED,
        &["new.img", "EEXIST", "as it is"],
    )?;
    volume::check_behind(&file, (1 << 30) - 4096, 4096, (1 << 30) - 4096, 1)?;
    // Served as it is; a file created for a device that failed is removed.
    Spec::file(&file).add()?.delete()?;
    let other = path(&place.path("other.img")?);
    let bad = [
        other.as_str(),
        "--create",
        "--size",
        "1G",
        "--max-io",
        "1000",
    ];
    cli::failed(add(&bad)?, code::USAGE, &["largest I/O"])?;
    ensure!(!Path::new(&other).exists(), "{other} is left");
    place.remove()
}

/// A sparse file on a file system that is too small: ENOSPC is returned as such, written data stays, and with free
/// space again the device continues.
fn full(kind: Kind) -> Result<()> {
    let place = Volume::new(kind, 8 << 20)?;
    let file = place.file("disk.img", 256 << 20)?;
    let device = Spec::file(&file).add()?;
    let direct = device.open()?;
    let piece = 1_u64 << 20;
    let len = usize::try_from(piece)?;
    let mut written = 0;
    let errno = loop {
        ensure!(written < 256, "256 MiB fit");
        let result = direct.write_pattern(written * piece, len, 7);
        if result.is_err() {
            break errno_of(result)?;
        }
        written += 1;
    };
    ensure!(errno == Some(libc::ENOSPC), "errno {errno:?}");
    ensure!(written > 2, "{written} MiB written");
    for piece_no in 0..written {
        direct.check_pattern(piece_no * piece, len, 7)?;
    }
    let health = device.query()?;
    ensure!(json::number(&health, "errors")? >= 1, "{health}");
    ensure!(json::text(&health, "state")? == "live", "{health}");
    // The log has the failed operation, its position and the reason.
    let log = fs::read_to_string(json::text(&health, "log")?)?;
    let said = log.lines().find(|l| l.contains("ENOSPC"));
    let said = said.with_context(|| format!("no ENOSPC in the log: {log}"))?;
    ensure!(said.contains("write of") && said.contains(" at "), "{said}");
    // Free space again, by the device's own discard.
    run::good("blkdiscard", &["-o", "0", "-l", "2097152", device.node()])?;
    direct.write_pattern(200 << 20, len, 8)?;
    direct.check_pattern(200 << 20, len, 8)?;
    direct.check_pattern(2 * piece, len, 7)?;
    drop(direct);
    device.delete()?;
    place.remove()
}

/// Read-only: the kernel refuses writes, and the file is only open for reading.
fn read_only() -> Result<()> {
    let place = Volume::new(Kind::Tmpfs, 32 << 20)?;
    let file = place.file("disk.img", SIZE)?;
    volume::write_behind(&file, 0, 1 << 20, 0, 3)?;
    let device = Spec::file(&file).with(&["--read-only"]).add()?;
    ensure!(sysfs::number(device.id, "ro")? == 1);
    let direct = crate::direct_io::Direct::open_read(&device.path)?;
    direct.check_pattern(0, 1 << 20, 3)?;
    let write = OpenOptions::new().write(true).open(&device.path);
    let write = write.and_then(|f| f.write_at(&[1; 4096], 0).and_then(|_| f.sync_all()));
    ensure!(write.is_err(), "a write passed");
    let server = device.server()?;
    let mut found = 0;
    for entry in fs::read_dir(format!("/proc/{server}/fd"))?.flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == file) {
            let info = format!(
                "/proc/{server}/fdinfo/{}",
                entry.file_name().to_string_lossy()
            );
            let info = fs::read_to_string(info)?;
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.context("flags")?.trim(), 8)?;
            ensure!(flags & libc::O_ACCMODE == libc::O_RDONLY, "flags {flags:o}");
            found += 1;
        }
    }
    ensure!(found == 1, "the server has the file open {found} times");
    drop(direct);
    device.delete()?;
    place.remove()
}

/// L13 Windows outside the file are refused with the numbers; a refused device leaves nothing behind.
fn windows() -> Result<()> {
    let place = Volume::new(Kind::Tmpfs, 32 << 20)?;
    let file = path(&place.file("disk.img", SIZE)?);
    let refused = |args: &[&str], parts: &[&str]| -> Result<()> {
        let args = [&[file.as_str()], args].concat();
        cli::failed(add(&args)?, code::USAGE, parts)?;
        cli::nothing_left(secs(5))
    };
    refused(
        &["--length", "16385K"],
        &["disk.img", "16778240", "16777216"],
    )?;
    refused(
        &["--offset", "1M", "--length", "16M"],
        &["beyond the end of the file"],
    )?;
    refused(&["--offset", "16M"], &["no whole block"])?;
    refused(&["--offset", "100"], &["offset 100", "multiple"])?;
    refused(&["--length", "1000"], &["length 1000", "512"])?;
    refused(&["--offset", "16E"], &[])?;
    refused(
        &["--offset", "8191P", "--length", "8191P"],
        &["beyond the end of the file"],
    )?;
    cli::failed(add(&["/dev/null"])?, code::USAGE, &["character device"])?;
    cli::failed(add(&["/no/such/file"])?, code::FAILED, &["ENOENT"])?;
    // Two windows of one file are two independent devices.
    let spec = |offset: &str| {
        let args = ["--offset", offset, "--length", "8M"];
        Spec::file(Path::new(&file)).with(&args)
    };
    let (one, two) = (spec("0").add()?, spec("8M").add()?);
    one.open()?.write_pattern(0, 8 << 20, 1)?;
    two.open()?.write_pattern(0, 8 << 20, 2)?;
    one.open()?.check_pattern(0, 8 << 20, 1)?;
    two.open()?.check_pattern(0, 8 << 20, 2)?;
    // The size is that at the time of opening: a file that grows, or is replaced, changes nothing.
    OpenOptions::new()
        .write(true)
        .open(&file)?
        .set_len(2 * SIZE)?;
    ensure!(sysfs::number(two.id, "size")? * 512 == 8 << 20);
    ensure!(two.open()?.read(8 << 20, 512).is_err(), "past the window");
    one.delete()?;
    two.delete()?;
    place.remove()
}

/// L41 Files in use are refused with the user named, unless they are only read or it is forced: then there is a
/// warning. Parts that do not overlap, and several readers, are allowed.
fn in_use() -> Result<()> {
    let place = Volume::new(Kind::Ext4, 0)?;
    let file = place.file("disk.img", SIZE)?;
    let refused = |args: &[&str], parts: &[&str]| -> Result<()> {
        cli::failed(add(args)?, code::FAILED, &[parts, &["--force"]].concat()).map(drop)
    };
    let warned = |args: &[&str], parts: &[&str]| -> Result<()> {
        let output = add(args)?.good()?;
        for part in parts {
            ensure!(output.stderr.contains(part), "no {part:?} in {output}");
        }
        ensure!(parts.is_empty() == output.stderr.is_empty(), "{output}");
        let id = output.stdout.trim().trim_start_matches("/dev/ublkb");
        cli::ublkctl(&["delete", id])?.good().map(drop)
    };
    let name = path(&file);
    // A part of the file, being served.
    let half = ["--offset", "0", "--length", "8M"];
    let first = add(&[&[name.as_str()], &half[..]].concat())?.good()?;
    ensure!(first.stderr.is_empty(), "a word for nothing: {first}");
    let node = first.stdout.trim().to_owned();
    let bytes = "bytes 0 to 8388608";
    refused(&[&name], &["disk.img", bytes, &node])?;
    refused(&[&name, "--offset", "8388096"], &[bytes, &node])?;
    warned(&[&name, "--read-only"], &[bytes, &node])?;
    warned(&[&name, "--force"], &[bytes, &node])?;
    warned(&[&name, "--offset", "8M"], &[])?;
    // Under another name it is the same file.
    let link = place.path("link.img")?;
    fs::hard_link(&file, &link)?;
    refused(&[&path(&link)], &["link.img", bytes, &node])?;
    cli::ublkctl(&["delete", node.trim_start_matches("/dev/ublkb")])?.good()?;
    warned(&[&name], &[])?;
    // Readers do not conflict.
    let reader = Spec::file(&file).with(&["--read-only"]).add()?;
    warned(&[&name, "--read-only"], &[])?;
    warned(&[&name], &["read as", reader.node()])?;
    reader.delete()?;
    // Another process's lock is reported.
    let held = OpenOptions::new().read(true).open(&file)?;
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive)?;
    warned(&[&name], &["locked by process"])?;
    drop(held);
    // Mounted: the RAM disk below the file system used here.
    let disk = path(&volume::ram_disk(0)?);
    refused(&[&disk], &["mounted at"])?;
    warned(&[&disk, "--read-only"], &["mounted at"])?;
    // A loop device on the file.
    if !Path::new("/dev/loop0").exists() {
        run::good("modprobe", &["loop"])?;
    }
    run::good("losetup", &["/dev/loop0", &name])?;
    let told = refused(&[&name], &["/dev/loop0"])
        .and_then(|()| warned(&[&name, "--force"], &["/dev/loop0"]));
    run::good("losetup", &["-d", "/dev/loop0"])?;
    told?;
    // A block device that we serve already.
    let disk = path(&volume::ram_disk(1)?);
    let device = Spec::file(Path::new(&disk)).with(&half).add()?;
    refused(&[&disk], &[bytes, device.node()])?;
    warned(&[&disk, "--offset", "8M"], &[])?;
    device.delete()?;
    warned(&[&disk], &[])?;
    cli::nothing_left(secs(5))?;
    place.remove()
}

fn buffered() -> Result<()> {
    let place = Volume::new(Kind::Ext4, 0)?;
    let file = place.file("disk.img", SIZE)?;
    for (args, direct) in [(&["--buffered"][..], false), (&[], true)] {
        let device = Spec::file(&file).with(args).add()?;
        let info = device.query()?;
        ensure!(
            json::find(&info, "direct") == Some(&direct.into()),
            "{info}"
        );
        let io = device.open()?;
        io.write_pattern(0, 4 << 20, u64::from(direct) + 1)?;
        io.check_pattern(0, 4 << 20, u64::from(direct) + 1)?;
        OpenOptions::new()
            .write(true)
            .open(&device.path)?
            .sync_all()?;
        // On the disk, not only in the cache.
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        volume::check_behind(&file, 0, 4 << 20, 0, u64::from(direct) + 1)?;
        drop(io);
        device.delete()?;
    }
    place.remove()
}

/// A file system on a file device, filled, unmounted, checked, and found again by a second device on the file.
fn file_system() -> Result<()> {
    use crate::fs::{Kind as Fs, Mounted, compare, fill};
    let place = Volume::new(Kind::Ext4, 0)?;
    let file = place.file("disk.img", 64 << 20)?;
    let device = Spec::file(&file).queues(2).add()?;
    Fs::Ext4.make(&device)?;
    let mounted = Mounted::new(&device, Fs::Ext4, rustix::mount::MountFlags::empty())?;
    fill(&mounted.at, 40)?;
    compare(&mounted.at, 40)?;
    mounted.unmount()?;
    Fs::Ext4.check(&device)?;
    device.delete()?;
    let device = Spec::file(&file).add()?;
    let mounted = Mounted::new(&device, Fs::Ext4, rustix::mount::MountFlags::empty())?;
    compare(&mounted.at, 40)?;
    mounted.unmount()?;
    device.delete()?;
    place.remove()
}

/// L07 Concurrent durable writes share syncs: there are fewer syncs than requests, and the data is there.
fn shared_syncs() -> Result<()> {
    const WRITERS: u64 = 8;
    const ROUNDS: u64 = 50;
    let kind = if sysfs::in_guest() {
        Kind::Ext4
    } else {
        Kind::Tmpfs
    };
    let place = Volume::new(kind, 32 << 20)?;
    let file = place.file("disk.img", SIZE)?;
    let device = Spec::file(&file).add()?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let path = &device.path;
                scope.spawn(move || -> Result<()> {
                    let mut options = OpenOptions::new();
                    options.write(true);
                    let file = options
                        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
                        .open(path)?;
                    let mut buffer = Buffer::new(4096);
                    for round in 0..ROUNDS {
                        let at = (writer * ROUNDS + round) * 4096;
                        crate::pattern::fill(buffer.bytes_mut(), at, 1);
                        file.write_all_at(buffer.bytes(), at)?;
                    }
                    Ok(())
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|w| w.join().map_err(|_| anyhow!("panic"))?)
    })?;
    let info = device.query()?;
    let (asked, done) = (
        json::number(&info, "sync_requests")?,
        json::number(&info, "syncs")?,
    );
    measured(format!(
        "{WRITERS} clients, {} durable writes: {asked} requests for a sync, {done} syncs",
        WRITERS * ROUNDS
    ));
    ensure!(asked >= WRITERS * ROUNDS, "{asked} requests");
    // Serialized calls have no syncs to share.
    let shares = json::find(&info, "asynchronous") == Some(&true.into());
    ensure!(
        done >= 1 && if shares { done < asked } else { done <= asked },
        "{done} syncs for {asked} requests"
    );
    let len = usize::try_from(WRITERS * ROUNDS * 4096)?;
    device.open()?.check_pattern(0, len, 1)?;
    device.delete()?;
    volume::check_behind(&file, 0, len, 0, 1)?;
    place.remove()
}

/// Block sizes and discard are those of the underlying disk.
fn limits() -> Result<()> {
    let disk = volume::ram_disk(1)?;
    let of = |name: &str| -> Result<u64> {
        let path = format!("/sys/block/ram1/queue/{name}");
        Ok(fs::read_to_string(path)?.trim().parse()?)
    };
    let device = Spec::file(&disk).add()?;
    for name in ["logical_block_size", "physical_block_size", "rotational"] {
        let (found, wanted) = (
            sysfs::number(device.id, &format!("queue/{name}"))?,
            of(name)?,
        );
        ensure!(found == wanted, "{name} {found}, the disk has {wanted}");
    }
    let found = sysfs::number(device.id, "queue/discard_max_bytes")?;
    ensure!((found == 0) == (of("discard_max_bytes")? == 0), "{found}");
    device.delete()?;
    let device = Spec::file(&disk).with(&["--no-discard"]).add()?;
    ensure!(sysfs::number(device.id, "queue/discard_max_bytes")? == 0);
    device.delete()?;
    let device = Spec::file(&disk).with(&["--block-size", "4K"]).add()?;
    ensure!(sysfs::number(device.id, "queue/logical_block_size")? == 4096);
    device.delete()
}
