//! A recorded trace has what was asked of the device, and its replays leave the same content.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::Case;
use crate::cli::{self, Device, Spec};
use crate::fio::{Done, Fio};
use crate::volume::{Kind, Volume};
use crate::wait::{secs, until};
use crate::{json, procfs, sysfs};

/// The byte that replays write.
const FILL: &str = "0x5a";

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("record_and_replay_by_ublkctl_and_fio", replayed),
        Case::new("record_in_other_modes", modes),
        Case::new("record_ends_with_its_server_or_its_disk", ends),
    ]
}

/// A recording that goes on.
struct Recorder {
    child: Child,
    path: PathBuf,
    /// What it says.
    output: [PathBuf; 2],
}

impl Recorder {
    /// Starts one, and waits until requests are recorded.
    fn start(device: &Device, path: PathBuf) -> Result<Self> {
        let file = path.to_string_lossy().into_owned();
        let mut command = cli::command(&["record", &device.id.to_string(), &file, "--json"]);
        let output = [scratch("stdout"), scratch("stderr")];
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output[0])?)
            .stderr(File::create(&output[1])?)
            .spawn()
            .context("record")?;
        let recorder = Self {
            child,
            path,
            output,
        };
        until("the beginning of the recording", secs(20), || {
            Ok(recorder.said(1)?.contains("recording device").then_some(()))
        })?;
        Ok(recorder)
    }

    fn said(&self, stream: usize) -> Result<String> {
        Ok(std::fs::read_to_string(&self.output[stream])?)
    }

    /// Ends it, as Ctrl-C does, and returns its report.
    fn end(mut self) -> Result<(Value, PathBuf)> {
        procfs::kill(self.child.id(), Signal::INT)?;
        let code = self.code()?;
        ensure!(code == Some(0), "{code:?}: {}", self.said(1)?);
        Ok((serde_json::from_str(&self.said(0)?)?, self.path.clone()))
    }

    /// Waits for its end, which is an error that says all of this.
    fn fails(mut self, parts: &[&str]) -> Result<PathBuf> {
        let (code, text) = (self.code()?, self.said(1)?);
        ensure!(code == Some(1), "{code:?}: {text}");
        ensure!(parts.iter().all(|part| text.contains(part)), "{text}");
        Ok(self.path.clone())
    }

    fn code(&mut self) -> Result<Option<i32>> {
        let ended = || Ok(self.child.try_wait()?);
        Ok(until("the end of the recording", secs(30), ended)?.code())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for path in &self.output {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(format!("/tmp/ublk-recorded-{}-{name}", std::process::id()))
}

fn client(node: &str) -> Result<Done> {
    Fio::new(node)
        .set("rw", "randrw")
        .set("bssplit", "4k/50:64k/30:12k/20")
        .set("size", "16m")
        .set("io_size", "8m")
        .set("iodepth", 16)
        .run(1)
}

/// Records a run of fio, and checks that the trace has each of its requests.
fn record(device: &Device, name: &str) -> Result<PathBuf> {
    let recorder = Recorder::start(device, scratch(name))?;
    let done = client(device.node())?;
    let (report, path) = recorder.end()?;
    ensure!(json::number(&report, "lost")? == 0, "{report}");
    let file = path.to_string_lossy().into_owned();
    let trace = cli::ublkctl_json(&["trace", &file])?;
    for (op, requests, bytes) in [
        ("read", done.reads, done.read),
        ("write", done.writes, done.written),
    ] {
        let of = trace
            .get("ops")
            .and_then(Value::as_array)
            .context("no ops")?;
        let named = |it: &&Value| it.get("op").and_then(Value::as_str) == Some(op);
        let found = of
            .iter()
            .find(named)
            .with_context(|| format!("no {op}: {trace}"))?;
        let got = (
            json::number(found, "requests")?,
            json::number(found, "bytes")?,
        );
        // The kernel may read the beginning of the device by itself.
        let close = |a: u64, b: u64| a.abs_diff(b) * 100 <= b;
        ensure!(
            close(got.0, requests) && close(got.1, bytes),
            "{op}: recorded {got:?}, fio {requests} of {bytes} bytes"
        );
    }
    Ok(path)
}

fn complete(spec: &Spec) -> Result<()> {
    let device = spec.add()?;
    std::fs::remove_file(record(&device, "complete")?)?;
    device.delete()
}

/// User copy, and zero copy and batches where the kernel has them.
fn modes() -> Result<()> {
    complete(&Spec::mem("16M").with(&["--data", "user-copy"]))?;
    if sysfs::kernel() >= (6, 16) {
        let volume = Volume::new(Kind::Ext4, 32 << 20)?;
        let file = volume.file("recorded", 16 << 20)?;
        complete(&Spec::file(&file).with(&["--data", "zero-copy"]))?;
    }
    if sysfs::kernel() >= (7, 0) {
        complete(&Spec::mem("16M").queues(2).with(&["--batch", "on"]))?;
    }
    Ok(())
}

/// What `ublkctl replay` and fio make of one trace is the same.
fn replayed() -> Result<()> {
    let device = Spec::mem("16M").queues(2).add()?;
    let trace = record(&device, "trace")?;
    device.delete()?;
    let (ours, theirs) = (Spec::mem("16M").add()?, Spec::mem("16M").add()?);
    let (trace, log) = (trace.to_string_lossy().into_owned(), scratch("iolog"));
    let log = log.to_string_lossy().into_owned();
    let report = cli::ublkctl_json(&[
        "replay",
        &trace,
        ours.node(),
        "--speed",
        "max",
        "--write",
        "--fill",
        FILL,
    ])?;
    let failed = report.get("failed").and_then(Value::as_object);
    ensure!(failed.is_some_and(serde_json::Map::is_empty), "{report}");
    cli::ublkctl(&["trace", "convert", &trace, &log, "--to", "iolog"])?.good()?;
    let done = Fio::new(theirs.node())
        .set("read_iolog", &log)
        .set("replay_redirect", theirs.node())
        .set("replay_no_stall", 1)
        .set("buffer_pattern", FILL)
        .run(1)?;
    ensure!(done.writes > 100, "{done:?}");
    let (ours_now, theirs_now) = (std::fs::read(ours.node())?, std::fs::read(theirs.node())?);
    let differs = ours_now.iter().zip(&theirs_now).position(|(a, b)| a != b);
    ensure!(differs.is_none(), "content differs at {differs:?}");
    let written = ours_now.iter().filter(|byte| **byte == 0x5a).count();
    ensure!(written > 1 << 20, "{written} bytes were written");
    for file in [trace, log] {
        std::fs::remove_file(file)?;
    }
    ours.delete()?;
    theirs.delete()
}

/// A full disk or a dead server ends a recording with an error; the trace has what came before, and the device goes on.
fn ends() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let small = Path::new("/tmp/ublk-recorded-small");
    std::fs::create_dir_all(small)?;
    mount(
        "small",
        small,
        "tmpfs",
        MountFlags::empty(),
        Some(c"size=16k"),
    )?;
    let mut recorder = Recorder::start(&device, small.join("trace"))?;
    until("a full disk", secs(30), || {
        client(device.node())?;
        Ok(recorder.child.try_wait()?)
    })?;
    recorder.fails(&["No space left"])?;
    client(device.node())?;
    unmount(small, UnmountFlags::empty())?;
    std::fs::remove_dir(small)?;

    let recorder = Recorder::start(&device, scratch("cut"))?;
    client(device.node())?;
    std::thread::sleep(std::time::Duration::from_millis(500));
    device.kill_server("dead")?;
    let path = recorder.fails(&["is gone", "has what came before"])?;
    let trace = cli::ublkctl_json(&["trace", &path.to_string_lossy()])?;
    ensure!(json::number(&trace, "requests")? > 100, "{trace}");
    std::fs::remove_file(path)?;
    device.delete()
}
