//! `stats` for people, in the manner of iostat.

use crate::stats::{Op, Report, Work};
use std::fmt::Write;
use std::time::Duration;
use ublk_daemon::log::plain;
use ublk_metrics::Level;
use ublk_trace::units::counted;

/// The columns, and their least widths.
const COLUMNS: [(&str, usize); 12] = [
    ("DEVICE", 10),
    ("OP", 12),
    ("REQ/S", 9),
    ("MiB/S", 9),
    ("ERRORS", 6),
    ("MEAN", 7),
    ("WAIT", 7),
    ("P50", 7),
    ("P90", 7),
    ("P99", 7),
    ("P99.9", 7),
    ("MAX", 7),
];

/// A table of devices, with a line for each kind of request, and one for the device. `interval`: since the previous report,
/// not since the start.
pub fn stats(reports: &[Report], queues: bool, interval: bool) -> String {
    let mut text = String::new();
    if reports.is_empty() {
        return "no devices of this user\n".to_owned();
    }
    line(&mut text, &COLUMNS.map(|(name, _)| name.to_owned()));
    for report in reports {
        let device = format!("ublkb{}", report.id);
        if let Some(cause) = &report.cause {
            let next = report.next.as_ref();
            let next = next.map_or_else(String::new, |next| format!(": {next}"));
            let _ = writeln!(text, "{device:10}  {cause}{next}");
            continue;
        }
        work(&mut text, &device, &report.total);
        let since = match interval {
            true => "in",
            false => "since its start",
        };
        let requests = report.total.ops.iter().map(|op| op.requests).sum();
        let mut facts: Vec<String> = report.name.iter().cloned().collect();
        facts.push(format!("{since} {:.1} s", report.seconds));
        facts.push(counted(requests, "request"));
        facts.extend(of_threads(&report.total));
        facts.extend(of_mode(&report.total));
        let _ = writeln!(text, "{:10}  {}", "", facts.join(", "));
        if report.level != Some(Level::Latencies) && !interval {
            let _ = writeln!(
                text,
                "{:10}  latencies are not measured: `ublkctl metrics {} latencies`",
                "", report.id
            );
        }
        for queue in report.queues.iter().filter(|_| queues) {
            let name = match queue.thread {
                0 => format!(" queue {}", queue.qid),
                thread => format!(" queue {}.{thread}", queue.qid),
            };
            work(&mut text, &name, &queue.work);
            let facts: Vec<_> = of_threads(&queue.work).collect();
            let _ = writeln!(text, "{:10}  {}", "", facts.join(", "));
        }
    }
    plain_lines(&text)
}

fn plain_lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

fn line(text: &mut String, cells: &[String]) {
    let cells = cells.iter().zip(COLUMNS).enumerate();
    let cells: Vec<String> = cells
        .map(|(at, (cell, (_, width)))| match at < 2 {
            true => format!("{cell:width$}"),
            false => format!("{cell:>width$}"),
        })
        .collect();
    let _ = writeln!(text, "{}", cells.join(" ").trim_end());
}

fn work(text: &mut String, name: &str, work: &Work) {
    if work.ops.is_empty() {
        let _ = writeln!(text, "{name:10} idle");
    }
    for (at, op) in work.ops.iter().enumerate() {
        let name = if at == 0 { name } else { "" };
        line(text, &row(name, op));
    }
}

fn row(name: &str, op: &Op) -> [String; COLUMNS.len()] {
    const MIB: f64 = (1 << 20) as f64;
    let latency = op.latency_ns.as_ref();
    let time = |of: fn(&crate::stats::Latency) -> u64| {
        latency.map_or_else(|| "-".to_owned(), |it| time(of(it)))
    };
    [
        name.to_owned(),
        op.op.name().to_owned(),
        format!("{:.1}", op.requests_per_second),
        format!("{:.2}", op.bytes_per_second / MIB),
        op.errors.to_string(),
        time(|it| it.mean),
        time(|it| it.waiting),
        time(|it| it.p50),
        time(|it| it.p90),
        time(|it| it.p99),
        time(|it| it.p999),
        time(|it| it.max),
    ]
}

/// A time with three digits.
pub fn time(nanos: u64) -> String {
    let seconds = Duration::from_nanos(nanos).as_secs_f64();
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "us"),
    };
    match value {
        v if v >= 99.95 => format!("{v:.0}{unit}"),
        v if v >= 9.995 => format!("{v:.1}{unit}"),
        v => format!("{v:.2}{unit}"),
    }
}

fn of_threads(work: &Work) -> impl Iterator<Item = String> {
    let batch = work.batch_mean.map(|mean| format!("batch {mean:.1}"));
    let busy = work.busy.map(|part| format!("busy {:.0} %", part * 100.0));
    let flight = Some(format!("in flight {}", work.in_flight));
    [flight, batch, busy].into_iter().flatten()
}

/// What is worth a word of the data mode and of failures.
pub fn of_mode(work: &Work) -> impl Iterator<Item = String> {
    let facts = work.facts;
    let counts = [
        (facts.zero_copy_hits, "zero copy"),
        (facts.zero_copy_fallbacks, "zero-copy fallbacks"),
        (facts.get_data_rounds, "get-data rounds"),
        (facts.shared_hits, "in shared memory"),
        (facts.shared_misses, "outside shared memory"),
        (facts.poll_hits, "polls hit"),
        (facts.poll_misses, "polls missed"),
        (facts.syncs, "syncs"),
        (facts.panics, "panics"),
        (facts.dropped, "dropped"),
        (facts.refused, "refused"),
    ];
    let counts = counts.into_iter().filter(|(n, _)| *n != 0);
    let counts = counts.map(|(n, what)| format!("{what} {n}"));
    let errnos = work.errnos.iter().map(|it| match it.name {
        Some(name) => format!("{name} {}", it.count),
        None => format!("errno {} {}", it.errno, it.count),
    });
    counts.chain(errnos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (nanos, text) in [
            (0, "0.00us"),
            (1_234, "1.23us"),
            (12_345, "12.3us"),
            (999_400, "999us"),
            (1_500_000, "1.50ms"),
            (99_960_000, "100ms"),
            (2_000_000_000, "2.00s"),
        ] {
            assert_eq!(time(nanos), text);
        }
    }
}
