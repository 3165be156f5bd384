//! Reads a device's properties back from the kernel, to check them against the row's label.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Hw queues, depth and sizes from sysfs; for a ublk device also the driver's values, from `ublkctl info`, whoever
/// serves it.
///
/// # Errors
/// A property that every device has cannot be read.
pub fn device(path: &str) -> Result<Value> {
    let name = path.trim_start_matches("/dev/");
    let block = Path::new("/sys/block").join(name);
    let mut seen = json!({ "device": path, "queues": null, "depth": null });
    // A bio-based driver, such as brd, has no hw queues.
    if let Ok(queues) = fs::read_dir(block.join("mq")) {
        let queues: Vec<PathBuf> = queues
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_>>()?;
        let first = queues.first().context("no hw queue")?;
        seen["queues"] = json!(queues.len());
        seen["depth"] = json!(number(&first.join("nr_tags"))?);
    }
    seen["block_size"] = json!(number(&block.join("queue/logical_block_size"))?);
    seen["max_sectors_kb"] = json!(number(&block.join("queue/max_sectors_kb"))?);
    if let Ok(text) = fs::read_to_string(block.join("loop/dio")) {
        seen["direct"] = json!(text.trim() == "1");
    }
    if name.starts_with("ublkb") {
        let info = info(path)?;
        for (from, to) in [
            ("data", "data"),
            ("batch", "batch"),
            ("queues", "info_queues"),
            ("depth", "info_depth"),
            ("server_pid", "server_pid"),
            ("poll", "poll"),
        ] {
            seen[to] = info[from].clone();
        }
        seen["shm"] = info["health"]["shm"].clone();
        seen["features"] = info["features"]["granted"].clone();
    }
    Ok(seen)
}

fn number(path: &Path) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let number = text.trim().parse();
    number.with_context(|| path.display().to_string())
}

fn info(path: &str) -> Result<Value> {
    let output = Command::new("/usr/bin/ublkctl")
        .args(["info", path, "--json"])
        .output()
        .context("ublkctl info")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("ublkctl info {path}: {} {}", output.status, errors.trim());
    }
    serde_json::from_slice(&output.stdout).context("JSON of ublkctl info")
}

/// Completions of each of a process's rings so far, by descriptor: the tails of its completion queues. They count
/// modulo 2^32.
///
/// # Errors
/// The process is gone.
pub fn rings(pid: u64) -> Result<BTreeMap<String, u32>> {
    let mut rings = BTreeMap::new();
    let directory = format!("/proc/{pid}/fd");
    for entry in fs::read_dir(&directory).with_context(|| directory.clone())? {
        let entry = entry?;
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if !target.to_string_lossy().contains("[io_uring]") {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{name}"))?;
        if let Some(tail) = tail(&text) {
            rings.insert(name, tail);
        }
    }
    Ok(rings)
}

/// The tail of the completion queue in a ring's `fdinfo`.
fn tail(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("CqTail:"))?;
    line.trim().parse().ok()
}

/// The completions of each ring between two readings, the busiest first.
pub fn between(before: &BTreeMap<String, u32>, after: &BTreeMap<String, u32>) -> Vec<u32> {
    let more = |(name, tail): (&String, &u32)| tail.wrapping_sub(*before.get(name)?).into();
    let mut counts: Vec<u32> = after.iter().filter_map(more).collect();
    counts.sort_unstable_by_key(|count| std::cmp::Reverse(*count));
    counts
}

#[cfg(test)]
mod tests {
    use super::{between, tail};

    #[test]
    fn tails_are_found_and_wrap() {
        assert_eq!(tail("SqTail:\t3\nCqTail:\t7\nCachedCqTail:\t9\n"), Some(7));
        assert_eq!(tail("pos: 0\n"), None);
        let before = [("4".to_owned(), u32::MAX), ("5".to_owned(), 3)].into();
        let after = [
            ("4".to_owned(), 9),
            ("5".to_owned(), 3),
            ("6".to_owned(), 50),
        ]
        .into();
        assert_eq!(between(&before, &after), [10, 0]);
    }
}
