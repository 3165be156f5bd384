//! Several guests at once: the cases of a kernel, or a part of them, run in a lane.

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
pub struct Job<'a> {
    /// The image.
    pub vm: &'a Vm,
    /// The kernel.
    pub kernel: Kernel,
    /// The set of cases.
    pub set: Set,
    /// The number of guests that share the cases.
    pub parts: usize,
}

impl<'a> Job<'a> {
    /// A job of one guest.
    pub const fn new(vm: &'a Vm, kernel: Kernel, set: Set) -> Self {
        let parts = 1;
        Self {
            vm,
            kernel,
            set,
            parts,
        }
    }

    /// The name of its kernel, and of its image unless that is the plain one.
    fn name(&self) -> String {
        match self.vm.kind {
            Kind::Plain => self.kernel.name.clone(),
            Kind::Systemd => format!("{} systemd", self.kernel.name),
        }
    }

    /// The name of a part, counted from 1.
    fn label(&self, part: usize) -> String {
        match self.parts {
            1 => self.name(),
            parts => format!("{} {part}/{parts}", self.name()),
        }
    }
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
    /// Time from boot to power off, summed over its guests.
    pub elapsed: Duration,
    /// Whether all of its guests ran to their end.
    pub ended: bool,
}

impl Report {
    fn new(job: &Job<'_>) -> Self {
        Self {
            name: job.name(),
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

    /// Adds the report of another part of the same cases.
    fn add(&mut self, part: Self) {
        self.results.add("", &part.results);
        for (name, outcomes) in part.outcomes {
            self.outcomes.entry(name).or_default().add(outcomes);
        }
        self.features.extend(part.features);
        self.elapsed += part.elapsed;
        self.ended &= part.ended;
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

/// Runs all jobs, this many guests at once, and returns their reports in the order of the jobs. A guest that cannot run is
/// a failure of its kernel and does not stop the others.
///
/// # Errors
/// KVM was requested and does not work.
pub fn run(jobs: &[Job<'_>], filter: Option<&str>, lanes: usize) -> Result<Vec<Report>> {
    // Once, before the lanes ask for it.
    for job in jobs {
        accel::choose(job.vm.choice, &job.kernel, &job.vm.image)?;
    }
    let parts = jobs
        .iter()
        .enumerate()
        .flat_map(|(n, job)| (1..=job.parts).map(move |part| (n, part)));
    let waiting: Mutex<VecDeque<_>> = Mutex::new(parts.collect());
    let lanes = lanes.clamp(1, lock(&waiting).len().max(1));
    let reports: Vec<_> = jobs.iter().map(|_| Mutex::new(None::<Report>)).collect();
    let next = || lock(&waiting).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some((n, part)) = next() {
                    let report = one(&jobs[n], part, filter, lanes);
                    let mut sum = lock(&reports[n]);
                    match &mut *sum {
                        Some(sum) => sum.add(report),
                        None => *sum = Some(report),
                    }
                }
            });
        }
    });
    let reports = jobs.iter().zip(reports).filter_map(|(job, report)| {
        let report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut report = report?;
        judge(job, filter, &mut report);
        Some(report)
    });
    Ok(reports.collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs one part of a job. If there are other lanes, each line is prefixed with its name.
fn one(job: &Job<'_>, part: usize, filter: Option<&str>, lanes: usize) -> Report {
    let mut report = Report::new(job);
    let start = Instant::now();
    let before = if lanes > 1 {
        format!("{:5}| ", job.label(part))
    } else {
        String::new()
    };
    let say = |text: &str| {
        for line in text.lines() {
            println!("{before}{line}");
        }
    };
    if let Err(error) = watch(job, part, filter, lanes, &mut report, &say) {
        report
            .results
            .failed
            .push(format!("the guest cannot run: {error:#}"));
    }
    report.elapsed = start.elapsed();
    report
}

/// Runs the guest of one part.
fn watch(
    job: &Job<'_>,
    part: usize,
    filter: Option<&str>,
    lanes: usize,
    report: &mut Report,
    say: &dyn Fn(&str),
) -> Result<()> {
    let (vm, kernel) = (job.vm, &job.kernel);
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
    let avoid = expected::avoided(&vm.manifest.expected_failures, &kernel.series);
    let shared = format!("{part}/{}", job.parts);
    for (name, value) in [
        ("UBLK_E2E_SET", job.set.word()),
        ("UBLK_E2E_PART", &shared),
        ("UBLK_E2E_AVOID", &avoid),
    ] {
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
    if !outcome.verdict.is_good() {
        say(&outcome.report());
    }
    Ok(())
}

/// Compares the results of a job with what the manifest expects.
fn judge(job: &Job<'_>, filter: Option<&str>, report: &mut Report) {
    let (kernel, manifest) = (&job.kernel, &job.vm.manifest);
    // A guest that did not run to its end has reported that already.
    let all = filter.is_none() && report.ended;
    let results = &mut report.results;
    if job.vm.kind == Kind::Systemd {
        results.compare_skips(&manifest.system.skips, all);
    } else {
        // Expected skips apply to the full set, expected failures to all but the brief one.
        let reduced = job.set.is_reduced();
        results.compare_skips(manifest.expected_skips(&kernel.series), all && !reduced);
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
        let every = all && job.set != Set::Brief;
        results.forgive(&manifest.expected_failures, &kernel.series, every);
        for (name, table) in &manifest.tables {
            if let Some(told) = report.outcomes.get(name) {
                println!("{}", told.table(table, &kernel.series).trim_end());
            }
        }
    }
    println!("kernel {}: {}", kernel.release, report.results.sum());
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
