//! Failures that are the kernel's own: listed in the manifest with the reason.

use serde::Deserialize;

/// A case that fails on some kernels because of a kernel bug.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectedFailure {
    /// The series.
    pub series: Vec<String>,
    /// The case; may end in `*`. Cells and other failures are named by the start of their message.
    pub case: String,
    /// What is expected.
    #[serde(default)]
    pub how: How,
    /// The reason: what the kernel does.
    pub reason: String,
}

/// A console line that looks like a fault but is harmless.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Harmless {
    /// Part of the line.
    pub line: String,
    /// The series in which it is harmless; empty for all.
    #[serde(default)]
    pub series: Vec<String>,
    /// The reason, for readers of the file.
    #[expect(dead_code, reason = "required in the file, read by people")]
    pub reason: String,
}

/// What is expected of a case that may fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It runs and fails each time; a pass is a failure, since the manifest is then wrong.
    #[default]
    Fails,
    /// It runs and fails occasionally.
    MayFail,
    /// It is not run, since it would crash the kernel.
    Avoided,
}

impl ExpectedFailure {
    /// Whether it applies to this series.
    pub fn is_of(&self, series: &str) -> bool {
        self.series.iter().any(|other| other == series)
    }

    /// Whether it covers this failure.
    pub fn is(&self, failure: &str) -> bool {
        match self.case.strip_suffix('*') {
            Some(start) => failure.starts_with(start),
            None => failure == self.case,
        }
    }
}

/// The cases that must not run on a series, for the guest's environment.
pub fn avoided(all: &[ExpectedFailure], series: &str) -> String {
    let names = all
        .iter()
        .filter(|failure| failure.how == How::Avoided && failure.is_of(series));
    let names: Vec<_> = names.map(|failure| failure.case.as_str()).collect();
    names.join(" ")
}

/// The console lines that are harmless on a series.
pub fn harmless(all: &[Harmless], series: &str) -> Vec<String> {
    let of = |harmless: &&Harmless| {
        harmless.series.is_empty() || harmless.series.iter().any(|other| other == series)
    };
    all.iter().filter(of).map(|h| h.line.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harmless_line(series: &[&str]) -> Harmless {
        let text = format!("line = \"x\"\nreason = \"y\"\nseries = {series:?}");
        toml::from_str(&text).unwrap()
    }

    #[test]
    fn a_line_may_be_harmless_on_some_kernels_only() {
        let all = [harmless_line(&["7.0"]), harmless_line(&[])];
        assert_eq!(harmless(&all, "7.0").len(), 2);
        assert_eq!(harmless(&all, "7.3").len(), 1);
    }

    #[test]
    fn what_must_not_run_is_told_to_the_guest() {
        let of = |case: &str, how, series: &str| ExpectedFailure {
            series: vec![series.to_owned()],
            case: case.to_owned(),
            how,
            reason: "r".to_owned(),
        };
        let all = [
            of("a", How::Avoided, "7.0"),
            of("b*", How::Avoided, "7.0"),
            of("c", How::Fails, "7.0"),
            of("d", How::Avoided, "7.1"),
        ];
        assert_eq!(avoided(&all, "7.0"), "a b*");
        assert!(all[1].is("bcd") && !all[0].is("ab"));
    }
}
