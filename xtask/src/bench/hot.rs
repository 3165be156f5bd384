//! Where the server's own instructions are spent, by function and by line.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cmd;

/// Maximum length of each list.
const MOST: usize = 30;

/// The hot spots of a row of `ios` I/Os whose first marker is `mark`, from the plugin's file of blocks.
///
/// # Errors
/// A malformed file, or no `addr2line` on this host.
pub fn places(server: &Path, blocks: &str, mark: u64, ios: u64) -> Result<String> {
    let counts = per_address(blocks, mark)?;
    let places = resolve(server, counts.keys().copied())?;
    let (mut functions, mut lines) = (BTreeMap::new(), BTreeMap::new());
    for ((function, line), count) in places.into_iter().zip(counts.values()) {
        *functions.entry(function).or_insert(0) += count;
        *lines.entry(line).or_insert(0) += count;
    }
    let mut text = String::new();
    for list in [functions, lines] {
        let mut list: Vec<_> = list.into_iter().collect();
        list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        for (place, count) in list.iter().take(MOST) {
            let tenths = count * 10 / i64::try_from(ios)?;
            let _ = writeln!(text, "{:>8}.{}  {place}", tenths / 10, (tenths % 10).abs());
        }
        text.push('\n');
    }
    Ok(text.trim_end().to_owned())
}

/// Executions of each instruction between the markers: the large run minus the small one.
fn per_address(blocks: &str, mark: u64) -> Result<BTreeMap<u64, i64>> {
    let mut counts = BTreeMap::new();
    let mut sign = 0;
    for line in blocks.lines() {
        if let Some(number) = line.strip_prefix("mark ") {
            // Lines after a marker's line ran before that marker.
            let number: u64 = number.parse()?;
            sign = match number.checked_sub(mark) {
                Some(1) => -1,
                Some(3) => 1,
                _ => 0,
            };
            continue;
        }
        let mut words = line.split(' ');
        let runs: i64 = words.next().context("a count")?.parse()?;
        if sign != 0 {
            for address in words {
                *counts.entry(u64::from_str_radix(address, 16)?).or_insert(0) += sign * runs;
            }
        }
    }
    Ok(counts)
}

/// The innermost function and the line of each address.
fn resolve(server: &Path, addresses: impl Iterator<Item = u64>) -> Result<Vec<(String, String)>> {
    let list: Vec<_> = addresses.map(|address| format!("0x{address:x}")).collect();
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), list.join("\n") + "\n")?;
    let mut command = Command::new("addr2line");
    command.args(["-f", "-C", "-e"]).arg(server);
    command.arg(format!("@{}", file.path().display()));
    let text = cmd::output(&mut command)?;
    let lines: Vec<_> = text.lines().collect();
    ensure!(
        lines.len() == 2 * list.len(),
        "addr2line answers {} lines for {} addresses",
        lines.len(),
        list.len()
    );
    let pair = |pair: &[&str]| (pair[0].to_owned(), short(pair[1]));
    Ok(lines.chunks(2).map(pair).collect())
}

/// The end of a path: enough to know the file.
fn short(place: &str) -> String {
    let place = place.split(" (discriminator").next().unwrap_or(place);
    let parts: Vec<_> = place.rsplit('/').take(4).collect();
    parts.into_iter().rev().collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::{per_address, short};

    #[test]
    fn the_small_run_is_taken_from_the_large_one() {
        let blocks = "mark 4\n9 10\nmark 5\n2 10 14\nmark 6\n9 10\nmark 7\n7 10 14\n1 20\n\
                      mark 8\n9 10\n";
        let counts = per_address(blocks, 4).unwrap();
        assert_eq!(counts, [(0x10, 5), (0x14, 5), (0x20, 1)].into());
        assert!(per_address("x", 0).is_err());
    }

    #[test]
    fn places_are_short() {
        let long = "/a/b/crates/ublk-queue/src/lane.rs:12 (discriminator 3)";
        assert_eq!(short(long), "crates/ublk-queue/src/lane.rs:12");
    }
}
