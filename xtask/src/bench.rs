//! `vm-benchmark`: what a request costs, in instructions, and how soon a new device is usable.
//!
//! Instructions executed in an emulated guest repeat to the last digit, whatever else runs on the
//! machine; docs/benchmarks.md says how the figures are made and what they do not say.

mod figures;
mod guest;
mod hot;
mod limits;
mod report;
mod rows;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use crate::{kernel, vm};
use figures::Figure;
use guest::Bench;
use limits::Limits;
use report::Report;
use rows::{Row, USABLE};

/// What to measure.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Count the instructions of each I/O, in emulation; without it only `add-to-usable` is
    /// measured
    #[arg(long)]
    icount: bool,
    /// Kernel: a series, `newest`, or the path of an image
    #[arg(long, default_value = "7.3")]
    series: String,
    /// Only rows whose names have this in them
    #[arg(long, default_value = "")]
    filter: String,
    /// Also write everything to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Also print where the server's own instructions go
    #[arg(long, requires = "icount")]
    hot: bool,
    /// Count that many times; the figures must be the same each time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10))]
    repeat: u32,
}

/// Measures, prints the tables, compares with the limits.
///
/// # Errors
/// The guests cannot be set up; a row could not be measured; a figure is above its limit; two
/// counts differ.
pub fn run(options: &Options) -> Result<()> {
    let limits = Limits::load()?;
    let wanted = |name: &str| name.contains(&options.filter);
    let rows: Vec<Row> = rows::all()
        .into_iter()
        .filter(|row| wanted(&row.name))
        .collect();
    let count = options.icount && !rows.is_empty();
    ensure!(
        count || wanted(USABLE),
        "no row has {:?} in its name{}; there are {} and {USABLE}",
        options.filter,
        if options.icount {
            ""
        } else {
            " (instructions are counted with --icount only)"
        },
        rows::all()
            .iter()
            .map(|row| row.name.clone())
            .collect::<Vec<_>>()
            .join(", ")
    );
    let manifest = vm::set_up()?;
    let kernel = kernel::prepare(&manifest, &options.series)?;
    let bench = Bench::new(&manifest, &kernel)?;
    let mut report = Report::new(&kernel)?;
    let mut faults = Vec::new();
    if count {
        let (figures, command) = counted(&bench, &rows, options, &mut faults)?;
        report.figures = figures;
        report.command = command;
        println!("\n{}", report.table());
        faults.extend(limits.icount(&rows, &report.figures));
    }
    if wanted(USABLE) {
        let clocks = if options.icount {
            &[true, false][..]
        } else {
            &[false]
        };
        for counted in clocks {
            let usable = bench.usable(*counted)?;
            println!("\n{}", usable.text(&limits.usable));
            let errors = usable.errors.iter();
            faults.extend(errors.map(|error| format!("{USABLE}: {error}")));
            faults.extend(limits.usable(&usable));
            report.usable.push(usable);
        }
        if report
            .usable
            .iter()
            .all(|usable| usable.accelerator != "KVM")
        {
            let limit = limits.usable.kvm;
            println!("\n{USABLE}, KVM, limit {limit} ms: not measured, KVM does not work here");
        }
    }
    if let Some(path) = &options.json {
        report.write(path, &faults)?;
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n       "));
}

fn counted(
    bench: &Bench<'_>,
    rows: &[Row],
    options: &Options,
    faults: &mut Vec<String>,
) -> Result<(Vec<Figure>, String)> {
    let first = bench.count(rows, options.hot)?;
    for time in 2..=options.repeat {
        let again = bench.count(rows, options.hot)?;
        let mut same = again.figures.len() == first.figures.len();
        for (one, other) in first.figures.iter().zip(&again.figures) {
            if one != other {
                same = false;
                faults.push(format!(
                    "{}: count {time} differs: {one:?}, then {other:?}",
                    one.name
                ));
            }
        }
        println!(
            "count {time} is {}",
            if same { "identical" } else { "different" }
        );
    }
    faults.extend(first.errors);
    for (row, lines) in &first.hot {
        println!("\nhot in {row}, own instructions per I/O:\n{lines}");
    }
    Ok((first.figures, first.command))
}

#[cfg(test)]
mod tests {
    use super::limits::Limits;
    use super::rows;

    /// L90 A limit for a row that does not exist would never be checked.
    #[test]
    fn l90_every_limit_is_for_a_row() {
        let rows = rows::all();
        for limit in Limits::load().unwrap().icount {
            assert!(
                rows.iter().any(|row| row.name == limit.row),
                "{}",
                limit.row
            );
        }
    }
}
