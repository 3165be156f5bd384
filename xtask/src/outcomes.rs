//! Tables of outcomes: the reported outcome of each cell, and the manifest's expectation.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

/// A cell: a value of each axis.
pub type Cell = Vec<String>;

/// The expected outcomes, from the manifest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The axes; the values of the last one become the columns.
    axes: Vec<Axis>,
    /// The first kernel series that supports a value.
    #[serde(default)]
    since: BTreeMap<String, String>,
    /// Outcomes; the last one that matches a cell applies.
    expect: Vec<Expect>,
}

/// One axis.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Axis {
    name: String,
    values: Vec<String>,
}

/// The outcome of some cells.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// Values by axis; an axis that is not named matches with all of its values.
    #[serde(default)]
    only: BTreeMap<String, Vec<String>>,
    /// The outcome as one word.
    outcome: String,
    /// The meaning of the word, if not obvious.
    reason: Option<String>,
    /// It also applies to kernels that lack a value of the cell.
    #[serde(default)]
    whatever_kernel: bool,
}

/// The outcome for a value that a kernel lacks.
const LACKS: &str = "lacks";

/// The reported outcomes of a table.
#[derive(Clone, Debug, Default)]
pub struct Outcomes(BTreeMap<Cell, String>);

impl Outcomes {
    /// Records a reported outcome.
    pub fn take(&mut self, cell: Cell, outcome: String) {
        self.0.insert(cell, outcome);
    }

    /// Adds the outcomes of other cells.
    pub fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The reported outcome of each cell.
    pub fn cells(&self) -> impl Iterator<Item = (&Cell, &String)> {
        self.0.iter()
    }

    /// The differences to the expectation for this series, in lines that begin with the table's name. Unreported cells
    /// only count if all cases ran; the cases may only leave cells out if the table is `reduced`.
    pub fn compare(
        &self,
        (name, expected): (&str, &Table),
        series: &str,
        all_ran: bool,
        reduced: bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let cells = expected.cells();
        for cell in &cells {
            let (wanted, _) = expected.outcome(cell, series);
            let words = format!("{name} {}", cell.join(" "));
            match self.0.get(cell) {
                Some(found) if found == wanted => {}
                // The cases report it as not part of the reduced table.
                Some(found) if reduced && found == "left" => {}
                Some(found) => wrong.push(format!("{words}: {found}, expected {wanted}")),
                None if all_ran => wrong.push(format!("{words}: not reported, expected {wanted}")),
                None => {}
            }
        }
        let unknown = self.0.keys().filter(|cell| !cells.contains(cell));
        wrong.extend(unknown.map(|cell| format!("{name} {}: not in the manifest", cell.join(" "))));
        wrong
    }

    /// Formats the reported outcomes: the last axis in columns, the meaning of the words below. A word with several
    /// reasons gets numbers.
    pub fn table(&self, expected: &Table, series: &str) -> String {
        let mut text = String::new();
        let Some((columns, rows)) = expected.axes.split_last() else {
            return text;
        };
        if self.0.is_empty() {
            return text;
        }
        let wide = |axis: &Axis| {
            let longest = axis.values.iter().map(String::len).max();
            longest.unwrap_or(0).max(axis.name.len())
        };
        for axis in rows {
            let _ = write!(text, "{:1$}  ", axis.name, wide(axis));
        }
        // An outcome, and the number of its reason.
        let told = self.0.values().map(|outcome| outcome.len() + 2);
        let width = told.chain(columns.values.iter().map(String::len)).max();
        let width = width.unwrap_or(0);
        for value in &columns.values {
            let _ = write!(text, "{value:width$}  ");
        }
        let mut reasons: Vec<(&str, &str)> = Vec::new();
        for row in product(rows) {
            let cells: Vec<Cell> = columns
                .values
                .iter()
                .map(|value| [row.as_slice(), std::slice::from_ref(value)].concat())
                .collect();
            if !cells.iter().any(|cell| self.0.contains_key(cell)) {
                continue;
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
            for (value, axis) in row.iter().zip(rows) {
                let _ = write!(text, "{value:0$}  ", wide(axis));
            }
            for cell in &cells {
                let told = self.0.get(cell).map_or("?", String::as_str);
                let (outcome, reason) = expected.outcome(cell, series);
                let mut shown = told.to_owned();
                if let Some(reason) = reason.filter(|_| told == outcome)
                    && let Some(number) = expected.number(&mut reasons, (outcome, reason))
                {
                    let _ = write!(shown, " {number}");
                }
                let _ = write!(text, "{shown:width$}  ");
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        for (n, (outcome, reason)) in reasons.iter().enumerate() {
            let number = match expected.is_numbered(outcome) {
                true => format!(" {}", n + 1),
                false => String::new(),
            };
            let _ = writeln!(text, "{outcome}{number}: {reason}");
        }
        if self.0.values().any(|told| told == LACKS) {
            let _ = writeln!(
                text,
                "{LACKS}: this kernel does not have it, and `add` says so"
            );
        }
        text
    }
}

/// Every combination of the axes' values, in order.
fn product(axes: &[Axis]) -> Vec<Cell> {
    axes.iter().fold(vec![Vec::new()], |cells, axis| {
        let with = |cell: Cell| {
            let longer = |value: &String| [cell.as_slice(), std::slice::from_ref(value)].concat();
            axis.values.iter().map(longer).collect::<Vec<_>>()
        };
        cells.into_iter().flat_map(with).collect()
    })
}

impl Table {
    fn cells(&self) -> Vec<Cell> {
        product(&self.axes)
    }

    /// The expected outcome of a cell, and the reason.
    fn outcome<'a>(&'a self, cell: &Cell, series: &str) -> (&'a str, Option<&'a str>) {
        let fits = |expect: &&Expect| {
            self.axes.iter().zip(cell).all(|(axis, value)| {
                let only = expect.only.get(&axis.name);
                only.is_none_or(|values| values.contains(value))
            })
        };
        let lacks = cell.iter().any(|value| {
            let since = self.since.get(value);
            since.is_some_and(|since| version(series) < version(since))
        });
        match self.expect.iter().rev().find(fits) {
            Some(expect) if expect.whatever_kernel || !lacks => {
                (&expect.outcome, expect.reason.as_deref())
            }
            _ if lacks => (LACKS, None),
            _ => ("?", None),
        }
    }

    /// Whether the word has several reasons.
    fn is_numbered(&self, outcome: &str) -> bool {
        let of = |expect: &&Expect| expect.outcome == outcome && expect.reason.is_some();
        self.expect.iter().filter(of).count() > 1
    }

    /// The number of a reason, if needed.
    fn number<'a>(
        &self,
        reasons: &mut Vec<(&'a str, &'a str)>,
        reason: (&'a str, &'a str),
    ) -> Option<usize> {
        let known = reasons.iter().position(|known| *known == reason);
        let at = known.unwrap_or_else(|| {
            reasons.push(reason);
            reasons.len() - 1
        });
        self.is_numbered(reason.0).then_some(at + 1)
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

    fn expected() -> Table {
        toml::from_str(
            r#"
            axes = [
                { name = "backend", values = ["null", "mem"] },
                { name = "mode", values = ["copy", "zero-copy"] },
                { name = "operation", values = ["read", "verify"] },
            ]
            since = { zero-copy = "6.16" }
            [[expect]]
            outcome = "ran"
            [[expect]]
            only = { backend = ["null"], operation = ["verify"] }
            outcome = "never"
            reason = "it keeps nothing"
            [[expect]]
            only = { backend = ["mem"], mode = ["zero-copy"] }
            outcome = "never"
            reason = "no file"
            whatever_kernel = true
            "#,
        )
        .unwrap()
    }

    const GOOD: &str = "null copy read ran\nnull copy verify never\n\
        null zero-copy read ran\nnull zero-copy verify never\n\
        mem copy read ran\nmem copy verify ran\n\
        mem zero-copy read never\nmem zero-copy verify never\n";

    fn told(text: &str) -> Outcomes {
        let mut outcomes = Outcomes::default();
        for line in text.lines() {
            let mut cell: Cell = line.split(' ').map(str::to_owned).collect();
            if let Some(outcome) = cell.pop() {
                outcomes.take(cell, outcome);
            }
        }
        outcomes
    }

    fn wrong(text: &str, series: &str, all: bool, reduced: bool) -> Vec<String> {
        told(text).compare(("cell", &expected()), series, all, reduced)
    }

    #[test]
    fn what_is_expected_passes_and_is_shown() {
        assert_eq!(wrong(GOOD, "7.3", true, false), [""; 0]);
        let table = told(GOOD).table(&expected(), "7.3");
        assert_eq!(
            table,
            "backend  mode       read     verify\n\
             null     copy       ran      never 1\n\
             null     zero-copy  ran      never 1\n\
             mem      copy       ran      ran\n\
             mem      zero-copy  never 2  never 2\n\
             never 1: it keeps nothing\n\
             never 2: no file\n"
        );
        let old = GOOD
            .replace("null zero-copy read ran", "null zero-copy read lacks")
            .replace("null zero-copy verify never", "null zero-copy verify lacks");
        assert_eq!(wrong(&old, "6.12", true, false), [""; 0]);
        let table = told(&old).table(&expected(), "6.12");
        assert!(table.ends_with("`add` says so\n"), "{table}");
    }

    /// L91 A cell that is missing, unexpected or unknown fails; with a filter a missing one does not.
    #[test]
    fn l91_every_other_outcome_fails() {
        let count = |text: &str, all| wrong(text, "7.3", all, false).len();
        let cut = GOOD.replace("mem copy read ran\n", "");
        assert_eq!((count(&cut, true), count(&cut, false)), (1, 0));
        let never = GOOD.replace("mem copy read ran", "mem copy read never");
        assert_eq!((count(&never, true), count(&never, false)), (1, 1));
        assert_eq!(count(&format!("{GOOD}tape copy read ran\n"), true), 1);
        assert_eq!(wrong(GOOD, "6.12", true, false).len(), 2);
        assert_eq!(count("", true), 8);
        let left = GOOD.replace("mem copy read ran", "mem copy read left");
        for (reduced, number) in [(true, 0), (false, 1)] {
            assert_eq!(wrong(&left, "7.3", true, reduced).len(), number);
        }
        assert_eq!(told("").table(&expected(), "7.3"), "");
    }

    /// The last matching entry applies, and a word with one reason has no number.
    #[test]
    fn later_entries_are_exceptions() {
        let table: Table = toml::from_str(
            r#"
            axes = [{ name = "policy", values = ["none", "fail"] }, { name = "event", values = ["kill", "panic"] }]
            since = { fail = "6.13" }
            [[expect]]
            outcome = "dead"
            reason = "gone"
            [[expect]]
            only = { event = ["panic"] }
            outcome = "live"
            reason = "serves on"
            "#,
        )
        .unwrap();
        let outcomes = told("none kill dead\nnone panic live\nfail kill lacks\nfail panic lacks");
        let wrong = outcomes.compare(("recovery", &table), "6.12", true, false);
        assert_eq!(wrong, [""; 0]);
        let shown = outcomes.table(&table, "6.12");
        assert!(shown.contains("none    dead     live\n"), "{shown}");
        assert!(shown.contains("\ndead: gone\nlive: serves on\n"), "{shown}");
    }
}
