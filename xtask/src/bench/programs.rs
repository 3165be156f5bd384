//! Builds the benchmark's programs: the servers, static and at fixed addresses, and the counting plugin.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{cmd, paths};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Address range of a server's text, distinct from everything else in the guest.
pub const TEXT: (u64, u64) = (0x1000_0000, 0x1400_0000);

/// Cargo's command for a release build at the servers' addresses, in a directory.
fn cargo(directory: &Path) -> std::process::Command {
    let mut command = cmd::cargo();
    command
        .args(["build", "--quiet", "--release", "--target", TARGET])
        .arg("--target-dir")
        .arg(directory)
        .env(
            "RUSTFLAGS",
            format!(
                "-C relocation-model=static -C target-feature=+crt-static \
                 -C link-arg=-Wl,--image-base=0x{:x}",
                TEXT.0
            ),
        );
    command
}

/// The tool as it is measured: a static release build at its fixed address.
///
/// # Errors
/// The build fails, or the text is not at its address.
pub fn ublkctl() -> Result<PathBuf> {
    let directory = paths::target().join("bench");
    let mut command = cargo(&directory);
    command.args(["--package", "ublkctl", "--bin", "ublkctl"]);
    println!("building for the benchmark: ublkctl");
    cmd::run(&mut command)?;
    placed(directory.join(TARGET).join("release/ublkctl"))
}

/// An example of the facade, built the same way.
///
/// # Errors
/// The build fails, or the text is not at its address.
pub fn example(name: &str) -> Result<PathBuf> {
    let directory = paths::target().join("bench");
    let mut command = cargo(&directory);
    command.args(["--package", "ublk", "--example", name]);
    println!("building for the benchmark: {name}");
    cmd::run(&mut command)?;
    let examples = directory.join(TARGET).join("release/examples");
    let named = examples.join(format!("ublk-example-{name}"));
    let built = examples.join(name);
    fs::copy(&built, &named).with_context(|| built.display().to_string())?;
    placed(named)
}

/// Verifies that a program's text is counted as a server's own.
///
/// # Errors
/// It is not, or the program cannot be read.
pub fn placed(program: PathBuf) -> Result<PathBuf> {
    let bytes = fs::read(&program).with_context(|| program.display().to_string())?;
    let entry = bytes.get(24..32).and_then(|bytes| bytes.try_into().ok());
    let entry = u64::from_le_bytes(entry.context("an ELF file has an entry address")?);
    ensure!(
        (TEXT.0..TEXT.1).contains(&entry),
        "{} starts at {entry:x}, outside the addresses that are counted as its own",
        program.display()
    );
    Ok(program)
}

/// libublk's targets, from a separate workspace.
///
/// # Errors
/// The build fails, as it does without the crate registry or without libclang.
pub fn libublk() -> Result<PathBuf> {
    let directory = paths::target().join("bench-libublk");
    let mut command = cargo(&directory);
    command.current_dir(paths::root().join("bench/libublk"));
    println!("building for the benchmark: libublk");
    let hint = "libublk 0.4.8 needs the crate registry and libclang (Debian: libclang-dev)";
    cmd::output(command.arg("--locked"))
        .map_err(|error| {
            anyhow::anyhow!(
                "{}",
                error
                    .to_string()
                    .lines()
                    .take(2)
                    .collect::<Vec<_>>()
                    .join(" ")
            )
        })
        .context(hint)?;
    placed(directory.join(TARGET).join("release/bench-libublk"))
}

/// The plugin.
///
/// # Errors
/// The build fails.
pub fn plugin() -> Result<PathBuf> {
    let directory = paths::target().join("bench");
    let mut command = cmd::cargo();
    command
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(&directory)
        .args(["--package", "icount-plugin"]);
    println!("building for the benchmark: icount-plugin");
    cmd::run(&mut command)?;
    Ok(directory.join("release/libicount_plugin.so"))
}
