//! Times of single events: from `add` to the first read, and from the return of an NBD server to the answer of a READ.

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::limits::{Limits, TimeLimits};

/// The accelerator's name if the guest's clock counts instructions.
pub const COUNTED: &str = "emulation, a nanosecond per instruction";
/// The accelerator's name under KVM.
const KVM: &str = "KVM";

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// From `add` of a memory device to its first read.
    Usable,
    /// The same for an NBD device on a unix socket.
    UsableNbd,
    /// From the moment that an NBD server listens again to the answer of a READ that waits for it.
    Reconnect,
}

impl Timed {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Usable, Self::UsableNbd, Self::Reconnect];

    /// Its name, by which it is selected.
    pub fn name(self) -> &'static str {
        match self {
            Self::Usable => "add-to-usable",
            Self::UsableNbd => "add-nbd-to-usable",
            Self::Reconnect => "nbd-reconnect",
        }
    }

    /// The command that makes the device.
    pub fn command(self) -> &'static str {
        match self {
            Self::Usable => "/usr/bin/ublkctl add mem --size 1G -q 4 -d 128",
            Self::UsableNbd => "/usr/bin/ublkctl add nbd nbd+unix:///?socket=/run/nbd.sock",
            Self::Reconnect => {
                "/usr/bin/ublkctl add nbd nbd+unix:///?socket=/run/nbd.sock --retry forever"
            }
        }
    }

    /// Whether its device is behind a network.
    pub fn is_network(self) -> bool {
        self != Self::Usable
    }

    /// Number of measurements.
    fn count(self) -> usize {
        match self {
            Self::Usable | Self::UsableNbd => 5,
            Self::Reconnect => 10,
        }
    }

    /// The file with the guest's instructions.
    pub fn plan(self) -> String {
        let (name, command) = (self.name(), self.command());
        let prepare = match self.is_network() {
            true => "prepare nbdkit /run/nbd.sock 96\n",
            false => "",
        };
        let count = self.count();
        match self {
            Self::Reconnect => {
                format!("reconnect {name}\n{prepare}server {command}\ntimes {count}\n")
            }
            _ => format!("usable {name}\n{prepare}server {command}\n").repeat(count),
        }
    }

    /// Its limits.
    pub fn limits(self, limits: &Limits) -> &TimeLimits {
        match self {
            Self::Usable => &limits.usable,
            Self::UsableNbd => &limits.usable_nbd,
            Self::Reconnect => &limits.reconnect,
        }
    }

    /// What its times are.
    fn words(self) -> &'static str {
        match self {
            Self::Usable | Self::UsableNbd => "to the end of the first read",
            Self::Reconnect => "from a server that listens to the answer",
        }
    }
}

/// Times in microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Times {
    /// What was timed.
    #[serde(skip)]
    pub timed: Timed,
    /// Its name.
    pub name: String,
    /// The guest's accelerator.
    pub accelerator: String,
    /// The command that makes the device.
    pub command: String,
    /// From the start of `add` to its end, if that is part of the time.
    pub added: Vec<u64>,
    /// The times that are compared with the limit.
    pub times: Vec<u64>,
    /// Errors.
    pub errors: Vec<String>,
}

impl Times {
    /// Takes the times from the guest's lines.
    ///
    /// # Errors
    /// A malformed line.
    pub fn of(timed: Timed, accelerator: &str, lines: &[String]) -> Result<Self> {
        let mut all = Self {
            timed,
            name: timed.name().to_owned(),
            accelerator: accelerator.to_owned(),
            command: timed.command().to_owned(),
            added: Vec::new(),
            times: Vec::new(),
            errors: Vec::new(),
        };
        let ours = |line: &&String| line.split(' ').nth(1) == Some(timed.name());
        for line in lines.iter().filter(ours) {
            all.take(line)
                .with_context(|| format!("malformed line of the guest: {line}"))?;
        }
        if all.times.len() != timed.count() && all.errors.is_empty() {
            let silent = "not measured, and the guest gave no reason";
            all.errors.push(silent.to_owned());
        }
        Ok(all)
    }

    /// Takes the times, or the error, of a line.
    fn take(&mut self, line: &str) -> Result<()> {
        let words: Vec<_> = line.split(' ').collect();
        match (self.timed, words.as_slice()) {
            (_, ["@error", _, error @ ..]) => self.errors.push(error.join(" ")),
            (Timed::Usable | Timed::UsableNbd, ["@usable", _, _, added, usable]) => {
                self.added.push(added.parse()?);
                self.times.push(usable.parse()?);
            }
            (Timed::Reconnect, ["@reconnect", _, _, times @ ..]) => {
                for time in times {
                    self.times.push(time.parse()?);
                }
            }
            _ => bail!("other words"),
        }
        Ok(())
    }

    /// Whether they were measured under KVM.
    pub fn is_kvm(&self) -> bool {
        self.accelerator == KVM
    }

    /// The median time.
    fn median(&self) -> Option<u64> {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// The time that is compared with the limit: the longest one if the clock counts instructions, which has no noise;
    /// else the median.
    fn judged(&self) -> Option<u64> {
        if self.accelerator == COUNTED {
            return self.times.iter().max().copied();
        }
        self.median()
    }

    /// Maximum time in milliseconds.
    fn limit(&self, limits: &Limits) -> u64 {
        let limits = self.timed.limits(limits);
        match self.is_kvm() {
            true => limits.kvm,
            false => limits.emulated,
        }
    }

    /// Errors and violations of the limit.
    pub fn faults(&self, limits: &Limits) -> Vec<String> {
        let name = &self.name;
        let errors = self.errors.iter();
        let mut faults: Vec<_> = errors.map(|error| format!("{name}: {error}")).collect();
        let most = self.limit(limits);
        match self.judged() {
            Some(time) if time <= most * 1000 => {}
            Some(time) => faults.push(format!(
                "{name} ({}): {}.{:03} ms is above its limit {most} ms",
                self.accelerator,
                time / 1000,
                time % 1000
            )),
            None => faults.push(format!("{name}: has a limit and was not measured")),
        }
        faults
    }

    /// The text for people.
    pub fn text(&self, limits: &Limits) -> String {
        let list = |times: &[u64]| {
            let times: Vec<_> = times.iter().map(|time| milliseconds(*time)).collect();
            times.join(", ")
        };
        let time = |time: Option<u64>| {
            time.map_or("not measured".to_owned(), |time| milliseconds(time) + " ms")
        };
        let mut text = format!(
            "{}, {}, 4 CPUs, limit {} ms: {} judged, median {}; `{}`\n  {}, ms: {}",
            self.name,
            self.accelerator,
            self.limit(limits),
            time(self.judged()),
            time(self.median()),
            self.command,
            self.timed.words(),
            list(&self.times),
        );
        if !self.added.is_empty() {
            text += &format!("\n  to the end of add, ms: {}", list(&self.added));
        }
        text
    }
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{}", microseconds / 1000, microseconds % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::{COUNTED, Timed, Times};
    use crate::bench::limits::Limits;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    fn reconnects(times: &str) -> Vec<String> {
        lines(&[
            "@seen x y",
            &format!("@reconnect nbd-reconnect /dev/x {times}"),
        ])
    }

    #[test]
    fn times_are_picked_from_those_seen() {
        let usable = ["9", "1", "5", "3", "7"]
            .map(|time| format!("@usable add-to-usable /dev/x 1 {time}000"));
        let times = Times::of(Timed::Usable, COUNTED, &usable).unwrap();
        assert_eq!((times.median(), times.judged()), (Some(5000), Some(9000)));
        assert!(times.errors.is_empty() && times.added == [1; 5]);
        let times = Times::of(Timed::Usable, "KVM", &usable).unwrap();
        assert_eq!(times.judged(), Some(5000));
        // Those of the other device are not its.
        let none = Times::of(Timed::UsableNbd, "KVM", &usable).unwrap();
        assert_eq!((none.judged(), none.errors.len()), (None, 1));
        let times = Times::of(
            Timed::Reconnect,
            COUNTED,
            &reconnects("1 2 3 4 5 6 7 8 9 99"),
        )
        .unwrap();
        assert_eq!((times.median(), times.judged()), (Some(6), Some(99)));
        assert!(
            times
                .text(&Limits::load().unwrap())
                .contains("0.0 ms judged")
        );
        for line in [
            "@usable add-to-usable /dev/x 1",
            "@usable add-to-usable /dev/x 1 x",
            "@reconnect add-to-usable x 1",
        ] {
            assert!(
                Times::of(Timed::Usable, "KVM", &lines(&[line])).is_err(),
                "{line}"
            );
        }
    }

    /// L90 A time above the limit of its clock is reported, and so are missing ones.
    #[test]
    fn l90_a_time_above_the_limit_of_its_accelerator_is_named() {
        let limits = Limits::load().unwrap();
        for timed in Timed::ALL {
            let own = timed.limits(&limits);
            for (accelerator, most) in [("KVM", own.kvm), ("software emulation", own.emulated)] {
                let mut times = Times::of(timed, accelerator, &[]).unwrap();
                times.errors.clear();
                assert_eq!(times.faults(&limits).len(), 1, "not measured");
                times.times = vec![most * 1000];
                assert!(times.faults(&limits).is_empty());
                times.times = vec![most * 1000 + 1];
                let faults = times.faults(&limits);
                assert!(
                    faults.len() == 1 && faults[0].starts_with(timed.name()),
                    "{faults:?}"
                );
            }
        }
        let some = Times::of(Timed::Reconnect, COUNTED, &reconnects("1 2 3")).unwrap();
        assert!(some.faults(&limits)[0].contains("not measured"));
        let error = lines(&["@error nbd-reconnect no such server"]);
        let error = Times::of(Timed::Reconnect, COUNTED, &error).unwrap();
        assert_eq!(error.faults(&limits)[0], "nbd-reconnect: no such server");
    }

    #[test]
    fn a_plan_has_its_server_and_its_repetitions() {
        assert_eq!(
            Timed::Usable
                .plan()
                .matches("usable add-to-usable\nserver /usr")
                .count(),
            5
        );
        let nbd = Timed::UsableNbd.plan();
        assert_eq!(nbd.matches("prepare nbdkit /run/nbd.sock 96\n").count(), 5);
        let reconnect = Timed::Reconnect.plan();
        assert!(
            reconnect.starts_with("reconnect nbd-reconnect\n")
                && reconnect.ends_with("forever\ntimes 10\n")
        );
    }
}
