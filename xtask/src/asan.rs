//! `asan`: the tests of ring, engine and backends under AddressSanitizer.

use std::process::Command;

use anyhow::{Result, bail};

use crate::results::Results;
use crate::{cmd, fuzz, paths};

/// Crates with `unsafe` code that accesses memory of requests.
const CRATES: [&str; 3] = ["uring-lite", "ublk-queue", "ublk-backends"];

/// The command: nightly, which has the sanitizer; a separate target directory and an explicit target, so that build
/// scripts and procedural macros are not instrumented; copies that the sanitizer can see into.
fn command() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", "1500", "cargo", "+nightly"]);
    fuzz::leave_toolchain(&mut command);
    command
        .args(["test", "--no-fail-fast", "--lib", "--tests"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(paths::target().join("asan"))
        .args(["--features", "ublk-backends/atomic-copy"]);
    for name in CRATES {
        command.args(["--package", name]);
    }
    command
        .env("RUSTFLAGS", "-Zsanitizer=address")
        // Memory that the kernel may still write is leaked on purpose (L09).
        .env("ASAN_OPTIONS", "detect_leaks=0");
    command
}

/// Why it cannot run here, if so.
fn missing() -> Option<&'static str> {
    let mut probe = Command::new("cargo");
    fuzz::leave_toolchain(&mut probe);
    probe.args(["+nightly", "--version"]);
    cmd::output(&mut probe)
        .err()
        .map(|_| "no nightly Rust: rustup toolchain install nightly --profile minimal")
}

/// Runs the tests.
///
/// # Errors
/// A test fails, the sanitizer reports an error, or no test ran.
pub fn run() -> Result<()> {
    if let Some(why) = missing() {
        println!("asan: skipped: {why}");
        return Ok(());
    }
    let mut results = Results::default();
    let good = cmd::watch(&mut command(), |line| results.line(line))?;
    results.check("asan", good);
    for name in &results.failed {
        println!("failed: {name}");
    }
    if !results.failed.is_empty() || results.passed == 0 {
        bail!("asan: {}", results.sum());
    }
    println!("asan: {}", results.sum());
    Ok(())
}
