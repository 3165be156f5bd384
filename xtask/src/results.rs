//! Parses the output of test programs and compares it with the expected results.

use std::collections::BTreeSet;

use ublk_e2e_records::Record;

use crate::expected::{ExpectedFailure, How};

/// The error of a task that has already printed its summary.
#[derive(Debug)]
pub struct Told;

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("tests failed")
    }
}

impl std::error::Error for Told {}

/// Summed results of test programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results {
    /// Cases that passed.
    pub passed: usize,
    /// Names of failed cases, and other failures.
    pub failed: Vec<String>,
    /// Cases that were skipped, with their reasons.
    pub skipped: Vec<(String, String)>,
    /// Failures that are the kernel's own, and cases left out for that, with their reasons.
    pub forgiven: Vec<(String, String)>,
    /// Cases that the program left out as requested.
    avoided: Vec<String>,
    /// The case on a line that has no result yet.
    pending: Option<String>,
    /// Whether a closing line, `test result:`, was seen.
    closed: bool,
    /// Whether a program has started a list of cases without closing it.
    open: bool,
    /// Number of cases according to the closing lines.
    counted: usize,
}

impl Results {
    /// Parses one line of a libtest-like program.
    pub fn line(&mut self, line: &str) {
        let line = plain(line);
        let line = line.trim();
        if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.open = true;
        } else if let Some(record) = Record::of(line) {
            match record {
                Ok(Record::Skipped { case, reason }) => self.skip(&case, &reason),
                Ok(Record::Avoided { case }) => self.avoided.push(case),
                Ok(_) => {}
                Err(e) => self
                    .failed
                    .push(format!("a record that cannot be read: {e}")),
            }
        } else if let Some(rest) = line.strip_prefix("SKIP ") {
            // A manual test of the host.
            let (name, reason) = rest.split_once(':').unwrap_or((rest, ""));
            self.skip(name.trim(), reason.trim());
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.closing(rest);
        } else if let Some(rest) = line.strip_prefix("test ") {
            match rest.rsplit_once(" ... ") {
                Some((name, result)) => self.case(name, result),
                // The case's own output may be between the name and the result.
                None => self.pending = rest.strip_suffix(" ...").map(str::to_owned),
            }
        } else if let Some(name) = self.pending.take() {
            match line {
                "ok" | "FAILED" => self.case(&name, line),
                _ => self.pending = Some(name),
            }
        }
    }

    fn case(&mut self, name: &str, result: &str) {
        // Doc tests and should-panic tests have a remark after their name.
        let name = name.split(" - should panic").next().unwrap_or(name).trim();
        let result = result.trim();
        if result == "ok" {
            self.passed += 1;
        } else if let Some(rest) = result.strip_prefix("ignored") {
            let reason = rest
                .trim_start_matches([',', ' ', '('])
                .trim_end_matches(')');
            self.skip(name, reason);
        } else {
            self.failed.push(name.to_owned());
        }
    }

    fn skip(&mut self, name: &str, reason: &str) {
        if !self.skipped.iter().any(|(other, _)| other == name) {
            self.skipped.push((name.to_owned(), reason.to_owned()));
        }
    }

    fn closing(&mut self, rest: &str) {
        self.closed = true;
        self.open = false;
        for part in rest.split(['.', ';']) {
            let mut words = part.split_whitespace();
            if let (Some(count), Some("passed" | "failed")) = (words.next(), words.next()) {
                self.counted += count.parse::<usize>().unwrap_or(0);
            }
        }
    }

    /// Checks a program's end: it must have closed its list, with as many cases as were seen, and its status must
    /// match. A mismatch becomes a failure called `name`.
    pub fn check(&mut self, name: &str, good: bool) {
        let seen = self.passed + self.failed.len();
        if self.open || !self.closed {
            self.failed
                .push(format!("{name}: it ended before its list of cases did"));
        } else if self.counted != seen {
            let counted = self.counted;
            self.failed
                .push(format!("{name}: {counted} cases counted, {seen} seen"));
        } else if !good && self.failed.is_empty() {
            self.failed
                .push(format!("{name}: failed without a failed case"));
        }
    }

    /// Adds another program's results; its names get `prefix`.
    pub fn add(&mut self, prefix: &str, other: &Self) {
        self.passed += other.passed;
        let named = |name: &String| format!("{prefix}{name}");
        self.failed.extend(other.failed.iter().map(named));
        let skips = other.skipped.iter();
        self.skipped
            .extend(skips.map(|(name, reason)| (named(name), reason.clone())));
        let own = other.forgiven.iter();
        self.forgiven
            .extend(own.map(|(name, reason)| (named(name), reason.clone())));
        self.avoided.extend(other.avoided.iter().map(named));
    }

    /// Compares the skips with the expected ones: each additional or missing one, and each without a reason, is a
    /// failure.
    pub fn compare_skips(&mut self, expected: &[String], all_ran: bool) {
        let fits = |name: &str, pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        };
        let mut used = BTreeSet::new();
        for (name, reason) in &self.skipped {
            match expected.iter().find(|pattern| fits(name, pattern)) {
                Some(pattern) => {
                    used.insert(pattern);
                    if reason.is_empty() {
                        self.failed
                            .push(format!("{name}: skipped without a reason"));
                    }
                }
                None => self
                    .failed
                    .push(format!("{name}: skipped unexpectedly ({reason})")),
            }
        }
        if all_ran {
            for pattern in expected.iter().filter(|pattern| !used.contains(pattern)) {
                self.failed
                    .push(format!("{pattern}: expected to be skipped, was not"));
            }
        }
    }

    /// Removes the expected failures of a series from the failed cases. An expected failure that did not happen is a
    /// failure if all cases ran: the list would hide the next one.
    pub fn forgive(&mut self, expected: &[ExpectedFailure], series: &str, all_ran: bool) {
        for failure in expected.iter().filter(|failure| failure.is_of(series)) {
            let from = match failure.how {
                How::Avoided => &mut self.avoided,
                How::Fails | How::MayFail => &mut self.failed,
            };
            let (own, others): (Vec<_>, Vec<_>) = from.drain(..).partition(|name| failure.is(name));
            *from = others;
            if own.is_empty() && all_ran && failure.how != How::MayFail {
                let what = match failure.how {
                    How::Avoided => "expected to be left out, there is no such case",
                    How::Fails | How::MayFail => "expected to fail, did not",
                };
                self.failed.push(format!("{}: {what}", failure.case));
            }
            let told = own.into_iter().map(|name| (name, failure.reason.clone()));
            self.forgiven.extend(told);
        }
        // Cases left out without request.
        let odd = self.avoided.drain(..);
        self.failed
            .extend(odd.map(|name| format!("{name}: left out, nobody knows why")));
    }

    /// The summary line.
    pub fn sum(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed.len())
    }
}

/// A line without escape sequences.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic());
        rest = end.map_or("", |end| &after[end + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::{Record, Results};

    use crate::expected::{ExpectedFailure, How};

    fn of(text: &str) -> Results {
        let mut results = Results::default();
        text.lines().for_each(|line| results.line(line));
        results
    }

    const GOOD: &str = "running 3 tests\n\
        test a ... ok\n\
        test b ... ignored, needs 7.0\n\
        test c - should panic ... ok\n\
        test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n";

    #[test]
    fn lines_are_counted() {
        let mut results = of(GOOD);
        results.check("program", true);
        assert_eq!(results.sum(), "2 passed, 0 failed");
        assert_eq!(results.skipped, [("b".into(), "needs 7.0".into())]);
    }

    #[test]
    fn a_failed_case_is_named() {
        let mut results = of("test a ... ok\ntest b ... FAILED\n\
            test result: FAILED. 1 passed; 1 failed; 0 ignored\n");
        results.check("program", false);
        assert_eq!(results.failed, ["b"]);
        assert_eq!(results.sum(), "1 passed, 1 failed");
    }

    /// L90 A program that died half way, one whose count disagrees, or a bad status without a failed case does not
    /// pass.
    #[test]
    fn l90_disagreement_is_a_failure() {
        let mut cut = of("running 3 tests\ntest a ... ok\n");
        cut.check("program", true);
        assert_eq!(cut.failed.len(), 1, "{cut:?}");
        let mut second = of(&format!("{GOOD}running 1 test\n"));
        second.check("program", true);
        assert_eq!(second.failed.len(), 1, "{second:?}");
        let mut count = of("test a ... ok\ntest result: ok. 2 passed; 0 failed; 0 ignored\n");
        count.check("program", true);
        assert_eq!(count.failed.len(), 1, "{count:?}");
        let mut status = of(GOOD);
        status.check("program", false);
        assert_eq!(status.failed.len(), 1, "{status:?}");
    }

    /// L91 An unexpected skip fails, and so does one without a reason, and an expected one that did not happen.
    #[test]
    fn l91_skips_are_compared() {
        let mut results = of(GOOD);
        results.compare_skips(&[], true);
        assert_eq!(results.failed.len(), 1, "{results:?}");
        let mut results = of(GOOD);
        results.compare_skips(&["b".into()], true);
        assert!(results.failed.is_empty(), "{results:?}");
        let mut results = of(GOOD);
        results.compare_skips(&["b*".into(), "z".into()], true);
        assert_eq!(results.failed, ["z: expected to be skipped, was not"]);
        let mut results = of(GOOD);
        results.compare_skips(&["b".into(), "z".into()], false);
        assert!(
            results.failed.is_empty(),
            "a filter leaves cases out: {results:?}"
        );
        let mut results = of("SKIP no_reason:\n");
        results.compare_skips(&["no_reason".into()], true);
        assert_eq!(results.failed.len(), 1, "{results:?}");
    }

    /// L91 A failure that is the kernel's own does not fail the run; one that did not happen does, and so does every
    /// other.
    #[test]
    fn l91_expected_failures_are_compared() {
        let expected = |case: &str, how| ExpectedFailure {
            series: vec!["7.0".into()],
            case: case.into(),
            how,
            reason: "the driver".into(),
        };
        let failed = |expected: &[ExpectedFailure], series: &str| {
            let mut results = of(
                "test a ... FAILED\n@record {\"type\":\"avoided\",\"case\":\"c\"}\n\
                test result: FAILED. 0 passed; 1 failed; 0 ignored\n",
            );
            results.check("program", false);
            results.forgive(expected, series, true);
            (results.failed.len(), results.forgiven.len())
        };
        let (a, c) = (expected("a*", How::Fails), expected("c", How::Avoided));
        let b = |how| expected("b", how);
        assert_eq!(failed(&[a.clone(), c.clone()], "7.0"), (0, 2));
        assert_eq!(
            failed(&[a.clone(), c.clone(), b(How::Fails)], "7.0"),
            (1, 2)
        );
        assert_eq!(
            failed(&[a.clone(), c.clone(), b(How::MayFail)], "7.0"),
            (0, 2)
        );
        assert_eq!(failed(&[a, c], "7.1"), (2, 0));
    }

    #[test]
    fn a_skip_line_and_its_case_are_one_skip() {
        let skipped = Record::Skipped {
            case: "x".into(),
            reason: "no driver".into(),
        };
        let results = of(&format!("{}\ntest x ... ignored\n", skipped.line()));
        assert_eq!(results.skipped, [("x".into(), "no driver".into())]);
        let results = of("SKIP x: no driver\ntest x ... ok\n");
        assert_eq!((results.passed, results.skipped.len()), (1, 1));
    }

    /// A truncated record is a failure: its content would be missing.
    #[test]
    fn a_cut_record_fails() {
        let results = of("@record {\"type\":\"skipped\",\"case\":\"x");
        assert_eq!(results.failed.len(), 1, "{results:?}");
    }

    #[test]
    fn colours_do_not_hide_a_result() {
        let mut results = of("test a  ... \u{1b}[32mok\u{1b}[0m\n\
            test b ... \u{1b}[31mFAILED\u{1b}[0m\n\
            test result: \u{1b}[31mFAILED\u{1b}[0m. 1 passed; 1 failed; 0 ignored\n");
        results.check("program", false);
        assert_eq!((results.passed, results.failed), (1, vec!["b".to_owned()]));
    }

    #[test]
    fn output_between_name_and_result_is_no_harm() {
        let results = of("test a ...\nnoise\nok\ntest b ... ok\n");
        assert_eq!(results.passed, 2);
    }
}
