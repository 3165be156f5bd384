//! Runs programs, each with a deadline.

use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::procfs;
use crate::wait::{secs, until};

/// The output of a program, and its exit status.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command, for messages.
    pub command: String,
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The exit code; -1 for a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// An error with the whole output, unless the program exited with 0.
    pub fn good(self) -> Result<Self> {
        if !self.status.success() {
            bail!("{self}");
        }
        Ok(self)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}`: {}\nstdout: {}\nstderr: {}",
            self.command,
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

/// Loads a kernel module of the image.
pub fn module(name: &str) -> Result<()> {
    good("modprobe", &[name]).map(drop)
}

/// The command line.
pub fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        text += &format!(" {}", word.to_string_lossy());
    }
    text
}

/// Runs a command to its end and to the end of its output: a daemon that keeps its caller's pipes open would hang every
/// script, so that fails here, too (L33).
pub fn output(command: &mut Command, limit: Duration) -> Result<Output> {
    let text = line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{text}`"))?;
    let stdout = collect(child.stdout.take().context("piped")?);
    let stderr = collect(child.stderr.take().context("piped")?);
    let status = until(&format!("the end of `{text}`"), limit, || {
        Ok(child.try_wait()?)
    });
    let Ok(status) = status else {
        let whereabouts = procfs::whereabouts();
        let _ = child.kill();
        let said = stderr.recv_timeout(secs(2)).unwrap_or_default();
        bail!(
            "`{text}` did not end within {} s; stderr: {said}{whereabouts}",
            limit.as_secs()
        );
    };
    let read = |from: mpsc::Receiver<String>, name: &str| {
        from.recv_timeout(secs(5))
            .with_context(|| format!("`{text}` has ended, but its {name} is still held open"))
    };
    Ok(Output {
        status,
        stdout: read(stdout, "stdout")?,
        stderr: read(stderr, "stderr")?,
        command: text,
    })
}

/// Runs a program that must succeed within a minute.
pub fn good(program: &str, args: &[&str]) -> Result<Output> {
    output(Command::new(program).args(args), secs(60))?.good()
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // The output before an error is still worth showing.
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<Output> {
        output(Command::new("sh").args(["-c", script]), limit)
    }

    #[test]
    fn ends_and_output_are_seen() {
        let said = sh("echo out; echo err >&2; exit 3", secs(20)).expect("it runs");
        assert_eq!((said.code(), said.stdout.as_str()), (3, "out\n"));
        let error = said.good().expect_err("3 is no success").to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("err"),
            "{error}"
        );
        assert!(output(&mut Command::new("/no/such/program"), secs(1)).is_err());
    }

    #[test]
    fn a_program_that_hangs_is_an_error() {
        let error = sh("exec sleep 60", Duration::from_millis(50)).expect_err("hangs");
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    /// L33 A child that keeps our pipe open is detected.
    #[test]
    fn l33_a_pipe_held_open_is_an_error() {
        let error = sh("sleep 20 & exit 0", secs(20)).expect_err("held");
        assert!(
            format!("{error:#}").contains("still held open"),
            "{error:#}"
        );
    }
}
