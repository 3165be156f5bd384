//! `up`, `down`, `check`: devices from a configuration file.

mod file;

use crate::cli::Config;
use crate::run::{exit_code, put};
use file::{Entry, read};
use serde::Serialize;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;
use ublk_daemon::front::{self, Outcome, Stop, Up};
use ublk_daemon::peer::this_program;
use ublk_daemon::wire::{Failure, FailureKind, Lifetime};

/// What became of a device: a line of what `up` and `down` print as JSON.
#[derive(Debug, Serialize)]
struct Line {
    name: String,
    /// `added`, `recovered`, `unchanged`, `differs`, `deleted`, `absent`, `failed`, `valid`.
    outcome: String,
    #[serde(flatten)]
    more: serde_json::Value,
    /// For people.
    #[serde(skip)]
    text: String,
}

impl Line {
    fn up(up: &Up) -> Self {
        let json = serde_json::to_value(up).unwrap_or_default();
        let word = json["outcome"].as_str().unwrap_or_default().to_owned();
        let text = match up.outcome {
            Outcome::Differs => {
                let mut text = format!(
                    "device {} runs otherwise, and is left alone: ",
                    up.path.display()
                );
                for (n, d) in up.differences.iter().enumerate() {
                    let comma = if n == 0 { "" } else { ", " };
                    let _ = write!(
                        text,
                        "{comma}{} is {}, the file says {}",
                        d.option, d.has, d.wanted
                    );
                }
                text
            }
            _ => format!("{} {word}", up.path.display()),
        };
        Self {
            name: up.name.clone(),
            outcome: word,
            more: json,
            text,
        }
    }

    fn new(name: &str, outcome: &str) -> Self {
        Self {
            name: name.to_owned(),
            outcome: outcome.to_owned(),
            more: serde_json::json!({}),
            text: outcome.to_owned(),
        }
    }

    fn failed(name: &str, failure: &Failure) -> Self {
        Self {
            more: serde_json::json!({"error": failure.text, "hint": failure.hint}),
            ..Self::new(name, "failed")
        }
    }
}

/// The lines of several devices, and the first failure, which is the command's.
#[derive(Debug, Default)]
struct Report {
    lines: Vec<Line>,
    code: Option<ExitCode>,
}

impl Report {
    /// Notes a failure and tells it at once.
    fn fail(&mut self, name: &str, failure: &Failure) {
        eprintln!("ublkctl: {name}: {failure}");
        if let Some(hint) = &failure.hint {
            eprintln!("  hint: {hint}");
        }
        self.lines.push(Line::failed(name, failure));
        self.code.get_or_insert(exit_code(failure.kind));
    }

    fn print(self, json: bool) -> Result<ExitCode, Failure> {
        let text = || {
            let lines = self.lines.iter().filter(|l| l.outcome != "failed");
            lines.map(|l| format!("{}: {}\n", l.name, l.text)).collect()
        };
        put(json, &self.lines, text)?;
        Ok(self.code.unwrap_or(ExitCode::SUCCESS))
    }
}

/// The chosen devices of a file.
fn chosen(config: &Config) -> Result<Vec<Entry>, Failure> {
    let all = read(&config.file)?;
    for name in &config.names {
        if !all.iter().any(|e| &e.name == name) {
            let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
            return Err(Failure::new(
                FailureKind::Usage,
                format!("{}: no [device.{name}]", config.file.display()),
            )
            .hint(format!("it has {}", names.join(", "))));
        }
    }
    let wanted = |e: &Entry| config.names.is_empty() || config.names.contains(&e.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Brings up the devices of a file in its order; each is tried.
///
/// # Errors
/// Those of the file. What a device fails with is printed and decides the exit code.
pub fn up(config: &Config, within: Duration, json: bool) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    for entry in chosen(config)? {
        match front::up(&this_program(), &entry.wanted, Lifetime::Own, within) {
            Ok((up, _)) => {
                let line = Line::up(&up);
                if up.outcome == Outcome::Differs {
                    report.code.get_or_insert(ExitCode::FAILURE);
                }
                report.lines.push(line);
            }
            Err(failure) => report.fail(&entry.name, &failure),
        }
    }
    report.print(json)
}

/// Serves the one device of a file, and stays until it is gone, or until its processes are.
///
/// # Errors
/// Those of the file, another number of devices than one, and what the device fails with.
pub fn foreground(
    config: &Config,
    leave: bool,
    within: Duration,
    json: bool,
) -> Result<(), Failure> {
    let entries = chosen(config)?;
    let [entry] = entries.as_slice() else {
        return Err(Failure::new(
            FailureKind::Usage,
            format!(
                "--foreground serves one device, {} has {}",
                config.file.display(),
                entries.len()
            ),
        )
        .hint("name one of them, or leave --foreground out"));
    };
    let lifetime = if leave {
        Lifetime::Left
    } else {
        Lifetime::Front
    };
    let (up, device) = front::up(&this_program(), &entry.wanted, lifetime, within)?;
    let line = Line::up(&up);
    let Some(device) = device else {
        return Err(
            Failure::failed(format!("{}: {}", entry.name, line.text)).hint(format!(
                "`ublkctl down {} {}` removes it",
                config.file.display(),
                entry.name
            )),
        );
    };
    put(json, &line, || format!("{}\n", up.path.display()))?;
    device.wait()
}

/// Takes down the devices of a file, the last one first; each is tried.
///
/// # Errors
/// Those of the file. What a device fails with is printed and decides the exit code.
pub fn down(config: &Config, how: Stop, within: Duration, json: bool) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    for entry in chosen(config)?.iter().rev() {
        match front::down(&this_program(), &entry.name, how, within) {
            Ok(Some(id)) => {
                let mut line = Line::new(&entry.name, "deleted");
                line.more = serde_json::json!({ "id": id });
                report.lines.push(line);
            }
            Ok(None) => report.lines.push(Line::new(&entry.name, "absent")),
            Err(failure) => report.fail(&entry.name, &failure),
        }
    }
    report.print(json)
}

/// Checks the devices of a file by the rules of backends and driver, as far as that goes without the driver.
///
/// # Errors
/// The first mistake.
pub fn check(config: &Config, json: bool) -> Result<(), Failure> {
    let mut report = Report::default();
    for entry in chosen(config)? {
        let wanted = &entry.wanted;
        // A file that is yet to be made cannot be looked at.
        let there = wanted.create.is_none() || entry.file().is_some_and(|f| f.exists());
        if there {
            front::check(&wanted.spec).map_err(|f| {
                let mut told = Failure::new(f.kind, format!("{}: {}", entry.name, f.text));
                told.hint = f.hint;
                told
            })?;
        }
        report.lines.push(Line::new(&entry.name, "valid"));
    }
    report.print(json).map(drop)
}
