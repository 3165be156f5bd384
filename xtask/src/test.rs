//! `test`: runs every test.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::guest::accel::Choice;
use crate::results::Results;
use crate::{bench, cmd, e2e, layout, loom, mutants, paths};

/// Options of `test`.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Options {
    /// Leave the virtual machines out
    #[arg(long)]
    pub host_only: bool,
}

/// Gigabytes that a run takes in a clean checkout, with room.
const SPACE: u64 = 14;

/// Runs everything, even after failures, and ends with the line `N passed, N failed`.
///
/// # Errors
/// Something failed, or a guest could not run.
pub fn run(options: Options) -> Result<()> {
    let start = Instant::now();
    paths::check_space("`test`", SPACE)?;
    let mut all = Results::default();
    part(
        &mut all,
        "host",
        &mut limited_with(25 * 60, &["test", "--workspace", "--no-fail-fast"]),
    );
    part(&mut all, "loom", &mut loom::command());
    faults(&mut all);
    alone(&mut all);
    fuzz_targets(&mut all);
    part(&mut all, "soundness", &mut soundness());
    if options.host_only {
        println!("\n== headers and virtual machines: left out because of --host-only");
    } else {
        headers(&mut all);
        println!("\n== virtual machines");
        match e2e::test(Choice::Auto) {
            Ok(results) => all.add("", &results),
            Err(error) => all.failed.push(format!("virtual machines: {error:#}")),
        }
        println!("\n== benchmark: instructions per I/O and their limits");
        match bench::test() {
            Ok(results) => {
                println!("benchmark: {}", results.sum());
                all.add("benchmark ", &results);
            }
            Err(error) => all.failed.push(format!("benchmark: {error:#}")),
        }
    }
    println!(
        "\n== all tests, after {:.0} s",
        start.elapsed().as_secs_f64()
    );
    e2e::conclude(&all)
}

/// Runs the quick mutants.
fn faults(all: &mut Results) {
    println!("\n== mutants");
    let quick = mutants::Options {
        quick: true,
        ..mutants::Options::default()
    };
    match mutants::all(&quick) {
        Ok(results) => all.add("", &results),
        Err(error) => all.failed.push(format!("mutants: {error:#}")),
    }
}

/// Compares our tables with the newest kernel headers, from the kernels' archive.
fn headers(all: &mut Results) {
    println!("\n== headers");
    match layout::run() {
        Ok(()) => all.passed += 1,
        Err(error) => all.failed.push(format!("headers: {error:#}")),
    }
}

/// Runs one command with the output of test programs.
fn part(all: &mut Results, name: &str, command: &mut Command) {
    println!("\n== {name}: {}", cmd::line(command));
    let mut results = Results::default();
    match cmd::watch(command, |line| results.line(line)) {
        Ok(good) => results.check(name, good),
        Err(error) => results.failed.push(format!("{name}: {error:#}")),
    }
    // A part that ran nothing proves nothing.
    if results.passed == 0 && results.failed.is_empty() {
        results.failed.push(format!("{name}: no test ran"));
    }
    println!("{name}: {}", results.sum());
    all.add("", &results);
}

/// Runs the crate that tries to break soundness without `unsafe`, outside of the workspace like a user's crate.
fn soundness() -> Command {
    let mut command = limited_with(15 * 60, &["test", "--no-fail-fast"]);
    command
        .arg("--manifest-path")
        .arg(paths::root().join("tests/soundness/Cargo.toml"))
        .env("CARGO_TARGET_DIR", paths::target().join("alone"));
    command
}

/// Compiles the fuzz targets, a separate workspace, against the present crates. `cargo xtask fuzz` runs them.
fn fuzz_targets(all: &mut Results) {
    println!("\n== fuzz targets");
    let mut command = limited_with(10 * 60, &["check", "--quiet", "--bins"]);
    command
        .arg("--manifest-path")
        .arg(paths::root().join("fuzz/Cargo.toml"))
        .env("CARGO_TARGET_DIR", paths::target().join("alone"));
    compiles(all, "fuzz targets", &mut command);
}

/// Runs a command that only succeeds or fails.
fn compiles(all: &mut Results, name: &str, command: &mut Command) {
    match cmd::watch(command, |_| ()) {
        Ok(true) => {
            println!("test {name} ... ok");
            all.passed += 1;
        }
        Ok(false) => all.failed.push(format!("{name}: {}", cmd::line(command))),
        Err(error) => all.failed.push(format!("{name}: {error:#}")),
    }
}

/// Compiles and runs the programs that each use one library crate alone, outside of the workspace.
fn alone(all: &mut Results) {
    println!("\n== layers alone");
    let mut projects: Vec<PathBuf> = fs::read_dir(paths::root().join("tests/alone"))
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("Cargo.toml").is_file())
        .collect();
    projects.sort();
    for project in &projects {
        let name = project
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut command = limited_with(10 * 60, &["run", "--quiet"]);
        command
            .arg("--manifest-path")
            .arg(project.join("Cargo.toml"));
        command.env("CARGO_TARGET_DIR", paths::target().join("alone"));
        compiles(all, &format!("alone {name}"), &mut command);
    }
    if projects.is_empty() {
        all.failed
            .push("layers alone: no program in tests/alone".to_owned());
    }
}

/// `cargo` in the checkout with a time limit, after which it and all its children are killed.
pub fn limited(seconds: u32) -> Command {
    let cargo = cmd::cargo();
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", &seconds.to_string()])
        .arg(cargo.get_program())
        .current_dir(paths::root());
    command
}

fn limited_with(seconds: u32, arguments: &[&str]) -> Command {
    let mut command = limited(seconds);
    command.args(arguments);
    command
}
