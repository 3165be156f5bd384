//! `trace convert`.

use super::{failure, interrupts, open, output::Output, unreadable};
use crate::cli::{Convert, Format};
use crate::output::put;
use serde::Serialize;
use std::path::PathBuf;
use ublk_daemon::failure::Failure;
use ublk_trace::format::{Header, Writer};
use ublk_trace::{Error, IologWriter, Record, Sorter, units};

/// Records that are held back to be sorted by time: more than any device has in flight.
const SORTED: usize = 1 << 16;

/// What `trace convert` says in JSON.
#[derive(Debug, Serialize)]
struct Converted {
    file: PathBuf,
    requests: u64,
    /// Requests that the format has no word for.
    skipped: u64,
    warnings: Vec<String>,
}

/// Converts a trace.
///
/// # Errors
/// Files that cannot be read or written, or make no sense. No file is left then.
pub fn run(args: &Convert, json: bool) -> Result<(), Failure> {
    let (from, to) = (&args.from, &args.to);
    let signals = interrupts()?;
    let mut source = open(from)?;
    // The time of the first record is part of some headers.
    let first = source.next_record().map_err(|e| unreadable(from, &e, 0))?;
    let told = |e: Error| failure(to, &e);
    let output = Output::create(to, &[from.as_path()])?;
    let mut sink = Sink::new(output, args, &source.header()).map_err(told)?;
    let mut sorter = Sorter::new(SORTED);
    let mut next = first;
    let mut requests = 0_u64;
    while let Some(record) = next {
        requests += 1;
        // Nothing is left of a file that is not whole.
        if requests.is_multiple_of(4096) && signals.came() {
            let text = format!("interrupted: {} is not written", to.display());
            return Err(Failure::failed(text));
        }
        if let Some(earliest) = sorter.push(record) {
            sink.push(&earliest).map_err(told)?;
        }
        next = source
            .next_record()
            .map_err(|e| unreadable(from, &e, requests))?;
    }
    while let Some(earliest) = sorter.pop() {
        sink.push(&earliest).map_err(told)?;
    }
    let mut warnings = source.warnings();
    if sorter.late() > 0 {
        warnings.push(format!(
            "{} out of order by more than {SORTED} places: the times were moved",
            units::counted(sorter.late(), "request")
        ));
    }
    let (output, skipped) = sink.finish(source.lost()).map_err(told)?;
    output.commit()?;
    if skipped > 0 {
        warnings.push(format!(
            "left out, {}: an iolog has no word for such",
            units::counted(skipped, "request")
        ));
    }
    for warning in &warnings {
        tracing::warn!("{}: {warning}", from.display());
    }
    let converted = Converted {
        file: to.clone(),
        requests: requests - skipped,
        skipped,
        warnings,
    };
    put(json, &converted, || {
        let requests = units::counted(converted.requests, "request");
        format!("{}: {requests}\n", to.display())
    })
}

/// Where the records go.
enum Sink {
    Ublk(Writer<Output>),
    Iolog(IologWriter<Output>),
}

impl Sink {
    fn new(output: Output, args: &Convert, header: &Header) -> Result<Self, Error> {
        Ok(match args.format {
            Format::Ublk => Self::Ublk(Writer::new(output, header)?),
            Format::Iolog => Self::Iolog(IologWriter::new(output, &args.target)?),
        })
    }

    fn push(&mut self, record: &Record) -> Result<(), Error> {
        match self {
            Self::Ublk(writer) => writer.push(record),
            Self::Iolog(writer) => Ok(writer.push(record)?),
        }
    }

    /// Ends the file; it, and the number of requests that were left out.
    fn finish(self, lost: u64) -> Result<(Output, u64), Error> {
        match self {
            Self::Ublk(mut writer) => {
                writer.lost(lost);
                Ok((writer.finish()?, 0))
            }
            Self::Iolog(writer) => {
                let skipped = writer.skipped();
                Ok((writer.finish()?, skipped))
            }
        }
    }
}
