//! `logs`: the messages of a device's agent and server.

use crate::output::{is_unread, put, raw};
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front::{self, LogPlace};
use ublk_daemon::log::plain;
use ublk_daemon::signals::Signals;

/// Time between two looks at a file that is followed.
const LOOK: Duration = Duration::from_millis(200);

/// The largest part of a file that is read at once.
const PART: u64 = 1 << 20;

/// What `logs` is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Print new messages as they come.
    pub follow: bool,
    /// Only so many of the latest lines.
    pub lines: Option<usize>,
    /// Change the level first; nothing is printed then, unless messages are followed.
    pub level: Option<String>,
    /// How long a server may take to answer.
    pub deadline: Duration,
}

/// The messages, for scripts.
#[derive(Debug, Serialize)]
struct Messages {
    /// Number of the device.
    id: u32,
    /// The log file; `null` if the device's service has the messages.
    log: Option<PathBuf>,
    /// The level from now on, if it was changed.
    level: Option<String>,
    /// Its lines.
    lines: Vec<String>,
}

/// Prints messages of a device, or changes which ones are written.
///
/// # Errors
/// No such device, a log that cannot be read, no `journalctl`, a server that does not answer.
pub fn logs(id: DevId, wanted: &Wanted, json: bool) -> Result<(), Failure> {
    if json && wanted.follow {
        let text = "--follow has no JSON: without it, --json prints the lines so far";
        return Err(Failure::new(FailureKind::Usage, text));
    }
    let place = front::log_place(id)?;
    if let Some(level) = &wanted.level {
        front::set_log_level(id, level, wanted.deadline)?;
    }
    let only_level = wanted.level.is_some() && !wanted.follow;
    match place {
        LogPlace::File(path) => {
            let mut log = Log::open(&path)?;
            let lines = match only_level {
                true => Vec::new(),
                false => log.last(wanted.lines)?,
            };
            if json {
                let (log, level) = (Some(path), wanted.level.clone());
                let id = id.get();
                let messages = Messages {
                    id,
                    log,
                    level,
                    lines,
                };
                return put(true, &messages, String::new);
            }
            print(&lines)?;
            if wanted.follow {
                log.follow(id)
            } else {
                Ok(())
            }
        }
        LogPlace::Journal(device) if json || only_level => {
            let lines = match only_level {
                true => Vec::new(),
                false => from_journal(&device, wanted)?,
            };
            let messages = Messages {
                id: id.get(),
                log: None,
                level: wanted.level.clone(),
                lines,
            };
            put(json, &messages, String::new)
        }
        LogPlace::Journal(device) => {
            let e = journalctl(&device, wanted).exec();
            Err(no_journalctl(&e))
        }
    }
}

fn journalctl(device: &str, wanted: &Wanted) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--no-pager", "--boot", "--output=short-iso"]);
    command.arg(format!("UBLK_DEVICE={device}"));
    if let Some(lines) = wanted.lines {
        command.arg(format!("--lines={lines}"));
    }
    if wanted.follow {
        command.arg("--follow");
    }
    command
}

fn no_journalctl(e: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot run journalctl: {e}")).hint(
        "the device is served in the foreground: its messages are on the terminal, or wherever its service manager has them",
    )
}

fn from_journal(device: &str, wanted: &Wanted) -> Result<Vec<String>, Failure> {
    let output = journalctl(device, wanted).arg("--quiet").output();
    let output = output.map_err(|e| no_journalctl(&e))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::failed(format!(
            "journalctl failed: {}",
            text.trim()
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(plain).collect())
}

fn print(lines: &[String]) -> Result<(), Failure> {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    raw(text.as_bytes())
}

/// An open log, read so far.
struct Log<'a> {
    path: &'a Path,
    file: File,
    at: u64,
    /// The beginning of a line that has not ended.
    rest: Vec<u8>,
}

impl<'a> Log<'a> {
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|e| {
            let failure = Failure::failed(format!("{}: {e}", path.display()));
            match e.kind() {
                ErrorKind::PermissionDenied => {
                    failure.hint("it belongs to the user who added the device")
                }
                _ => failure,
            }
        })?;
        Ok(Self {
            path,
            file,
            at: 0,
            rest: Vec::new(),
        })
    }

    /// The lines so far, or the last ones of them.
    fn last(&mut self, lines: Option<usize>) -> Result<Vec<String>, Failure> {
        let mut all = Vec::new();
        loop {
            let more = self.next()?;
            if more.is_empty() {
                return Ok(all);
            }
            all.extend(more);
            if let Some(lines) = lines {
                all.drain(..all.len().saturating_sub(lines));
            }
        }
    }

    /// Lines that have come since the last time.
    fn next(&mut self) -> Result<Vec<String>, Failure> {
        let failed = |e| Failure::failed(format!("{}: {e}", self.path.display()));
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(self.at)).map_err(failed)?;
        let part = self.file.by_ref().take(PART);
        let read = { part }.read_to_end(&mut bytes).map_err(failed)?;
        self.at += read as u64;
        self.rest.append(&mut bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        let text = String::from_utf8_lossy(&whole);
        Ok(text.lines().map(plain).collect())
    }

    /// Prints lines as they come, also of a new file at the path, until a signal, or the device is gone.
    fn follow(mut self, id: DevId) -> Result<(), Failure> {
        let signals = Signals::take_in_front()
            .map_err(|e| Failure::failed(format!("cannot handle signals: {e}")))?;
        while !signals.came() {
            // Before what it wrote last is read.
            let there = front::is_there(id);
            let lines = self.next()?;
            match print(&lines) {
                Err(e) if is_unread(&e) => break,
                printed => printed?,
            }
            if !lines.is_empty() {
                continue;
            }
            if !there {
                return Err(Failure::no_such_device(id));
            }
            self.reopen();
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Begins again if the file was cut or replaced.
    fn reopen(&mut self) {
        let now = self.file.metadata().ok();
        let there = std::fs::metadata(self.path).ok();
        let cut = now.as_ref().is_some_and(|it| it.len() < self.at);
        let other = match (&now, &there) {
            (Some(now), Some(there)) => (now.dev(), now.ino()) != (there.dev(), there.ino()),
            _ => false,
        };
        if (cut || other)
            && let Ok(file) = File::open(self.path)
        {
            (self.file, self.at) = (file, 0);
            self.rest.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Lines are printed whole, once, and from the beginning of a file that was cut or replaced; nothing in them commands
    /// a terminal.
    #[test]
    fn lines_are_whole_and_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "one\ntwo\x1b[2J\nthr").unwrap();
        let mut log = Log::open(&path).unwrap();
        assert_eq!(log.last(Some(1)).unwrap(), ["two\\x1b[2J"]);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"ee\n").unwrap();
        assert_eq!(log.next().unwrap(), ["three"]);
        assert!(log.next().unwrap().is_empty());
        std::fs::write(&path, "new\n").unwrap();
        log.reopen();
        assert_eq!(log.next().unwrap(), ["new"]);
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "newer\n").unwrap();
        log.reopen();
        assert_eq!(log.next().unwrap(), ["newer"]);
        assert!(Log::open(&dir.path().join("none")).is_err());
    }
}
