//! Counts the rows with limits in a short time: for `cargo xtask test` and `vm-stress`.

use anyhow::Result;

use super::Options;
use super::figures::Figure;
use super::guest::Bench;
use super::limits::Limits;
use super::scaling;
use super::select::Selection;
use crate::kernel::{self, Kernel};
use crate::manifest::Manifest;
use crate::results::Results;
use crate::vm;

/// The kernel series that the limits apply to.
pub const SERIES: &str = "7.3";

/// Programs and image, built once.
#[derive(Debug)]
pub struct Short<'a> {
    bench: Bench<'a>,
    selection: Selection,
    limits: Limits,
}

/// The result of one count.
#[derive(Debug, Default)]
pub struct Round {
    /// Instructions per I/O.
    pub figures: Vec<Figure>,
    /// Rows that could not be counted, and figures above their limits.
    pub faults: Vec<String>,
}

impl<'a> Short<'a> {
    /// Builds everything for the rows whose names contain one of the parts.
    ///
    /// # Errors
    /// No such row, or a build fails.
    pub fn new(manifest: &'a Manifest, kernel: &'a Kernel, filter: &[String]) -> Result<Self> {
        let limits = Limits::load()?;
        let mut selection = Selection::new(&Options::short(filter), &limits)?;
        let bench = Bench::new(manifest, kernel, &mut selection)?;
        Ok(Self {
            bench,
            selection,
            limits,
        })
    }

    /// Counts.
    ///
    /// # Errors
    /// A guest did not run to its end.
    pub fn run(&self) -> Result<Round> {
        let mut round = Round::default();
        for (cpus, rows) in [(1, &self.selection.counted), (2, &self.selection.two_cpus)] {
            if !rows.is_empty() {
                let counted = self.bench.count(rows, cpus, false)?;
                round.figures.extend(counted.figures);
                round.faults.extend(counted.errors);
            }
        }
        let limits = &self.limits;
        let over = limits.icount(&self.selection.counted, &round.figures);
        round.faults.extend(over);
        let (found, wrong) = scaling::counted(&round.figures, &limits.scaling);
        found.iter().for_each(|line| println!("{line}"));
        round.faults.extend(wrong);
        Ok(round)
    }
}

/// The benchmark's part of `cargo xtask test`: each row within its limits counts as a passed test.
///
/// # Errors
/// Nothing can be counted here.
pub fn test() -> Result<Results> {
    let manifest = vm::set_up()?;
    let kernel = kernel::prepare(&manifest, SERIES)?;
    let short = Short::new(&manifest, &kernel, &[])?;
    let round = short.run()?;
    let mut results = Results::default();
    for figure in &round.figures {
        println!("{}", figure.line());
        let start = format!("{}:", figure.name);
        if !round.faults.iter().any(|fault| fault.starts_with(&start)) {
            results.passed += 1;
        }
    }
    results.failed = round.faults;
    results.skipped.clone_from(&short.selection.skipped);
    Ok(results)
}
