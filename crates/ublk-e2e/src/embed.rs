//! A device served by a program that embeds the facade (`serve`), run as a child process.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cli::cpus;
use crate::direct_io::Direct;
use crate::wait::{secs, until};
use crate::{json, sysfs};

/// The child process and its device.
#[derive(Debug)]
pub struct Embedded {
    child: Child,
    input: Option<ChildStdin>,
    answers: Receiver<String>,
    /// The device's number.
    pub id: u32,
    /// Its node.
    pub path: PathBuf,
    /// The program's description of the device at start.
    pub described: Value,
}

/// Path of the program's log: the runner parses our own output line by line.
fn log() -> PathBuf {
    std::env::temp_dir().join(format!("ublk-e2e-serve-{}.log", std::process::id()))
}

impl Embedded {
    /// Starts the program without a device.
    pub fn idle(args: &[&str]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log())?)
            .spawn()
            .context("start ourselves")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("piped")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            input,
            answers,
            id: u32::MAX,
            path: PathBuf::new(),
            described: Value::Null,
        })
    }

    /// Starts the program and its device, and checks that it got `queues` queues.
    pub fn start(queues: usize, args: &[&str]) -> Result<Self> {
        let count = format!("queues={queues}");
        let mut embedded = Self::idle(&[&[count.as_str()], args].concat())?;
        let answer = embedded.ask("start")?;
        embedded.path = json::text(&answer, "path")?.into();
        embedded.id = u32::try_from(json::number(&answer, "id")?)?;
        embedded.described = answer;
        let wanted = queues.min(cpus());
        let got = json::number(&embedded.described, "queues")?;
        ensure!(got == wanted as u64, "asked for {wanted} queues, got {got}");
        let found = sysfs::queues(embedded.id)?;
        ensure!(
            found == wanted,
            "asked for {wanted} queues, /sys has {found}"
        );
        Ok(embedded)
    }

    /// Sends a command and waits for its reply, for at most two minutes.
    pub fn ask(&mut self, command: &str) -> Result<Value> {
        let input = self.input.as_mut().context("it was told to end")?;
        writeln!(input, "{command}").with_context(|| format!("send {command:?}"))?;
        let line = self.answers.recv_timeout(secs(120)).with_context(|| {
            let said = std::fs::read_to_string(log()).unwrap_or_default();
            format!("no answer to {command:?}; stderr: {said}")
        })?;
        let answer: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if let Some(error) = answer.get("error").and_then(Value::as_str) {
            bail!("{command}: {error}");
        }
        Ok(answer)
    }

    /// A counter of the backend.
    pub fn count(&mut self, name: &str) -> Result<u64> {
        json::number(&self.ask("counts")?, name)
    }

    /// Waits until a counter of the backend is at least `least`.
    pub fn wait_count(&mut self, name: &str, least: u64) -> Result<()> {
        until(&format!("{least} {name}"), secs(20), || {
            Ok((self.count(name)? >= least).then_some(()))
        })
    }

    /// The node, opened with O_DIRECT.
    pub fn open(&self) -> Result<Direct> {
        Direct::open(&self.path)
    }

    /// Kills it and waits for its end.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        let end = until("the server's end after SIGKILL", secs(40), || {
            Ok(self.child.try_wait()?)
        });
        self.input = None;
        end.map(|_| ())
    }

    /// Stops and deletes the device, and ends the program.
    pub fn remove(mut self) -> Result<()> {
        self.ask("remove")?;
        ensure!(!self.path.exists(), "{} is left", self.path.display());
        self.end()
    }

    /// Ends the program by closing its input.
    pub fn end(mut self) -> Result<()> {
        self.input = None;
        let status = until("the server's end", secs(40), || {
            Ok(self.child.try_wait()?)
        })?;
        ensure!(status.success(), "the embedding program: {status}");
        Ok(())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.input = None;
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
