//! `vm-stress`: runs the cases and the benchmark in turn, round after round, until something fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::bench::{Figure, SERIES, Short};
use crate::guest::accel::Choice;
use crate::vm::Vm;
use crate::{e2e, kernel, paths};

/// Options of `vm-stress`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Number of rounds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,
    /// Kernel for the cases: a series, `newest`, or the path of an image; may be given several times
    #[arg(long, value_name = "SERIES|PATH")]
    kernel: Vec<String>,
    /// Only cases whose name contains this
    #[arg(long)]
    filter: Option<String>,
    /// Only rows of the benchmark whose names contain this; may be given several times
    #[arg(long, value_name = "PART")]
    rows: Vec<String>,
    /// Accelerator for the guests of the cases
    #[arg(long, value_enum, default_value_t)]
    accel: Choice,
}

/// Runs the rounds; the programs are built once, so that every round runs the same ones.
///
/// # Errors
/// The first failure: a failed case, a kernel fault, a row that cannot be counted or is above its limit, or a figure
/// that differs from the first round. The consoles of that round are kept.
pub fn run(options: &Options) -> Result<()> {
    let vm = Vm::new(options.accel)?;
    let kernel = kernel::prepare(&vm.manifest, SERIES)?;
    let short = Short::new(&vm.manifest, &kernel, &options.rows)?;
    let mut first = None;
    for number in 1..=options.rounds {
        let (start, since) = (Instant::now(), SystemTime::now());
        println!("\n== round {number} of {}", options.rounds);
        let result = round(&vm, &short, options, &mut first);
        let seconds = start.elapsed().as_secs();
        match result.and_then(|(told, faults)| {
            if faults.is_empty() {
                return Ok(told);
            }
            bail!("{}", faults.join("\n       "))
        }) {
            Ok(told) => println!("round {number}: {told}, {seconds} s"),
            Err(error) => {
                let place = keep(number, since)?;
                bail!(
                    "round {number}: {error:#}\n       the consoles are kept in {}",
                    place.display()
                );
            }
        }
    }
    println!("{} rounds without a fault", options.rounds);
    Ok(())
}

/// Runs one round; returns what it did and its failures.
fn round(
    vm: &Vm,
    short: &Short<'_>,
    options: &Options,
    first: &mut Option<Vec<Figure>>,
) -> Result<(String, Vec<String>)> {
    let cases = e2e::guests(
        vm,
        &options.kernel,
        e2e::Set::Full,
        options.filter.as_deref(),
    )?;
    let mut faults = cases.failed.clone();
    if cases.passed == 0 {
        faults.push("no case ran".to_owned());
    }
    // The first failure ends everything: later guests would overwrite its console.
    if !faults.is_empty() {
        return Ok((String::new(), faults));
    }
    let counted = short.run()?;
    faults.extend(counted.faults);
    let told = format!(
        "{} cases passed, {} rows counted",
        cases.passed,
        counted.figures.len()
    );
    match first {
        None => *first = Some(counted.figures),
        Some(first) => faults.extend(different(first, &counted.figures)),
    }
    Ok((told, faults))
}

/// Figures that differ from the first round: the same programs do the same work.
fn different(first: &[Figure], now: &[Figure]) -> Vec<String> {
    let mut faults = Vec::new();
    for figure in now {
        let before = first.iter().find(|other| other.name == figure.name);
        if before.is_none_or(|before| !before.same(figure)) {
            faults.push(format!(
                "{}; in the first round {}",
                figure.line(),
                before.map_or_else(|| "not counted".to_owned(), Figure::line)
            ));
        }
    }
    faults
}

/// Copies the logs of a round's guests to a place that no later run overwrites.
fn keep(round: u32, since: SystemTime) -> Result<PathBuf> {
    let stamp = since
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let place = paths::vm().join(format!("stress/{stamp}-round-{round}"));
    for entry in fs::read_dir(paths::vm())? {
        let directory = entry?.path();
        let console = directory.join("console.log");
        let Ok(changed) = fs::metadata(&console).and_then(|data| data.modified()) else {
            continue;
        };
        if changed >= since {
            copy(&directory, &place)?;
        }
    }
    Ok(place)
}

fn copy(directory: &Path, place: &Path) -> Result<()> {
    let name = directory.file_name().context("a directory has a name")?;
    let to = place.join(name);
    fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
    for file in ["console.log", "channel.log", "qemu.log", "plan"] {
        let from = directory.join(file);
        if from.is_file() {
            fs::copy(&from, to.join(file)).with_context(|| from.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::different;
    use crate::bench::Figure;

    /// L90 A figure that differs from the first round is reported, and so is a row that the first round did not have.
    #[test]
    fn l90_figures_that_do_not_repeat_are_named() {
        let first = [Figure::example("a", 10.0, 1.0)];
        assert!(different(&first, &first).is_empty());
        let now = [Figure::example("a", 10.1, 1.0)];
        assert_eq!(different(&first, &now).len(), 1);
        assert_eq!(different(&[], &now).len(), 1);
    }
}
