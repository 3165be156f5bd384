//! `trace`: figures of a trace, and its conversion.

mod convert;
pub mod output;
mod text;

use crate::cli::{TraceCommand, TraceFile};
use crate::output::{end, put};
use output::Output;
use serde::Serialize;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use ublk_core::Errno;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::signals::Signals;
use ublk_trace::{Analysis, Error, Format, Source, Summary, picture, units};

/// What `trace` says in JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// Its format.
    pub format: Format,
    /// When the trace began: nanoseconds since 1970; `null` if it does not tell.
    pub began: Option<u64>,
    /// The size of the device in bytes; `null` if it does not tell.
    pub device_size: Option<u64>,
    /// Number of requests that the recorder lost.
    pub lost: u64,
    /// What to know of the figures.
    pub warnings: Vec<String>,
    /// The picture that was drawn.
    pub svg: Option<PathBuf>,
    /// The figures.
    #[serde(flatten)]
    pub summary: Summary,
}

/// Carries out `trace`, or a command below it.
///
/// # Errors
/// Files that cannot be read or written, or make no sense.
pub fn run(
    trace: &TraceFile,
    command: Option<&TraceCommand>,
    json: bool,
) -> Result<ExitCode, Failure> {
    match (command, &trace.file) {
        (Some(TraceCommand::Convert(args)), _) => {
            convert::run(args, json).map(|()| ExitCode::SUCCESS)
        }
        (None, Some(file)) => look(file, trace.svg.as_deref(), json),
        (None, None) => Err(Failure::new(FailureKind::Usage, "no trace is given")),
    }
}

fn look(file: &Path, svg: Option<&Path>, json: bool) -> Result<ExitCode, Failure> {
    let mut source = open(file)?;
    let output = svg.map(|svg| Output::create(svg, &[file])).transpose()?;
    let signals = interrupts()?;
    let mut analysis = Analysis::default();
    let mut read = 0_u64;
    while let Some(record) = source
        .next_record()
        .map_err(|e| unreadable(file, &e, read))?
    {
        analysis.push(&record);
        read += 1;
        if read.is_multiple_of(4096) && signals.came() {
            return Err(Failure::failed(format!(
                "interrupted after {} of {}",
                units::counted(read, "request"),
                file.display()
            )));
        }
    }
    let warnings = source.warnings();
    for warning in &warnings {
        tracing::warn!("{}: {warning}", file.display());
    }
    let header = source.header();
    let known = |value: u64| (value > 0).then_some(value);
    let mut report = Report {
        file: file.to_owned(),
        format: source.format(),
        began: known(header.began),
        device_size: known(header.size),
        lost: source.lost(),
        warnings,
        svg: svg.map(Path::to_owned),
        summary: analysis.finish(),
    };
    let drawn = output.map_or(Ok(()), |output| {
        let title = format!("{} ({})", file.display(), report.format.name());
        let text = picture::svg(&title, &report.summary);
        let text = text.map_err(|e| Failure::failed(e.to_string()))?;
        output.finish(text.as_bytes())
    });
    // The figures are good without their picture, and of what precedes a damage.
    report.svg = report.svg.filter(|_| drawn.is_ok());
    let damaged = |damage: Error| unreadable(file, &damage, report.summary.requests);
    let failure = drawn.err().or_else(|| source.damage().map(damaged));
    put(json, &report, || text::report(&report))?;
    Ok(end(failure.as_ref()))
}

/// Signals that are looked at now and then, so that files which are not whole are removed.
pub fn interrupts() -> Result<Signals, Failure> {
    Signals::take_in_front().map_err(|e| Failure::failed(format!("cannot handle signals: {e}")))
}

/// Opens a trace. Only regular files: from a pipe that nobody writes to nothing would ever come.
///
/// # Errors
/// What keeps it from being read, about the file.
pub fn open(file: &Path) -> Result<Source<BufReader<File>>, Failure> {
    let meta = std::fs::metadata(file).map_err(|e| failure(file, &e.into()))?;
    if meta.is_dir() {
        let text = format!("{} is a directory, not a trace", file.display());
        return Err(Failure::failed(text).hint("name a file in it"));
    }
    if !meta.is_file() {
        let text = format!("{} is not a regular file", file.display());
        return Err(
            Failure::failed(text).hint("write what a pipe or a device yields to a file first")
        );
    }
    Source::open(file).map_err(|e| failure(file, &e))
}

/// A trace that cannot be read any further.
pub fn unreadable(file: &Path, error: &Error, read: u64) -> Failure {
    let mut failure = failure(file, error);
    if read > 0 {
        let read = units::counted(read, "request");
        failure.text = format!("{}; what precedes it is sound, {read}", failure.text);
    }
    failure
}

/// An error about a file.
pub fn failure(file: &Path, error: &Error) -> Failure {
    let mut failure = Failure::failed(format!("{}: {error}", file.display())).hint(error.hint());
    if let Error::Io(e) = error {
        failure.errno = e.raw_os_error().map(|_| Errno::from_io(e));
    }
    failure
}
