//! Runs a server in the foreground: start, device path, stop.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a server may take to come up or go down, in guest time.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running server and its device.
#[derive(Debug)]
pub struct Server {
    child: Child,
    device: String,
    /// The command that ends it and deletes its device; empty if SIGTERM does both.
    stop: Vec<String>,
}

impl Server {
    /// Starts a server and waits for the line with the device path.
    ///
    /// # Errors
    /// It cannot be started, ends, or prints nothing in time; its standard error is copied to ours.
    pub fn start(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no server")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| program.clone())?;
        let output = child.stdout.take().context("piped above")?;
        let (sender, first) = mpsc::channel();
        thread::spawn(move || {
            let mut output = BufReader::new(output);
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            let _ = sender.send(line);
            // A server that prints more must not die of a closed pipe.
            let _ = io::copy(&mut output, &mut io::sink());
        });
        let line = first.recv_timeout(DEADLINE).unwrap_or_default();
        let device = line.trim().to_owned();
        if !device.starts_with("/dev/") {
            let _ = child.kill();
            let status = child.wait()?;
            bail!(
                "the server did not name its device ({status}): {}",
                command.join(" ")
            );
        }
        Ok(Self {
            child,
            device,
            stop: Vec::new(),
        })
    }

    /// Starts a server that prints no path, waits for its device, and removes the scheduler that the kernel chose.
    ///
    /// # Errors
    /// It cannot be started, or its device does not appear in time.
    pub fn start_silent(command: &[String], device: &str, stop: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no server")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| program.clone())?;
        let until = Instant::now() + DEADLINE;
        while !Path::new(device).exists() {
            if child.try_wait()?.is_some() || Instant::now() > until {
                let _ = child.kill();
                let status = child.wait()?;
                bail!("no {device} ({status}): {}", command.join(" "));
            }
            thread::sleep(Duration::from_millis(10));
        }
        let name = device.trim_start_matches("/dev/");
        let scheduler = format!("/sys/block/{name}/queue/scheduler");
        fs::write(&scheduler, "none").with_context(|| scheduler)?;
        Ok(Self {
            child,
            device: device.to_owned(),
            stop: stop.to_vec(),
        })
    }

    /// The path of the device.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Ends the server, with SIGTERM or its own command, and waits.
    ///
    /// # Errors
    /// It does not end in time, or its status is not 0.
    pub fn stop(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        let kill = |signal: &str| {
            let mut command = Command::new("/usr/bin/busybox");
            command.args(["kill", signal, &pid]).status()
        };
        let told = match self.stop.split_first() {
            None => kill("-TERM")?,
            Some((program, arguments)) => Command::new(program)
                .args(arguments)
                .stdout(Stdio::null())
                .status()
                .with_context(|| program.clone())?,
        };
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || sender.send(self.child.wait()));
        match ended.recv_timeout(DEADLINE) {
            Ok(Ok(status)) if status.success() && told.success() => Ok(()),
            Ok(Ok(status)) => bail!("the server ended badly: {status}"),
            Ok(Err(error)) => Err(error).context("wait for the server"),
            Err(_) => {
                // It must not disturb the rows to come.
                kill("-KILL")?;
                bail!(
                    "the server did not end within {} s of SIGTERM",
                    DEADLINE.as_secs()
                )
            }
        }
    }
}
