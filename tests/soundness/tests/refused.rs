//! Code that must not compile does not, each line for its own reason.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A line of a file, and the compiler's error code for it.
type Fault = (String, u64, String);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The marks `//~ CODE` of all files.
fn wanted() -> BTreeSet<Fault> {
    let mut faults = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("refused")).expect("there") {
        let path = entry.expect("readable").path();
        let name = path.file_name().expect("a file").to_string_lossy();
        let text = std::fs::read_to_string(&path).expect("text");
        for (line, number) in text.lines().zip(1..) {
            if let Some((_, code)) = line.split_once("//~ ") {
                faults.insert((format!("refused/{name}"), number, code.trim().to_owned()));
            }
        }
    }
    faults
}

/// The compiler's findings.
fn found() -> BTreeSet<Fault> {
    let output = Command::new(env!("CARGO"))
        .args([
            "check",
            "--examples",
            "--features",
            "refused",
            "--keep-going",
        ])
        .arg("--message-format=json")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(!output.status.success(), "all of it compiles");
    let mut faults = BTreeSet::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).expect("cargo writes JSON");
        let message = &message["message"];
        if message["level"] != "error" {
            continue;
        }
        let code = message["code"]["code"].as_str().unwrap_or("no code");
        let spans = message["spans"].as_array().map_or(&[][..], Vec::as_slice);
        for span in spans.iter().filter(|span| span["is_primary"] == true) {
            let (file, line) = (span["file_name"].as_str(), span["line_start"].as_u64());
            let file = file.unwrap_or_default().to_owned();
            faults.insert((file, line.unwrap_or(0), code.to_owned()));
        }
    }
    faults
}

/// L65 Breaking memory requires the word `unsafe`.
#[test]
fn l65_what_breaks_memory_does_not_compile() {
    let (wanted, found) = (wanted(), found());
    assert!(wanted.len() > 70, "{} marks only", wanted.len());
    let compiles: Vec<_> = wanted.difference(&found).collect();
    let unexpected: Vec<_> = found.difference(&wanted).collect();
    assert!(
        compiles.is_empty() && unexpected.is_empty(),
        "marked and not refused: {compiles:#?}\nrefused and not marked: {unexpected:#?}"
    );
}
