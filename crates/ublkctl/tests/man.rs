//! Man pages exist for every command and pass the linters.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes the pages to a directory.
fn pages(dir: &Path) -> Vec<PathBuf> {
    let status = Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .arg("man")
        .arg(dir)
        .status()
        .unwrap();
    assert!(status.success());
    let mut pages: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    pages.sort();
    pages
}

#[test]
fn every_command_has_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let pages = pages(dir.path());
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(pages.len() > 20, "{pages:?}");
    assert!(page("ublkctl.1").contains("doctor"));
    assert!(page("ublkctl-add-mem.1").contains("block\\-size"));
    assert!(page("ublkctl-delete.1").starts_with(".ie"));
    let single = Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .arg("man")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(single.stdout).unwrap(), page("ublkctl.1"));
}

#[test]
fn mandoc_finds_nothing_to_mend() {
    let dir = tempfile::tempdir().unwrap();
    let pages = pages(dir.path());
    let Ok(output) = Command::new("mandoc")
        .args(["-T", "lint"])
        .args(&pages)
        .output()
    else {
        eprintln!("skipped: no mandoc on this host (apt-get install mandoc)");
        return;
    };
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn man_has_no_warnings() {
    let dir = tempfile::tempdir().unwrap();
    for page in pages(dir.path()) {
        let man = Command::new("man")
            .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
            .arg(&page)
            .env("LC_ALL", "C.UTF-8")
            .env("MANROFFSEQ", "")
            .output();
        let Ok(output) = man else {
            eprintln!("skipped: no man on this host (apt-get install man-db groff)");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("command not found") || said.contains("has been minimized") {
            eprintln!("skipped: man without groff: {said}");
            return;
        }
        assert!(
            output.status.success() && said.is_empty(),
            "{}: {said}",
            page.display()
        );
    }
}
