//! A program that embeds the facade, for the cases: `ublk-e2e --serve KEY=VALUE…`.
//!
//! It serves a memory device behind the fault backend, or without it (`direct=true`), or a null device behind it
//! (`null=true`), or a file (`file=PATH`). It takes commands on standard input and answers each with one line of JSON;
//! `embed` is the other end.

use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use ublk::backends::{File, Memory, Null};
use ublk::core::{Mode, Op, Recovery};
use ublk::{Backend, Builder, Device, Errno};
use ublk_backends::fault::{Control, Effect, Fault, Rule};

use crate::plain::Plain;
use crate::wait::{secs, until};
use crate::{pattern, procfs};

/// Maximum time that a request is held.
const HOLD: Duration = Duration::from_secs(90);

/// The options of the device.
#[derive(Debug, Clone)]
struct Options {
    size: u64,
    queues: u16,
    depth: u16,
    block_size: u32,
    cache: bool,
    fua: bool,
    mode: Mode,
    direct: bool,
    recovery: Recovery,
    null: bool,
    huge: bool,
    /// Memory shared with clients.
    shm: Option<String>,
    /// A file device, in the builder's default mode.
    file: Option<String>,
    /// Deadline of each step in milliseconds.
    deadline: u64,
    /// Whether the kernel scans for partitions.
    partitions: bool,
    /// Milliseconds for which each read is held from the start on, then to fail; not with `null`, `file` or `direct`.
    hold: Option<u64>,
}

/// A device, and its fault injection, if any.
struct Served {
    device: Device,
    control: Option<Control>,
}

impl Served {
    /// Releases everything that is held.
    fn clear(&self) {
        if let Some(control) = &self.control {
            control.clear();
        }
    }

    /// The description of the device, with the kernel's values.
    fn describe(&self) -> Value {
        let geometry = self.device.geometry();
        let mode = Mode::of(geometry.features());
        json!({"path": self.device.path(), "id": self.device.id().get(),
            "queues": geometry.queues(), "data": mode.data.name(), "batch": mode.batch})
    }
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self {
            size: 16 << 20,
            queues: 1,
            depth: 32,
            block_size: 512,
            cache: false,
            fua: false,
            mode: Mode::default(),
            direct: false,
            recovery: Recovery::None,
            null: false,
            huge: false,
            shm: None,
            file: None,
            deadline: 30_000,
            partitions: true,
            hold: None,
        };
        for word in args {
            let (key, value) = word.split_once('=').context("KEY=VALUE")?;
            match key {
                "size" => options.size = value.parse()?,
                "queues" => options.queues = value.parse()?,
                "depth" => options.depth = value.parse()?,
                "block" => options.block_size = value.parse()?,
                "cache" => options.cache = value.parse()?,
                "fua" => options.fua = value.parse()?,
                "data" => options.mode.data = value.parse()?,
                "batch" => options.mode.batch = value.parse()?,
                "direct" => options.direct = value.parse()?,
                "recovery" => options.recovery = value.parse()?,
                "null" => options.null = value.parse()?,
                "file" => options.file = Some(value.to_owned()),
                "deadline" => options.deadline = value.parse()?,
                "partitions" => options.partitions = value.parse()?,
                "hold" => options.hold = Some(value.parse()?),
                "shm" => options.shm = Some(value.to_owned()),
                "huge" => options.huge = value.parse()?,
                _ => bail!("unknown: {word}"),
            }
        }
        Ok(options)
    }

    fn start(&self, memory: &Arc<Memory>) -> Result<Served> {
        let limits = memory.limits().volatile_cache(self.cache).fua(self.fua);
        if self.direct {
            let plain = Plain::new(Arc::clone(memory), limits);
            let device = self.build(Builder::mapped(plain))?;
            return Ok(Served {
                device,
                control: None,
            });
        }
        if let Some(path) = &self.file {
            let builder = Builder::file(File::options(path).open()?);
            let builder = builder.queues(self.queues).recovery(self.recovery);
            return Ok(Served {
                device: builder.start()?,
                control: None,
            });
        }
        if self.null {
            let (fault, control) = Fault::new(Null::new(self.size, self.block_size)?);
            let limits = fault.limits().volatile_cache(self.cache).fua(self.fua);
            let device = self.build(Builder::new(fault.declare(limits)))?;
            return Ok(Served {
                device,
                control: Some(control),
            });
        }
        let (fault, control) = Fault::new(Arc::clone(memory));
        if let Some(milliseconds) = self.hold {
            let held = Duration::from_millis(milliseconds);
            control.add(Rule::every(Op::Read, Effect::Hold(held)));
        }
        let device = self.build(Builder::new(fault.declare(limits.quick(false))))?;
        Ok(Served {
            device,
            control: Some(control),
        })
    }

    fn build<B: Backend>(&self, builder: Builder<B>) -> Result<Device> {
        let builder = builder.queues(self.queues).depth(self.depth);
        let builder = builder
            .max_io_bytes(128 << 10)
            .mode(self.mode)
            .partitions(self.partitions)
            .deadline(Duration::from_millis(self.deadline))
            .huge_pages(self.huge)
            .recovery(self.recovery);
        let builder = match &self.shm {
            Some(path) => {
                let file = std::fs::File::options().read(true).write(true).open(path)?;
                builder.shared_memory(file)
            }
            None => builder,
        };
        Ok(builder.start()?)
    }
}

/// Serves until standard input ends or `remove` is done.
pub fn serve(args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    let memory = Arc::new(Memory::new(options.size, options.block_size)?);
    let mut served = None;
    let mut stopped = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let args: Vec<&str> = line.split_whitespace().collect();
        let answer = match args.as_slice() {
            ["start"] => options.start(&memory).map(|started| {
                let answer = started.describe();
                served = Some(started);
                answer
            }),
            ["remove"] => match served.take() {
                Some(served) => {
                    served.clear();
                    let removed = served.device.remove();
                    removed.map(|()| json!({})).map_err(Into::into)
                }
                None => Ok(json!({})),
            },
            ["stop"] => match served.take() {
                Some(Served { device, .. }) => {
                    device.stop().map_err(|f| f.error.into()).map(|left| {
                        stopped = Some(left);
                        json!({})
                    })
                }
                None => Err(anyhow::anyhow!("not started")),
            },
            ["delete"] => match stopped.take() {
                Some(left) => left.delete().map(|()| json!({})).map_err(Into::into),
                None => Err(anyhow::anyhow!("not stopped")),
            },
            ["rounds", count] => count
                .parse()
                .map_err(Into::into)
                .and_then(|n| rounds(n, &options)),
            ["many", count] => count
                .parse()
                .map_err(Into::into)
                .and_then(|n| many(n, &options)),
            ["check", offset, len, generation] => check(&memory, [offset, len, generation]),
            args => match &served {
                Some(served) => command(args, served),
                None => Err(anyhow::anyhow!("not started")),
            },
        };
        let answer = answer.unwrap_or_else(|e| json!({"error": format!("{e:#}")}));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    if let Some(served) = served {
        served.clear();
        served.device.remove()?;
    }
    Ok(())
}

fn command(args: &[&str], served: &Served) -> Result<Value> {
    if let ["resize", bytes] = args {
        served.device.resize(bytes.parse()?)?;
        return Ok(json!({}));
    }
    if args == ["health"] {
        let health = served.device.health();
        let flusher = health.queues.iter().all(|q| q.io_flusher);
        let c = health.counters;
        return Ok(
            json!({"state": health.state.name(), "first_error": health.first_error,
            "panics": c.panics, "errors": c.errors, "writes": c.writes, "reads": c.reads,
            "flushes": c.flushes, "discards": c.discards, "write_zeroes": c.write_zeroes,
            "io_flusher": flusher, "shm_hits": c.shared_hits}),
        );
    }
    let control = served.control.as_ref();
    inject(args, control.context("served without the fault backend")?)
}

/// Handles commands for the fault backend.
fn inject(args: &[&str], control: &Control) -> Result<Value> {
    match args {
        ["counts"] => {
            let c = control.counts();
            Ok(
                json!({"reads": c.reads, "writes": c.writes, "fua_writes": c.fua_writes,
                "flushes": c.flushes, "discards": c.discards, "write_zeroes": c.write_zeroes,
                "no_unmap": c.no_unmap, "held": c.held}),
            )
        }
        ["fail", op, errno, nth] => {
            let effect = Effect::Fail(Errno::new(errno.parse()?));
            control.add(Rule::every(operation(op)?, effect).nth(nth.parse()?));
            Ok(json!({}))
        }
        ["panic", op, nth] => {
            control.add(Rule::every(operation(op)?, Effect::Panic).nth(nth.parse()?));
            Ok(json!({}))
        }
        ["hold", op] => {
            control.add(Rule::every(operation(op)?, Effect::Hold(HOLD)));
            Ok(json!({}))
        }
        ["clear"] => {
            control.clear();
            Ok(json!({}))
        }
        _ => bail!("unknown command {args:?}"),
    }
}

fn operation(word: &str) -> Result<Op> {
    Ok(match word {
        "read" => Op::Read,
        "write" => Op::Write,
        "flush" => Op::Flush,
        "discard" => Op::Discard,
        "write_zeroes" => Op::WriteZeroes,
        _ => bail!("unknown operation {word}"),
    })
}

/// Reads the backend's content without the device, which may be gone.
fn check(memory: &Memory, args: [&str; 3]) -> Result<Value> {
    let offset: u64 = args[0].parse()?;
    let mut data = vec![0; args[1].parse()?];
    memory.read_at(&mut data, offset)?;
    pattern::check(&data, offset, args[2].parse()?)?;
    Ok(json!({}))
}

/// Adds, starts, uses, stops and deletes a device this many times in this process, and reports the process's footprint
/// before and after.
fn rounds(count: usize, options: &Options) -> Result<Value> {
    let me = std::process::id();
    let memory = Arc::new(Memory::new(options.size, options.block_size)?);
    let round = |number: usize| -> Result<()> {
        let Served { device, .. } = options.start(&memory)?;
        let path = device.path();
        // Some rounds use the device, others remove it as soon as it serves.
        if number.is_multiple_of(3) {
            let direct = crate::direct_io::Direct::open(&path)?;
            direct.write_pattern(0, 4096, number as u64)?;
            direct.check_pattern(0, 4096, number as u64)?;
        }
        device.remove()?;
        anyhow::ensure!(!path.exists(), "round {number}: {} is left", path.display());
        Ok(())
    };
    let before = procfs::footprint(me)?;
    let start = Instant::now();
    for number in 0..count {
        round(number).with_context(|| format!("round {number}"))?;
    }
    let ms = millis(start);
    let after = settled(me, before)?;
    let kib = procfs::status(me, "VmRSS")? >> 10;
    Ok(json!({"before": show(before), "after": show(after), "ms": ms, "kib": kib}))
}

/// Creates this many devices at once, reads from each, and removes them.
fn many(count: usize, options: &Options) -> Result<Value> {
    let me = std::process::id();
    let memory = Arc::new(Memory::new(options.size, options.block_size)?);
    let before = procfs::footprint(me)?;
    let resident = procfs::status(me, "VmRSS")? >> 10;
    let start = Instant::now();
    let mut devices = Vec::new();
    for number in 0..count {
        let served = options.start(&memory);
        devices.push(served.with_context(|| format!("device {number}"))?);
    }
    let made = millis(start);
    let grown = (procfs::status(me, "VmRSS")? >> 10).saturating_sub(resident);
    for Served { device, .. } in &devices {
        crate::direct_io::Direct::open_read(&device.path())?.read(0, 4096)?;
    }
    let start = Instant::now();
    let found = devices.len();
    for Served { device, .. } in devices {
        device.remove()?;
    }
    let removed = millis(start);
    let after = settled(me, before)?;
    Ok(
        json!({"devices": found, "made_ms": made, "removed_ms": removed,
        "kib_each": grown / count.max(1) as u64, "before": show(before), "after": show(after)}),
    )
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// The footprint of the process once its threads and rings have ended, a while after the device is gone; the rest is a
/// leak.
fn settled(me: u32, before: procfs::Footprint) -> Result<procfs::Footprint> {
    until("the footprint of the start", secs(10), || {
        let now = procfs::footprint(me)?;
        Ok((now == before).then_some(now))
    })
    .or_else(|_| procfs::footprint(me))
}

fn show(f: procfs::Footprint) -> Value {
    json!([f.descriptors, f.rings, f.threads])
}
