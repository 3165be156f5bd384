//! What ran where: operations on backends in data modes, as the cases tell it, beside what the manifest expects.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// The expectation, in the manifest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Names of backends.
    pub backends: Vec<String>,
    /// Names of modes.
    pub modes: Vec<String>,
    /// Operations.
    pub operations: Vec<String>,
    /// The first series of modes that not all kernels have.
    pub since: BTreeMap<String, String>,
    /// Cells that cannot be.
    #[serde(default)]
    pub never: Vec<Never>,
}

/// Cells that cannot be, with the reason. An empty list means all.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Never {
    /// Backends.
    #[serde(default)]
    pub backends: Vec<String>,
    /// Modes.
    #[serde(default)]
    pub modes: Vec<String>,
    /// Operations.
    #[serde(default)]
    pub operations: Vec<String>,
    /// Why.
    pub reason: String,
}

/// Backend, mode, operation.
pub type Axes = (String, String, String);

/// What became of the cells.
#[derive(Clone, Debug, Default)]
pub struct Cells(BTreeMap<Axes, String>);

impl Cells {
    /// Takes a line of the cases: `CELL backend mode operation outcome`.
    pub fn line(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["CELL", backend, mode, operation, outcome] = words[..] {
            let place = (backend.into(), mode.into(), operation.into());
            self.0.insert(place, outcome.to_owned());
        }
    }

    /// What was told of each cell.
    pub fn cells(&self) -> impl Iterator<Item = (&Axes, &String)> {
        self.0.iter()
    }

    /// What differs from the expectation for this series; cells that were not told count only if all cases ran, and may be
    /// left out by the cases only where the matrix is `reduced`.
    pub fn compare(
        &self,
        expected: &Matrix,
        series: &str,
        all_ran: bool,
        reduced: bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut places = Vec::new();
        for backend in &expected.backends {
            for mode in &expected.modes {
                for operation in &expected.operations {
                    let place = (backend.clone(), mode.clone(), operation.clone());
                    let (wanted, _) = expected.outcome(&place, series);
                    let cell = format!("cell {backend} {mode} {operation}");
                    match self.0.get(&place) {
                        Some(found) if found == wanted => {}
                        // Said by the cases: it is not of the reduced matrix.
                        Some(found) if reduced && found == "left" => {}
                        Some(found) => wrong.push(format!("{cell}: {found}, expected {wanted}")),
                        None if all_ran => {
                            wrong.push(format!("{cell}: not told, expected {wanted}"))
                        }
                        None => {}
                    }
                    places.push(place);
                }
            }
        }
        let unknown = self.0.keys().filter(|place| !places.contains(place));
        wrong.extend(unknown.map(|(b, m, o)| format!("cell {b} {m} {o}: not in the manifest")));
        wrong
    }

    /// The table of what was told, a line for each backend and mode, and the reasons below.
    pub fn table(&self, expected: &Matrix, series: &str) -> String {
        let mut text = String::new();
        if self.0.is_empty() {
            return text;
        }
        let wide = |head: &str, names: &[String]| {
            let longest = names.iter().map(String::len).max();
            longest.unwrap_or(0).max(head.len())
        };
        let backends = wide("backend", &expected.backends);
        let modes = wide("mode", &expected.modes);
        let _ = write!(text, "{:backends$}  {:modes$}", "backend", "mode");
        for operation in &expected.operations {
            let _ = write!(text, "  {operation:7}");
        }
        text.push('\n');
        let mut reasons: Vec<&str> = Vec::new();
        for backend in &expected.backends {
            for mode in &expected.modes {
                let row: Vec<_> = expected
                    .operations
                    .iter()
                    .map(|o| (backend.clone(), mode.clone(), o.clone()))
                    .collect();
                if !row.iter().any(|place| self.0.contains_key(place)) {
                    continue;
                }
                let _ = write!(text, "{backend:backends$}  {mode:modes$}");
                for place in &row {
                    let told = self.0.get(place).map_or("?", String::as_str);
                    let (_, reason) = expected.outcome(place, series);
                    let mut shown = told.to_owned();
                    if let Some(reason) = reason.filter(|_| told == "never") {
                        let known = reasons.iter().position(|r| *r == reason);
                        let number = known.unwrap_or_else(|| {
                            reasons.push(reason);
                            reasons.len() - 1
                        });
                        let _ = write!(shown, " {}", number + 1);
                    }
                    let _ = write!(text, "  {shown:7}");
                }
                let kept = text.trim_end().len();
                text.truncate(kept);
                text.push('\n');
            }
        }
        for (number, reason) in reasons.iter().enumerate() {
            let _ = writeln!(text, "never {}: {reason}", number + 1);
        }
        if self.0.values().any(|told| told == "lacks") {
            let _ = writeln!(
                text,
                "lacks: this kernel has no such mode, and `add` says so"
            );
        }
        text
    }
}

impl Matrix {
    /// What is expected of a cell, and why it cannot be.
    fn outcome(&self, place: &Axes, series: &str) -> (&'static str, Option<&str>) {
        let (backend, mode, operation) = place;
        let has = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        let never = self.never.iter().find(|never| {
            has(&never.backends, backend)
                && has(&never.modes, mode)
                && has(&never.operations, operation)
        });
        let lacks = self
            .since
            .get(mode)
            .is_some_and(|since| version(series) < version(since));
        match never {
            // What no kernel can do is refused before a kernel is asked.
            Some(never) if never.operations.is_empty() || !lacks => ("never", Some(&never.reason)),
            _ if lacks => ("lacks", None),
            _ => ("ran", None),
        }
    }
}

/// A series as numbers.
pub fn version(series: &str) -> Vec<u32> {
    series
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Matrix {
        toml::from_str(
            r#"
            backends = ["null", "mem"]
            modes = ["copy", "zero-copy"]
            operations = ["read", "verify"]
            since = { zero-copy = "6.16" }
            [[never]]
            backends = ["null"]
            operations = ["verify"]
            reason = "it keeps nothing"
            [[never]]
            backends = ["mem"]
            modes = ["zero-copy"]
            reason = "no file"
            "#,
        )
        .unwrap()
    }

    const GOOD: &str = "CELL null copy read ran\nCELL null copy verify never\n\
        CELL null zero-copy read ran\nCELL null zero-copy verify never\n\
        CELL mem copy read ran\nCELL mem copy verify ran\n\
        CELL mem zero-copy read never\nCELL mem zero-copy verify never\n";

    fn cells(text: &str) -> Cells {
        let mut cells = Cells::default();
        text.lines().for_each(|line| cells.line(line));
        cells
    }

    #[test]
    fn what_is_expected_passes_and_is_shown() {
        let cells = cells(GOOD);
        assert_eq!(cells.compare(&expected(), "7.3", true, false), [""; 0]);
        let table = cells.table(&expected(), "7.3");
        assert!(
            table.contains("null     copy       ran      never 1\n"),
            "{table}"
        );
        assert!(
            table.ends_with("never 1: it keeps nothing\nnever 2: no file\n"),
            "{table}"
        );
        let old = GOOD
            .replace("null zero-copy read ran", "null zero-copy read lacks")
            .replace("null zero-copy verify never", "null zero-copy verify lacks");
        assert_eq!(
            self::cells(&old).compare(&expected(), "6.12", true, false),
            [""; 0]
        );
    }

    /// L91 A cell that is missing, other than expected or unknown fails; with a filter what is missing does not.
    #[test]
    fn l91_every_other_outcome_fails() {
        let wrong = |text: &str, all| cells(text).compare(&expected(), "7.3", all, false).len();
        let cut = GOOD.replace("CELL mem copy read ran\n", "");
        assert_eq!((wrong(&cut, true), wrong(&cut, false)), (1, 0));
        let never = GOOD.replace("mem copy read ran", "mem copy read never");
        assert_eq!((wrong(&never, true), wrong(&never, false)), (1, 1));
        assert_eq!(wrong(&format!("{GOOD}CELL tape copy read ran\n"), true), 1);
        assert_eq!(
            cells(GOOD).compare(&expected(), "6.12", true, false).len(),
            2
        );
        assert_eq!(wrong("", true), 8);
        let left = GOOD.replace("mem copy read ran", "mem copy read left");
        for (reduced, wrong) in [(true, 0), (false, 1)] {
            let found = cells(&left).compare(&expected(), "7.3", true, reduced);
            assert_eq!(found.len(), wrong);
        }
        assert_eq!(cells("").table(&expected(), "7.3"), "");
    }
}
