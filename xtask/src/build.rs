//! Building our programs: for the guest static, for the host as usual.

use std::path::PathBuf;

use anyhow::Result;

use crate::{cmd, paths};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Our programs for the guest, static and with the checks of a debug build.
///
/// `programs` are (package, binary) pairs; the answer has their files in the same order.
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
    for (package, binary) in programs {
        command.args(["--package", package, "--bin", binary]);
    }
    println!("building for the guest: {}", names(programs));
    cmd::run(&mut command)?;
    let place = |(_, binary): &(&str, &str)| directory.join(TARGET).join("guest").join(binary);
    Ok(programs.iter().map(place).collect())
}

/// Our programs for this host.
///
/// # Errors
/// The build fails.
pub fn host(programs: &[(&str, &str)]) -> Result<Vec<PathBuf>> {
    let mut command = cmd::cargo();
    command.args(["build", "--quiet", "--profile", "guest"]);
    command.arg("--target-dir").arg(paths::target());
    for (package, binary) in programs {
        command.args(["--package", package, "--bin", binary]);
    }
    println!("building: {}", names(programs));
    cmd::run(&mut command)?;
    let place = |(_, binary): &(&str, &str)| paths::target().join("guest").join(binary);
    Ok(programs.iter().map(place).collect())
}

fn names(programs: &[(&str, &str)]) -> String {
    let names: Vec<_> = programs.iter().map(|(_, binary)| *binary).collect();
    names.join(", ")
}
