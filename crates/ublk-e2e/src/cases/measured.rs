//! What a device measures agrees with its client and with the kernel.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::{self, Case};
use crate::cli::{self, Spec};
use crate::fio::{Done, Fio};
use crate::volume::{Kind, Volume};
use crate::wait::{secs, until};
use crate::{json, procfs, sysfs};

/// A mode, and the first kernel that has it.
type Mode = (&'static str, &'static str, (u32, u32));

const MODES: [Mode; 5] = [
    ("copy", "off", (6, 5)),
    ("get-data", "off", (6, 5)),
    ("user-copy", "off", (6, 5)),
    ("zero-copy", "off", (6, 16)),
    ("copy", "on", (7, 0)),
];

pub fn cases() -> Vec<Case> {
    let mode = |mode: Mode| {
        let (data, batch, _) = mode;
        let name = format!("stats_agree_with_fio_and_the_kernel_{data}_batch_{batch}");
        Case::new(name.replace('-', "_"), move || agrees(mode))
    };
    let mut all: Vec<Case> = MODES.into_iter().map(mode).collect();
    let batches = SLOW
        .into_iter()
        .filter(|batch| *batch == "off" || sysfs::kernel() >= (7, 0));
    all.extend(batches.map(|batch| {
        let name = format!("stats_percentiles_agree_with_fio_batch_{batch}");
        Case::new(name, move || percentiles(batch))
    }));
    all.push(Case::new("exporter_tells_what_stats_tell", exporter));
    all.push(Case::new("l24_info_tells_a_request_that_hangs", hangs));
    all
}

/// L24 `info` tells for how long a request has hung and where, and in a soak, which waits for that long, also the problem
/// and the log. Its queue is not woken for that again and again, and an idle server not at all.
fn hangs() -> Result<()> {
    let below = Spec::mem("1M").add()?;
    let device = Spec::file(std::path::Path::new(below.node())).add()?;
    let id = device.id.to_string();
    let info = || cli::ublkctl_json(&["info", &id]);
    client(device.node())?;
    procfs::stop(below.server()?)?;
    let node = device.node().to_owned();
    let reader = std::thread::spawn(move || client(&node));
    let found = until("the age of the request", secs(30), || {
        let found = info()?;
        Ok((json::number(&found, "ms").unwrap_or(0) >= 1500).then_some(found))
    });
    let stalled = |found: Value| -> Result<()> {
        ensure!(json::text(&found, "place")? == "backend", "{found}");
        let batches = json::number(&found, "batches")?;
        std::thread::sleep(secs(1));
        ensure!(json::number(&info()?, "batches")? == batches, "{found}");
        if case::set() != case::Set::Soak {
            return Ok(());
        }
        let log = json::text(&found, "log")?;
        until("the problem in the log", secs(40), || {
            let log = std::fs::read_to_string(&log)?;
            Ok(log.contains("has been unanswered for").then_some(()))
        })?;
        let text = cli::ublkctl(&["info", &id])?.good()?;
        ensure!(
            text.stdout.contains("stalled        queue 0: a request"),
            "{text:?}"
        );
        Ok(())
    };
    let found = found.and_then(stalled);
    procfs::kill(below.server()?, Signal::CONT)?;
    found?;
    reader.join().map_err(|_| anyhow::anyhow!("panic"))??;
    until("the end of the problem", secs(20), || {
        Ok(json::number(&info()?, "ms").is_err().then_some(()))
    })?;
    if case::set() == case::Set::Soak {
        let server = device.server()?;
        std::thread::sleep(secs(12));
        let switches = procfs::status(server, "voluntary_ctxt_switches")?;
        std::thread::sleep(secs(12));
        let after = procfs::status(server, "voluntary_ctxt_switches")?;
        ensure!(switches == after, "an idle server woke up");
    }
    device.delete()?;
    below.delete()
}

/// Whether a slow device works in batches.
const SLOW: [&str; 2] = ["off", "on"];

/// Requests and bytes of reads, writes and discards, and the number of flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work([u64; 7]);

impl Work {
    /// By the tool.
    fn of_stats(stats: &Value) -> Self {
        let ops = stats.get("ops").and_then(Value::as_array);
        let number = |op: &str, key: &str| {
            let mut ops = ops.into_iter().flatten();
            let found = ops.find(|it| it.get("op").and_then(Value::as_str) == Some(op));
            found.and_then(|it| it.get(key)?.as_u64()).unwrap_or(0)
        };
        Self([
            number("read", "requests"),
            number("read", "bytes"),
            number("write", "requests"),
            number("write", "bytes"),
            number("discard", "requests"),
            number("discard", "bytes"),
            number("flush", "requests"),
        ])
    }

    /// By the kernel (Documentation/block/stat.rst).
    fn of_kernel(node: &str) -> Result<Self> {
        let name = node.trim_start_matches("/dev/");
        let text = std::fs::read_to_string(format!("/sys/block/{name}/stat"))?;
        let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
        let at = |n: usize| numbers.get(n).copied().context("a short stat");
        Ok(Self([
            at(0)?,
            at(2)? * 512,
            // An fsync is an empty write to the block layer, which it turns into a flush.
            at(4)?.saturating_sub(at(15)?),
            at(6)? * 512,
            at(11)?,
            at(13)? * 512,
            at(15)?,
        ]))
    }

    /// By fio, which does not know how many flushes its fsyncs became.
    const fn of_fio(done: &Done, trimmed: &Done, flushes: u64) -> Self {
        Self([
            done.reads,
            done.read,
            done.writes,
            done.written,
            trimmed.trims,
            trimmed.trimmed,
            flushes,
        ])
    }

    fn since(self, before: Self) -> Self {
        let mut difference = self;
        for (to, n) in difference.0.iter_mut().zip(before.0) {
            *to -= n;
        }
        difference
    }

    /// Within one per cent.
    fn agrees(self, other: Self) -> bool {
        let close = |(a, b): (u64, u64)| a.abs_diff(b) * 100 <= a.max(b);
        self.0.into_iter().zip(other.0).all(close)
    }
}

fn stats(id: &str) -> Result<Value> {
    cli::ublkctl_json(&["stats", id])
}

/// Sum of the latencies' counts.
fn measured(stats: &Value) -> u64 {
    let ops = stats.get("ops").and_then(Value::as_array);
    let ops = ops.into_iter().flatten();
    let count = |op: &Value| op.pointer("/latency_ns/count").and_then(Value::as_u64);
    ops.filter_map(count).sum()
}

fn client(node: &str) -> Result<Done> {
    Fio::new(node)
        .set("rw", "randrw")
        .set("bs", "4k")
        .set("size", "16m")
        .set("io_size", "4m")
        .set("iodepth", 16)
        .set("fsync", 16)
        .run(1)
}

fn trims(node: &str) -> Result<Done> {
    Fio::new(node)
        .set("rw", "randtrim")
        .set("bs", "64k")
        .set("size", "16m")
        .set("io_size", "4m")
        .set("iodepth", 4)
        .run(1)
}

/// Counts and bytes agree within one per cent; every request has a latency; while it is off, none is measured.
fn agrees((data, batch, since): Mode) -> Result<()> {
    let volume;
    let spec = if data == "zero-copy" {
        volume = Volume::new(Kind::Ext4, 32 << 20)?;
        Spec::file(&volume.file("measured", 16 << 20)?)
    } else {
        Spec::mem("16M")
    };
    let spec = spec.with(&["--data", data, "--batch", batch, "--metrics", "latencies"]);
    if sysfs::kernel() < since {
        let args = spec.args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        cli::fails(&args, 1, &[])?;
        return cli::nothing_left(secs(10));
    }
    let device = spec.add()?;
    let (id, node) = (device.id.to_string(), device.node());
    let (before, kernel) = (stats(&id)?, Work::of_kernel(node)?);
    let (done, trimmed) = (client(node)?, trims(node)?);
    let after = stats(&id)?;
    let ours = Work::of_stats(&after).since(Work::of_stats(&before));
    let theirs = Work::of_kernel(node)?.since(kernel);
    let fio = Work::of_fio(&done, &trimmed, ours.0[6]);
    ensure!(done.reads > 300 && done.writes > 300, "{done:?}");
    ensure!(trimmed.trims > 50, "{trimmed:?}");
    ensure!(
        data != "zero-copy" || ours.0[6] > 10,
        "no flushes: {ours:?}"
    );
    ensure!(ours.agrees(fio), "ours {ours:?}, fio {fio:?}");
    ensure!(ours.agrees(theirs), "ours {ours:?}, kernel {theirs:?}");
    let requests = ours.0[0] + ours.0[2] + ours.0[4] + ours.0[6];
    let latencies = measured(&after) - measured(&before);
    ensure!(latencies == requests, "{latencies} of {requests}: {after}");
    ensure!(json::number(&after, "in_flight")? == 0, "{after}");
    if data == "zero-copy" {
        let registered =
            json::number(&after, "zero_copy_hits")? + json::number(&after, "zero_copy_fallbacks")?;
        ensure!(registered >= ours.0[0] + ours.0[2], "{after}");
    }
    cli::ublkctl(&["metrics", &id, "off"])?.good()?;
    client(node)?;
    let off = stats(&id)?;
    ensure!(json::text(&off, "level")? == "off", "{off}");
    // A request may have been in the round in which the level changed.
    ensure!(measured(&off) - measured(&after) <= 1, "{off}");
    ensure!(Work::of_stats(&off).0[0] > Work::of_stats(&after).0[0]);
    device.delete()
}

/// Percentiles agree with fio's to within five per cent, where the way to the server and back is short beside the request:
/// each takes 1.2 s.
fn percentiles(batch: &str) -> Result<()> {
    let spec = Spec {
        backend: "fault",
        ..Spec::mem("20M")
    };
    let delays = ["--delay", "1200ms", "--on", "read", "--range", "4M:16M"];
    let spec = spec
        .with(&delays)
        .with(&["--batch", batch, "--metrics", "latencies"]);
    let device = spec.add()?;
    let done = Fio::new(device.node())
        .set("rw", "randread")
        .set("bs", "4k")
        .set("offset", "4m")
        .set("size", "16m")
        .set("io_size", "128k")
        .set("iodepth", 8)
        .run(1)?;
    let stats = stats(&device.id.to_string())?;
    let ops = stats.get("ops").and_then(Value::as_array).context("ops")?;
    let reads = ops
        .iter()
        .find(|it| it.get("op").and_then(Value::as_str) == Some("read"));
    let latency = reads
        .and_then(|it| it.get("latency_ns"))
        .context("no latencies")?;
    // Reads of the kernel at the beginning of the device are not delayed: they are not among the upper half.
    for (name, theirs) in ["p50", "p90", "p99"].into_iter().zip(done.reads_took) {
        let ours = json::number(latency, name)?;
        ensure!(
            ours.abs_diff(theirs) * 20 <= theirs,
            "{name}: ours {ours} ns, fio {theirs} ns: {latency}"
        );
    }
    device.delete()
}

/// An exporter that ends with the case.
struct Exporter(Child);

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn scrape(path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(secs(20)))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    Ok(reply)
}

/// The exporter tells of each device what `stats` tells, and that a server is gone.
fn exporter() -> Result<()> {
    let path = format!("/tmp/ublk-exporter-{}", std::process::id());
    let device = Spec::null("16M").with(&["--recovery", "queue"]).add()?;
    client(device.node())?;
    let mut command = cli::command(&["exporter", "--listen", &format!("unix:{path}")]);
    // Its log would stand between the case's name and its result.
    command.stderr(std::process::Stdio::null());
    let _exporter = Exporter(spawn(&mut command)?);
    let text = until("the exporter's answer", secs(20), || Ok(scrape(&path).ok()))?;
    let id = device.id.to_string();
    let reads = Work::of_stats(&stats(&id)?).0[0];
    let labels = format!("device=\"ublkb{id}\",name=\"\",backend=\"null\"");
    let wanted = format!("ublk_reads_completed_total{{{labels},queue=\"0\"}} {reads}");
    ensure!(text.contains(&wanted), "no {wanted} in {text}");
    ensure!(
        text.contains(&format!("ublk_server_up{{{labels}}} 1")),
        "{text}"
    );
    cli::fails(
        &["exporter", "--listen", &format!("unix:{path}")],
        1,
        &["another exporter"],
    )?;
    device.kill_server("quiesced")?;
    let gone = format!("ublk_server_up{{{labels}}} 0");
    until("the end of the server in the metrics", secs(20), || {
        Ok(scrape(&path)?.contains(&gone).then_some(()))
    })?;
    device.delete()
}

fn spawn(command: &mut Command) -> Result<Child> {
    let command = command.stdin(Stdio::null()).stdout(Stdio::null());
    command.spawn().context("the exporter")
}
