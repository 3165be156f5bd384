//! Every operation on every backend in every mode: each cell reports what ran and what is impossible, and the runner
//! compares the cells with the expected ones.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use crate::case::{self, Case, cell};
use crate::cli::{self, Device, Spec};
use crate::direct_io::Buffer;
use crate::embed::Embedded;
use crate::fio::Fio;
use crate::volume::{self, Kind, Volume};
use crate::{json, run, sysfs};

/// Size of the device, and its offset in a file.
const SIZE: u64 = 16 << 20;
const BASE: u64 = 1 << 20;

/// A mode: `--data`, `--batch`, and the first kernel that supports it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub(super) data: &'static str,
    batch: bool,
    pub(super) since: (u32, u32),
    feature: &'static str,
}

const fn mode(data: &'static str, batch: bool, since: (u32, u32), feature: &'static str) -> Mode {
    Mode {
        data,
        batch,
        since,
        feature,
    }
}

pub(super) const MODES: [Mode; 8] = [
    mode("copy", false, (6, 0), ""),
    mode("get-data", false, (6, 0), ""),
    mode("user-copy", false, (6, 5), ""),
    mode("zero-copy", false, (6, 16), "AUTO_BUF_REG"),
    mode("zero-copy-manual", false, (6, 15), "SUPPORT_ZERO_COPY"),
    mode("copy", true, (7, 0), "BATCH_IO"),
    mode("user-copy", true, (7, 0), "BATCH_IO"),
    mode("zero-copy", true, (7, 0), "BATCH_IO"),
];

pub(super) const OPERATIONS: [&str; 7] = [
    "read", "write", "verify", "discard", "flush", "fua", "error",
];

impl Mode {
    pub(super) fn name(self) -> String {
        format!("{}{}", self.data, if self.batch { "-batch" } else { "" })
    }

    fn is_zero_copy(self) -> bool {
        self.data.starts_with("zero-copy")
    }

    pub(super) fn args(self) -> [&'static str; 4] {
        let batch = if self.batch { "on" } else { "off" };
        ["--data", self.data, "--batch", batch]
    }
}

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for mode in MODES {
        for backend in ["null", "mem"] {
            let name = format!("matrix_{backend}_{}", mode.name());
            all.push(Case::new(name, move || embedded(backend, mode)));
        }
        for kind in Kind::ALL {
            if is_left(kind) || is_repeated(kind, mode) {
                for operation in OPERATIONS {
                    cell(kind.name(), &mode.name(), operation, "left");
                }
                continue;
            }
            let name = format!("matrix_{}_{}", kind.name(), mode.name());
            let case = Case::new(name, move || file(kind, mode));
            // Outside the guest, the RAM disks may be in use.
            all.push(case.only_if(
                kind == Kind::Tmpfs || sysfs::in_guest(),
                "RAM disks are made in the test guest only",
            ));
        }
    }
    all
}

/// Whether the reduced matrix of a middle kernel leaves this kind of file out: the other two differ more.
pub(super) fn is_left(kind: Kind) -> bool {
    case::reduced() && kind == Kind::Ext4
}

/// Whether what a change must pass leaves this cell out: to the driver a block device is like a file, and what differs between
/// them is who takes the pages. Zero copy is for files with a device below.
fn is_repeated(kind: Kind, mode: Mode) -> bool {
    let kept = match kind {
        Kind::Block => mode.is_zero_copy() || mode.name() == "copy",
        Kind::Tmpfs => !mode.is_zero_copy(),
        Kind::Ext4 => true,
    };
    case::is_quick() && !kept
}

/// On a kernel without the mode `add` says so, with the feature's name.
fn lacks(backend: &str, mode: Mode, args: &[String]) -> Result<bool> {
    if sysfs::kernel() >= mode.since {
        return Ok(false);
    }
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    cli::fails(&args, cli::code::FAILED, &["lacks", mode.feature])?;
    for operation in OPERATIONS {
        cell(backend, &mode.name(), operation, "lacks");
    }
    Ok(true)
}

/// Null and memory devices behind the fault backend, which counts requests.
fn embedded(backend: &'static str, mode: Mode) -> Result<()> {
    let null = backend == "null";
    let spec = if null {
        Spec::null("16M")
    } else {
        Spec::mem("16M")
    };
    let told = |operation: &str, outcome: &str| cell(backend, &mode.name(), operation, outcome);
    if !null && mode.is_zero_copy() {
        // Refused with the reason, before a device is created.
        let args = Spec::mem("16M").with(&mode.args()).args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        cli::fails(&args, cli::code::USAGE, &["no file to forward"])?;
        OPERATIONS.into_iter().for_each(|o| told(o, "never"));
        return Ok(());
    }
    if lacks(backend, mode, &spec.with(&mode.args()).args())? {
        return Ok(());
    }
    let args = [
        format!("data={}", mode.data),
        format!("batch={}", mode.batch),
        format!("null={null}"),
    ];
    let args = args.each_ref().map(String::as_str);
    let more = ["cache=true", "fua=true", "size=16777216"];
    let mut device = Embedded::start(1, &[&args[..], &more].concat())?;
    let node = device.path.clone();
    let direct = device.open()?;
    let counted = |device: &mut Embedded, name: &str, does: &dyn Fn() -> Result<()>| {
        let before = device.count(name)?;
        does().with_context(|| name.to_owned())?;
        let after = device.count(name)?;
        ensure!(after > before, "{name}: {before} before, {after} after");
        Ok(())
    };
    counted(&mut device, "writes", &|| {
        direct.write_pattern(0, 1 << 20, 1)
    })?;
    told("write", "ran");
    counted(&mut device, "reads", &|| {
        if null {
            direct.read(0, 1 << 20).map(drop)
        } else {
            direct.check_pattern(0, 1 << 20, 1)
        }
    })?;
    told("read", "ran");
    if null {
        told("verify", "never");
    } else {
        verify(&node)?;
        told("verify", "ran");
    }
    counted(&mut device, "discards", &|| discard(&node, 4096, 65_536))?;
    if !null {
        direct.check_zero(4096, 65_536)?;
    }
    told("discard", "ran");
    counted(&mut device, "flushes", &|| sync(&node))?;
    told("flush", "ran");
    counted(&mut device, "fua_writes", &|| durable_write(&node, 8192, 3))?;
    told("fua", "ran");
    for (operation, errno) in [("write", libc::ENOSPC), ("read", libc::ETIMEDOUT)] {
        device.ask(&format!("fail {operation} {errno} 1"))?;
        let result = match operation {
            "write" => direct.write_pattern(0, 4096, 1),
            _ => direct.read(0, 4096).map(drop),
        };
        ensure!(errno_of(result)? == Some(errno), "{operation}");
        direct.write_pattern(0, 4096, 2)?;
        direct.read(0, 4096)?;
    }
    told("error", "ran");
    drop(direct);
    device.remove()
}

/// A device of the tool on a window of a file.
fn file(kind: Kind, mode: Mode) -> Result<()> {
    let place = Volume::new(kind, 64 << 20)?;
    let path = place.file("disk.img", BASE + SIZE + BASE)?;
    let (base, size) = (BASE.to_string(), SIZE.to_string());
    let window = ["--offset", &base, "--length", &size, "--max-io", "128K"];
    let spec = Spec::file(&path).with(&window).with(&mode.args());
    if lacks(kind.name(), mode, &spec.args())? {
        return place.remove();
    }
    let told = |operation: &str, outcome: &str| cell(kind.name(), &mode.name(), operation, outcome);
    let device = spec.add()?;
    let info = device.query()?;
    ensure!(json::text(&info, "data")? == mode.data, "{info}");
    ensure!(info["batch"] == mode.batch, "{info}");
    let subject = Subject {
        device,
        path,
        kind,
        mode,
    };
    type Step = fn(&Subject) -> Result<()>;
    let steps: [(&str, Step); 6] = [
        ("write", Subject::write),
        ("read", Subject::read),
        ("verify", Subject::verify),
        ("discard", Subject::discard),
        ("flush", Subject::flush),
        ("fua", Subject::fua),
    ];
    for (operation, step) in steps {
        step(&subject).context(operation)?;
        told(operation, "ran");
    }
    if kind == Kind::Block {
        // A RAM disk never fails; a block device that does is a loop device on a truncated file.
        subject.device.delete()?;
        cut_loop(&mode.args(), &|node, offset, len| {
            crate::direct_io::Direct::open(node)?
                .read(offset, len)
                .map(drop)
        })
        .context("error")?;
    } else {
        subject.error().context("error")?;
        subject.device.delete()?;
    }
    told("error", "ran");
    place.remove()
}

struct Subject {
    device: Device,
    path: PathBuf,
    kind: Kind,
    mode: Mode,
}

impl Subject {
    /// First and last block, across the largest request and across many; in the file at the right place, and nowhere
    /// else.
    fn write(&self) -> Result<()> {
        let direct = self.device.open()?;
        for (generation, (offset, len)) in (1..).zip(RANGES) {
            direct.write_pattern(offset, len, generation)?;
        }
        sync(&self.device.path)?;
        for (generation, (offset, len)) in (1..).zip(RANGES) {
            volume::check_behind(&self.path, BASE + offset, len, offset, generation)?;
        }
        let outside = File::open(&self.path)?;
        for at in [0, BASE - 4096, BASE + SIZE, BASE + SIZE + BASE - 4096] {
            let mut data = [1; 4096];
            outside.read_exact_at(&mut data, at)?;
            ensure!(data == [0; 4096], "written outside of the window, at {at}");
        }
        ensure!(direct.write_pattern(SIZE, 512, 1).is_err(), "past the end");
        Ok(())
    }

    /// The device reads what the file holds, even if it was changed behind the device's back.
    fn read(&self) -> Result<()> {
        let direct = self.device.open()?;
        for (generation, (offset, len)) in (1..).zip(RANGES) {
            direct.check_pattern(offset, len, generation)?;
        }
        direct.check_zero(65_536, 4096)?;
        volume::write_behind(&self.path, BASE + (2 << 20), 300 << 10, 7, 99)?;
        let read = direct.read(2 << 20, 300 << 10)?;
        crate::pattern::check(read.bytes(), 7, 99)?;
        ensure!(direct.read(SIZE, 512).is_err(), "past the end");
        Ok(())
    }

    fn verify(&self) -> Result<()> {
        verify(&self.device.path)
    }

    /// Each way returns zeroes, keeps the neighbours, and frees space if it may.
    fn discard(&self) -> Result<()> {
        let direct = self.device.open()?;
        let (from, len) = (4_u64 << 20, 4_u64 << 20);
        for way in ["discard", "zero-out", "punch"] {
            direct.write_pattern(from - 65_536, usize::try_from(len)? + 131_072, 5)?;
            sync(&self.device.path)?;
            let full = volume::used(&self.path)?;
            match way {
                "discard" => discard(&self.device.path, from, len)?,
                "zero-out" => zero_out(&self.device.path, from, len)?,
                _ => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(direct.file(), flags, from, len)?;
                }
            }
            direct.check_zero(from, usize::try_from(len)?)?;
            direct.check_pattern(from - 65_536, 65_536, 5)?;
            direct.check_pattern(from + len, 65_536, 5)?;
            sync(&self.device.path)?;
            let left = volume::used(&self.path)?;
            if self.kind.counts_blocks() {
                let gave = full.saturating_sub(left);
                if way == "zero-out" {
                    ensure!(gave < 1 << 20, "{way} gave {gave} bytes back");
                } else {
                    ensure!(gave >= len - (1 << 20), "{way} gave {gave} bytes back");
                }
            }
        }
        Ok(())
    }

    /// Syncs requested and done, from the server's counters.
    fn syncs(&self) -> Result<(u64, u64, u64)> {
        let info = self.device.query()?;
        let number = |name| json::number(&info, name);
        Ok((
            number("flushes")?,
            number("sync_requests")?,
            number("syncs")?,
        ))
    }

    /// L07 fsync is a FLUSH, which is a sync of the file.
    fn flush(&self) -> Result<()> {
        let before = self.syncs()?;
        for round in 1..=3 {
            self.device.open()?.write_pattern(0, 4096, round)?;
            sync(&self.device.path)?;
        }
        let after = self.syncs()?;
        ensure!(
            after.0 >= before.0 + 3 && after.1 >= before.1 + 3 && after.2 >= before.2 + 3,
            "3 fsyncs one after the other: {before:?} before, {after:?} after"
        );
        Ok(())
    }

    /// L07 A durable write is one request followed by a sync, without a FLUSH; concurrent ones share theirs.
    fn fua(&self) -> Result<()> {
        ensure!(sysfs::number(self.device.id, "queue/fua")? == 1, "no FUA");
        let before = self.syncs()?;
        durable_write(&self.device.path, 8192, 3)?;
        let after = self.syncs()?;
        // The kernel may send a FLUSH after it.
        let flushes = after.0 - before.0;
        ensure!(
            after.1 - before.1 == flushes + 1 && after.2 - before.2 == flushes + 1,
            "a durable write: {before:?} before, {after:?} after"
        );
        volume::check_behind(&self.path, BASE + 8192, 4096, 8192, 3)
    }

    /// L05 In a truncated file, access to the missing part fails with EIO, the rest works, and everything works once
    /// the file is whole again.
    fn error(&self) -> Result<()> {
        let direct = self.device.open()?;
        direct.write_pattern(0, 1 << 20, 4)?;
        let file = OpenOptions::new().write(true).open(&self.path)?;
        file.set_len(BASE + (1 << 20))?;
        let gone = errno_of(direct.read(2 << 20, 65_536).map(drop))?;
        ensure!(gone == Some(libc::EIO), "errno {gone:?} of {:?}", self.mode);
        let half = errno_of(direct.read((1 << 20) - 4096, 8192).map(drop))?;
        ensure!(half == Some(libc::EIO), "errno {half:?}");
        direct.check_pattern(0, 1 << 20, 4)?;
        file.set_len(BASE + SIZE + BASE)?;
        direct.check_zero(2 << 20, 65_536)?;
        direct.write_pattern(2 << 20, 65_536, 5)?;
        direct.check_pattern(2 << 20, 65_536, 5)?;
        direct.check_pattern(0, 1 << 20, 4)
    }
}

/// The ranges of the patterns: first and last block, around a page, around and beyond the largest request.
const RANGES: [(u64, usize); 6] = [
    (0, 512),
    (4096, 8192),
    ((128 << 10) - 512, 1024),
    ((1 << 20) - 512, 300 << 10),
    (8 << 20, 1 << 20),
    (SIZE - 512, 512),
];

/// L05 The same for a truncated block device: its error is ours, however the device is read.
pub(super) fn cut_loop(
    args: &[&str],
    read: &dyn Fn(&Path, u64, usize) -> Result<()>,
) -> Result<()> {
    let place = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let path = place.file("loop.img", SIZE)?;
    let (node, text) = ("/dev/loop0", path.to_string_lossy().into_owned());
    if !Path::new(node).exists() {
        run::good("modprobe", &["loop"])?;
    }
    run::good("losetup", &[node, &text])?;
    let result = (|| {
        let device = Spec::file(Path::new(node)).with(args).add()?;
        let direct = device.open()?;
        direct.write_pattern(0, 1 << 20, 4)?;
        sync(&device.path)?;
        OpenOptions::new()
            .write(true)
            .open(&path)?
            .set_len(1 << 20)?;
        let gone = errno_of(read(&device.path, 2 << 20, 65_536))?;
        ensure!(gone == Some(libc::EIO), "errno {gone:?}");
        direct.check_pattern(0, 1 << 20, 4)?;
        drop(direct);
        device.delete()
    })();
    run::good("losetup", &["-d", node])?;
    result?;
    place.remove()
}

fn verify(node: &Path) -> Result<()> {
    let done = Fio::new(&node.to_string_lossy())
        .set("rw", "randwrite")
        .set("bsrange", "512-128k")
        .set("size", "4m")
        .set("iodepth", 16)
        .set("verify", "crc32c")
        .run(1)?;
    ensure!(
        done.written >= 4 << 20 && done.read == done.written,
        "{done:?}"
    );
    Ok(())
}

fn blkdiscard(args: &[&str], node: &Path, offset: u64, len: u64) -> Result<()> {
    let (offset, len) = (offset.to_string(), len.to_string());
    let range = ["-o", &offset, "-l", &len, &node.to_string_lossy()];
    run::good("blkdiscard", &[args, &range].concat()).map(drop)
}

pub(super) fn discard(node: &Path, offset: u64, len: u64) -> Result<()> {
    blkdiscard(&[], node, offset, len)
}

fn zero_out(node: &Path, offset: u64, len: u64) -> Result<()> {
    blkdiscard(&["-z"], node, offset, len)
}

pub(super) fn sync(node: &Path) -> Result<()> {
    Ok(OpenOptions::new().write(true).open(node)?.sync_all()?)
}

/// Writes a pattern that is durable when the call returns.
fn durable_write(node: &Path, offset: u64, generation: u64) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    let file = options
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(node)?;
    let mut buffer = Buffer::new(4096);
    crate::pattern::fill(buffer.bytes_mut(), offset, generation);
    Ok(file.write_all_at(buffer.bytes(), offset)?)
}

/// The errno of an expected failure.
pub(super) fn errno_of(result: Result<()>) -> Result<Option<i32>> {
    let error = result.err().context("it passed")?;
    let cause = error.downcast_ref::<std::io::Error>();
    Ok(cause.and_then(std::io::Error::raw_os_error))
}
