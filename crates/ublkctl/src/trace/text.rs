//! The figures of a trace as text.

use super::Report;
use crate::show::table;
use std::fmt::Write;
use ublk_core::Errno;
use ublk_daemon::log::plain;
use ublk_trace::{Column, Distribution, OpSummary, Summary, units};

/// Lines of the timeline.
const ROWS: usize = 16;

/// Everything, for a terminal of 80 columns.
pub fn report(report: &Report) -> String {
    let summary = &report.summary;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {}", plain(&value));
    };
    line(
        "trace",
        format!("{}, {}", report.file.display(), report.format.name()),
    );
    line("requests", requests(summary));
    if let Some(depth) = summary.mean_depth {
        let peak = summary.peak_depth.unwrap_or(depth);
        let text = format!(
            "{} in flight on average, {} in the busiest interval",
            short(depth),
            short(peak)
        );
        line("depth", text);
    }
    if let Some(w) = &summary.working_set {
        let (bytes, span) = (units::bytes(w.bytes), units::bytes(w.span));
        let (read, written) = (units::bytes(w.read), units::bytes(w.written));
        line(
            "working set",
            format!("{bytes} of {span}; {read} read, {written} written"),
        );
        let (half, most) = (units::percent(w.hot50), units::percent(w.hot90));
        line(
            "hot",
            format!("{half} of it take half of the accesses, {most} take 90 %"),
        );
        line(
            "reuse",
            format!(
                "{} accesses per {} on average",
                short(w.accesses),
                units::bytes(w.region)
            ),
        );
    }
    if summary.unaligned > 0.0 {
        line(
            "unaligned",
            format!(
                "{} are not aligned to 4 KiB",
                units::percent(summary.unaligned)
            ),
        );
    }
    for (errno, count) in &summary.errors {
        let name = Errno::new(i32::from(*errno));
        line("errors", format!("{count} of {name}"));
    }
    if !summary.ops.is_empty() {
        let _ = write!(text, "\n{}", table(&operations(&summary.ops)));
    }
    if summary.ops.iter().any(|op| op.latency.is_some()) {
        let _ = write!(text, "\n{}", table(&latencies(&summary.ops)));
    }
    if !summary.sizes.is_empty() {
        let _ = write!(text, "\n{}", table(&sizes(summary)));
    }
    let columns = &summary.timeline.columns;
    if columns.len() > 1 {
        let _ = write!(text, "\n{}", table(&timeline(summary)));
    }
    if let Some(svg) = &report.svg {
        let _ = writeln!(text, "\npicture: {}", plain(&svg.display().to_string()));
    }
    text
}

/// Two digits behind the point at most.
fn short(value: f64) -> String {
    units::count(value)
}

fn requests(summary: &Summary) -> String {
    let mut text = format!(
        "{}, {} of data",
        summary.requests,
        units::bytes(summary.bytes)
    );
    if summary.duration > 0 {
        let seconds = units::to_f64(summary.duration) / 1e9;
        let _ = write!(
            text,
            ", in {}: {}/s, {}/s",
            units::time(summary.duration),
            units::count(units::to_f64(summary.requests) / seconds),
            units::bytes_f64(units::to_f64(summary.bytes) / seconds)
        );
    }
    text
}

fn operations(ops: &[OpSummary]) -> Vec<[String; 8]> {
    let total: u64 = ops.iter().map(|op| op.requests).sum();
    let head = [
        "OP",
        "REQUESTS",
        "SHARE",
        "BYTES",
        "SEQUENTIAL",
        "MEDIAN SIZE",
        "LARGEST",
        "ERRORS",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(ops.iter().map(|op| {
        let size = |value: fn(&Distribution) -> u64| {
            or_dash(op.size.as_ref().map(|s| units::bytes(value(s))))
        };
        [
            op.op.name().to_owned(),
            op.requests.to_string(),
            units::percent(units::to_f64(op.requests) / units::to_f64(total)),
            units::bytes(op.bytes),
            or_dash(op.size.map(|_| units::percent(op.sequential))),
            size(|s| s.p50),
            size(|s| s.max),
            op.errors.to_string(),
        ]
    }));
    rows
}

fn latencies(ops: &[OpSummary]) -> Vec<[String; 7]> {
    let head = ["LATENCY", "MEAN", "P50", "P90", "P99", "P99.9", "MAX"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(ops.iter().filter_map(|op| {
        let l = op.latency?;
        let mut row = [l.p50, l.p50, l.p50, l.p90, l.p99, l.p999, l.max].map(units::time);
        row[0] = op.op.name().to_owned();
        row[1] = units::time_f64(l.mean);
        Some(row)
    }));
    rows
}

fn sizes(summary: &Summary) -> Vec<[String; 3]> {
    let mut rows = vec![["SIZE UP TO", "READS", "WRITES"].map(str::to_owned)];
    rows.extend(summary.sizes.iter().map(|s| {
        [
            units::bytes(s.up_to),
            s.reads.to_string(),
            s.writes.to_string(),
        ]
    }));
    rows
}

/// The timeline in few lines, each of several intervals.
fn timeline(summary: &Summary) -> Vec<[String; 8]> {
    let head = [
        "TIME",
        "READ/s",
        "WRITE/s",
        "READ B/s",
        "WRITE B/s",
        "DEPTH",
        "P50",
        "P99",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    let columns = &summary.timeline.columns;
    let each = columns.len().div_ceil(ROWS);
    let has_depth = summary.mean_depth.is_some();
    rows.extend(columns.chunks(each).map(|part| {
        let intervals = units::to_f64(u64::try_from(part.len()).unwrap_or(1));
        let seconds = intervals * units::to_f64(summary.timeline.interval) / 1e9;
        let sum =
            |value: fn(&Column) -> u64| part.iter().map(|c| units::to_f64(value(c))).sum::<f64>();
        let depth = part.iter().map(|c| c.depth).sum::<f64>() / intervals;
        let (p50, p99) = ublk_trace::percentiles(part);
        [
            units::time(part.first().map_or(0, |c| c.at)),
            units::count(sum(|c| c.reads) / seconds),
            units::count(sum(|c| c.writes) / seconds),
            units::bytes_f64(sum(|c| c.read_bytes) / seconds),
            units::bytes_f64(sum(|c| c.write_bytes) / seconds),
            or_dash(has_depth.then(|| short(depth))),
            or_dash(p50.map(units::time)),
            or_dash(p99.map(units::time)),
        ]
    }));
    rows
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}
