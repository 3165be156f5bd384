//! What becomes of a device when something of it dies: policy × event × load, as the cases tell it, beside what the
//! manifest expects.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use crate::matrix::version;

/// The expectation, in the manifest.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// Policies.
    pub policies: Vec<String>,
    /// What happens.
    pub events: Vec<String>,
    /// What the device is doing.
    pub loads: Vec<String>,
    /// The first series with a policy; the others have them all.
    pub since: BTreeMap<String, String>,
    /// Outcomes; the last that fits a cell counts.
    pub expect: Vec<Expect>,
}

/// The outcome of some cells. An empty list means all.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expect {
    /// Policies.
    #[serde(default)]
    pub policies: Vec<String>,
    /// Events.
    #[serde(default)]
    pub events: Vec<String>,
    /// Loads.
    #[serde(default)]
    pub loads: Vec<String>,
    /// What is seen.
    pub outcome: String,
    /// Why.
    pub reason: String,
}

/// Policy, event, load.
pub type Axes = (String, String, String);

/// What became of the cells.
#[derive(Clone, Debug, Default)]
pub struct Deaths(BTreeMap<Axes, String>);

impl Deaths {
    /// Takes a line of the cases: `RECOVERY policy event load outcome`.
    pub fn line(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["RECOVERY", policy, event, load, outcome] = words[..] {
            let place = (policy.into(), event.into(), load.into());
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
        expected: &Recovery,
        series: &str,
        all_ran: bool,
        reduced: bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        let places = expected.places();
        for place in &places {
            let wanted = expected.outcome(place, series);
            let (policy, event, load) = place;
            let cell = format!("recovery {policy} {event} {load}");
            match self.0.get(place) {
                Some(found) if found == wanted => {}
                // Said by the cases: it is not of the reduced matrix.
                Some(found) if reduced && found == "left" => {}
                Some(found) => wrong.push(format!("{cell}: {found}, expected {wanted}")),
                None if all_ran => wrong.push(format!("{cell}: not told, expected {wanted}")),
                None => {}
            }
        }
        let unknown = self.0.keys().filter(|place| !places.contains(place));
        wrong.extend(unknown.map(|(p, e, l)| format!("recovery {p} {e} {l}: not in the manifest")));
        wrong
    }

    /// The table of what was told, a line for each policy and event, and below it what the words mean.
    pub fn table(&self, expected: &Recovery) -> String {
        let mut text = String::new();
        if self.0.is_empty() {
            return text;
        }
        let _ = write!(text, "{:8}  {:14}", "policy", "event");
        for load in &expected.loads {
            let _ = write!(text, "  {load:14}");
        }
        let mut reasons = BTreeMap::new();
        for policy in &expected.policies {
            for event in &expected.events {
                let place = |load: &String| (policy.clone(), event.clone(), load.clone());
                if !expected
                    .loads
                    .iter()
                    .any(|l| self.0.contains_key(&place(l)))
                {
                    continue;
                }
                text.truncate(text.trim_end().len());
                let _ = write!(text, "\n{policy:8}  {event:14}");
                for load in &expected.loads {
                    let told = self.0.get(&place(load)).map_or("?", String::as_str);
                    let _ = write!(text, "  {told:14}");
                    if let Some(reason) = expected.reason(told) {
                        reasons.insert(told, reason);
                    }
                }
            }
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        for (word, reason) in reasons {
            let _ = writeln!(text, "{word}: {reason}");
        }
        text
    }
}

impl Recovery {
    fn places(&self) -> Vec<Axes> {
        let mut places = Vec::new();
        for policy in &self.policies {
            for event in &self.events {
                for load in &self.loads {
                    places.push((policy.clone(), event.clone(), load.clone()));
                }
            }
        }
        places
    }

    /// What is expected of a cell.
    fn outcome(&self, place: &Axes, series: &str) -> &str {
        let (policy, event, load) = place;
        let since = self.since.get(policy);
        if since.is_some_and(|since| version(series) < version(since)) {
            return "lacks";
        }
        let has = |list: &[String], name: &String| list.is_empty() || list.contains(name);
        let fits = |expect: &&Expect| {
            has(&expect.policies, policy) && has(&expect.events, event) && has(&expect.loads, load)
        };
        let found = self.expect.iter().rev().find(fits);
        found.map_or("?", |expect| expect.outcome.as_str())
    }

    /// What an outcome means.
    fn reason(&self, outcome: &str) -> Option<&str> {
        if outcome == "lacks" {
            return Some("this kernel has no such policy, and `add` says so");
        }
        let expect = self.expect.iter().find(|e| e.outcome == outcome);
        expect.map(|expect| expect.reason.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Recovery {
        toml::from_str(
            r#"
            policies = ["none", "fail"]
            events = ["kill", "panic"]
            loads = ["idle"]
            since = { fail = "6.13" }
            [[expect]]
            outcome = "live"
            reason = "serves on"
            [[expect]]
            policies = ["none"]
            events = ["kill"]
            outcome = "dead"
            reason = "gone"
            [[expect]]
            policies = ["fail"]
            events = ["kill"]
            outcome = "fail-io"
            reason = "fails"
            "#,
        )
        .unwrap()
    }

    const GOOD: &str = "RECOVERY none kill idle dead\nRECOVERY none panic idle live\n\
        RECOVERY fail kill idle fail-io\nRECOVERY fail panic idle live\n";

    fn deaths(text: &str) -> Deaths {
        let mut deaths = Deaths::default();
        text.lines().for_each(|line| deaths.line(line));
        deaths
    }

    #[test]
    fn what_is_expected_passes_and_is_shown() {
        let told = deaths(GOOD);
        assert_eq!(told.compare(&expected(), "7.3", true, false), [""; 0]);
        let table = told.table(&expected());
        assert!(
            table.contains("none      kill            dead\n"),
            "{table}"
        );
        assert!(table.ends_with("live: serves on\n"), "{table}");
        let old = GOOD.replace("fail-io", "lacks");
        let old = old.replace("fail panic idle live", "fail panic idle lacks");
        assert_eq!(
            deaths(&old).compare(&expected(), "6.12", true, false),
            [""; 0]
        );
    }

    /// L91 A cell that is missing, other than expected or unknown fails; with a filter what is missing does not.
    #[test]
    fn l91_every_other_outcome_fails() {
        let wrong = |text: &str, all| deaths(text).compare(&expected(), "7.3", all, false).len();
        assert_eq!((wrong("", true), wrong("", false)), (4, 0));
        assert_eq!(wrong(&GOOD.replace("idle dead", "idle live"), false), 1);
        assert_eq!(
            wrong(&format!("{GOOD}RECOVERY lost kill idle live\n"), true),
            1
        );
        assert_eq!(
            deaths(GOOD).compare(&expected(), "6.12", true, false).len(),
            2
        );
    }
}
