//! `replay`: the requests of a trace, sent to a target.

use super::draw::Screen;
use super::failure;
use super::opened::{Access, Opened};
use crate::cli::Replay;
use crate::output::put;
use crate::show::table;
use crate::trace;
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use ublk_core::Errno;
use ublk_daemon::failure::Failure;
use ublk_daemon::log::plain;
use ublk_load::{Engine, Options, Replayed, Speed};
use ublk_trace::{Distribution, units};

/// The longest transfer; longer requests are sent in parts.
const MAX_LEN: u32 = 1 << 20;

/// A request later than this was not sent at its time.
const LATE: u64 = 10_000_000;

/// What `replay` says in JSON.
#[derive(Debug, Serialize)]
struct Report {
    trace: PathBuf,
    target: PathBuf,
    warnings: Vec<String>,
    #[serde(flatten)]
    replayed: Replayed,
}

/// Replays a trace.
///
/// # Errors
/// A trace that cannot be read, a target that cannot be opened, is in use or holds data, a request that does not end.
pub fn run(args: &Replay, json: bool) -> Result<(), Failure> {
    // The whole trace is read before the target is touched: a bad one changes nothing.
    let (requests, length) = survey(&args.file)?;
    let access = Access {
        write: args.write,
        direct: (true, false),
    };
    let target = Opened::new(&args.target, &args.target.path, access)?;
    let options = Options {
        speed: args.speed,
        depth: args.depth,
        write: args.write,
        fill: args.filling(),
        size: target.size,
        block: target.block,
        max_len: MAX_LEN,
    };
    let told = |e: ublk_load::Error| match e {
        ublk_load::Error::Trace(e) => trace::failure(&args.file, &e),
        e => failure(&target.path, &e),
    };
    let file = target
        .file
        .try_clone()
        .map_err(|e| super::file_failure(&target.path, &e))?;
    let patience = args.target.patience();
    let mut engine = Engine::new(file, args.depth, MAX_LEN, patience).map_err(told)?;
    let mut source = trace::open(&args.file)?;
    let signals = trace::interrupts()?;
    let screen = Screen::of_terminal();
    let progress = screen.progress(&words(args, length), requests);
    let replayed = ublk_load::replay(
        &mut engine,
        &mut || source.next_record(),
        &options,
        &mut |sent| {
            progress.set_position(sent);
            !signals.came()
        },
    );
    progress.finish_and_clear();
    let replayed = replayed.map_err(told)?;
    let mut warnings = source.warnings();
    warnings.extend(target.notes.iter().cloned());
    warnings.extend(left_out(&replayed));
    if signals.came() {
        warnings.push("interrupted: the figures are of the requests until then".to_owned());
    } else if replayed.requests == 0 && requests > 0 {
        let text = format!(
            "{}: none of the {requests} requests of {} could be sent: {}",
            target.path.display(),
            args.file.display(),
            warnings.join("; ")
        );
        let failure = Failure::failed(text);
        // Its text says what else is missing.
        return Err(match args.write {
            true => failure.hint("`ublkctl trace` shows how large the traced device was"),
            false => failure,
        });
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    let report = Report {
        trace: args.file.clone(),
        target: target.path,
        warnings,
        replayed,
    };
    put(json, &report, || text(&report))
}

/// The number of requests of a trace, and its length.
fn survey(file: &Path) -> Result<(u64, Duration), Failure> {
    let mut source = trace::open(file)?;
    let (mut requests, mut first, mut last) = (0_u64, u64::MAX, 0);
    while let Some(record) = source
        .next_record()
        .map_err(|e| trace::unreadable(file, &e, requests))?
    {
        requests += 1;
        first = first.min(record.time);
        last = last.max(record.time);
    }
    Ok((requests, Duration::from_nanos(last.saturating_sub(first))))
}

/// What the progress bar says.
fn words(args: &Replay, length: Duration) -> String {
    let Speed::Times(factor) = args.speed else {
        return "replay".to_owned();
    };
    let nanoseconds = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    format!(
        "replay, {} long",
        units::time_f64(units::to_f64(nanoseconds) / factor)
    )
}

/// What was not done as recorded, a sentence each.
fn left_out(r: &Replayed) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |n: u64, text: &str| {
        if n > 0 {
            warnings.push(format!("{} {text}", units::counted(n, "request")));
        }
    };
    warn(
        r.not_written,
        "left out, which would change data: --write sends such",
    );
    warn(r.beyond, "left out, beyond the end of the target");
    warn(
        r.unsupported,
        "left out, which the target cannot take (unaligned, or of zones)",
    );
    warn(r.reordered, "far out of order: the times were moved");
    for (errno, n) in &r.failed {
        warn(*n, &format!("failed: {}", Errno::new(*errno)));
    }
    if let Some(late) = r.late.filter(|late| late.p99 > LATE) {
        warnings.push(format!(
            "the target did not keep up: 1 % of the requests were sent more than {} late; a larger --depth or a lower \
             --speed helps",
            units::time(late.p99)
        ));
    }
    warnings
}

fn text(report: &Report) -> String {
    let r = &report.replayed;
    let seconds = units::to_f64(r.elapsed.max(1)) / 1e9;
    let mut text = format!(
        "{}: {}, {} in {}: {}/s, {}/s\n",
        plain(&report.target.display().to_string()),
        units::counted(r.requests, "request"),
        units::bytes(r.bytes),
        units::time(r.elapsed),
        units::count(units::to_f64(r.requests) / seconds),
        units::bytes_f64(units::to_f64(r.bytes) / seconds)
    );
    let lines = [
        ("read", r.read),
        ("write", r.write),
        ("other", r.other),
        ("recorded", r.recorded),
        ("sent late by", r.late),
    ];
    let lines: Vec<_> = lines
        .into_iter()
        .filter_map(|(name, d)| Some((name, d?)))
        .collect();
    if !lines.is_empty() {
        let _ = write!(text, "\n{}", table(&percentiles(&lines)));
    }
    text
}

/// Rows of percentiles of times.
pub fn percentiles(lines: &[(&str, Distribution)]) -> Vec<[String; 8]> {
    let head = [
        "LATENCY", "MEAN", "MIN", "P50", "P90", "P99", "P99.9", "MAX",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(lines.iter().map(|(name, d)| {
        let [min, p50, p90, p99, p999, max] =
            [d.min, d.p50, d.p90, d.p99, d.p999, d.max].map(units::time);
        [
            (*name).to_owned(),
            units::time_f64(d.mean),
            min,
            p50,
            p90,
            p99,
            p999,
            max,
        ]
    }));
    rows
}
