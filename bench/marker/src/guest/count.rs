//! Counts a row: its client works twice, between markers.

use std::fs;

use anyhow::{Context, Result};
use icount_marker::mark;

use crate::fio;
use crate::floor::Floor;
use crate::peer::Peer;
use crate::plan::Row;

/// Numbers of I/Os: the first run warms caches; the figure is the difference of the other two.
const WARM_UP: u64 = 6_000;
const SMALL: u64 = 1_000;

/// What sends a row's requests.
#[derive(Debug)]
pub enum Client<'a> {
    /// fio with these arguments, on a device.
    Fio(&'a [String], &'a str),
    /// A client of an NBD server, without a device.
    Floor(Box<Floor>),
}

impl Client<'_> {
    /// Does this many I/Os per job and returns the number that were done.
    fn run(&mut self, ios: u64) -> Result<u64> {
        match self {
            Self::Fio(arguments, device) => fio::run(arguments, device, ios),
            Self::Floor(floor) => floor.run(ios),
        }
    }
}

/// The two runs of a row, the small one first.
#[derive(Debug)]
pub struct Runs {
    /// Number of the first of their four markers.
    first: u64,
    /// Context switches.
    switches: Vec<u64>,
    /// I/Os.
    ios: Vec<u64>,
    /// Processor time of the row's NBD server in nanoseconds, if it has one.
    pub peer: Vec<u64>,
}

impl Runs {
    /// Warms up, then does both runs.
    ///
    /// # Errors
    /// The client fails, or a count cannot be read.
    pub fn new(
        row: &Row,
        mut client: Client<'_>,
        peer: Option<&Peer>,
        marks: &mut u64,
    ) -> Result<Self> {
        client.run(WARM_UP.min(row.ios))?;
        let mut runs = Self {
            first: *marks,
            switches: Vec::new(),
            ios: Vec::new(),
            peer: Vec::new(),
        };
        // Rows of few and large I/Os take a small run of their own.
        let small = SMALL.min(row.ios);
        for ios in [small, small + row.ios] {
            let before = context_switches()?;
            let worked = peer.map(Peer::time).transpose()?;
            mark();
            *marks += 1;
            let done = client.run(ios);
            mark();
            *marks += 1;
            runs.switches.push(context_switches()? - before);
            runs.ios.push(done?);
            if let (Some(peer), Some(worked)) = (peer, worked) {
                runs.peer.push(peer.time()? - worked);
            }
        }
        Ok(runs)
    }

    /// The line of the answer.
    pub fn line(&self, name: &str, device: &str) -> String {
        let counts = self.switches.iter().chain(&self.ios);
        let counts: Vec<_> = counts.map(u64::to_string).collect();
        format!("@row {name} {device} {} {}", self.first, counts.join(" "))
    }
}

/// Context switches of the machine since boot.
fn context_switches() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("ctxt "));
    let count = count.context("no ctxt in /proc/stat")?;
    count.trim().parse().context("ctxt of /proc/stat")
}

#[cfg(test)]
mod tests {
    use super::Runs;

    #[test]
    fn the_line_has_the_counts_of_both_runs() {
        let runs = Runs {
            first: 4,
            switches: vec![20, 120],
            ios: vec![1000, 11_000],
            peer: Vec::new(),
        };
        let line = runs.line("r", "/dev/x");
        assert_eq!(line, "@row r /dev/x 4 20 120 1000 11000");
    }
}
