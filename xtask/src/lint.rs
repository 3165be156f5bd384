//! `lint`: format, clippy, dependency rules, spelling.

use anyhow::{Result, bail};

use crate::{cmd, host, paths};

/// The format of every file, the fuzz targets' included.
///
/// # Errors
/// A file is not formatted as rustfmt would.
pub fn format() -> Result<()> {
    cmd::run(cmd::cargo().args(["fmt", "--all", "--", "--check"]))
}

/// Clippy on all targets with warnings denied.
///
/// # Errors
/// A warning.
pub fn clippy() -> Result<()> {
    let mut command = cmd::cargo();
    command.args(["clippy", "--quiet", "--workspace", "--all-targets", "--"]);
    cmd::run(command.args(["-D", "warnings"]))
}

/// Licences, sources and bans of all dependencies.
///
/// # Errors
/// No cargo-deny, or a rule that is broken.
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

/// The spelling of every file (`typos`). Where it is not installed a line says so.
///
/// # Errors
/// A word that is misspelled.
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

/// All of them.
///
/// # Errors
/// The first that fails.
pub fn run() -> Result<()> {
    format()?;
    clippy()?;
    dependencies()?;
    spelling()
}
