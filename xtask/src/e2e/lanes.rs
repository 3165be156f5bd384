//! Several guests at once: each kernel's cases run in a lane.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ublk_e2e_records::Record;

use super::{Set, table};
use crate::expected;
use crate::guest::Verdict;
use crate::guest::accel::{self, Accel};
use crate::kernel::Kernel;
use crate::outcomes::Outcomes;
use crate::results::Results;
use crate::vm::{Kind, Vm};

/// Memory of a guest, including QEMU itself, in KiB.
const GUEST_MEMORY: usize = 4 << 20;

/// One kernel and its cases.
#[derive(Debug)]
pub struct Job {
    /// The kernel.
    pub kernel: Kernel,
    /// The set of cases.
    pub set: Set,
}

/// The result of a job.
#[derive(Debug)]
pub struct Report {
    /// The kernel's name: a series.
    pub name: String,
    /// Its series.
    pub series: String,
    /// Its release.
    pub release: String,
    /// The set of cases that ran.
    pub set: Set,
    /// Their results.
    pub results: Results,
    /// Outcomes of the cells of each table, by its name.
    pub outcomes: BTreeMap<String, Outcomes>,
    /// Features by name.
    pub features: Vec<(String, bool)>,
    /// Time from boot to power off.
    pub elapsed: Duration,
    /// Whether the guest ran to its end.
    pub ended: bool,
}

impl Report {
    fn new(job: &Job) -> Self {
        Self {
            name: job.kernel.name.clone(),
            series: job.kernel.series.clone(),
            release: job.kernel.release.clone(),
            set: job.set,
            results: Results::default(),
            outcomes: BTreeMap::new(),
            features: Vec::new(),
            elapsed: Duration::ZERO,
            ended: false,
        }
    }

    fn line(&mut self, line: &str) {
        self.results.line(line);
        match Record::of(line) {
            Some(Ok(Record::Outcome {
                table,
                axes,
                outcome,
            })) => self.outcomes.entry(table).or_default().take(axes, outcome),
            Some(Ok(Record::Feature { name, available })) => self.features.push((name, available)),
            _ => {}
        }
    }
}

/// Default number of guests at once: one per processor, limited by memory.
pub fn default_jobs() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = text.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?
            .split_whitespace()
            .next()
    });
    let free = free.and_then(|kib| kib.parse::<usize>().ok());
    free.map_or(1, |kib| kib / GUEST_MEMORY).clamp(1, cores)
}

/// Deadline of a guest.
fn deadline(accel: Accel, set: Set, lanes: usize) -> Duration {
    let minutes = match accel {
        Accel::Kvm => 10,
        Accel::Tcg => 28,
    };
    let minutes = if set == Set::Soak {
        minutes * 8
    } else {
        minutes
    };
    // Concurrent guests compete for the host's processors.
    let minutes = if lanes > 1 { minutes * 3 / 2 } else { minutes };
    Duration::from_secs(minutes * 60)
}

/// Factor by which other processes slow this host down now, from the load per processor: 1 to 3.
fn crowd() -> u32 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    crowd_of(&text, cores)
}

fn crowd_of(loadavg: &str, cores: usize) -> u32 {
    let whole = loadavg
        .split('.')
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    let each = whole.unwrap_or(0) / cores.max(1);
    u32::try_from(each.clamp(1, 3)).unwrap_or(1)
}

/// Runs all jobs, this many at once, and returns their reports in the order of the jobs. A guest that cannot run is a
/// failure of its kernel and does not stop the others.
///
/// # Errors
/// KVM was requested and does not work.
pub fn run(vm: &Vm, jobs: Vec<Job>, filter: Option<&str>, lanes: usize) -> Result<Vec<Report>> {
    let Some(first) = jobs.first() else {
        return Ok(Vec::new());
    };
    // Once, before the lanes ask for it.
    accel::choose(vm.choice, &first.kernel, &vm.image)?;
    let lanes = lanes.clamp(1, jobs.len());
    let waiting: Mutex<VecDeque<(usize, Job)>> = Mutex::new(jobs.into_iter().enumerate().collect());
    let done: Mutex<Vec<(usize, Report)>> = Mutex::new(Vec::new());
    let next = || lock(&waiting).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some((number, job)) = next() {
                    let report = one(vm, &job, filter, lanes);
                    lock(&done).push((number, report));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, report)| report).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one job. If there are other lanes, each line is prefixed with its kernel.
fn one(vm: &Vm, job: &Job, filter: Option<&str>, lanes: usize) -> Report {
    let mut report = Report::new(job);
    if vm.kind == Kind::Systemd {
        report.name += " systemd";
    }
    let start = Instant::now();
    let before = if lanes > 1 {
        format!("{:5}| ", job.kernel.name)
    } else {
        String::new()
    };
    let say = |text: &str| {
        for line in text.lines() {
            println!("{before}{line}");
        }
    };
    if let Err(error) = watch(vm, job, filter, lanes, &mut report, &say) {
        report
            .results
            .failed
            .push(format!("the guest cannot run: {error:#}"));
    }
    report.elapsed = start.elapsed();
    say(&format!(
        "kernel {}: {}",
        job.kernel.release,
        report.results.sum()
    ));
    report
}

fn watch(
    vm: &Vm,
    job: &Job,
    filter: Option<&str>,
    lanes: usize,
    report: &mut Report,
    say: &dyn Fn(&str),
) -> Result<()> {
    let (kernel, manifest) = (&job.kernel, &vm.manifest);
    let mut program = vec!["/usr/bin/ublk-e2e", "--color=never"];
    program.extend(filter);
    let (mut guest, accel, _lock) = vm.guest(kernel, &program, Duration::ZERO)?;
    let crowd = crowd();
    guest.deadline = deadline(accel, job.set, lanes) * crowd;
    if crowd > 1 {
        say(&format!(
            "this host is busy: the deadline is {} s",
            guest.deadline.as_secs()
        ));
    }
    let avoid = expected::avoided(&manifest.expected_failures, &kernel.series);
    for (name, value) in [("UBLK_E2E_SET", job.set.word()), ("UBLK_E2E_AVOID", &avoid)] {
        guest.env.push((name.to_owned(), value.to_owned()));
    }
    say(&format!("kernel {} under {accel}", kernel.release));
    let outcome = guest
        .run(&mut |line| {
            say(line);
            report.line(line);
        })
        .context("no guest")?;
    say(&format!(
        "kernel {}: {} after {:.1} s",
        kernel.release,
        outcome.verdict,
        outcome.elapsed.as_secs_f64()
    ));
    let results = &mut report.results;
    match &outcome.verdict {
        Verdict::Exit(status) => {
            report.ended = true;
            results.check("ublk-e2e", *status == 0);
        }
        verdict => results.failed.push(verdict.to_string()),
    }
    // A guest that did not run to its end has reported that already.
    let all = filter.is_none() && report.ended;
    if !outcome.verdict.is_good() {
        say(&outcome.report());
    }
    if vm.kind == Kind::Systemd {
        results.compare_skips(&manifest.system.skips, all);
        return Ok(());
    }
    // Expected skips apply to the full set.
    let full = all && job.set != Set::Kernel;
    results.compare_skips(manifest.expected_skips(&kernel.series), full);
    let reduced = job.set == Set::Kernel;
    for (name, table) in &manifest.tables {
        let told = report.outcomes.entry(name.clone()).or_default();
        let table = (name.as_str(), table);
        let wrong = told.compare(table, &kernel.series, all, reduced);
        results.failed.extend(wrong);
    }
    let unknown = report
        .outcomes
        .keys()
        .filter(|name| !manifest.tables.contains_key(*name));
    let unknown = unknown.map(|name| format!("table {name}: not in the manifest"));
    results.failed.extend(unknown);
    results.forgive(&manifest.expected_failures, &kernel.series, all);
    for (name, table) in &manifest.tables {
        if let Some(told) = report.outcomes.get(name) {
            say(&told.table(table, &kernel.series));
        }
    }
    Ok(())
}

/// The outcome of each kernel, one line each.
pub fn summary(reports: &[Report], missing: &[String]) -> String {
    table::text(reports, missing)
}

#[cfg(test)]
mod tests {
    use super::{Accel, Set, crowd_of, deadline, default_jobs};

    #[test]
    fn guests_beside_each_other_have_more_time() {
        let of = |accel, set, lanes| deadline(accel, set, lanes).as_secs() / 60;
        assert_eq!(of(Accel::Kvm, Set::Full, 1), 10);
        assert_eq!(of(Accel::Tcg, Set::Full, 1), 28);
        assert_eq!(of(Accel::Tcg, Set::Kernel, 2), 42);
        assert!(of(Accel::Tcg, Set::Soak, 1) > 120);
        assert!(default_jobs() >= 1);
        assert_eq!(crowd_of("0.61 0.40 0.30 1/2 3", 2), 1);
        assert_eq!(crowd_of("5.10 0.40 0.30 1/2 3", 2), 2);
        assert_eq!(crowd_of("40.1 0.40 0.30 1/2 3", 2), 3);
    }
}
