//! What the end-to-end cases tell their runner beside the lines of libtest: a record is a line of its own on the console
//! of the guest, a mark and then JSON.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// What a line with a record begins with.
pub const MARK: &str = "@record ";

/// Operations on backends in data modes: the name of their table.
pub const CELL: &str = "cell";

/// Policies, deaths and loads: the name of their table.
pub const RECOVERY: &str = "recovery";

/// One thing told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Record {
    /// A case cannot run here.
    Skipped {
        /// Its name.
        case: String,
        /// Why.
        reason: String,
    },
    /// A case was left out, as the runner wanted it.
    Avoided {
        /// Its name.
        case: String,
    },
    /// What became of a cell of a table, which the runner compares with what it expects.
    Outcome {
        /// Which table: [`CELL`], [`RECOVERY`].
        table: String,
        /// A value of each of the table's axes.
        axes: Vec<String>,
        /// In a word: `ran`, `never` (it cannot be), `lacks` (the kernel has no such mode), `left` (not of this set).
        outcome: String,
    },
    /// A feature of this kernel.
    Feature {
        /// Its name.
        name: String,
        /// GET_FEATURES tells of it.
        available: bool,
    },
}

impl Record {
    /// An outcome.
    #[must_use]
    pub fn outcome(table: &str, axes: &[&str], outcome: &str) -> Self {
        Self::Outcome {
            table: table.to_owned(),
            axes: axes.iter().map(|value| (*value).to_owned()).collect(),
            outcome: outcome.to_owned(),
        }
    }

    /// The line for it, without its end.
    #[must_use]
    pub fn line(&self) -> String {
        // Strings and flags have no form that is not JSON.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{MARK}{json}")
    }

    /// The record of a line; nothing for a line that has none.
    ///
    /// # Errors
    /// What is no record behind the mark: a line that was cut, or one of another version.
    pub fn of(line: &str) -> Option<Result<Self, serde_json::Error>> {
        let json = line.trim().strip_prefix(MARK)?;
        Some(serde_json::from_str(json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_the_console() {
        let case = || "a".to_owned();
        let all = [
            Record::Skipped {
                case: case(),
                reason: "no driver: \"none\"\n".to_owned(),
            },
            Record::Avoided { case: case() },
            Record::outcome(CELL, &["mem", "copy", "read"], "ran"),
            Record::Feature {
                name: "ZONED".to_owned(),
                available: false,
            },
        ];
        for record in all {
            let line = record.line();
            assert!(!line.contains('\n'), "{line}");
            let read = Record::of(&format!("{line}\r\n")).and_then(Result::ok);
            assert_eq!(read, Some(record));
        }
        assert!(Record::of("test a ... ok").is_none());
        assert!(Record::of(r#"@record {"type":"outcome","tab"#).is_some_and(|r| r.is_err()));
    }
}
