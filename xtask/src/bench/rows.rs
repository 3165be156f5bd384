//! The work behind the figures: targets, and what fio does to them.

mod targets;
mod works;

use std::fmt::Write;

use serde::Serialize;

use super::label::Label;
pub use targets::{EXAMPLE, KUBLK, LIBUBLK, Target};
use works::Work;

/// Name of the row about the time from `add` to the first read.
pub const USABLE: &str = "add-to-usable";

/// How a row is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Instructions, in a guest with that many CPUs.
    Counted {
        /// CPUs of the guest.
        cpus: usize,
    },
    /// Time.
    Wall,
}

/// One line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Target and work.
    pub name: String,
    /// How it is measured.
    pub kind: Kind,
    /// What the work is done to.
    pub target: Target,
    /// Arguments of fio.
    pub fio: String,
    /// Jobs of fio.
    pub jobs: u64,
    /// Requests that each job keeps in flight.
    pub depth: u64,
    /// I/Os of each job between the two runs of a count: start-up is in both and drops out.
    pub ios: u64,
    /// Seconds of a run by the clock.
    pub seconds: u64,
    /// Part of the reduced set, for where time says little.
    pub reduced: bool,
}

impl Row {
    fn new(target: &Target, work: &Work, kind: Kind) -> Self {
        Self {
            name: format!("{}-{}", target.name, work.name),
            kind,
            target: target.clone(),
            fio: work.fio(kind) + &target.client,
            jobs: work.jobs,
            depth: work.depth,
            ios: work.ios,
            seconds: work.seconds,
            reduced: work.reduced && target.reduced,
        }
    }

    /// What the row says of its device.
    pub fn label(&self) -> &Label {
        &self.target.label
    }
}

/// All rows whose instructions are counted in a guest with one CPU, servers first.
pub fn counted() -> Vec<Row> {
    let kind = Kind::Counted { cpus: 1 };
    let mut rows = Vec::new();
    for target in targets::counted() {
        for work in works::protocol() {
            rows.push(Row::new(&target, &work, kind));
        }
    }
    for target in targets::sized() {
        for work in works::sizes() {
            rows.push(Row::new(&target, &work, kind));
        }
    }
    for target in targets::large() {
        for work in works::large() {
            rows.push(Row::new(&target, &work, kind));
        }
    }
    rows
}

/// Rows that are counted in a guest with two CPUs.
pub fn two_cpus() -> Vec<Row> {
    let kind = Kind::Counted { cpus: 2 };
    targets::queues()
        .iter()
        .zip(works::jobs())
        .map(|(target, work)| Row::new(target, &work, kind))
        .collect()
}

/// All rows that are measured by the clock.
pub fn wall() -> Vec<Row> {
    let mut rows = Vec::new();
    for target in targets::wall() {
        for work in works::wall(target.jobs) {
            rows.push(Row::new(&target, &work, Kind::Wall));
        }
    }
    rows.push(Row::new(&targets::scaling(), &works::scaling(), Kind::Wall));
    for target in targets::busy() {
        rows.push(Row::new(&target, &works::busy(), Kind::Wall));
    }
    rows
}

/// Block sizes, in KiB, of the rows that are there at every size.
pub fn sizes() -> [u64; 8] {
    works::SIZES
}

/// The file that tells the guest what to do.
pub fn plan(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let key = match row.kind {
            Kind::Counted { .. } => "row",
            Kind::Wall => "wall",
        };
        let _ = writeln!(text, "{key} {}", row.name);
        for words in &row.target.prepare {
            let _ = writeln!(text, "prepare {words}");
        }
        for (key, value) in [
            ("server", &row.target.server),
            ("stop", &row.target.stop),
            ("device", &row.target.device),
            ("loop", &row.target.looped),
            ("fio", &row.fio),
        ] {
            if !value.is_empty() {
                let _ = writeln!(text, "{key} {value}");
            }
        }
        for (key, value) in [
            ("jobs", row.jobs),
            ("ios", row.ios),
            ("seconds", row.seconds),
        ] {
            let _ = writeln!(text, "{key} {value}");
        }
    }
    text
}

/// The same for the row about the time to the first read.
pub fn usable_plan(times: usize) -> String {
    format!("usable {USABLE}\nserver {}\n", usable_server()).repeat(times)
}

/// The command whose device is to be usable soon.
pub fn usable_server() -> &'static str {
    "/usr/bin/ublkctl add mem --size 1G -q 4 -d 128"
}

#[cfg(test)]
mod tests {
    use super::{Row, counted, plan, two_cpus, wall};

    fn all() -> Vec<Row> {
        [counted(), two_cpus(), wall()].concat()
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let rows = all();
        let mut names: Vec<_> = rows.iter().map(|row| &row.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), rows.len());
        assert!(rows.iter().all(|row| !row.name.contains(' ')));
    }

    #[test]
    fn a_plan_has_what_a_row_has() {
        let text = plan(&counted());
        assert!(text.contains("row null_blk-4k-randread-qd1\ndevice /dev/nullb0\nfio --ioengine"));
        assert!(text.contains("--rw=randread --bs=4k --iodepth=64 --iodepth_batch_submit=16"));
        assert!(text.contains("row loop_tmpfs-4k-randread-qd1\nprepare tmpfs "));
    }

    /// L92 More requests in flight than a device has tags would measure the waiting, and fewer
    /// jobs than queues would measure one queue under another name.
    #[test]
    fn l92_no_row_asks_for_more_than_its_device_has() {
        for row in all() {
            let label = row.label();
            if let (Some(queues), Some(depth)) = (label.queues, label.depth) {
                // null_blk has a queue for polled requests, which no row makes.
                let used = queues - u64::from(row.target.name.starts_with("null_blk"));
                assert!(row.depth * row.jobs <= used * depth, "{}", row.name);
                assert!(row.jobs >= used, "{}: a queue without a job", row.name);
            }
        }
    }
}
