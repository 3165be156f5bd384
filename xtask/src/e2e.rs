//! The cases of `ublk-e2e`, in guests or on a host that has ublk.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::guest::Verdict;
use crate::guest::accel::{Accel, Choice};
use crate::guest::system::NoPackages;
use crate::kernel::Kernel;
use crate::matrix::Cells;
use crate::results::{Results, Told};
use crate::vm::{Kind, Vm};
use crate::{build, cmd, host};

/// Options of `vm-e2e`.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Kernel: a series (`6.16`), `newest`, or the path of an image; may be given several times
    #[arg(long, value_name = "SERIES|PATH")]
    pub kernel: Vec<String>,
    /// Only cases whose name contains this
    #[arg(long)]
    pub filter: Option<String>,
    /// On this host, which must have the ublk driver, instead of in a guest
    #[arg(long, conflicts_with_all = ["kernel", "accel"])]
    pub host: bool,
    /// The cases of this image: our init alone, or systemd (newest kernel unless one is named) [default: both where no
    /// kernel and no filter is given, else our init alone]
    #[arg(long, value_enum, conflicts_with = "host")]
    pub image: Option<Kind>,
    /// What runs the guests
    #[arg(long, value_enum, default_value_t)]
    pub accel: Choice,
}

/// The guest's time for all cases.
fn deadline(accel: Accel) -> Duration {
    match accel {
        Accel::Kvm => Duration::from_secs(10 * 60),
        Accel::Tcg => Duration::from_secs(18 * 60),
    }
}

/// `vm-simple-e2e`: the quick cases on the first default kernel.
///
/// # Errors
/// The guest cannot run, or a case fails.
pub fn simple(accel: Choice) -> Result<()> {
    let vm = Vm::new(accel)?;
    let names = [vm.manifest.default[0].clone()];
    let results = guests(&vm, &names, Some("simple_"))?;
    conclude(&results)
}

/// `vm-e2e`.
///
/// # Errors
/// A guest cannot run, or a case fails.
pub fn run(options: &Options) -> Result<()> {
    let filter = options.filter.as_deref();
    let mut results = Results::default();
    if options.host {
        results = on_host(filter)?;
    } else {
        let (plain, with_systemd) = match options.image {
            Some(kind) => (kind == Kind::Plain, kind == Kind::Systemd),
            None => (true, options.kernel.is_empty() && filter.is_none()),
        };
        if plain {
            let vm = Vm::new(options.accel)?;
            results.add("", &guests(&vm, &options.kernel, filter)?);
        }
        if with_systemd {
            results.add("", &systemd(options.accel, &options.kernel, filter)?);
        }
    }
    conclude(&results)
}

/// Runs the cases of the image with systemd, on the newest kernel unless others are named. Where its packages cannot be
/// had, that is a skip with this reason.
///
/// # Errors
/// As [`guests`].
pub fn systemd(accel: Choice, names: &[String], filter: Option<&str>) -> Result<Results> {
    let vm = match Vm::systemd(accel) {
        Ok(vm) => vm,
        Err(error) if error.is::<NoPackages>() => {
            let mut results = Results::default();
            let reason = error.to_string().replace('\n', " ");
            println!("SKIP systemd: {reason}");
            results.skipped.push(("systemd".to_owned(), reason));
            return Ok(results);
        }
        Err(error) => return Err(error),
    };
    let newest = ["newest".to_owned()];
    guests(&vm, if names.is_empty() { &newest } else { names }, filter)
}

/// Runs the cases on each kernel, one after the other, and sums the results; failures of one
/// kernel do not keep the others from being tried.
///
/// # Errors
/// A kernel or the image cannot be made ready.
pub fn guests(vm: &Vm, names: &[String], filter: Option<&str>) -> Result<Results> {
    let mut all = Results::default();
    for kernel in vm.kernels(names)? {
        let results = one(vm, &kernel, filter)?;
        println!("kernel {}: {}", kernel.release, results.sum());
        let image = match vm.kind {
            Kind::Plain => "",
            Kind::Systemd => " systemd",
        };
        all.add(&format!("[{}{image}] ", kernel.name), &results);
    }
    Ok(all)
}

fn one(vm: &Vm, kernel: &Kernel, filter: Option<&str>) -> Result<Results> {
    let mut program = vec!["/usr/bin/ublk-e2e", "--color=never"];
    program.extend(filter);
    let (mut guest, accel, _lock) = vm.guest(kernel, &program, Duration::ZERO)?;
    guest.deadline = deadline(accel);
    println!("kernel {} under {accel}", kernel.release);
    let mut results = Results::default();
    let mut cells = Cells::default();
    let outcome = guest.run(&mut |line| {
        println!("{line}");
        results.line(line);
        cells.line(line);
    })?;
    println!(
        "kernel {}: {} after {:.1} s",
        kernel.release,
        outcome.verdict,
        outcome.elapsed.as_secs_f64()
    );
    match &outcome.verdict {
        Verdict::Exit(status) => results.check("ublk-e2e", *status == 0),
        verdict => results.failed.push(verdict.to_string()),
    }
    if !outcome.verdict.is_good() {
        eprintln!("{}", outcome.report());
    }
    if vm.kind == Kind::Systemd {
        results.compare_skips(&vm.manifest.system.skips, filter.is_none());
        return Ok(results);
    }
    results.compare_skips(vm.manifest.expected_skips(&kernel.series), filter.is_none());
    let matrix = &vm.manifest.matrix;
    results
        .failed
        .extend(cells.compare(matrix, &kernel.series, filter.is_none()));
    print!("{}", cells.table(matrix, &kernel.series));
    Ok(results)
}

/// Runs the cases on this host.
///
/// # Errors
/// Not root, no driver, a build that fails.
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
    ])?;
    let mut results = Results::default();
    let mut command = Command::new(&built[0]);
    command.arg("--color=never").args(filter);
    command.env("UBLKCTL", &built[1]);
    // Both lie in the same directory.
    command.env("UBLK_EXAMPLES", built[2].parent().unwrap_or(&built[2]));
    let good = cmd::watch(&mut command, |line| results.line(line))?;
    results.check("ublk-e2e", good);
    Ok(results)
}

/// Tells all failures together, then the sum.
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
