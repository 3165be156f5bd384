//! Data and command modes: the requested mode is in effect and keeps data. A kernel without it refuses it by name.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use crate::case::Case;
use crate::cli::{self, Spec, cpus};
use crate::direct_io::Direct;
use crate::embed::Embedded;
use crate::fio::Fio;
use crate::wait::secs;
use crate::{json, run, sysfs};

const SIZE: u64 = 16 << 20;
const QUEUES: usize = 2;
/// The largest request of the devices here.
const MAX_IO: u64 = 128 << 10;

/// A mode, and how the backend handles it.
#[derive(Debug, Clone, Copy)]
struct Variant {
    data: &'static str,
    batch: bool,
    /// Without the fault backend: the driver copies to and from the memory itself.
    direct: bool,
}

/// Features of the modes, with the first kernel that supports them.
const BATCH: (&str, (u32, u32)) = ("BATCH_IO", (7, 0));
const ZERO_COPY: (&str, (u32, u32)) = ("SUPPORT_ZERO_COPY", (6, 15));
const AUTO_BUF: (&str, (u32, u32)) = ("AUTO_BUF_REG", (6, 16));

pub fn cases() -> Vec<Case> {
    let variant = |data, batch, direct| Variant {
        data,
        batch,
        direct,
    };
    let served = [
        variant("get-data", false, false),
        variant("get-data", false, true),
        variant("user-copy", false, false),
        variant("user-copy", false, true),
        variant("copy", true, false),
        variant("user-copy", true, false),
        variant("user-copy", true, true),
    ];
    let mut all: Vec<Case> = served
        .into_iter()
        .map(|v| Case::new(v.name("keeps_data"), move || keeps_data(v)))
        .collect();
    for data in ["zero-copy", "zero-copy-manual"] {
        let v = variant(data, false, false);
        let name = v.name("is_no_mode_for_slices");
        all.push(Case::new(name, move || zero_copy(v)));
    }
    all.push(Case::new(
        "mode_get_data_batch_is_refused",
        get_data_in_batches,
    ));
    for batch in ["off", "on"] {
        let name = format!("threads_several_on_a_queue_batch_{batch}");
        all.push(Case::new(name, move || several_threads(batch)));
    }
    for poll in ["fixed", "adaptive:200"] {
        let name = format!(
            "poll_{}_keeps_data_and_ends",
            poll.split(':').next().unwrap_or(poll)
        );
        all.push(Case::new(name, move || polls(poll)));
    }
    for (backend, data, batch) in [
        ("mem", "get-data", "off"),
        ("mem", "user-copy", "off"),
        ("mem", "copy", "on"),
        ("null", "zero-copy", "off"),
        ("null", "zero-copy", "on"),
    ] {
        let name = format!("mode_of_the_tool_{backend}_{data}_batch_{batch}").replace('-', "_");
        all.push(Case::new(name, move || of_the_tool(backend, data, batch)));
    }
    all
}

/// Three threads on each queue: all of them serve, and data is kept. A kernel that allows one thread per queue says so.
fn several_threads(batch: &'static str) -> Result<()> {
    let spec = Spec::mem("32M").with(&["--threads", "3", "--batch", batch]);
    let since = if batch == "on" { (7, 0) } else { (6, 16) };
    if sysfs::kernel() < since {
        let args = spec.args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let why = match batch {
            "on" => "BATCH_IO",
            _ => "6.16",
        };
        cli::fails(&args, 1, &[why])?;
        return cli::nothing_left(secs(10));
    }
    let device = spec.add()?;
    let done = Fio::new(device.node())
        .set("rw", "randwrite")
        .set("bsrange", "4k-64k")
        .set("size", "8m")
        .set("offset_increment", "8m")
        .set("iodepth", 64)
        .set("numjobs", 2)
        .set("verify", "crc32c")
        .run(2)?;
    ensure!(done.written > 0 && done.read == done.written, "{done:?}");
    let info = device.query()?;
    let health = json::find(&info, "health").context("health")?;
    let queues = json::find(health, "queues").and_then(|q| q.as_array());
    let queues = queues.context("queues")?;
    ensure!(queues.len() == 3, "three threads, told are {info}");
    let threads: Vec<_> = queues.iter().map(|q| q["thread"].as_u64()).collect();
    ensure!(threads == [Some(0), Some(1), Some(2)], "{info}");
    device.delete()?;
    cli::nothing_left(secs(10))
}

/// A polling queue keeps data, and ends like others.
fn polls(poll: &'static str) -> Result<()> {
    let device = Spec::mem("32M").with(&["--poll", poll]).add()?;
    let done = Fio::new(device.node())
        .set("rw", "randwrite")
        .set("bs", "4k")
        .set("size", "4m")
        .set("iodepth", 1)
        .set("verify", "crc32c")
        .run(1)?;
    ensure!(done.written > 0 && done.read == done.written, "{done:?}");
    device.delete()?;
    cli::nothing_left(secs(10))
}

/// `ublkctl add --data … --batch …`: the mode is in effect and reported, and data is kept; or the kernel lacks it, and
/// the refusal names the feature.
fn of_the_tool(backend: &'static str, data: &str, batch: &str) -> Result<()> {
    let spec = match backend {
        "mem" => Spec::mem("32M"),
        _ => Spec::null("32M"),
    };
    let spec = spec.with(&["--data", data, "--batch", batch]);
    let since = match (data, batch) {
        (_, "on") => (7, 0),
        ("zero-copy", _) => (6, 16),
        _ => (6, 5),
    };
    if sysfs::kernel() < since {
        let args = spec.args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let feature = if batch == "on" {
            "BATCH_IO"
        } else {
            "AUTO_BUF_REG"
        };
        cli::fails(&args, 1, &["lacks", feature])?;
        return cli::nothing_left(secs(5));
    }
    let device = spec.add()?;
    let info = device.query()?;
    ensure!(
        info["data"] == data && info["batch"] == (batch == "on"),
        "{info}"
    );
    let direct = device.open()?;
    direct.write_pattern(0, 1 << 20, 1)?;
    direct.write_pattern((32 << 20) - 512, 512, 2)?;
    if backend == "mem" {
        direct.check_pattern(0, 1 << 20, 1)?;
        direct.check_pattern((32 << 20) - 512, 512, 2)?;
    } else {
        direct.read(0, 1 << 20)?;
    }
    drop(direct);
    device.delete()?;
    cli::nothing_left(secs(5))
}

impl Variant {
    fn name(self, what: &str) -> String {
        let data = self.data.replace('-', "_");
        let batch = if self.batch { "_batch" } else { "" };
        let direct = if self.direct { "_direct" } else { "" };
        format!("mode_{data}{batch}{direct}_{what}")
    }

    fn args(self) -> [String; 3] {
        [
            format!("data={}", self.data),
            format!("batch={}", self.batch),
            format!("direct={}", self.direct),
        ]
    }

    /// What this kernel lacks for it, according to its version.
    fn lacks(self) -> Vec<(&'static str, (u32, u32))> {
        let data: &[_] = match self.data {
            "zero-copy" => &[ZERO_COPY, AUTO_BUF],
            "zero-copy-manual" => &[ZERO_COPY],
            _ => &[],
        };
        let batch = self.batch.then_some(BATCH);
        let needed = data.iter().copied().chain(batch);
        needed
            .filter(|(_, since)| sysfs::kernel() < *since)
            .collect()
    }

    /// Starts the device on two queues and checks its mode with the kernel; `None` if the kernel lacks something and
    /// the refusal says what.
    fn start(self) -> Result<Option<Embedded>> {
        let args = self.args();
        let args = args.each_ref().map(String::as_str);
        let lacks = self.lacks();
        if !lacks.is_empty() {
            refused(&args, &lacks)?;
            return Ok(None);
        }
        let embedded = Embedded::start(QUEUES, &[&args[..], &["cache=true"]].concat())?;
        let data = json::text(&embedded.described, "data")?;
        ensure!(
            data == self.data,
            "asked for {}, the kernel says {data}",
            self.data
        );
        let batch = embedded.described["batch"].as_bool();
        ensure!(
            batch == Some(self.batch),
            "asked for batch {}, the kernel says {batch:?}",
            self.batch
        );
        Ok(Some(embedded))
    }
}

/// The refusal names each feature and the kernel that introduced it, and nothing is left behind.
fn refused(args: &[&str], lacks: &[(&str, (u32, u32))]) -> Result<()> {
    let mut embedded = Embedded::idle(args)?;
    let said = embedded.ask("start").err().context("it was not refused")?;
    let said = said.to_string();
    for (feature, (major, minor)) in lacks {
        let wanted = format!("{feature} (since Linux {major}.{minor})");
        ensure!(said.contains(&wanted), "no {wanted:?} in {said:?}");
    }
    ensure!(sysfs::present().is_empty(), "{:?} left", sysfs::present());
    embedded.end()
}

fn keeps_data(variant: Variant) -> Result<()> {
    let Some(mut embedded) = variant.start()? else {
        return Ok(());
    };
    patterns(&mut embedded).context("patterns")?;
    no_data(&mut embedded).context("flush, discard, write-zeroes")?;
    if !variant.direct {
        faults(&mut embedded).context("faults")?;
    }
    fio(&embedded).context("fio")?;
    let health = embedded.ask("health")?;
    ensure!(json::text(&health, "state")? == "serving", "{health}");
    embedded.remove()
}

/// First and last block, blocks and ranges across the largest request, read back and checked behind the device.
fn patterns(embedded: &mut Embedded) -> Result<()> {
    let direct = embedded.open()?;
    let ranges = [
        (0, 512),
        (512, 3 * 512),
        (4096, 4096),
        (MAX_IO - 512, 1024),
        ((1 << 20) - 512, 300 << 10),
        (SIZE / 2, 1 << 20),
        (SIZE - 4096, 3584),
        (SIZE - 512, 512),
    ];
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.write_pattern(offset, len, generation)?;
    }
    for (generation, (offset, len)) in (1..).zip(ranges) {
        direct.check_pattern(offset, len, generation)?;
        embedded.ask(&format!("check {offset} {len} {generation}"))?;
    }
    direct.check_zero(2048, 2048)?;
    ensure!(
        direct.read(SIZE, 512).is_err(),
        "a read past the end passed"
    );
    // One block inside a range: its neighbours keep their content.
    direct.write_pattern(SIZE / 2 + 512, 512, 99)?;
    direct.check_pattern(SIZE / 2, 512, 6)?;
    direct.check_pattern(SIZE / 2 + 512, 512, 99)?;
    direct.check_pattern(SIZE / 2 + 1024, (1 << 20) - 1024, 6)
}

/// Requests without data arrive, too, and do their work.
fn no_data(embedded: &mut Embedded) -> Result<()> {
    let node = embedded.path.to_string_lossy().into_owned();
    let count = |embedded: &mut Embedded, name| json::number(&embedded.ask("health")?, name);
    let before = count(embedded, "flushes")?;
    let file = File::options().write(true).open(&embedded.path)?;
    file.write_all_at(&[1; 4096], 0)?;
    file.sync_all()?;
    drop(file);
    ensure!(count(embedded, "flushes")? > before, "fsync sent no flush");
    let direct = embedded.open()?;
    let (start, len, area) = (64_u64 << 10, 128_u64 << 10, 256 << 10);
    let (from, long) = (start.to_string(), len.to_string());
    let range = ["-o", &from, "-l", &long, &node];
    for way in ["discard", "zero", "punch"] {
        direct.write_pattern(0, area, 7)?;
        let counter = if way == "discard" {
            "discards"
        } else {
            "write_zeroes"
        };
        let before = count(embedded, counter)?;
        match way {
            "discard" => drop(run::good("blkdiscard", &range)?),
            "zero" => drop(run::good("blkdiscard", &[&["-z"], &range[..]].concat())?),
            _ => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(direct.file(), flags, start, len)?;
            }
        }
        ensure!(count(embedded, counter)? > before, "{way}: no {counter}");
        direct.check_zero(start, usize::try_from(len)?)?;
        direct.check_pattern(0, usize::try_from(start)?, 7)?;
        direct.check_pattern(start + len, area - usize::try_from(start + len)?, 7)?;
    }
    Ok(())
}

/// The errno of an expected failure.
fn errno<T>(result: Result<T>) -> Result<Option<i32>> {
    let error = result.err().context("it passed")?;
    let cause = error.downcast_ref::<std::io::Error>();
    Ok(cause.and_then(std::io::Error::raw_os_error))
}

/// L25 An errno is returned unchanged, a panic is EIO; later requests are served.
fn faults(embedded: &mut Embedded) -> Result<()> {
    let direct = embedded.open()?;
    let serves = |direct: &Direct, generation| {
        direct.write_pattern(0, 65_536, generation)?;
        direct.check_pattern(0, 65_536, generation)
    };
    let mut generation = 20;
    for (rule, wanted) in [
        (format!("fail write {} 1", libc::ENOSPC), libc::ENOSPC),
        (format!("fail read {} 1", libc::ETIMEDOUT), libc::ETIMEDOUT),
        ("panic write 1".to_owned(), libc::EIO),
        ("panic read 1".to_owned(), libc::EIO),
    ] {
        generation += 1;
        embedded.ask(&rule)?;
        let found = if rule.contains("write") {
            errno(direct.write_pattern(0, 4096, 1))
        } else {
            errno(direct.read(0, 4096))
        };
        let found = found.with_context(|| rule.clone())?;
        ensure!(found == Some(wanted), "{rule}: errno {found:?}");
        serves(&direct, generation).with_context(|| format!("after {rule}"))?;
    }
    let health = embedded.ask("health")?;
    ensure!(json::number(&health, "panics")? == 2, "{health}");
    Ok(())
}

/// Two jobs on separate parts, requests of all sizes, on all queues.
fn fio(embedded: &Embedded) -> Result<()> {
    let jobs = QUEUES.min(cpus());
    let each = 4_u64 << 20;
    let done = Fio::new(&embedded.path.to_string_lossy())
        .set("rw", "randwrite")
        .set("bsrange", "512-128k")
        .set("size", each)
        .set("offset_increment", each)
        .set("numjobs", jobs)
        .set("cpus_allowed", format!("0-{}", jobs - 1))
        .set("cpus_allowed_policy", "split")
        .set("iodepth", 16)
        .set("verify", "crc32c")
        .run(jobs)?;
    let total = each * jobs as u64;
    ensure!(
        done.written >= total && done.read == done.written,
        "{done:?}"
    );
    Ok(())
}

/// If the kernel supports zero copy, the mode is in effect; a backend of slices never sees the data, and fails instead
/// of returning something else.
fn zero_copy(variant: Variant) -> Result<()> {
    let Some(embedded) = variant.start()? else {
        return Ok(());
    };
    let direct = embedded.open()?;
    for found in [
        errno(direct.write_pattern(0, 4096, 1)),
        errno(direct.read(0, 4096)),
    ] {
        let found = found?;
        ensure!(found == Some(libc::EOPNOTSUPP), "errno {found:?}");
    }
    drop(direct);
    embedded.remove()
}

/// No driver supports get-data with batches: refused before the driver is asked, on every kernel.
fn get_data_in_batches() -> Result<()> {
    let mut embedded = Embedded::idle(&["data=get-data", "batch=true"])?;
    let said = embedded.ask("start").err().context("it was not refused")?;
    let said = said.to_string();
    ensure!(
        said.contains("NEED_GET_DATA") && said.contains("BATCH_IO"),
        "{said}"
    );
    ensure!(sysfs::present().is_empty(), "{:?} left", sysfs::present());
    embedded.end()
}
