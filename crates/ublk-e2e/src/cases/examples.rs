//! The examples of the facade, run like a user who has just built them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use super::many::{Raised, descriptors, per_second};
use crate::case::{self, Case, Set, measured};
use crate::cli::cpus;
use crate::direct_io::Direct;
use crate::fs::{self, Mounted};
use crate::wait::{secs, until};
use crate::{pattern, procfs, run, sysfs};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("example_null_serves", null),
        Case::new("example_ramdisk_keeps_data", ramdisk),
        Case::new("example_async_file_keeps_data_in_the_file", || {
            async_file("copy")
        }),
        Case::new("example_async_file_in_zero_copy", || {
            async_file_past_the_server("zero-copy", (6, 16), "AUTO_BUF_REG")
        }),
        Case::new("example_async_file_in_zero_copy_by_hand", || {
            async_file_past_the_server("zero-copy-manual", (6, 15), "SUPPORT_ZERO_COPY")
        }),
        Case::new("example_async_remote_keeps_data", async_remote),
        Case::new("example_raw_epoll_keeps_data", raw_epoll),
        Case::new("example_tokio_ramdisk_keeps_data", tokio_ramdisk),
        Case::new("example_file_keeps_data_in_the_file", file),
        Case::new("example_mapped_copies_once", mapped),
        Case::new("example_threads_keeps_data", threads),
        Case::new("example_integrity_keeps_data", integrity),
        Case::new("example_zoned_is_written_in_sequence", zoned),
        Case::new("example_zoned_holds_a_file_system", || {
            zoned_btrfs(&["128"])
        }),
        Case::new("example_zoned_in_batches_holds_a_file_system", zoned_batch),
        Case::new("example_many_share_threads", many).only_if(
            case::set() != Set::Soak || sysfs::in_guest(),
            "the driver's limit is changed in the test guest only",
        ),
    ]
}

/// `PACKAGE-example-NAME`, in the directory `$UBLK_EXAMPLES` if that is set.
fn program(package: &str, name: &str) -> PathBuf {
    let program = format!("{package}-example-{name}");
    match std::env::var_os("UBLK_EXAMPLES") {
        Some(directory) => PathBuf::from(directory).join(program),
        None => program.into(),
    }
}

/// An example that serves; killed if the case fails.
#[derive(Debug)]
struct Example {
    child: Child,
    id: u32,
    path: PathBuf,
    /// Its output after the path.
    lines: Option<Receiver<std::io::Result<String>>>,
}

impl Example {
    /// Starts an example of the facade, and reads the path that it prints.
    fn start(name: &str, args: &[&str]) -> Result<Self> {
        Self::of("ublk", name, args)
    }

    /// Starts an example of another crate.
    fn of(package: &str, name: &str, args: &[&str]) -> Result<Self> {
        let program = program(package, name);
        let mut child = Command::new(&program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let output = child.stdout.take().context("piped")?;
        let mut example = Self {
            child,
            id: u32::MAX,
            path: PathBuf::new(),
            lines: None,
        };
        let (sender, line_after) = channel();
        std::thread::spawn(move || {
            let (mut line, mut output) = (String::new(), BufReader::new(output));
            let read = output.read_line(&mut line);
            // The receiver is gone after the deadline.
            let _ = sender.send(read.map(|_| line));
            // Later output is kept for those who ask, but the example must be able to write it in any case.
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(Ok(line));
            }
        });
        let line = line_after
            .recv_timeout(secs(60))
            .context("no path was printed")??;
        let id = line
            .strip_prefix("/dev/ublkb")
            .and_then(|id| id.trim_end().parse().ok());
        let Some(id) = id else {
            bail!("{name} printed {line:?}, expected a device path");
        };
        example.id = id;
        example.path = line.trim_end().into();
        example.lines = Some(line_after);
        Ok(example)
    }

    /// Checks size and hw queues as the kernel reports them.
    fn check(&self, size: u64, queues: usize) -> Result<()> {
        let found = sysfs::number(self.id, "size")? * 512;
        ensure!(found == size, "asked for {size} bytes, /sys has {found}");
        let (wanted, found) = (queues.min(cpus()), sysfs::queues(self.id)?);
        ensure!(
            found == wanted,
            "expected {wanted} queues, /sys has {found}"
        );
        Ok(())
    }

    /// Ctrl-C: it exits with status 0 and its device is gone.
    fn interrupt(self) -> Result<()> {
        self.interrupt_within(secs(40))
    }

    fn interrupt_within(mut self, most: Duration) -> Result<()> {
        procfs::kill(self.child.id(), Signal::INT)?;
        let status = until("the example's end after SIGINT", most, || {
            Ok(self.child.try_wait()?)
        })?;
        ensure!(status.success(), "after SIGINT: {status}");
        ensure!(
            !self.path.exists() && !sysfs::directory(self.id).exists(),
            "{} is left",
            self.path.display()
        );
        Ok(())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn null() -> Result<()> {
    const SIZE: u64 = 64 << 20;
    let example = Example::start("null", &[&SIZE.to_string(), "2"])?;
    example.check(SIZE, 2)?;
    let direct = Direct::open(&example.path)?;
    for offset in [0, 4096, SIZE - 512] {
        direct.write_pattern(offset, 512, 1)?;
        direct.read(offset, 512)?;
    }
    ensure!(
        direct.read(SIZE, 512).is_err(),
        "a read past the end passed"
    );
    drop(direct);
    example.interrupt()
}

fn ramdisk() -> Result<()> {
    const SIZE: u64 = 32 << 20;
    keeps_data(Example::start("ramdisk", &[&SIZE.to_string()])?, SIZE)
}

/// Two queues and the signals in one epoll loop.
fn raw_epoll() -> Result<()> {
    const SIZE: u64 = 32 << 20;
    keeps_data_on(
        Example::start("raw_epoll", &[&SIZE.to_string(), "2"])?,
        SIZE,
        2,
    )
}

fn tokio_ramdisk() -> Result<()> {
    const SIZE: u64 = 32 << 20;
    keeps_data(
        Example::of("ublk-tokio", "tokio_ramdisk", &[&SIZE.to_string()])?,
        SIZE,
    )
}

fn async_remote() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    keeps_data(Example::start("async_remote", &[&SIZE.to_string()])?, SIZE)
}

/// Like `async_file`, with data that bypasses the server; its requests' pages are registered when its operations name
/// them. A kernel without the mode reports that.
fn async_file_past_the_server(mode: &str, since: (u32, u32), feature: &str) -> Result<()> {
    if sysfs::kernel() >= since {
        return async_file(mode);
    }
    let path = std::env::temp_dir().join("ublk-e2e-async-refused");
    File::create(&path)?.set_len(1 << 20)?;
    let output = Command::new(program("ublk", "async_file"))
        .args([path.as_os_str(), "1".as_ref(), mode.as_ref()])
        .output()?;
    std::fs::remove_file(&path)?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains(feature),
        "{}: {text}",
        output.status
    );
    crate::cli::nothing_left(secs(10))
}

/// Data through the device and back, then the content of the file; zeroes and discards are holes there.
fn async_file(mode: &str) -> Result<()> {
    const SIZE: u64 = 32 << 20;
    let path = std::env::temp_dir().join(format!("ublk-e2e-async-{}", std::process::id()));
    let file = File::create_new(&path).with_context(|| path.display().to_string())?;
    file.set_len(SIZE)?;
    let word = path.to_str().context("a path in UTF-8")?;
    let example = Example::start("async_file", &[word, "2", mode])?;
    example.check(SIZE, 2)?;
    let info = crate::cli::ublkctl_json(&["info", &example.id.to_string()])?;
    ensure!(info["data"] == mode, "{info}");
    let direct = Direct::open(&example.path)?;
    let ranges = [(0, 512), (SIZE - 4096, 4096), (1 << 20, 3 << 20)];
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.write_pattern(offset, len, generation)?;
    }
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.check_pattern(offset, len, generation)?;
    }
    direct.check_zero(8192, 65536)?;
    drop(direct);
    example.interrupt()?;
    let all = std::fs::read(&path)?;
    std::fs::remove_file(&path)?;
    for (generation, (offset, len)) in (1..).zip(ranges) {
        let at = usize::try_from(offset)?;
        pattern::check(&all[at..at + len], offset, generation)?;
    }
    Ok(())
}

/// Data written to a device of one queue is read back, and the rest is untouched.
fn keeps_data(example: Example, size: u64) -> Result<()> {
    keeps_data_on(example, size, 1)
}

fn keeps_data_on(example: Example, size: u64, queues: usize) -> Result<()> {
    example.check(size, queues)?;
    let direct = Direct::open(&example.path)?;
    direct.check_zero(0, 1 << 20)?;
    // First, last, and more than one request.
    let ranges = [
        (0, 512),
        (size - 512, 512),
        (65_536 - 512, 2 << 20),
        (size / 2, 4096),
    ];
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.write_pattern(offset, len, generation)?;
    }
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.check_pattern(offset, len, generation)?;
    }
    direct.check_zero(512, 4096)?;
    ensure!(
        direct.write_pattern(size, 512, 1).is_err(),
        "a write past the end passed"
    );
    drop(direct);
    example.interrupt()
}

/// The kernel verifies what it reads. An older one is told apart by the feature's name.
fn integrity() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    if sysfs::kernel() >= (7, 0) {
        let example = Example::start("integrity", &[&SIZE.to_string()])?;
        let format = sysfs::text(example.id, "integrity/format")?;
        ensure!(format == "T10-DIF-TYPE1-CRC", "{format}");
        return keeps_data(example, SIZE);
    }
    let output = Command::new(program("ublk", "integrity")).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains("INTEGRITY"),
        "{text}"
    );
    Ok(())
}

/// The position of an append goes with its element of a batch. An older kernel refuses the mode by name.
fn zoned_batch() -> Result<()> {
    if sysfs::kernel() >= (7, 0) {
        return zoned_btrfs(&["128", "batch"]);
    }
    let output = Command::new(program("ublk", "zoned"))
        .args(["16", "batch"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && text.contains("BATCH_IO"),
        "{text}"
    );
    Ok(())
}

/// The output of `blkzone report` for one zone.
fn zone(path: &str, offset: u64) -> Result<String> {
    let offset = format!("{}", offset / 512);
    Ok(run::good("blkzone", &["report", "-o", &offset, "-c", "1", path])?.stdout)
}

/// The kernel sees zones: written in order or not at all, opened, closed, finished, reset.
fn zoned() -> Result<()> {
    const ZONE: u64 = 4 << 20;
    let example = Example::start("zoned", &["16"])?;
    example.check(16 * ZONE, 2)?;
    for (name, wanted) in [
        ("queue/chunk_sectors", ZONE / 512),
        ("queue/nr_zones", 16),
        ("queue/zone_append_max_bytes", 1 << 20),
    ] {
        let found = sysfs::number(example.id, name)?;
        ensure!(found == wanted, "{name} is {found}, declared {wanted}");
    }
    let model = sysfs::text(example.id, "queue/zoned")?;
    ensure!(model == "host-managed", "{model}");
    let path = example.path.to_string_lossy().into_owned();
    let direct = Direct::open(&example.path)?;
    let at = 3 * ZONE;
    direct.write_pattern(at, 2 << 20, 1)?;
    direct.check_pattern(at, 2 << 20, 1)?;
    direct.check_zero(at + (2 << 20), 65_536)?;
    ensure!(
        direct.write_pattern(at + ZONE - 4096, 4096, 1).is_err(),
        "a write beyond the write pointer passed"
    );
    direct.check_pattern(at, 2 << 20, 1)?;
    let start = format!("{}", at / 512);
    for (command, wanted) in [
        ("", "2(oi)"),
        ("close", "4(cl)"),
        ("open", "3(oe)"),
        ("finish", "14(fu)"),
        ("reset", "1(em)"),
    ] {
        if !command.is_empty() {
            run::good("blkzone", &[command, "-o", &start, "-c", "1", &path])?;
        }
        let shown = zone(&path, at)?;
        ensure!(shown.contains(wanted), "after {command:?}: {shown}");
    }
    direct.check_zero(at, 65_536)?;
    direct.write_pattern(at, 65_536, 2)?;
    // All of them at once.
    run::good("blkzone", &["reset", &path])?;
    let shown = zone(&path, at)?;
    ensure!(shown.contains("1(em)"), "{shown}");
    direct.check_zero(at, 65_536)?;
    drop(direct);
    example.interrupt()
}

/// A zoned file system keeps its files, whose data it mostly appends.
fn zoned_btrfs(args: &[&str]) -> Result<()> {
    let mut example = Example::start("zoned", args)?;
    let path = example.path.to_string_lossy().into_owned();
    let args = ["-q", "-O", "zoned", "-d", "single", "-m", "single", &path];
    run::good("mkfs.btrfs", &args)?;
    run::module("btrfs")?;
    for round in 0..2 {
        let mounted = Mounted::node(&path, "btrfs")?;
        if round == 0 {
            fs::fill(&mounted.at, 40)?;
        }
        fs::compare(&mounted.at, 40)?;
        mounted.unmount()?;
    }
    let lines = example.lines.take().context("running")?;
    example.interrupt()?;
    let line = lines.recv_timeout(secs(10)).context("no count")??;
    let count = line.split_once(' ').context("a number")?.0.parse::<u64>()?;
    ensure!(count > 20, "{line}");
    Ok(())
}

fn file() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    let path = std::env::temp_dir().join("ublk-e2e-example.img");
    std::fs::File::create(&path)?.set_len(SIZE)?;
    let example = Example::start("file", &[&path.to_string_lossy()])?;
    example.check(SIZE, 2)?;
    let direct = Direct::open(&example.path)?;
    direct.write_pattern(4096, 1 << 20, 1)?;
    direct.check_pattern(4096, 1 << 20, 1)?;
    direct.file().sync_all()?;
    crate::volume::check_behind(&path, 4096, 1 << 20, 4096, 1)?;
    // The file is truncated: an error, not old data (L05).
    std::fs::File::options()
        .write(true)
        .open(&path)?
        .set_len(8192)?;
    ensure!(direct.read(1 << 20, 4096).is_err(), "read past the file");
    direct.check_pattern(4096, 4096, 1)?;
    drop(direct);
    example.interrupt()?;
    Ok(std::fs::remove_file(&path)?)
}

fn mapped() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    let example = Example::start("mapped", &[&SIZE.to_string()])?;
    example.check(SIZE, 1)?;
    let features = crate::cli::ublkctl_json(&["info", &example.id.to_string()])?;
    ensure!(features["data"] == "user-copy", "{features}");
    let direct = Direct::open(&example.path)?;
    for (generation, (offset, len)) in
        (1..).zip([(0, 512), (65_536 - 512, 2 << 20), (SIZE - 512, 512)])
    {
        direct.write_pattern(offset, len, generation)?;
        direct.check_pattern(offset, len, generation)?;
    }
    drop(direct);
    example.interrupt()
}

fn threads() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    let example = Example::start("threads", &[&SIZE.to_string()])?;
    example.check(SIZE, 2)?;
    let direct = Direct::open(&example.path)?;
    let ranges = [(0, 512), (65_536 - 512, 2 << 20), (SIZE - 512, 512)];
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.write_pattern(offset, len, generation)?;
    }
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.check_pattern(offset, len, generation)?;
    }
    direct.check_zero(4096, 8192)?;
    drop(direct);
    example.interrupt()
}

/// Devices on two threads: each keeps its data, stopping one does not affect the others, and the threads of idle ones
/// are not woken. A thousand of them in the soak.
fn many() -> Result<()> {
    // Less than a huge page, which a small write would take as a whole.
    const SIZE: u64 = 1 << 20;
    let count = case::rounds(12, 1000);
    let mut raised = None;
    if count > 12 {
        raised = Some(Raised::new(count + 8)?);
        descriptors(8 * count)?;
    }
    let args = [count, 2].map(|word| word.to_string());
    let (begin, free) = (Instant::now(), procfs::available()?);
    let example = Example::start("many", &[&args[0], &args[1], &SIZE.to_string()])?;
    let mut paths = vec![example.path.clone()];
    let lines = example.lines.as_ref().context("its output")?;
    while paths.len() < count {
        paths.push(lines.recv_timeout(secs(60))??.trim_end().into());
    }
    let (rate, each) = (per_second(count, begin), count as u64);
    measured(format!(
        "{count} devices on 2 threads of one process: {rate:.1} made a second; each takes {} KiB of the process and {} KiB \
         of the machine's memory",
        (procfs::status(example.child.id(), "VmRSS")? >> 10) / each,
        (free.saturating_sub(procfs::available()?) >> 10) / each,
    ));
    let devices: Vec<Direct> = paths
        .iter()
        .map(|path| Direct::open(path))
        .collect::<Result<_>>()?;
    for (generation, device) in (1..).zip(&devices) {
        device.write_pattern(512 * generation, 65_536, generation)?;
    }
    for (generation, device) in (1..).zip(&devices) {
        device.check_pattern(512 * generation, 65_536, generation)?;
    }
    let all = procfs::threads(example.child.id());
    let shared = all
        .iter()
        .filter(|thread| thread.name.starts_with("ublk-shared-"));
    let shared: Vec<u32> = shared.map(|thread| thread.id).collect();
    // Besides them: the main thread, the one that sends commands, and io_uring's own for it.
    let ours = all.iter().filter(|thread| !thread.name.starts_with("iou-"));
    ensure!((shared.len(), ours.count()) == (2, 4), "threads: {all:?}");
    let switches = || -> Result<u64> {
        let each = shared
            .iter()
            .map(|tid| procfs::status(*tid, "voluntary_ctxt_switches"));
        each.sum()
    };
    procfs::nothing_stuck(secs(10))?;
    let before = switches()?;
    std::thread::sleep(secs(1));
    ensure!(switches()? == before, "idle threads were woken");
    // The last one is removed; the others stay.
    let last = paths
        .last()
        .and_then(|path| path.to_str())
        .context("a path")?
        .to_owned();
    let mut devices = devices;
    devices.pop();
    let id = last.trim_start_matches("/dev/ublkb").to_owned();
    crate::cli::ublkctl(&["stop", &id])?;
    for (generation, device) in (1..).zip(&devices) {
        device.check_pattern(512 * generation, 65_536, generation)?;
    }
    drop(devices);
    example.interrupt_within(secs(40 + count as u64 / 4))?;
    drop(raised);
    Ok(())
}
