//! The figures of `bench` as text, for the width of the terminal.

use super::{Compared, Outcome, Point, Report};
use crate::cli::Rw;
use crate::load::draw::Screen;
use crate::load::replay::percentiles;
use crate::show::table;
use std::fmt::Write;
use ublk_daemon::log::plain;
use ublk_load::Measured;
use ublk_trace::{Distribution, units};

/// What is measured, in words.
pub fn what(point: Point) -> String {
    format!("{} {}, {} in flight", size(point), kind(point), point.depth)
}

/// Which requests, in words.
pub fn kind(point: Point) -> String {
    let words = match point.rw {
        Rw::Randread => "reads at random",
        Rw::Randwrite => "writes at random",
        Rw::Randrw => "reads and writes at random",
        Rw::Read => "reads in sequence",
        Rw::Write => "writes in sequence",
    };
    words.to_owned()
}

/// What varies in a sweep: the sizes, or the depths.
pub fn varied(point: Point, sizes: bool) -> String {
    if sizes {
        size(point)
    } else {
        format!("depth {}", point.depth)
    }
}

/// The same for a table.
pub fn short(point: Point) -> String {
    format!("{}, depth {}", size(point), point.depth)
}

fn size(point: Point) -> String {
    crate::size::show(point.size.into())
}

/// Everything.
pub fn report(report: &Report, screen: Screen) -> String {
    let target = plain(&report.target.display().to_string());
    let mut text = match (&report.comparison, &report.runs[..]) {
        (Some(compared), _) => comparison(report, compared, screen),
        (None, [run]) => {
            let mut text = format!("{target}: {}\n", what(run.point));
            text += &rates(&run.measured, screen);
            text += &latencies(&[("", &run.measured)], screen);
            text.push('\n');
            text += &screen.histogram(&run.measured);
            text
        }
        (None, runs) => sweep(&target, runs, screen),
    };
    if let Some(svg) = &report.svg {
        let _ = writeln!(text, "\npicture: {}", plain(&svg.display().to_string()));
    }
    text
}

/// Rates in a line, or one for each figure where the terminal is narrow.
fn rates(m: &Measured, screen: Screen) -> String {
    let mut figures = vec![
        format!("{} requests/s", units::count(m.iops)),
        format!("{}/s", units::bytes_f64(m.bytes_per_second)),
        format!("unsteadiness {}", units::percent(m.unsteadiness)),
    ];
    figures.extend(
        m.own_cpu
            .map(|cpu| format!("own CPU {}", units::percent(cpu))),
    );
    let separator = if is_narrow(screen) { "\n" } else { "   " };
    format!("{}\n\n", figures.join(separator))
}

fn is_narrow(screen: Screen) -> bool {
    screen.width < 70
}

/// Percentiles: a table, or a line for each where the terminal is narrow.
fn latencies(measured: &[(&str, &Measured)], screen: Screen) -> String {
    let mut lines: Vec<(String, Distribution)> = Vec::new();
    for (name, m) in measured {
        let named = |op: &str| {
            [*name, op]
                .iter()
                .filter(|n| !n.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join(" ")
        };
        lines.extend(m.read.map(|d| (named("read"), d)));
        lines.extend(m.write.map(|d| (named("write"), d)));
    }
    if !is_narrow(screen) {
        let lines: Vec<_> = lines.iter().map(|(name, d)| (name.as_str(), *d)).collect();
        return table(&percentiles(&lines));
    }
    let mut text = String::new();
    for (name, d) in lines {
        let _ = writeln!(text, "{name}");
        for (what, ns) in [
            ("p50", d.p50),
            ("p90", d.p90),
            ("p99", d.p99),
            ("p99.9", d.p999),
            ("max", d.max),
        ] {
            let _ = writeln!(text, " {what:<5} {:>8}", units::time(ns));
        }
    }
    text
}

/// The points of a sweep, with a bar for the rate.
fn sweep(target: &str, runs: &[Outcome], screen: Screen) -> String {
    let mut text = format!("{target}\n\n");
    if is_narrow(screen) {
        for run in runs {
            let rate = units::count(run.measured.iops);
            let _ = writeln!(text, "{}\n {rate}/s", short(run.point));
        }
        return text;
    }
    let mut rows = vec![
        [
            "SIZE",
            "DEPTH",
            "REQUESTS/s",
            "BYTES/s",
            "P50",
            "P99",
            "P99.9",
            "OWN CPU",
        ]
        .map(str::to_owned),
    ];
    rows.extend(runs.iter().map(|run| {
        let m = &run.measured;
        let at = |share: f64| units::time(m.latencies.value_at_quantile(share));
        [
            size(run.point),
            run.point.depth.to_string(),
            units::count(m.iops),
            units::bytes_f64(m.bytes_per_second),
            at(0.5),
            at(0.99),
            at(0.999),
            m.own_cpu.map_or_else(|| "-".to_owned(), units::percent),
        ]
    }));
    text + &table(&rows)
}

/// A large difference as a multiple: of the rate of A where B is faster, of B where it is slower.
fn times(difference: f64) -> Option<String> {
    let ratio = 1.0 + difference;
    match ratio {
        r if r >= 2.0 => Some(format!("{} times the rate of A", units::count(r))),
        r if r > 0.0 && r <= 0.5 => Some(format!("A has {} times its rate", units::count(1.0 / r))),
        _ => None,
    }
}

fn comparison(report: &Report, compared: &Compared, screen: Screen) -> String {
    let found = &compared.found;
    let other = report
        .compared_with
        .as_ref()
        .map(|p| plain(&p.display().to_string()));
    let (a, b) = (
        plain(&report.target.display().to_string()),
        other.unwrap_or_default(),
    );
    let rate = |m: &Measured| format!("{} requests/s", units::count(m.iops));
    let difference = units::percent(found.difference.abs());
    let noise = units::percent(found.noise);
    let verdict = match (found.significant, found.difference > 0.0) {
        (false, _) => format!("no difference beyond the noise: {difference}, noise {noise}"),
        (true, faster) => {
            let word = if faster { "faster" } else { "slower" };
            match times(found.difference) {
                Some(times) => format!("B is {word}, {times}; noise {noise}"),
                None => format!("B is {word} by {difference}; noise {noise}"),
            }
        }
    };
    let mut text = format!(
        "{}\nA: {a}: {}\nB: {b}: {}\n",
        what(compared.point),
        rate(&found.a),
        rate(&found.b)
    );
    let _ = writeln!(text, "{verdict}\n");
    text + &latencies(&[("A", &found.a), ("B", &found.b)], screen)
}

#[cfg(test)]
mod tests {
    use super::times;

    #[test]
    fn large_differences_are_multiples() {
        let found = [-0.9, -0.5, -0.4, 0.0, 0.99, 1.0, 10.96].map(times);
        let texts = found.map(Option::unwrap_or_default);
        let (one, other) = ("A has 10.0 times its rate", "A has 2 times its rate");
        let (twice, many) = ("2 times the rate of A", "12.0 times the rate of A");
        assert_eq!(texts, [one, other, "", "", "", twice, many]);
    }
}
