//! `docs/kernels.md`: features and results of each kernel, generated from the results of the cases.
//!
//! The results are stored in `docs/kernels.json`, one entry per kernel. The page is generated from this file only, and
//! a test compares the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::e2e::Report;
use crate::outcomes::{Cell, Outcomes, version};
use crate::paths;
use ublk_e2e_records::{CELL, KIND, RECOVERY};

/// The stored results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernels {
    /// Kernels, oldest first.
    pub kernels: Vec<Entry>,
    /// Kernels that were not available, with the reason.
    #[serde(default)]
    pub missing: Vec<String>,
}

/// The stored results of one kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// `major.minor`.
    pub series: String,
    /// The release that was tested.
    pub release: String,
    /// The set of cases that ran.
    pub cases: String,
    /// Number of passed cases.
    pub passed: usize,
    /// Cases that failed because of a kernel bug, with the reason.
    pub expected_failures: BTreeMap<String, String>,
    /// Features, in the order of their bits, and whether GET_FEATURES reports them.
    pub features: Vec<(String, bool)>,
    /// Data modes and the outcome of a device in them.
    pub modes: BTreeMap<String, String>,
    /// Kinds of devices, data modes, and the outcome.
    #[serde(default)]
    pub kinds: Vec<(String, String, String)>,
    /// Policy, event, load and the outcome for the device.
    pub recovery: Vec<(String, String, String, String)>,
}

fn stored() -> PathBuf {
    paths::root().join("docs/kernels.json")
}

fn page() -> PathBuf {
    paths::root().join("docs/kernels.md")
}

/// Replaces the entries of kernels whose run succeeded, and generates the page.
///
/// # Errors
/// A file that cannot be read or written.
pub fn write(reports: &[Report], missing: &[String], filter: Option<&str>) -> Result<()> {
    let text = fs::read_to_string(stored()).unwrap_or_default();
    let mut all: Kernels = if text.is_empty() {
        Kernels::default()
    } else {
        serde_json::from_str(&text).with_context(|| stored().display().to_string())?
    };
    for report in reports {
        if !report.ended || !report.results.failed.is_empty() {
            println!(
                "kernel {}: not recorded, since cases failed",
                report.release
            );
            continue;
        }
        all.kernels.retain(|entry| entry.series != report.series);
        all.kernels.push(Entry::of(report, filter));
    }
    all.kernels.sort_by_key(|entry| version(&entry.series));
    if !missing.is_empty() {
        all.missing = missing.to_vec();
    }
    fs::write(stored(), serde_json::to_string_pretty(&all)? + "\n")?;
    rewrite()
}

/// Generates the page from the stored results.
///
/// # Errors
/// A file that cannot be read or written.
pub fn rewrite() -> Result<()> {
    let text = fs::read_to_string(stored()).with_context(|| stored().display().to_string())?;
    let all: Kernels =
        serde_json::from_str(&text).with_context(|| stored().display().to_string())?;
    fs::write(page(), all.page())?;
    println!("written: {}", page().display());
    Ok(())
}

/// The reported cells of a table, without those left out.
fn told<'a>(report: &'a Report, table: &str) -> impl Iterator<Item = (&'a Cell, &'a String)> {
    let outcomes = report.outcomes.get(table).into_iter();
    let cells = outcomes.flat_map(Outcomes::cells);
    cells.filter(|(_, outcome)| *outcome != "left")
}

impl Entry {
    fn of(report: &Report, filter: Option<&str>) -> Self {
        let mut modes = BTreeMap::new();
        for (cell, outcome) in told(report, CELL) {
            let [_, mode, _] = &cell[..] else { continue };
            let known = modes.entry(mode.clone()).or_insert_with(|| outcome.clone());
            // An impossible cell says nothing about the kernel.
            if known == "never" {
                known.clone_from(outcome);
            }
        }
        Self {
            series: report.series.clone(),
            release: report.release.clone(),
            cases: filter.map_or_else(|| report.set.word().to_owned(), |f| format!("`{f}`")),
            passed: report.results.passed,
            expected_failures: report.results.forgiven.iter().cloned().collect(),
            features: report.features.clone(),
            modes,
            kinds: told(report, KIND)
                .filter_map(|(cell, outcome)| {
                    let [kind, mode] = <[String; 2]>::try_from(cell.clone()).ok()?;
                    Some((kind, mode, outcome.clone()))
                })
                .collect(),
            recovery: told(report, RECOVERY)
                .filter_map(|(cell, outcome)| {
                    let [policy, event, load] = <[String; 3]>::try_from(cell.clone()).ok()?;
                    Some((policy, event, load, outcome.clone()))
                })
                .collect(),
        }
    }

    fn recovery(&self, policy: &str, event: &str) -> String {
        let of = |p: &str, e: &str| p == policy && e == event;
        let cells = self.recovery.iter().filter(|(p, e, _, _)| of(p, e));
        let outcomes: Vec<_> = cells.map(|(_, _, load, o)| (load, o)).collect();
        match outcomes.as_slice() {
            [] => "?".to_owned(),
            [(_, first), rest @ ..] if rest.iter().all(|(_, o)| o == first) => {
                if *first == "lacks" { "–" } else { first }.to_owned()
            }
            all => {
                let each = all
                    .iter()
                    .map(|(load, outcome)| format!("{load}: {outcome}"));
                each.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// Adds the elements that are missing, in their order.
fn union<'a>(lists: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut seen = BTreeSet::new();
    lists.filter(|name| seen.insert(*name)).collect()
}

impl Kernels {
    /// Generates the page.
    fn page(&self) -> String {
        let mut text = String::from(
            "# Kernels\n\nGenerated by `cargo xtask vm-e2e --all-kernels --write-docs` from the results of the cases \
             (`docs/kernels.json`); do not\nedit.\n\n## Tested\n\n\
             `full`: all cases; `kernel`: cases whose outcome depends on the driver; a word: cases \
             with that word in their name. `?`:\nnot tested yet.\n\n",
        );
        text += "| series | release | cases | passed | the kernel's own failures |\n|---|---|---|---|---|\n";
        for kernel in &self.kernels {
            let Entry {
                series,
                release,
                cases,
                passed,
                ..
            } = kernel;
            let own = kernel.expected_failures.len();
            let _ = writeln!(
                text,
                "| {series} | {release} | {cases} | {passed} | {own} |"
            );
        }
        text += "\n";
        for kernel in &self.kernels {
            for (name, reason) in &kernel.expected_failures {
                let _ = writeln!(text, "- {}: `{name}`: {reason}", kernel.series);
            }
        }
        for why in &self.missing {
            let _ = writeln!(text, "- {why}");
        }
        text += "\n## Features\n\nAs reported by GET_FEATURES.\n\n";
        let names = union(
            self.kernels
                .iter()
                .flat_map(|k| k.features.iter().map(|(n, _)| n)),
        );
        self.table(&mut text, "feature", &names, |kernel, name| {
            let has = kernel.features.iter().any(|(n, yes)| n == name && *yes);
            if has { "yes" } else { "–" }.to_owned()
        });
        text += "\n## Data modes\n\n`yes`: devices in this mode kept their data; `–`: the kernel lacks the mode, and \
                 `add` refused it by name.\n\n";
        let names = union(self.kernels.iter().flat_map(|k| k.modes.keys()));
        self.table(&mut text, "mode", &names, |kernel, name| {
            match kernel.modes.get(name).map(String::as_str) {
                Some("ran") => "yes",
                Some("lacks") => "–",
                _ => "?",
            }
            .to_owned()
        });
        self.kinds(&mut text);
        text += "\n## Recovery\n\nThe state of a device after a part of its server died, idle, under load and \
                 mounted; `–`: the kernel lacks the policy,\nand `add` refused it by name.\n\n";
        let rows: Vec<_> = self.kernels.iter().flat_map(|k| &k.recovery).collect();
        let rows: Vec<_> = rows
            .iter()
            .map(|(p, e, _, _)| format!("{p}, {e}"))
            .collect();
        let names = union(rows.iter());
        self.table(&mut text, "policy, event", &names, |kernel, name| {
            let (policy, event) = name.split_once(", ").unwrap_or((name, ""));
            kernel.recovery(policy, event)
        });
        text + include_str!("known_faults.md")
    }

    /// The section about kinds of devices.
    fn kinds(&self, text: &mut String) {
        *text += "\n## Zoned devices and integrity metadata\n\n`yes`: served; `–`: the kernel lacks it; `no`: no kernel can \
                 serve it in this mode. `add` refuses both by name.\n\n";
        let rows: Vec<_> = self.kernels.iter().flat_map(|k| &k.kinds).collect();
        let rows: Vec<_> = rows.iter().map(|(k, m, _)| format!("{k}, {m}")).collect();
        let names = union(rows.iter());
        self.table(text, "device, mode", &names, |kernel, name| {
            let is = |(kind, mode, _): &&(String, String, String)| {
                name.split_once(", ") == Some((kind.as_str(), mode.as_str()))
            };
            let outcome = kernel.kinds.iter().find(is);
            match outcome.map(|(_, _, outcome)| outcome.as_str()) {
                Some("ran") => "yes",
                Some("lacks") => "–",
                Some("never") => "no",
                _ => "?",
            }
            .to_owned()
        });
    }

    fn table(
        &self,
        text: &mut String,
        head: &str,
        names: &[&String],
        cell: impl Fn(&Entry, &str) -> String,
    ) {
        let _ = write!(text, "| {head} |");
        for kernel in &self.kernels {
            let _ = write!(text, " {} |", kernel.series);
        }
        *text += "\n|---|";
        *text += &"---|".repeat(self.kernels.len());
        *text += "\n";
        for name in names {
            let _ = write!(text, "| {name} |");
            for kernel in &self.kernels {
                let _ = write!(text, " {} |", cell(kernel, name));
            }
            *text += "\n";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L90 The page in the checkout matches the stored results, which are of the kernels in the manifest.
    #[test]
    fn l90_the_page_is_made_from_the_results() {
        let text = fs::read_to_string(stored()).unwrap();
        let all: Kernels = serde_json::from_str(&text).unwrap();
        let page = fs::read_to_string(page()).unwrap();
        assert!(
            all.page() == page,
            "docs/kernels.md is not what docs/kernels.json gives: `cargo xtask vm-e2e --all-kernels --write-docs`"
        );
        for kernel in &all.kernels {
            let whole = ["full", "kernel", "soak"].contains(&kernel.cases.as_str());
            assert!(!whole || kernel.passed > 50, "{}", kernel.series);
            assert!(kernel.features.len() > 20, "{}", kernel.series);
        }
    }

    #[test]
    fn outcomes_that_differ_by_load_are_told_apart() {
        let cell = |load: &str, outcome: &str| {
            let [p, e, l, o] = ["none", "kill", load, outcome].map(str::to_owned);
            (p, e, l, o)
        };
        let mut entry = Entry {
            series: "7.3".to_owned(),
            release: "7.3.4".to_owned(),
            cases: "full".to_owned(),
            passed: 1,
            expected_failures: BTreeMap::new(),
            features: vec![("A".to_owned(), true)],
            modes: BTreeMap::from([("copy".to_owned(), "lacks".to_owned())]),
            kinds: vec![(
                "zoned-mem".to_owned(),
                "copy".to_owned(),
                "never".to_owned(),
            )],
            recovery: vec![cell("idle", "dead"), cell("load", "dead")],
        };
        assert_eq!(entry.recovery("none", "kill"), "dead");
        entry.recovery[1] = cell("load", "live");
        assert_eq!(entry.recovery("none", "kill"), "idle: dead, load: live");
        let page = Kernels {
            kernels: vec![entry],
            missing: vec!["no kernel 6.19".to_owned()],
        }
        .page();
        for line in [
            "| A | yes |",
            "| copy | – |",
            "| zoned-mem, copy | no |",
            "| none, kill | idle: dead, load: live |",
            "- no kernel 6.19",
        ] {
            assert!(page.contains(line), "{page}");
        }
    }
}
