//! Building our programs: for the guest static, for the host as usual.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{cmd, paths};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What a program that is an example begins with; cargo puts it there, too.
const EXAMPLE: &str = "examples/";

/// Our programs for the guest, static and with the checks of a debug build.
///
/// `programs` are (package, binary) pairs, or (package, `examples/NAME`); the answer has their files in the same
/// order. An example's file is called `PACKAGE-example-NAME`.
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
        // Where the cases kill its processes (UBLK_KILL_AT).
        command.args(["--features", "ublkctl/kill-points"]);
    }
    println!("building for the guest: {}", names(programs));
    build(command, programs, &directory.join(TARGET).join("guest"))
}

/// Our programs for this host, named as for [`guest`].
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

/// Runs the command for all programs; `directory` is where cargo puts them.
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
