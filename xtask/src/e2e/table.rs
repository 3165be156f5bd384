//! The summary table of all kernels.

use std::fmt::Write;

use super::lanes::Report;

/// A line per kernel, including those that are not available.
pub fn text(reports: &[Report], missing: &[String]) -> String {
    let wide = reports.iter().map(|report| report.release.len()).max();
    let wide = wide.unwrap_or(0).max("kernel".len());
    let mut text = format!(
        "{:wide$}  {:7}  {:>6}  {:>6}  {:>8}  {:>7}  {:>7}\n",
        "kernel", "cases", "passed", "failed", "expected", "skipped", "time"
    );
    for report in reports {
        let (results, seconds) = (&report.results, report.elapsed.as_secs());
        let _ = writeln!(
            text,
            "{:wide$}  {:7}  {:>6}  {:>6}  {:>8}  {:>7}  {:>4}:{:02}",
            report.release,
            report.set.word(),
            results.passed,
            results.failed.len(),
            results.forgiven.len(),
            results.skipped.len(),
            seconds / 60,
            seconds % 60
        );
    }
    for report in reports {
        for (name, reason) in &report.results.forgiven {
            let _ = writeln!(text, "expected on {}: {name}: {reason}", report.series);
        }
    }
    for why in missing {
        let _ = writeln!(text, "skipped: {why}");
    }
    text
}
