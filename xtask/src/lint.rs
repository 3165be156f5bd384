//! `lint`: format, clippy, dependency rules, spelling.

use anyhow::{Result, bail};

use crate::{cmd, host, paths};

/// Checks the format of every file, including the fuzz targets.
///
/// # Errors
/// A file is not formatted.
pub fn format() -> Result<()> {
    cmd::run(cmd::cargo().args(["fmt", "--all", "--", "--check"]))
}

/// Runs clippy on all targets with warnings denied.
///
/// # Errors
/// A warning.
pub fn clippy() -> Result<()> {
    let mut command = cmd::cargo();
    command.args(["clippy", "--quiet", "--workspace", "--all-targets", "--"]);
    cmd::run(command.args(["-D", "warnings"]))
}

/// Checks licences, sources and bans of all dependencies.
///
/// # Errors
/// cargo-deny is missing, or a rule is broken.
pub fn dependencies() -> Result<()> {
    let home = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let home =
        home.or_else(|| Some(std::path::PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let installed = home.is_some_and(|home| home.join("bin/cargo-deny").is_file());
    if !installed && host::find("cargo-deny").is_none() {
        bail!("no cargo-deny: install it with `cargo install --locked cargo-deny`");
    }
    cmd::run(cmd::cargo().args(["deny", "check", "bans", "licenses", "sources"]))
}

/// Checks the spelling of every file (`typos`). Prints a remark if it is not installed.
///
/// # Errors
/// A misspelled word.
pub fn spelling() -> Result<()> {
    let ours = paths::target().join("typos/bin/typos");
    let program = if ours.is_file() {
        Some(ours)
    } else {
        host::find("typos")
    };
    let Some(program) = program else {
        println!(
            "SKIP spelling: no typos: `cargo install --locked typos-cli`, or from PyPI, installs it"
        );
        return Ok(());
    };
    let mut command = std::process::Command::new(program);
    cmd::run(
        command
            .args(["--format", "brief"])
            .current_dir(paths::root()),
    )
}

/// Runs all of them.
///
/// # Errors
/// The first failure.
pub fn run() -> Result<()> {
    format()?;
    clippy()?;
    dependencies()?;
    spelling()
}
