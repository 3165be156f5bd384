//! The project's tasks; `cargo xtask` alone lists them.
#![forbid(unsafe_code)]

mod apt;
#[cfg(test)]
mod architecture;
mod asan;
mod bench;
mod build;
mod ci;
mod cmd;
mod deb;
mod demo;
mod e2e;
mod expected;
mod failure_modes;
mod foreign;
mod fuzz;
mod guest;
mod host;
mod kernel;
mod kernels;
mod layout;
mod lint;
mod loom;
mod manifest;
mod modinfo;
mod mutants;
mod nbd_interop;
mod newc;
mod outcomes;
mod paths;
mod prometheus;
mod reset;
mod results;
mod shell;
mod sources;
mod stress;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use guest::accel::Choice;

/// The project's tasks.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Show the main job on real input: create, use, check and remove a device
    Demo {
        /// Accelerator for the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
    },
    /// Run every test, on the host and in virtual machines
    Test(test::Options),
    /// Run all checks before a change goes in: lint and test
    Ci(ci::Options),
    /// Check format, clippy with warnings denied, licences and sources of dependencies, spelling
    Lint,
    /// Check the page of known failure modes (docs/failure-modes.md) against the tests named after them
    FailureModes,
    /// Compare our structs and constants with the newest available kernel headers
    Layout,
    /// Model-check the ring's memory order
    Loom,
    /// Inject known faults: the test of each must find it
    Mutants(mutants::Options),
    /// Run the tests of ring, engine and backends under AddressSanitizer (nightly Rust)
    Asan,
    /// Run the NBD client against nbdkit, qemu-nbd and nbd-server, on the host
    NbdInterop(nbd_interop::Options),
    /// Run one fuzz target, or all of them in turn
    Fuzz {
        /// Name of the target
        target: Option<String>,
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        time: u64,
        /// Begin with the seeds of libnbd's and nbdkit's fuzz tests, too, where a target reads what they send
        #[arg(long)]
        others_seeds: bool,
    },
    /// Run the quick cases on one kernel, in a virtual machine
    VmSimpleE2e {
        /// Accelerator for the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
    },
    /// Run all cases on the default kernels, in a virtual machine
    VmE2e(e2e::Options),
    /// Generate docs/kernels.md from the stored results, docs/kernels.json
    KernelsPage,
    /// Boot a guest with our tools: an interactive shell, or one command
    VmShell {
        /// Kernel: a series, `newest`, or the path of an image
        #[arg(long, default_value = "newest")]
        kernel: String,
        /// Image of the guest: our init alone, or systemd
        #[arg(long, value_enum, default_value_t)]
        image: vm::Kind,
        /// Accelerator for the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
        /// Shell command to run instead of an interactive shell
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// Let Prometheus and promtool judge the exporter, the alert rules and the dashboard, in a virtual machine
    VmPrometheus {
        /// Kernel: a series, `newest`, or the path of an image
        #[arg(long, default_value = "newest")]
        kernel: String,
        /// Accelerator for the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
    },
    /// Measure the cost of a request in instructions and in time, and how soon a device is usable
    VmBenchmark(bench::Options),
    /// Run the cases and the benchmark in turn, until something fails
    VmStress(stress::Options),
    /// Run the kernel's own ublk selftests against ublkctl, in a virtual machine
    VmForeign(foreign::Options),
    /// Kill left-over guests and remove all caches of the virtual machines
    VmReset,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Demo { accel } => demo::run(accel),
        Task::Test(options) => test::run(options),
        Task::Ci(options) => ci::run(options),
        Task::Lint => lint::run(),
        Task::FailureModes => failure_modes::run(),
        Task::Layout => layout::run(),
        Task::Loom => loom::run(),
        Task::Mutants(options) => mutants::run(&options),
        Task::Asan => asan::run(),
        Task::NbdInterop(options) => nbd_interop::run(&options),
        Task::Fuzz {
            target,
            time,
            others_seeds,
        } => fuzz::run(target, time, others_seeds),
        Task::VmSimpleE2e { accel } => e2e::simple(accel),
        Task::VmE2e(options) => e2e::run(&options),
        Task::KernelsPage => kernels::rewrite(),
        Task::VmShell {
            kernel,
            image,
            accel,
            command,
        } => shell::run(&kernel, image, accel, &command),
        Task::VmPrometheus { kernel, accel } => prometheus::run(&kernel, accel),
        Task::VmBenchmark(options) => bench::run(&options),
        Task::VmStress(options) => stress::run(&options),
        Task::VmForeign(options) => foreign::run(&options),
        Task::VmReset => reset::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<results::Told>() => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
