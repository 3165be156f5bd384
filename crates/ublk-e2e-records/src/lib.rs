//! Records that the end-to-end cases send to their runner besides libtest's lines: a record is a separate line on the
//! guest's console, a mark followed by JSON.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Prefix of a line with a record.
pub const MARK: &str = "@record ";

/// Name of the table of operations on backends in data modes.
pub const CELL: &str = "cell";

/// Name of the table of policies, deaths and loads.
pub const RECOVERY: &str = "recovery";

/// Name of the table of zoned devices and of those with integrity metadata, in data modes.
pub const KIND: &str = "kind";

/// A record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Record {
    /// A case cannot run here.
    Skipped {
        /// Name of the case.
        case: String,
        /// Why.
        reason: String,
    },
    /// A case was left out at the runner's request.
    Avoided {
        /// Name of the case.
        case: String,
    },
    /// Outcome of a cell of a table, which the runner compares with the expected one.
    Outcome {
        /// The table: [`CELL`], [`RECOVERY`] or [`KIND`].
        table: String,
        /// A value for each of the table's axes.
        axes: Vec<String>,
        /// One word: `ran`, `never` (impossible), `lacks` (the kernel does not support the mode), `left` (not part of
        /// this set).
        outcome: String,
    },
    /// A feature of this kernel.
    Feature {
        /// Name of the feature.
        name: String,
        /// Whether GET_FEATURES reports it.
        available: bool,
    },
}

impl Record {
    /// Creates an outcome.
    #[must_use]
    pub fn outcome(table: &str, axes: &[&str], outcome: &str) -> Self {
        Self::Outcome {
            table: table.to_owned(),
            axes: axes.iter().map(|value| (*value).to_owned()).collect(),
            outcome: outcome.to_owned(),
        }
    }

    /// The record as a line, without newline.
    #[must_use]
    pub fn line(&self) -> String {
        // Serialising strings and flags cannot fail.
        let json = serde_json::to_string(self).unwrap_or_default();
        format!("{MARK}{json}")
    }

    /// Parses the record in a line; `None` if the line has none.
    ///
    /// # Errors
    /// The text after the mark is not a record: the line was cut, or comes from another version.
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
