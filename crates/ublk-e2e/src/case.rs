//! A case: its name, its body, and when it cannot run.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use libtest_mimic::{Failed, Trial};
use ublk_e2e_records::{CELL, KIND, RECOVERY, Record};

use crate::wait::secs;
use crate::{cli, procfs};

/// Maximum time of a case, with room for software emulation. Longer counts as a hang.
const LIMIT: Duration = secs(150);

/// Maximum time of a case in a soak.
const SOAK_LIMIT: Duration = secs(45 * 60);

/// Which cases run, and for how long: `$UBLK_E2E_SET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Cases that show what this kernel's driver can do: modes, matrices, deaths.
    Brief,
    /// Cases whose outcome depends on the kernel.
    Kernel,
    /// What a change must pass: all cases but those that repeat at length what another shows, and tables in part.
    Change,
    /// All cases.
    Full,
    /// All cases, the long ones in full length.
    Soak,
}

/// The set requested by the runner.
pub fn set() -> Set {
    match std::env::var("UBLK_E2E_SET").as_deref() {
        Ok("brief") => Set::Brief,
        Ok("kernel") => Set::Kernel,
        Ok("change") => Set::Change,
        Ok("soak") => Set::Soak,
        _ => Set::Full,
    }
}

/// Whether large tables are tested in part only.
pub fn reduced() -> bool {
    matches!(set(), Set::Brief | Set::Kernel | Set::Change)
}

/// Whether cases that only repeat at length what another shows are left out.
pub fn is_quick() -> bool {
    matches!(set(), Set::Brief | Set::Change)
}

/// The part of the cases that this guest runs, of how many: `$UBLK_E2E_PART`, `1/2` for the first of two.
pub fn part() -> (usize, usize) {
    part_of(&std::env::var("UBLK_E2E_PART").unwrap_or_default()).unwrap_or((0, 1))
}

fn part_of(text: &str) -> Option<(usize, usize)> {
    let (part, parts) = text.split_once('/')?;
    let (part, parts): (usize, usize) = (part.parse().ok()?, parts.parse().ok()?);
    Some((part.checked_sub(1)?, parts)).filter(|_| part <= parts)
}

/// Number of rounds: `usual`, or `long` in a soak.
pub fn rounds(usual: usize, long: usize) -> usize {
    if set() == Set::Soak { long } else { usual }
}

/// Whether this machine is emulated in software.
pub fn emulated() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG"))
}

/// Whether a case must not run on this kernel: `patterns` are names, or prefixes before a `*`, from `$UBLK_E2E_AVOID`.
fn avoided(name: &str, patterns: &str) -> bool {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    patterns.split_whitespace().any(fits)
}

/// A case to run.
pub struct Case {
    name: String,
    body: Box<dyn FnOnce() -> Result<()> + Send>,
    skip: Option<String>,
}

impl Case {
    /// Creates a case. The name states the expected behaviour; that of a known failure mode begins with its number.
    pub fn new(
        name: impl Into<String>,
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            body: Box::new(body),
            skip: None,
        }
    }

    /// Skips the case, with the reason, unless `possible`.
    pub fn only_if(mut self, possible: bool, reason: &str) -> Self {
        if !possible && self.skip.is_none() {
            self.skip = Some(reason.to_owned());
        }
        self
    }

    /// Whether the runner wants this case left out, since it would crash this kernel.
    pub fn is_avoided(&self) -> bool {
        let patterns = std::env::var("UBLK_E2E_AVOID").unwrap_or_default();
        avoided(&self.name, &patterns)
    }

    /// Reports that the case is left out.
    pub fn tell_avoided(&self) {
        let case = self.name.clone();
        println!("{}", Record::Avoided { case }.line());
    }

    /// Reports that the case is skipped, if so: the runner compares these lines with the expected skips (L91).
    pub fn announce(&self) {
        if let Some(reason) = &self.skip {
            let (case, reason) = (self.name.clone(), reason.clone());
            println!("{}", Record::Skipped { case, reason }.line());
        }
    }

    /// Whether the name contains the filter, or there is none.
    pub fn named(&self, filter: Option<&String>) -> bool {
        filter.is_none_or(|filter| self.name.contains(filter.as_str()))
    }

    /// Whether one of these names it, or a `*` after the beginning of its name.
    pub fn is_one_of(&self, patterns: &[&str]) -> bool {
        patterns.iter().any(|pattern| avoided(&self.name, pattern))
    }

    /// Whether the case is one of the quick subset.
    pub fn is_simple(&self) -> bool {
        self.name.starts_with("simple_")
    }

    /// The case for libtest-mimic.
    pub fn trial(self) -> Trial {
        let Self { name, body, skip } = self;
        let named = name.clone();
        Trial::test(name, move || {
            let start = Instant::now();
            let result = run(body);
            took(&named, start.elapsed());
            if let Err(failed) = &result {
                // At once: a guest that runs out of time never prints the list at the end.
                println!(
                    "failure of {named}: {}",
                    failed.message().unwrap_or_default()
                );
            }
            result
        })
        .with_ignored_flag(skip.is_some())
    }
}

/// Runs a case on its own thread: one that hangs fails, and the others still run. A case that passes must leave no ublk
/// device, file or process behind; one that fails is cleaned up after.
fn run(body: Box<dyn FnOnce() -> Result<()> + Send>) -> Result<(), Failed> {
    let (sender, end) = channel();
    let thread = std::thread::spawn(move || {
        let result = body();
        let _ = sender.send(());
        result
    });
    let limit = if set() == Set::Soak {
        SOAK_LIMIT
    } else {
        LIMIT
    };
    let result = match end.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => Err(anyhow!(
            "no end within {} s; in uninterruptible waits: {:?}",
            limit.as_secs(),
            procfs::stuck()
        )),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(result) => result,
            Err(panic) => Err(anyhow!("panic: {}", message(&*panic))),
        },
    };
    let left = cli::nothing_left(secs(10));
    if left.is_err() {
        clean_up();
    }
    result
        .and(left)
        .map_err(|error| Failed::from(format!("{error:#}")))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// Deletes every device, so that the next case finds an empty machine.
fn clean_up() {
    for path in crate::sysfs::present() {
        if let Some(id) = path.strip_prefix("/dev/ublkc") {
            // Nobody would read this error; the next case reports what is still there.
            let _ = cli::ublkctl(&["delete", "--force", id]);
        }
    }
}

static MEASURED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Records a measured value, printed after the cases.
pub fn measured(text: String) {
    let mut all = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(text);
}

static RECORDS: Mutex<Vec<Record>> = Mutex::new(Vec::new());

fn record(record: Record) {
    let mut all = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(record);
}

/// Records the outcome of an operation on a backend in a mode: `ran`, `never` (impossible), `lacks` (not supported by
/// the kernel). The runner compares it with the expected outcome.
pub fn cell(backend: &str, mode: &str, operation: &str, outcome: &str) {
    record(Record::outcome(CELL, &[backend, mode, operation], outcome));
}

/// Records the outcome of a step in a device's life, for the recovery matrix.
pub fn recovery_cell(policy: &str, event: &str, load: &str, outcome: &str) {
    record(Record::outcome(RECOVERY, &[policy, event, load], outcome));
}

/// Records whether devices of a kind can be had in a mode: `ran`, `never`, `lacks`.
pub fn kind_cell(kind: &str, mode: &str, outcome: &str) {
    record(Record::outcome(KIND, &[kind, mode], outcome));
}

/// Records a feature of this kernel.
pub fn feature(name: &str, available: bool) {
    let name = name.to_owned();
    record(Record::Feature { name, available });
}

static TIMES: Mutex<Vec<(Duration, String)>> = Mutex::new(Vec::new());

fn took(name: &str, time: Duration) {
    let mut all = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    all.push((time, name.to_owned()));
}

/// Number of slowest cases to list.
const SLOWEST: usize = 12;

/// Prints the measured values, the cells, and the slowest cases.
pub fn print_measured() {
    let records = RECORDS.lock().unwrap_or_else(PoisonError::into_inner);
    for record in records.iter() {
        println!("{}", record.line());
    }
    let mut times = TIMES.lock().unwrap_or_else(PoisonError::into_inner);
    times.sort();
    let sum: Duration = times.iter().map(|(time, _)| *time).sum();
    for (time, name) in times.iter().rev().take(SLOWEST) {
        println!("slowest: {:6.1} s  {name}", time.as_secs_f64());
    }
    println!("all cases: {:.1} s", sum.as_secs_f64());
    let all = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    for text in all.iter() {
        println!("measured: {text}");
    }
}

#[cfg(test)]
mod tests {
    use super::{avoided, part_of};

    #[test]
    fn names_and_starts_of_names_are_avoided() {
        assert!(avoided("resize_up", "x resize_up"));
        assert!(avoided("resize_up", "resize_*"));
        assert!(!avoided("resize_up", "resize"));
        assert!(!avoided("resize_up", ""));
    }

    #[test]
    fn a_part_is_one_of_several() {
        assert_eq!(part_of("1/2"), Some((0, 2)));
        assert_eq!(part_of("2/2"), Some((1, 2)));
        for wrong in ["", "0/2", "3/2", "1", "a/b"] {
            assert_eq!(part_of(wrong), None, "{wrong}");
        }
    }
}
