//! Selects the rows of a run.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::Options;
use super::limits::Limits;
use super::rows::{self, Row};
use super::times::Timed;
use crate::guest::accel::Accel;

/// The rows of a run.
#[derive(Debug, Default)]
pub struct Selection {
    /// Counted in a guest with one CPU.
    pub counted: Vec<Row>,
    /// Network block devices, counted in a guest with one CPU and an image of their own.
    pub network: Vec<Row>,
    /// Counted in a guest with two CPUs.
    pub two_cpus: Vec<Row>,
    /// Wall-clock rows.
    pub wall: Vec<Row>,
    /// Times of single events.
    pub timed: Vec<Timed>,
    /// Rows that are left out here, and why.
    pub skipped: Vec<(String, String)>,
}

impl Selection {
    /// Applies the options.
    ///
    /// # Errors
    /// No row has such a name.
    pub fn new(options: &Options, limits: &Limits) -> Result<Self> {
        let named = |rows: Vec<Row>| -> Vec<Row> {
            // A floor comes with the row that it is the floor of.
            let beside = |row: &Row| row.floor_of().is_some_and(|name| options.wants(&name));
            let wanted = |row: &Row| options.wants(&row.name) || beside(row);
            rows.into_iter().filter(wanted).collect()
        };
        let mut all = Self::default();
        if options.ci {
            all.counted = named(rows::counted());
            let limited = |row: &Row| limits.icount.iter().any(|limit| limit.row == row.name);
            all.counted.retain(limited);
            all.network = named(rows::network());
            all.network.retain(limited);
            all.two_cpus = named(rows::two_cpus());
        }
        if options.icount {
            all.counted = named(rows::counted());
            all.network = named(rows::network());
            all.two_cpus = named(rows::two_cpus());
        }
        if options.wall {
            all.wall = named(rows::wall());
        }
        // These are part of every run except those limited to other rows.
        if !options.ci && (options.icount || !options.wall) {
            let wanted = |timed: &Timed| options.wants(timed.name());
            all.timed = Timed::ALL.into_iter().filter(wanted).collect();
        }
        if all.all().is_empty() && all.timed.is_empty() {
            // A name consists of its target and its job; each of both once.
            let halves = |rows: &[Row]| {
                let (mut targets, mut works) = (BTreeSet::new(), BTreeSet::new());
                for (target, work) in rows.iter().filter_map(|row| row.name.split_once('-')) {
                    targets.insert(target.to_owned());
                    works.insert(work.to_owned());
                }
                let join = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
                format!("  {}\neach with some of\n  {}", join(targets), join(works))
            };
            bail!(
                "no row has {:?} in its name, which is a target, a dash and a work; with --icount there are\n{}\n\
                 with --wall\n{}\nalways {}",
                options.filter.join(" or "),
                halves(&[rows::counted(), rows::network(), rows::two_cpus()].concat()),
                halves(&rows::wall()),
                Timed::ALL.map(Timed::name).join(", "),
            );
        }
        Ok(all)
    }

    /// All rows except times of single events.
    pub fn all(&self) -> Vec<Row> {
        [&self.counted[..], &self.network, &self.two_cpus, &self.wall].concat()
    }

    /// Whether something is behind a network.
    pub fn is_network(&self) -> bool {
        let mut rows = self.network.iter().chain(&self.wall);
        rows.any(Row::is_network) || self.timed.iter().any(|timed| timed.is_network())
    }

    /// Leaves out the rows of a server program.
    pub fn skip(&mut self, program: &str, why: &str) {
        let theirs = |row: &Row| row.target.server.starts_with(program);
        for rows in [
            &mut self.counted,
            &mut self.network,
            &mut self.two_cpus,
            &mut self.wall,
        ] {
            let names = rows.iter().filter(|row| theirs(row));
            self.skipped
                .extend(names.map(|row| (row.name.clone(), why.to_owned())));
            rows.retain(|row| !theirs(row));
        }
    }
}

/// Selects the reduced set in emulation, whose times mean little.
pub fn for_accel(rows: &[Row], accel: Accel) -> Vec<Row> {
    if accel == Accel::Kvm {
        return rows.to_vec();
    }
    println!(
        "software emulation: time in this guest is the emulator's, and says little about any \
         machine; only the reduced set is measured"
    );
    let reduced: Vec<Row> = rows.iter().filter(|row| row.reduced).cloned().collect();
    // A filter that excludes the whole reduced set selects the rows it names.
    if reduced.is_empty() {
        return rows.to_vec();
    }
    reduced
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::limits::Limits;
    use super::super::times::Timed;
    use super::Selection;

    fn selected(icount: bool, filter: &[&str]) -> Selection {
        let filter: Vec<_> = filter.iter().map(|part| (*part).to_owned()).collect();
        let options = Options {
            icount,
            ci: false,
            ..Options::short(&filter)
        };
        Selection::new(&options, &Limits::load().unwrap()).unwrap()
    }

    fn names(selection: &Selection) -> Vec<String> {
        selection.all().into_iter().map(|row| row.name).collect()
    }

    #[test]
    fn a_floor_is_selected_with_its_row_and_alone() {
        let both = [
            "nbd_tcp-1m-read-qd4",
            "kernel_nbd_tcp-1m-read-qd4",
            "floor_tcp-1m-read-qd4",
        ];
        assert_eq!(names(&selected(true, &["nbd_tcp-1m-read"])), both);
        assert_eq!(names(&selected(true, &["floor_tcp-1m-read"])), both[2..]);
        assert!(
            names(&selected(true, &["nbd_unix_batch"]))
                .iter()
                .all(|name| name.starts_with("nbd_"))
        );
    }

    /// The short count has no limit for a floor.
    #[test]
    fn the_short_count_has_no_floor() {
        let short = Selection::new(&Options::short(&[]), &Limits::load().unwrap()).unwrap();
        assert!(names(&short).contains(&"nbd_unix-4k-randread-qd64".to_owned()));
        assert!(!names(&short).iter().any(|name| name.starts_with("floor_")));
        assert!(short.timed.is_empty() && short.is_network());
    }

    #[test]
    fn times_are_part_of_every_run_that_is_not_limited_to_others() {
        for icount in [false, true] {
            assert_eq!(selected(icount, &[]).timed, Timed::ALL);
            let nbd = selected(icount, &["nbd-reconnect", "add-nbd"]);
            assert_eq!(nbd.timed, [Timed::UsableNbd, Timed::Reconnect]);
            assert!(nbd.is_network() && nbd.all().is_empty());
            let local = selected(icount, &["add-to-usable"]);
            assert!(local.timed == [Timed::Usable] && !local.is_network());
        }
        assert!(selected(true, &["null-4k"]).timed.is_empty());
    }
}
