//! The tool, run like a user runs it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::direct_io::Direct;
use crate::run::{self, Output};
use crate::wait::{secs, until};
use crate::{json, procfs, sysfs};

/// Exit codes of the tool.
pub mod code {
    /// Failure.
    pub const FAILED: i32 = 1;
    /// Usage error.
    pub const USAGE: i32 = 2;
    /// The deadline expired.
    pub const TIMED_OUT: i32 = 3;
    /// No such device.
    pub const NO_DEVICE: i32 = 32;
}

/// The tool's path: `$UBLKCTL`, else `ublkctl` in `PATH`.
pub fn program() -> String {
    std::env::var("UBLKCTL").unwrap_or_else(|_| "ublkctl".to_owned())
}

/// A command of the tool, to be adjusted before it runs.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(args);
    command
}

/// Runs the tool, whatever its exit code. Its own deadlines are shorter than ours.
pub fn ublkctl(args: &[&str]) -> Result<Output> {
    run::output(&mut command(args), secs(60))
}

/// Runs the tool, which must succeed, and parses the JSON it prints.
pub fn ublkctl_json(args: &[&str]) -> Result<Value> {
    one_value(&ublkctl(&[args, &["--json"]].concat())?.good()?)
}

/// The single JSON value of an output: one line, no duplicate keys.
pub fn one_value(output: &Output) -> Result<Value> {
    let line = output.stdout.strip_suffix('\n').unwrap_or_default();
    let value: Value =
        serde_json::from_str(line).with_context(|| format!("no JSON value: {output}"))?;
    // Both are written without blanks: a duplicate key is in the text only.
    ensure!(
        serde_json::to_string(&value)?.len() == line.len(),
        "a key twice: {line}"
    );
    Ok(value)
}

/// Runs the tool, which must fail with this exit code and all `parts` in its message, in any case.
pub fn fails(args: &[&str], code: i32, parts: &[&str]) -> Result<Output> {
    failed(ublkctl(args)?, code, parts)
}

/// Checks that an output is a failure of this kind.
pub fn failed(output: Output, code: i32, parts: &[&str]) -> Result<Output> {
    ensure!(output.code() == code, "expected exit code {code}: {output}");
    let said = output.stderr.to_lowercase();
    for part in parts {
        ensure!(
            said.contains(&part.to_lowercase()),
            "no {part:?} in the message of {output}"
        );
    }
    ensure!(!said.contains("panicked"), "a panic: {output}");
    Ok(output)
}

/// The specification of a device.
#[derive(Debug, Clone)]
pub struct Spec {
    /// `null`, `mem`, `file` and so on.
    pub backend: &'static str,
    /// `--size`; empty for none.
    pub size: String,
    /// `--queues`.
    pub queues: usize,
    /// `--depth`.
    pub depth: usize,
    /// `--block-size`; 0 for none.
    pub block_size: u32,
    /// Further arguments.
    pub more: Vec<String>,
}

impl Spec {
    /// A memory device of one queue.
    pub fn mem(size: &str) -> Self {
        Self {
            backend: "mem",
            size: size.to_owned(),
            queues: 1,
            depth: 64,
            block_size: 512,
            more: Vec::new(),
        }
    }

    /// A null device of one queue.
    pub fn null(size: &str) -> Self {
        Self {
            backend: "null",
            ..Self::mem(size)
        }
    }

    /// A file device of one queue on this file, with the file's block size.
    pub fn file(path: &std::path::Path) -> Self {
        let args = vec![path.to_string_lossy().into_owned()];
        Self {
            backend: "file",
            size: String::new(),
            block_size: 0,
            more: args,
            ..Self::mem("")
        }
    }

    /// A device of one queue over files, which are written as the tool takes them.
    pub fn files(backend: &'static str, files: &[String]) -> Self {
        Self {
            backend,
            more: files.to_vec(),
            ..Self::file(std::path::Path::new(""))
        }
    }

    /// Sets the number of queues.
    pub const fn queues(mut self, queues: usize) -> Self {
        self.queues = queues;
        self
    }

    /// Sets the number of tags per queue.
    pub const fn depth(mut self, depth: usize) -> Self {
        self.depth = depth;
        self
    }

    /// Sets the logical block size.
    pub const fn block_size(mut self, bytes: u32) -> Self {
        self.block_size = bytes;
        self
    }

    /// Adds further arguments.
    pub fn with(mut self, args: &[&str]) -> Self {
        self.more.extend(args.iter().map(|w| (*w).to_owned()));
        self
    }

    /// The arguments of the command.
    pub fn args(&self) -> Vec<String> {
        let mut args = vec!["add".to_owned(), self.backend.to_owned()];
        let (queues, depth) = (self.queues.to_string(), self.depth.to_string());
        let block = self.block_size.to_string();
        for (name, value) in [
            ("--size", &self.size),
            ("--queues", &queues),
            ("--depth", &depth),
            ("--block-size", &block),
        ] {
            // A file has its own size and block size.
            if value.is_empty() || (name == "--block-size" && self.block_size == 0) {
                continue;
            }
            args.extend([name.to_owned(), value.clone()]);
        }
        args.extend(self.more.iter().cloned());
        args
    }

    /// Creates the device.
    pub fn add(&self) -> Result<Device> {
        Device::add(self)
    }
}

/// A device that serves; deleted on drop.
#[derive(Debug)]
pub struct Device {
    /// Its number.
    pub id: u32,
    /// Its node.
    pub path: PathBuf,
    /// Output of `info --json` right after `add`.
    pub info: Value,
    gone: bool,
}

/// How long a death may go unnoticed, and clients may hang after it: up to 6.15 the driver waits for the block timeout
/// if the server holds all tags.
pub fn patience() -> Duration {
    if sysfs::kernel() >= (6, 16) {
        secs(5)
    } else {
        secs(35)
    }
}

/// Number of CPUs of this machine: the driver gives a device no more queues.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Device {
    fn add(spec: &Spec) -> Result<Self> {
        let args = spec.args();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = ublkctl(&args)?.good()?;
        Self::of(&output, spec)
    }

    /// Parses the output of `add`: exactly one line, the path of an existing node with the requested queues (L93).
    pub fn of(output: &Output, spec: &Spec) -> Result<Self> {
        let path = output.stdout.trim_end_matches('\n');
        let id = path
            .strip_prefix("/dev/ublkb")
            .and_then(|id| id.parse().ok());
        let Some(id) = id.filter(|_| output.stdout == format!("{path}\n")) else {
            bail!("expected one line, the device path: {output}");
        };
        let mut device = Self {
            id,
            path: path.into(),
            info: Value::Null,
            gone: false,
        };
        device.info = device.query()?;
        let queues = spec.queues.min(cpus());
        let said = json::number(&device.info, "queues")?;
        ensure!(
            said == queues as u64,
            "asked for {queues} queues, info says {said}"
        );
        let found = sysfs::queues(id)?;
        ensure!(
            found == queues,
            "asked for {queues} queues, /sys has {found}"
        );
        ensure!(json::number(&device.info, "depth")? == spec.depth as u64);
        Ok(device)
    }

    /// The present output of `info --json`.
    pub fn query(&self) -> Result<Value> {
        ublkctl_json(&["info", &self.id.to_string()])
    }

    /// The server process.
    pub fn server(&self) -> Result<u32> {
        Ok(u32::try_from(json::number(&self.info, "server_pid")?)?)
    }

    /// The node, opened with O_DIRECT.
    pub fn open(&self) -> Result<Direct> {
        Direct::open(&self.path)
    }

    /// The node's path as text.
    pub fn node(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    /// Deletes the device and waits until nothing of it is left.
    pub fn delete(mut self) -> Result<()> {
        self.gone = true;
        ublkctl(&["delete", &self.id.to_string()])?.good()?;
        ensure!(
            !self.path.exists() && !sysfs::directory(self.id).exists(),
            "{} is still there after delete",
            self.path.display()
        );
        Ok(())
    }

    /// The present server process: another one after a recovery.
    pub fn server_now(&self) -> Result<u32> {
        Ok(u32::try_from(json::number(&self.query()?, "server_pid")?)?)
    }

    /// Waits until the device has this state.
    pub fn wait_state(&self, state: &str, limit: Duration) -> Result<()> {
        until(&format!("state {state}"), limit, || {
            Ok((json::text(&self.query()?, "state")? == state).then_some(()))
        })
    }

    /// Kills the server and waits until the device has this state.
    pub fn kill_server(&self, state: &str) -> Result<()> {
        procfs::kill(self.server_now()?, rustix::process::Signal::KILL)?;
        self.wait_state(state, patience())
    }

    /// Marks the device as removed in another way.
    pub fn forget(mut self) {
        self.gone = true;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if !self.gone {
            // The case has failed already; report its own error.
            let _ = ublkctl(&["delete", "--force", &self.id.to_string()]);
        }
    }
}

/// Everything of ublk that exists now: nodes, disks, processes of the tool.
pub fn left_over() -> Vec<String> {
    let mut left = sysfs::present();
    let name = PathBuf::from(program());
    let name = name
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let running = procfs::running(&name).into_iter();
    left.extend(running.map(|p| format!("process {} ({})", p.id, p.name)));
    left
}

/// Waits until nothing of ublk is left.
pub fn nothing_left(limit: Duration) -> Result<()> {
    let left = until("nothing of ublk left over", limit, || {
        Ok(left_over().is_empty().then_some(()))
    });
    left.with_context(|| format!("left over: {:?}", left_over()))
}
