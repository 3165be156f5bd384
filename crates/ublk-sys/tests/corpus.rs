//! Replays the committed corpora of the fuzz targets, so that fixed findings stay fixed.

use std::fs;
use std::path::{Path, PathBuf};

use ublk_sys::fuzz;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

/// Runs a target's body on each of its inputs; a missing or empty corpus is a failure.
fn replay(target: &str, body: fn(&[u8])) {
    let directory = corpora().join(target);
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("the corpus is committed") {
        let path = entry.expect("the corpus can be listed").path();
        let bytes = fs::read(&path).expect("the corpus can be read");
        println!("{}", path.display());
        body(&bytes);
        count += 1;
    }
    assert!(count > 0, "no seed in {}", directory.display());
}

#[test]
fn marshal() {
    replay("marshal", fuzz::marshal_all);
}

#[test]
fn descriptors() {
    replay("descriptors", fuzz::descriptors);
}
