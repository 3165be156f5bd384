//! Builds our programs: static for the guest, as usual for the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cmd, paths};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Prefix of a program that is an example, as in cargo's output directory.
const EXAMPLE: &str = "examples/";

/// Builds programs for the guest, static and with the checks of a debug build.
///
/// `programs` are (package, binary) pairs, or (package, `examples/NAME`); returns their files in the same order. An
/// example's file is called `PACKAGE-example-NAME`.
///
/// # Errors
/// The build fails.
pub fn guest(programs: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let directory = paths::target().join("guest");
    let mut command = cmd::cargo();
    command
        .args(["build", "--quiet", "--profile", "guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(&directory)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    if programs.iter().any(|(package, _)| *package == "ublkctl") {
        // Points at which the cases kill its processes (UBLK_KILL_AT).
        command.args(["--features", "ublkctl/kill-points"]);
    }
    println!("building for the guest: {}", names(programs));
    build(command, programs, &directory.join(TARGET).join("guest"))
}

/// Builds programs for this host, named as for [`guest`].
///
/// # Errors
/// The build fails.
pub fn host(programs: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let mut command = cmd::cargo();
    command.args(["build", "--quiet", "--profile", "guest"]);
    command.arg("--target-dir").arg(paths::target());
    println!("building: {}", names(programs));
    build(command, programs, &paths::target().join("guest"))
}

/// Runs the command for all programs; `directory` is cargo's output directory.
fn build(
    mut command: Command,
    programs: &[(&str, &str)],
    directory: &Path,
) -> Result<Vec<PathBuf>> {
    for (package, binary) in programs {
        command.args(["--package", package]);
        match binary.strip_prefix(EXAMPLE) {
            Some(name) => command.args(["--example", name]),
            None => command.args(["--bin", binary]),
        };
    }
    cmd::run(&mut command)?;
    programs
        .iter()
        .map(|(package, binary)| {
            let built = directory.join(binary);
            let Some(name) = binary.strip_prefix(EXAMPLE) else {
                return Ok(built);
            };
            let named = directory.join(format!("{package}-example-{name}"));
            fs::copy(&built, &named).with_context(|| built.display().to_string())?;
            Ok(named)
        })
        .collect()
}

fn names(programs: &[(&str, &str)]) -> String {
    let names: Vec<_> = programs.iter().map(|(_, binary)| *binary).collect();
    names.join(", ")
}
