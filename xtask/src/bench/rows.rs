//! The rows of the benchmark: targets, and the fio jobs on them.

mod targets;
mod works;

use std::fmt::Write;

use serde::Serialize;

use super::label::Label;
pub use targets::{EXAMPLE, FLOOR, KUBLK, LIBUBLK, NBD, Target};
use works::Work;

/// How a row is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Instructions, in a guest with this many CPUs.
    Counted {
        /// Number of CPUs of the guest.
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
    /// The target device.
    pub target: Target,
    /// Arguments of fio; none for a client without a device.
    pub fio: String,
    /// The work of a client without a device.
    pub floor: String,
    /// Jobs of fio.
    pub jobs: u64,
    /// Requests that each job keeps in flight.
    pub depth: u64,
    /// Difference in I/Os of each job between the two runs of a count: start-up is in both and cancels out.
    pub ios: u64,
    /// Duration of a wall-clock run in seconds.
    pub seconds: u64,
    /// Part of the reduced set, for accelerators whose times mean little.
    pub reduced: bool,
}

impl Row {
    fn new(target: &Target, work: &Work, kind: Kind) -> Self {
        let (fio, floor) = match target.floor.as_str() {
            "" => (work.fio(kind) + &target.client, String::new()),
            at => (String::new(), work.floor(at)),
        };
        Self {
            name: format!("{}-{}", target.name, work.name),
            kind,
            target: target.clone(),
            fio,
            floor,
            jobs: work.jobs,
            depth: work.depth,
            ios: work.ios,
            seconds: work.seconds,
            reduced: work.reduced && target.reduced,
        }
    }

    /// Whether its device is behind a network.
    pub fn is_network(&self) -> bool {
        let mut prepare = self.target.prepare.iter();
        prepare.any(|words| words.starts_with("nbdkit "))
    }

    /// Whether its server is behind a network card.
    pub fn has_card(&self) -> bool {
        let mut prepare = self.target.prepare.iter();
        prepare.any(|words| words.starts_with("nbdkit card:"))
    }

    /// The row with a device whose work it does without one.
    pub fn floor_of(&self) -> Option<String> {
        let rest = self.name.strip_prefix(FLOOR)?;
        Some(format!("{NBD}{rest}"))
    }

    /// The row's description of its device.
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
    for target in targets::special() {
        for work in works::special(target.is_zoned()) {
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

/// All rows of network block devices, which are counted in a guest with one CPU and an image of their own; then those
/// of a client without a device, which do not shift the others there.
pub fn network() -> Vec<Row> {
    let kind = Kind::Counted { cpus: 1 };
    let mut rows = Vec::new();
    for target in targets::network() {
        for work in works::network() {
            rows.push(Row::new(&target, &work, kind));
        }
    }
    rows
}

/// All rows that are counted in a guest with two CPUs.
pub fn two_cpus() -> Vec<Row> {
    let kind = Kind::Counted { cpus: 2 };
    targets::queues()
        .iter()
        .zip(works::jobs())
        .map(|(target, work)| Row::new(target, &work, kind))
        .collect()
}

/// All wall-clock rows.
pub fn wall() -> Vec<Row> {
    let mut rows = Vec::new();
    for target in targets::wall() {
        for work in works::wall(target.jobs) {
            rows.push(Row::new(&target, &work, Kind::Wall));
        }
    }
    rows.push(Row::new(&targets::scaling(), &works::scaling(), Kind::Wall));
    for target in targets::connections() {
        rows.push(Row::new(&target, &works::connections(), Kind::Wall));
    }
    for target in targets::busy() {
        rows.push(Row::new(&target, &works::busy(), Kind::Wall));
    }
    rows
}

/// Block sizes, in KiB, of the rows for every size.
pub fn sizes() -> [u64; 8] {
    works::SIZES
}

/// The file with the guest's instructions.
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
            ("beside", &row.target.beside),
            ("device", &row.target.device),
            ("queue", &row.target.queue),
            ("loop", &row.target.looped),
            ("kernel-nbd", &row.target.kernel_nbd),
            ("floor", &row.floor),
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

#[cfg(test)]
mod tests {
    use super::{Row, counted, network, plan, two_cpus, wall};

    fn all() -> Vec<Row> {
        [counted(), network(), two_cpus(), wall()].concat()
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
        let text = plan(&network());
        let row = "row floor_tcp-1m-write-qd4\nprepare nbdkit 10809 256\nfloor 10809 write 1m 4\njobs 1\nios 160\n";
        assert!(text.contains(row), "{text}");
    }

    /// Every row of an NBD device in copy mode without batches has its floor, of the same length.
    #[test]
    fn a_floor_is_beside_its_row() {
        let rows = network();
        let floors: Vec<_> = rows.iter().filter(|row| !row.floor.is_empty()).collect();
        assert_eq!(floors.len(), 30);
        for floor in floors {
            let name = floor.floor_of().unwrap();
            let row = rows.iter().find(|row| row.name == name).unwrap();
            assert_eq!((row.ios, row.depth), (floor.ios, floor.depth), "{name}");
            assert_eq!(row.target.prepare, floor.target.prepare, "{name}");
            assert!(floor.fio.is_empty() && row.floor_of().is_none());
        }
    }

    /// L92 More requests in flight than a device has tags would measure waiting, and fewer jobs than queues would
    /// measure one queue under another name.
    #[test]
    fn l92_no_row_asks_for_more_than_its_device_has() {
        for row in all() {
            let label = row.label();
            if let (Some(queues), Some(depth)) = (label.queues, label.depth) {
                // null_blk has a queue for polled requests, which no row sends.
                let used = queues - u64::from(row.target.name.starts_with("null_blk"));
                assert!(row.depth * row.jobs <= used * depth, "{}", row.name);
                assert!(row.jobs >= used, "{}: a queue without a job", row.name);
            }
        }
    }
}
