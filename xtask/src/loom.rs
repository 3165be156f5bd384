//! `loom`: checks the shipped index and fence logic under a model of the memory order.

use std::process::Command;

use anyhow::{Result, bail};

use crate::results::Results;
use crate::{cmd, paths, test};

/// The crates with `loom_` tests.
const CRATES: [&str; 2] = ["uring-lite", "ublk-queue"];

/// The command: a release build, since models explore many executions; a separate target directory, since the flag
/// rebuilds everything.
pub fn command() -> Command {
    let mut command = test::limited(20 * 60);
    command
        .args(["test", "--release", "--no-fail-fast", "--lib"])
        .arg("--target-dir")
        .arg(paths::target().join("loom"))
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    for name in CRATES {
        command.args(["--package", name]);
    }
    command.args(["--", "loom_"]);
    command
}

/// Runs the models.
///
/// # Errors
/// A model fails, or there is none.
pub fn run() -> Result<()> {
    let mut results = Results::default();
    let good = cmd::watch(&mut command(), |line| results.line(line))?;
    results.check("loom", good);
    for name in &results.failed {
        println!("failed: {name}");
    }
    if !results.failed.is_empty() || results.passed == 0 {
        bail!("loom: {}", results.sum());
    }
    Ok(())
}
