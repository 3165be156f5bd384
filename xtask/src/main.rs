//! The project's tasks; `cargo xtask` alone lists them.
#![forbid(unsafe_code)]

mod apt;
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
mod newc;
mod outcomes;
mod paths;
mod reset;
mod results;
mod shell;
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
    /// The main job on real input: a device is made, used, checked and removed
    Demo {
        /// What runs the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
    },
    /// Every test there is, host side and virtual machines
    Test(test::Options),
    /// What must hold before a change goes in: lint and test
    Ci(ci::Options),
    /// Format, clippy with warnings denied, licences and sources of dependencies
    Lint,
    /// The page of known failure modes (docs/failure-modes.md) against the tests named after them
    FailureModes,
    /// Our structs and constants against the newest kernel headers on offer
    Layout,
    /// The models of the ring's memory order
    Loom,
    /// Faults of our own making: the test of each must find it
    Mutants(mutants::Options),
    /// The tests of ring, engine and backends under AddressSanitizer, which needs nightly Rust
    Asan,
    /// The fuzz targets: one, or all of them in turn
    Fuzz {
        /// Name of a target
        target: Option<String>,
        /// Seconds for each target
        #[arg(long, default_value_t = 60)]
        time: u64,
    },
    /// The quick cases on one kernel, in a virtual machine
    VmSimpleE2e {
        /// What runs the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
    },
    /// All cases on the default kernels, in a virtual machine
    VmE2e(e2e::Options),
    /// Makes docs/kernels.md anew from docs/kernels.json, the results that are kept
    KernelsPage,
    /// A guest with our tools: a shell to look around in, or one command
    VmShell {
        /// Kernel: a series, `newest`, or the path of an image
        #[arg(long, default_value = "newest")]
        kernel: String,
        /// What the guest is: our init alone, or systemd
        #[arg(long, value_enum, default_value_t)]
        image: vm::Kind,
        /// What runs the guest
        #[arg(long, value_enum, default_value_t)]
        accel: Choice,
        /// A shell command to run instead of an interactive shell
        #[arg(trailing_var_arg = true)]
        command: Vec<String>,
    },
    /// What a request costs in instructions and in time, and how soon a new device is usable
    VmBenchmark(bench::Options),
    /// The cases and the benchmark in turn, until something fails
    VmStress(stress::Options),
    /// Ends left-over guests and drops all caches of the virtual machines
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
        Task::Fuzz { target, time } => fuzz::run(target, time),
        Task::VmSimpleE2e { accel } => e2e::simple(accel),
        Task::VmE2e(options) => e2e::run(&options),
        Task::KernelsPage => kernels::rewrite(),
        Task::VmShell {
            kernel,
            image,
            accel,
            command,
        } => shell::run(&kernel, image, accel, &command),
        Task::VmBenchmark(options) => bench::run(&options),
        Task::VmStress(options) => stress::run(&options),
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
