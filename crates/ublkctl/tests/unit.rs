//! Checks the shipped unit with `systemd-analyze`; skipped, with a message, if that is not installed.

use std::path::Path;
use std::process::{Command, Output};

/// Maximum exposure of the unit, in tenths.
const EXPOSURE: &str = "25";

fn analyze(args: &[&str]) -> Option<Output> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd/ublkctl@.service");
    let output = Command::new("systemd-analyze")
        .args(args)
        .arg(unit)
        .output();
    if output.is_err() {
        eprintln!("SKIP: no systemd-analyze on this machine");
    }
    output.ok()
}

#[test]
fn the_unit_is_exposed_as_little_as_promised() {
    let threshold = format!("--threshold={EXPOSURE}");
    let args = ["security", "--no-pager", "--offline=true", &threshold];
    if let Some(output) = analyze(&args) {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(text.contains("Overall exposure level"), "{text}");
    }
}

/// Old systemd releases know every key, too: they ignore unknown keys, and with them their effect.
#[test]
fn the_unit_has_no_key_that_systemd_does_not_know() {
    if let Some(output) = analyze(&["verify", "--man=no"]) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains("Unknown key"), "{text}");
        assert!(!text.contains("ignoring"), "{text}");
    }
}
