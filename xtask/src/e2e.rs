//! The cases of `ublk-e2e`, in guests or on a host with ublk.

mod lanes;
mod table;

pub use lanes::Report;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::guest::accel::Choice;
use crate::guest::system::NoPackages;
use crate::outcomes::version;
use crate::results::{Results, Told};
use crate::vm::{Kind, Vm};
use crate::{build, cmd, host, kernel, kernels};
use lanes::Job;

/// Options of `vm-e2e`.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Kernel: a series (`6.16`), `newest`, or the path of an image; may be given several times
    #[arg(long, value_name = "SERIES|PATH")]
    pub kernel: Vec<String>,
    /// Every known series, or those named by --kernel; the middle ones run the cases that depend on the kernel
    #[arg(long)]
    pub all_kernels: bool,
    /// All cases on every kernel, the long ones in full length
    #[arg(long)]
    pub soak: bool,
    /// Only the cases that show what the kernel's driver can do, as `test` runs them on kernels other than the newest
    #[arg(long, conflicts_with_all = ["soak", "all_kernels", "host", "write_docs"])]
    pub brief: bool,
    /// Leave out cases that repeat at length what a shorter one shows, as `test` does on the newest kernel
    #[arg(long, conflicts_with_all = ["brief", "soak", "all_kernels", "host", "write_docs"])]
    pub change: bool,
    /// Number of guests at once [default: one per processor]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Write the results to docs/kernels.json and docs/kernels.md
    #[arg(long, conflicts_with = "host")]
    pub write_docs: bool,
    /// Only cases whose name contains this
    #[arg(long)]
    pub filter: Option<String>,
    /// Run on this host, which must have the ublk driver, instead of in a guest
    #[arg(long, conflicts_with_all = ["kernel", "all_kernels", "soak", "jobs", "accel"])]
    pub host: bool,
    /// Run the cases of this image: our init alone, or systemd (newest kernel unless one is named) [default: both if
    /// neither kernel nor filter is given, else our init alone]
    #[arg(long, value_enum, conflicts_with = "host")]
    pub image: Option<Kind>,
    /// Accelerator for the guests
    #[arg(long, value_enum, default_value_t)]
    pub accel: Choice,
}

impl Options {
    /// The set of cases on kernels that run all.
    const fn set(&self) -> Set {
        match (self.soak, self.brief, self.change) {
            (true, ..) => Set::Soak,
            (_, true, _) => Set::Brief,
            (.., true) => Set::Change,
            _ => Set::Full,
        }
    }
}

/// The set of cases to run on a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Cases that show what the kernel's driver can do.
    Brief,
    /// Cases whose outcome depends on the kernel.
    Kernel,
    /// What a change must pass: all except the long ones, tables in part.
    Change,
    /// All.
    Full,
    /// All, the long ones in full length.
    Soak,
}

impl Set {
    /// Whether large tables are tested in part only.
    pub const fn is_reduced(self) -> bool {
        matches!(self, Self::Brief | Self::Kernel | Self::Change)
    }

    /// The name in tables and for the guest.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Brief => "brief",
            Self::Kernel => "kernel",
            Self::Change => "change",
            Self::Full => "full",
            Self::Soak => "soak",
        }
    }
}

/// `vm-simple-e2e`: the quick cases on the first default kernel.
///
/// # Errors
/// The guest cannot run, or a case fails.
pub fn simple(accel: Choice) -> Result<()> {
    let vm = Vm::new(accel)?;
    let names = [vm.manifest.default[0].clone()];
    let results = guests(&vm, &names, Set::Full, Some("simple_"))?;
    conclude(&results)
}

/// `vm-e2e`.
///
/// # Errors
/// A guest cannot run, or a case fails.
pub fn run(options: &Options) -> Result<()> {
    let filter = options.filter.as_deref();
    if options.host {
        return conclude(&on_host(filter)?);
    }
    let chosen = !options.kernel.is_empty() || options.all_kernels || filter.is_some();
    let (plain, with_systemd) = match options.image {
        Some(kind) => (kind == Kind::Plain, kind == Kind::Systemd),
        None => (true, !chosen),
    };
    let set = options.set();
    let mut results = Results::default();
    if plain {
        results.add("", &several(options, filter)?);
    }
    if with_systemd {
        results.add("", &systemd(options.accel, &options.kernel, set, filter)?);
    }
    conclude(&results)
}

/// Runs the kernels selected by the options.
fn several(options: &Options, filter: Option<&str>) -> Result<Results> {
    let vm = Vm::new(options.accel)?;
    let usual = options.set();
    let (mut jobs, mut missing) = (Vec::new(), Vec::new());
    if options.all_kernels {
        let wanted = |name: &&String| options.kernel.is_empty() || options.kernel.contains(name);
        for name in vm.manifest.all.iter().filter(wanted) {
            let set = match options.soak || vm.manifest.default.contains(name) {
                true => usual,
                false => Set::Kernel,
            };
            match kernel::prepare(&vm.manifest, name) {
                Ok(kernel) => {
                    // The newest kernel may belong to a series with its own entry.
                    jobs.retain(|job: &Job<'_>| job.kernel.release != kernel.release);
                    jobs.push(Job::new(&vm, kernel, set));
                }
                Err(error) if error.is::<kernel::NotOnOffer>() => missing.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        // The longest first, so that no lane waits long for another at the end.
        jobs.sort_by_key(|job| job.set == Set::Kernel);
    } else {
        let kernels = vm.kernels(&options.kernel)?.into_iter();
        jobs.extend(kernels.map(|kernel| Job::new(&vm, kernel, usual)));
    }
    let lanes = options.jobs.unwrap_or_else(lanes::default_jobs);
    let mut reports = lanes::run(&jobs, filter, lanes)?;
    reports.sort_by_key(|report| version(&report.series));
    let results = sum(&reports);
    if options.write_docs {
        kernels::write(&reports, &missing, filter)?;
    }
    println!("{}", lanes::summary(&reports, &missing));
    Ok(results)
}

/// Runs the cases of the image with systemd, on the newest kernel unless others are named. If its packages are not
/// available, that is reported as a skip.
///
/// # Errors
/// As for [`guests`].
pub fn systemd(accel: Choice, names: &[String], set: Set, filter: Option<&str>) -> Result<Results> {
    let mut skipped = Results::default();
    let Some(vm) = system(accel, &mut skipped)? else {
        return Ok(skipped);
    };
    let newest = ["newest".to_owned()];
    let names = if names.is_empty() { &newest } else { names };
    guests(&vm, names, set, filter)
}

/// Runs all cases on each kernel, with one guest per processor at once, and sums the results; failures of one kernel do
/// not stop the others.
///
/// # Errors
/// A kernel or the image cannot be prepared.
pub fn guests(vm: &Vm, names: &[String], set: Set, filter: Option<&str>) -> Result<Results> {
    let kernels = vm.kernels(names)?.into_iter();
    let jobs: Vec<_> = kernels.map(|kernel| Job::new(vm, kernel, set)).collect();
    let reports = lanes::run(&jobs, filter, lanes::default_jobs())?;
    print!("{}", lanes::summary(&reports, &[]));
    Ok(sum(&reports))
}

/// The guests of `test`: what a change must pass on the newest kernel, and the brief set on the other default kernels, each
/// shared by as many guests as run at once; and the cases of the image with systemd. `vm-e2e` runs all cases on each.
///
/// # Errors
/// As for [`guests`].
pub fn test(accel: Choice) -> Result<Results> {
    let vm = Vm::new(accel)?;
    let lanes = lanes::default_jobs();
    let mut skipped = Results::default();
    let system = system(accel, &mut skipped)?;
    let mut jobs = Vec::new();
    // The newest first, because it takes the longest.
    for kernel in vm.kernels(&[])?.into_iter().rev() {
        let newest = jobs.is_empty();
        let set = if newest { Set::Change } else { Set::Brief };
        let systemd = system.as_ref().filter(|_| newest);
        let systemd = systemd.map(|vm| Job::new(vm, kernel.clone(), Set::Full));
        let mut job = Job::new(&vm, kernel, set);
        job.parts = lanes;
        jobs.push(job);
        jobs.extend(systemd);
    }
    let reports = lanes::run(&jobs, None, lanes)?;
    print!("{}", lanes::summary(&reports, &[]));
    let mut all = sum(&reports);
    all.add("", &skipped);
    Ok(all)
}

/// The image with systemd. If its packages are not available, that is reported as a skip.
fn system(accel: Choice, results: &mut Results) -> Result<Option<Vm>> {
    match Vm::systemd(accel) {
        Ok(vm) => Ok(Some(vm)),
        Err(error) if error.is::<NoPackages>() => {
            let reason = error.to_string().replace('\n', " ");
            println!("SKIP systemd: {reason}");
            results.skipped.push(("systemd".to_owned(), reason));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn sum(reports: &[Report]) -> Results {
    let mut all = Results::default();
    for report in reports {
        all.add(&format!("[{}] ", report.name), &report.results);
    }
    all
}

/// Runs the cases on this host.
///
/// # Errors
/// Not root, no driver, or a failed build.
pub fn on_host(filter: Option<&str>) -> Result<Results> {
    if !host::root() {
        bail!("the cases need root: run `sudo -E cargo xtask vm-e2e --host`");
    }
    if !Path::new("/dev/ublk-control").exists() {
        bail!(
            "no /dev/ublk-control: load the driver with `modprobe ublk_drv`, or leave --host out"
        );
    }
    let built = build::host(&[
        ("ublk-e2e", "ublk-e2e"),
        ("ublkctl", "ublkctl"),
        ("ublk", "examples/null"),
        ("ublk", "examples/ramdisk"),
        ("ublk", "examples/async_file"),
        ("ublk", "examples/async_remote"),
        ("ublk", "examples/raw_epoll"),
        ("ublk-tokio", "examples/tokio_ramdisk"),
        ("ublk", "examples/file"),
        ("ublk", "examples/mapped"),
        ("ublk", "examples/threads"),
        ("ublk", "examples/many"),
        ("ublk", "examples/zoned"),
        ("ublk", "examples/integrity"),
    ])?;
    let mut results = Results::default();
    let mut command = Command::new(&built[0]);
    command.arg("--color=never").args(filter);
    command.env("UBLKCTL", &built[1]);
    // Both are in the same directory.
    command.env("UBLK_EXAMPLES", built[2].parent().unwrap_or(&built[2]));
    let good = cmd::watch(&mut command, |line| results.line(line))?;
    results.check("ublk-e2e", good);
    Ok(results)
}

/// Prints all failures together, then the sum.
///
/// # Errors
/// A case failed, or none ran.
pub fn conclude(results: &Results) -> Result<()> {
    for (name, reason) in &results.skipped {
        println!("skipped: {name} ({reason})");
    }
    for failure in &results.failed {
        println!("failed: {failure}");
    }
    if results.passed == 0 && results.failed.is_empty() {
        bail!("no case ran");
    }
    println!("{}", results.sum());
    if !results.failed.is_empty() {
        return Err(Told.into());
    }
    Ok(())
}
