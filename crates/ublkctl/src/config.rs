//! `up`, `down`, `check`: devices from a configuration file.

mod file;

use crate::cli::Config;
use crate::device::stay;
use crate::output::{ErrorBody, Worst, print_failure, put};
use file::{Entry, read};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front::{self, Difference, Down, Outcome, Stop, Up};
use ublk_daemon::link::message::Lifetime;
use ublk_daemon::link::peer::this_program;

/// The result for one device: an element of the JSON output of `up`, `down` and `check`.
#[derive(Debug, Default, Serialize)]
struct Line {
    name: String,
    /// `added`, `recovered`, `unchanged`, `differs`, `deleted`, `handed-over`, `absent`, `failed`, `valid`.
    outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    differences: Option<Vec<Difference>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
    /// The message in text output.
    #[serde(skip)]
    text: String,
}

impl Line {
    fn up(up: Up) -> Self {
        let word = serde_json::to_value(up.outcome).unwrap_or_default();
        let word = word.as_str().unwrap_or_default().to_owned();
        let text = match up.outcome {
            Outcome::Differs => {
                let all: Vec<String> = up.differences.iter().map(difference).collect();
                format!(
                    "device {} differs from the configuration and was left unchanged: {}",
                    up.path.display(),
                    all.join(", ")
                )
            }
            _ => format!("{} {word}", up.path.display()),
        };
        Self {
            name: up.name,
            outcome: word,
            id: Some(up.id),
            path: Some(up.path),
            differences: Some(up.differences),
            error: None,
            text,
        }
    }

    fn new(name: &str, outcome: &str) -> Self {
        Self {
            name: name.to_owned(),
            outcome: outcome.to_owned(),
            text: outcome.to_owned(),
            ..Self::default()
        }
    }

    fn of(name: &str, outcome: &str, id: u32) -> Self {
        Self {
            id: Some(id),
            ..Self::new(name, outcome)
        }
    }
}

fn difference(d: &Difference) -> String {
    format!("{} is {}, configured as {}", d.option, d.has, d.wanted)
}

/// The results of several devices, and the worst of their exit codes, which the command returns.
#[derive(Debug, Default)]
struct Report {
    lines: Vec<Line>,
    worst: Worst,
}

impl Report {
    /// Records a failure and reports it at once.
    fn fail(&mut self, name: &str, failure: &Failure) {
        self.fail_about(name, name, failure);
    }

    /// The same, with what the message begins with.
    fn fail_about(&mut self, name: &str, subject: &str, failure: &Failure) {
        print_failure(&failure.clone().about(subject));
        self.lines.push(Line {
            error: Some(ErrorBody::from(failure)),
            ..Line::new(name, "failed")
        });
        self.worst.add(failure.kind.exit_code());
    }

    fn print(self, json: bool) -> Result<ExitCode, Failure> {
        let text = || {
            let lines = self.lines.iter().filter(|l| l.error.is_none());
            lines.map(|l| format!("{}: {}\n", l.name, l.text)).collect()
        };
        put(json, &self.lines, text)?;
        Ok(self.worst.code())
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
            .hint(format!("the file has {}", names.join(", "))));
        }
    }
    let wanted = |e: &Entry| config.names.is_empty() || config.names.contains(&e.name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Refuses a device that could not be added: before anything is done, and although one of its name may exist.
fn well_formed(config: &Config, entry: &Entry) -> Result<(), Failure> {
    ublk_daemon::backend::well_formed(&entry.wanted.spec)
        .map_err(|failure| failure.about(subject(config, entry)))
}

/// Where a device is in its file.
fn subject(config: &Config, entry: &Entry) -> String {
    format!("{}:{}: {}", config.file.display(), entry.line, entry.name)
}

/// Brings up the devices of a file in file order; each one is tried.
///
/// # Errors
/// Those of the file. The failure of a device is printed and determines the exit code.
pub fn up(config: &Config, within: Duration, json: bool) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    let entries = chosen(config)?;
    for entry in &entries {
        well_formed(config, entry)?;
    }
    for entry in entries {
        match front::up(&this_program(), &entry.wanted, Lifetime::Own, within) {
            Ok((up, _)) => {
                if up.outcome == Outcome::Differs {
                    report.worst.add(FailureKind::Failed.exit_code());
                }
                report.lines.push(Line::up(up));
            }
            Err(failure) => report.fail(&entry.name, &failure),
        }
    }
    report.print(json)
}

/// Serves the only device of a file, and stays until the device or its processes are gone.
///
/// # Errors
/// Those of the file, a number of devices other than one, and the device's failure.
pub fn foreground(
    config: &Config,
    leave: bool,
    within: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let entries = chosen(config)?;
    let [entry] = entries.as_slice() else {
        return Err(Failure::new(
            FailureKind::Usage,
            format!(
                "--foreground serves exactly one device, {} has {}",
                config.file.display(),
                entries.len()
            ),
        )
        .hint("name one of them, or omit --foreground"));
    };
    well_formed(config, entry)?;
    let lifetime = if leave {
        Lifetime::Left
    } else {
        Lifetime::Front
    };
    let pace = front::Pace::keep(&entry.name);
    let (up, device) = front::up(&this_program(), &entry.wanted, lifetime, within)?;
    let line = Line::up(up);
    let Some(device) = device else {
        return Err(
            Failure::failed(format!("{}: {}", entry.name, line.text)).hint(format!(
                "`ublkctl down {} {}` removes it",
                config.file.display(),
                entry.name
            )),
        );
    };
    let path = line.path.as_deref().unwrap_or(Path::new(""));
    put(json, &line, || format!("{}\n", path.display()))?;
    let code = stay(device);
    if code == ExitCode::SUCCESS
        && let Some(pace) = pace
    {
        pace.forget();
    }
    Ok(code)
}

/// Takes down the devices of a file in reverse order; each one is tried.
///
/// # Errors
/// Those of the file. The failure of a device is printed and determines the exit code.
pub fn down(
    config: &Config,
    how: Stop,
    in_front: bool,
    within: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    for entry in chosen(config)?.iter().rev() {
        match front::down(&this_program(), &entry.name, how, in_front, within) {
            Ok(Down::Deleted(id)) => report.lines.push(Line::of(&entry.name, "deleted", id)),
            Ok(Down::HandedOver(id)) => report.lines.push(Line::of(&entry.name, "handed-over", id)),
            Ok(_) => report.lines.push(Line::new(&entry.name, "absent")),
            Err(failure) => report.fail(&entry.name, &failure),
        }
    }
    report.print(json)
}

/// Checks the devices of a file against the rules of backends and driver, without the driver; each one is checked.
///
/// # Errors
/// Those of the file. The failure of a device is printed and determines the exit code.
pub fn check(config: &Config, json: bool) -> Result<ExitCode, Failure> {
    let mut report = Report::default();
    for entry in chosen(config)? {
        match front::vet(&entry.wanted) {
            Ok(()) => report.lines.push(Line::new(&entry.name, "valid")),
            Err(failure) => {
                report.fail_about(&entry.name, &subject(config, &entry), &failure);
            }
        }
    }
    report.print(json)
}
