//! `vm-benchmark`: the cost of a request in instructions and in time, and how soon a device is usable: a new one, and
//! one whose NBD server is back.
//!
//! Instruction counts of an emulated guest are exactly repeatable, whatever else runs on the machine;
//! docs/benchmarks.md says how the figures are made and what they do not show.

mod compare;
mod copies;
mod figures;
mod guest;
mod hot;
mod kublk;
mod label;
mod limits;
mod pays;
mod programs;
mod report;
mod rows;
mod scaling;
mod select;
mod short;
mod times;
mod wall;
mod written;

use std::num::NonZero;
use std::path::PathBuf;
use std::thread;

use anyhow::{Result, bail};

use crate::guest::accel::{Accel, Choice};
use crate::{kernel, vm};
use compare::Old;
use guest::{Bench, Counted};
use limits::Limits;
use report::Report;
use rows::Row;
use select::Selection;
use times::Timed;

pub use figures::Figure;
pub use short::{SERIES, Short, test};

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Count the instructions per I/O, in emulation
    #[arg(long)]
    icount: bool,
    /// Measure rate, latency and processor time, for KVM; in emulation only a few rows, of little significance
    #[arg(long)]
    wall: bool,
    /// Count only the rows with limits, in a short time
    #[arg(long, conflicts_with_all = ["wall", "icount"])]
    ci: bool,
    /// Kernel: a series, `newest`, or the path of an image
    #[arg(long, default_value = SERIES)]
    series: String,
    /// Only rows whose names contain this; may be given several times
    #[arg(long, value_name = "PART")]
    filter: Vec<String>,
    /// Accelerator for the guest of wall-clock rows
    #[arg(long, value_enum, default_value_t)]
    accel: Choice,
    /// Also write everything to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Fail if a row is more than 3 % worse than in this file, written by an earlier --json
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Also print where the server's own instructions are spent
    #[arg(long, requires = "icount")]
    hot: bool,
    /// Write the results of all counted rows to docs/benchmarks.md
    #[arg(long, requires = "icount", conflicts_with = "filter")]
    write_docs: bool,
    /// Repeat the count this many times; the figures must be the same each time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10))]
    repeat: u32,
}

impl Options {
    /// Whether a row of that name is selected.
    fn wants(&self, name: &str) -> bool {
        let parts = &self.filter;
        parts.is_empty() || parts.iter().any(|part| name.contains(part))
    }

    /// The options of the short count.
    fn short(filter: &[String]) -> Self {
        Self {
            icount: false,
            wall: false,
            ci: true,
            series: SERIES.to_owned(),
            filter: filter.to_vec(),
            accel: Choice::Auto,
            json: None,
            compare: None,
            hot: false,
            write_docs: false,
            repeat: 1,
        }
    }
}

/// Measures, prints the tables, compares with the limits and with an earlier run.
///
/// # Errors
/// The guests cannot be set up; a row could not be measured; a figure is above its limit or worse than before; two
/// counts differ.
pub fn run(options: &Options) -> Result<()> {
    let old = options.compare.as_deref().map(Old::load).transpose()?;
    let limits = Limits::load()?;
    let mut selection = Selection::new(options, &limits)?;
    let manifest = vm::set_up()?;
    let kernel = kernel::prepare(&manifest, &options.series)?;
    let bench = Bench::new(&manifest, &kernel, &mut selection)?;
    let mut report = Report::new(&kernel)?;
    let mut faults = Vec::new();
    for (cpus, rows) in [
        (1, &selection.counted),
        (1, &selection.network),
        (2, &selection.two_cpus),
    ] {
        if !rows.is_empty() {
            let counted = counted(&bench, rows, cpus, options, &mut faults)?;
            report.figures.extend(counted.figures);
            report.commands.push(counted.command);
        }
    }
    let limited = [&selection.counted[..], &selection.network].concat();
    faults.extend(limits.icount(&limited, &report.figures));
    let (found, wrong) = scaling::counted(&report.figures, &limits.scaling);
    report.findings.extend(found);
    faults.extend(wrong);
    report.findings.extend(pays::found(&report.figures));
    if !selection.wall.is_empty() {
        let rows = &selection.wall;
        by_the_clock(&bench, rows, &limits, options, &mut report, &mut faults)?;
    }
    report.rows = selection.all();
    report.skipped.clone_from(&selection.skipped);
    println!("\n{}", report.tables());
    let late = times(
        &bench,
        &selection.timed,
        &limits,
        options.icount,
        &mut report,
    )?;
    faults.extend(late);
    if let Some(old) = &old {
        let (worse, sum) = old.regressions(&report)?;
        println!("\n{sum}");
        faults.extend(worse);
    }
    if options.write_docs {
        written::write(&report)?;
    }
    if let Some(path) = &options.json {
        report.write(path, &faults)?;
    }
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{}", faults.join("\n       "));
}

/// Times the selected events with each clock of this run.
fn times(
    bench: &Bench<'_>,
    timed: &[Timed],
    limits: &Limits,
    counted: bool,
    report: &mut Report,
) -> Result<Vec<String>> {
    let clocks = if counted {
        &[true, false][..]
    } else {
        &[false]
    };
    let mut faults = Vec::new();
    for timed in timed {
        let mut kvm = false;
        for counted in clocks {
            let times = bench.time(*timed, *counted)?;
            println!("\n{}", times.text(limits));
            faults.extend(times.faults(limits));
            kvm |= times.is_kvm();
            report.times.push(times);
        }
        if !kvm {
            let (name, limit) = (timed.name(), timed.limits(limits).kvm);
            println!("\n{name}, KVM, limit {limit} ms: not measured, KVM does not work here");
        }
    }
    Ok(faults)
}

fn by_the_clock(
    bench: &Bench<'_>,
    rows: &[Row],
    limits: &Limits,
    options: &Options,
    report: &mut Report,
    faults: &mut Vec<String>,
) -> Result<()> {
    let accel = bench.accel(options.accel)?;
    let rows = select::for_accel(rows, accel);
    let walls = bench.wall(&rows, accel)?;
    report.accelerator = Some(accel.to_string());
    faults.extend(walls.errors.iter().cloned());
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let kvm = accel == Accel::Kvm;
    let (found, wrong) = scaling::wall(&walls.rows, kvm, processors, &limits.scaling);
    report.findings.extend(found);
    faults.extend(wrong);
    report.walls.clone_from(&walls.rows);
    report.commands.push(walls.command);
    Ok(())
}

/// Counts as often as requested; the figures are those of the first count.
fn counted(
    bench: &Bench<'_>,
    rows: &[Row],
    cpus: usize,
    options: &Options,
    faults: &mut Vec<String>,
) -> Result<Counted> {
    let first = bench.count(rows, cpus, options.hot)?;
    for time in 2..=options.repeat {
        let again = bench.count(rows, cpus, options.hot)?;
        let different = first.differences(&again);
        let words = if different.is_empty() {
            "identical"
        } else {
            "different"
        };
        println!("count {time} is {words}");
        faults.extend(different);
    }
    faults.extend(first.errors.iter().cloned());
    for (row, lines) in &first.hot {
        println!("\nhot in {row}, own instructions per I/O:\n{lines}");
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::limits::Limits;
    use super::rows;

    /// L90 A limit for a row that does not exist would never be checked.
    #[test]
    fn l90_every_limit_is_for_a_row() {
        let rows = [rows::counted(), rows::network()].concat();
        for limit in Limits::load().unwrap().icount {
            assert!(
                rows.iter().any(|row| row.name == limit.row),
                "{}",
                limit.row
            );
            assert!(
                limit.own.is_some() || limit.total.is_some(),
                "{} has no limit",
                limit.row
            );
        }
        for (names, rows) in [
            (super::scaling::COUNTED, rows::two_cpus()),
            (super::scaling::WALL, rows::wall()),
            (super::scaling::CONNECTIONS, rows::wall()),
        ] {
            for name in names {
                assert!(rows.iter().any(|row| row.name == name), "{name}");
            }
        }
    }
}
