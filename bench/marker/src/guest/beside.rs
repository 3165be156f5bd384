//! A command that runs while a device works, such as a recorder.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How long it may take to start or to end, in guest time.
const DEADLINE: Duration = Duration::from_secs(30);

/// The command, killed on drop.
#[derive(Debug)]
pub struct Beside {
    child: Child,
    /// The lines of its standard error.
    said: mpsc::Receiver<String>,
}

impl Beside {
    /// Starts it and waits for its first line.
    ///
    /// # Errors
    /// It cannot be started, or prints nothing in time.
    pub fn start(command: &[String]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| program.clone())?;
        let output = child.stderr.take().context("piped above")?;
        let (sender, said) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let started = Self { child, said };
        if started.said.recv_timeout(DEADLINE).is_err() {
            bail!("it does not say that it works: {}", command.join(" "));
        }
        Ok(started)
    }

    /// Ends it with SIGINT.
    ///
    /// # Errors
    /// It does not end in time, or its status is not 0.
    pub fn stop(mut self) -> Result<()> {
        let pid = self.child.id().to_string();
        let mut kill = Command::new("/usr/bin/busybox");
        kill.args(["kill", "-INT", &pid]).status()?;
        // Its standard error ends with it.
        let mut last = String::new();
        loop {
            match self.said.recv_timeout(DEADLINE) {
                Ok(line) => last = line,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => bail!("no end after SIGINT: {last}"),
            }
        }
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{status}: {last}");
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
