//! Figures over time: a bounded number of intervals, which grow with the trace.

use crate::record::{Op, Record};
use crate::units::to_f64;
use serde::Serialize;

/// The intervals of a timeline at most; at the end at least half of them are in use.
const COLUMNS: usize = 256;

/// The rows of the map of addresses.
pub(crate) const ROWS: usize = 64;

/// Latencies are counted in classes, four for each factor of two, from 2^7 ns on.
pub(crate) const CLASSES: usize = 132;
const SMALLEST: u32 = 7;

/// Figures of one interval.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Column {
    /// When it begins: nanoseconds since the trace began.
    pub at: u64,
    /// Number of reads that began in it.
    pub reads: u64,
    /// Number of writes that began in it, zone appends included.
    pub writes: u64,
    /// Number of other requests that began in it.
    pub others: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Number of requests that failed.
    pub errors: u64,
    /// The mean number of requests in flight; 0 without latencies.
    pub depth: f64,
    /// The median latency of the requests that began in it in nanoseconds, with an error of at most 19 %.
    pub p50: Option<u64>,
    /// The same of 99 %.
    pub p99: Option<u64>,
    /// Nanoseconds of all requests in it together.
    #[serde(skip)]
    pub(crate) in_flight_time: f64,
    /// Requests by class of latency.
    #[serde(skip)]
    pub(crate) latencies: Vec<u32>,
    /// Reads and writes by address.
    #[serde(skip)]
    pub(crate) addresses: Vec<u32>,
}

/// Figures over time.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Timeline {
    /// The length of an interval in nanoseconds.
    pub interval: u64,
    /// The intervals, from the begin of the trace to its last request.
    pub columns: Vec<Column>,
    /// Bytes of a row of the map of addresses.
    #[serde(skip)]
    pub(crate) row: u64,
}

/// Where a latency is counted.
pub(crate) fn class_of(latency: u64) -> usize {
    let latency = latency.max(1 << SMALLEST);
    let octave = latency.ilog2();
    let quarter = (latency >> (octave - 2)) & 3;
    let class = u64::from(octave - SMALLEST) * 4 + quarter;
    usize::try_from(class).unwrap_or(CLASSES).min(CLASSES - 1)
}

/// The smallest latency of a class in nanoseconds.
pub(crate) fn class_begin(class: usize) -> u64 {
    let class = u64::try_from(class).unwrap_or(0);
    (4 + class % 4) << (class / 4 + u64::from(SMALLEST) - 2)
}

#[derive(Debug)]
pub(super) struct Builder {
    columns: Vec<Figures>,
    /// The length of an interval as an exponent.
    width: u32,
    /// The length of a row of addresses as an exponent.
    row: u32,
}

#[derive(Debug, Clone)]
struct Figures {
    column: Column,
    /// Requests that are in flight from the begin of this interval on, less those that no longer are.
    begun: i64,
    /// Nanoseconds of requests that are in flight for a part of the interval, and all of what was merged.
    time: f64,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            column: Column {
                latencies: vec![0; CLASSES],
                addresses: vec![0; ROWS],
                ..Column::default()
            },
            begun: 0,
            time: 0.0,
        }
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            columns: vec![Figures::default(); COLUMNS],
            width: 10,
            row: 9,
        }
    }
}

impl Builder {
    pub fn push(&mut self, record: &Record) {
        while self.place(record.completed()) >= COLUMNS {
            self.widen();
        }
        let moves = record.op.moves_data() && record.len > 0;
        while moves && (record.end() - 1) >> self.row >= ROWS as u64 {
            self.double_rows();
        }
        let at = self.place(record.time);
        let row = usize::try_from(record.offset >> self.row).unwrap_or(0);
        let Some(figures) = self.columns.get_mut(at) else {
            return;
        };
        let column = &mut figures.column;
        match record.op {
            Op::Read => {
                column.reads += 1;
                column.read_bytes = column.read_bytes.saturating_add(record.len);
            }
            Op::Write | Op::ZoneAppend => {
                column.writes += 1;
                column.write_bytes = column.write_bytes.saturating_add(record.len);
            }
            _ => column.others += 1,
        }
        column.errors += u64::from(record.error.is_some());
        if moves && let Some(count) = column.addresses.get_mut(row) {
            *count = count.saturating_add(1);
        }
        if let Some(latency) = record.latency {
            if let Some(count) = column.latencies.get_mut(class_of(latency)) {
                *count = count.saturating_add(1);
            }
            self.in_flight(record.time, record.completed());
        }
    }

    /// A request in flight: in parts of its first and last interval, and all of those between.
    fn in_flight(&mut self, begin: u64, end: u64) {
        let (first, last) = (self.place(begin), self.place(end));
        let inside = |time: u64| time & ((1 << self.width) - 1);
        let (after, before) = (
            to_f64((1 << self.width) - inside(begin)),
            to_f64(inside(end)),
        );
        if first == last {
            self.add(first, to_f64(end - begin), 0);
            return;
        }
        self.add(first, after, 0);
        self.add(first + 1, 0.0, 1);
        self.add(last, before, -1);
    }

    fn add(&mut self, place: usize, time: f64, begun: i64) {
        if let Some(figures) = self.columns.get_mut(place) {
            figures.time += time;
            figures.begun += begun;
        }
    }

    fn place(&self, time: u64) -> usize {
        usize::try_from(time >> self.width).unwrap_or(usize::MAX)
    }

    /// Turns requests in flight through whole intervals into their time.
    fn settle(&mut self) {
        let mut depth = 0_i64;
        let width = to_f64(1 << self.width);
        for figures in &mut self.columns {
            depth += std::mem::take(&mut figures.begun);
            figures.time += to_f64(depth.max(0).cast_unsigned()) * width;
        }
    }

    /// Doubles the length of an interval.
    fn widen(&mut self) {
        self.settle();
        let mut merged = Vec::with_capacity(COLUMNS);
        for pair in self.columns.chunks(2) {
            let mut both = Figures::default();
            for figures in pair {
                both.merge(figures);
            }
            merged.push(both);
        }
        merged.resize(COLUMNS, Figures::default());
        self.columns = merged;
        self.width += 1;
    }

    fn double_rows(&mut self) {
        for figures in &mut self.columns {
            let rows = &mut figures.column.addresses;
            let mut merged: Vec<u32> = rows
                .chunks(2)
                .map(|pair| pair.iter().fold(0, |sum: u32, n| sum.saturating_add(*n)))
                .collect();
            merged.resize(ROWS, 0);
            *rows = merged;
        }
        self.row += 1;
    }

    pub fn finish(mut self) -> Timeline {
        self.settle();
        let is_used = |f: &Figures| f.time > 0.0 || f.column.requests() > 0;
        let used = self.columns.iter().rposition(is_used).map_or(0, |n| n + 1);
        self.columns.truncate(used);
        let width = 1 << self.width;
        let columns = self.columns.into_iter().zip(0_u64..).map(|(figures, n)| {
            let mut column = figures.column;
            column.at = n << self.width;
            column.in_flight_time = figures.time;
            column.depth = figures.time / to_f64(width);
            column.p50 = quantile(&column.latencies, 0.5);
            column.p99 = quantile(&column.latencies, 0.99);
            column
        });
        Timeline {
            interval: width,
            columns: columns.collect(),
            row: 1 << self.row,
        }
    }
}

impl Figures {
    fn merge(&mut self, other: &Self) {
        let (into, from) = (&mut self.column, &other.column);
        into.reads += from.reads;
        into.writes += from.writes;
        into.others += from.others;
        into.errors += from.errors;
        into.read_bytes = into.read_bytes.saturating_add(from.read_bytes);
        into.write_bytes = into.write_bytes.saturating_add(from.write_bytes);
        let add = |into: &mut [u32], from: &[u32]| {
            for (into, from) in into.iter_mut().zip(from) {
                *into = into.saturating_add(*from);
            }
        };
        add(&mut into.latencies, &from.latencies);
        add(&mut into.addresses, &from.addresses);
        self.time += other.time;
    }
}

impl Column {
    /// Number of requests that began in it.
    #[must_use]
    pub const fn requests(&self) -> u64 {
        self.reads + self.writes + self.others
    }
}

/// Median and 99th percentile of the latencies of several intervals in nanoseconds, with an error of at most 19 %.
#[must_use]
pub fn percentiles(columns: &[Column]) -> (Option<u64>, Option<u64>) {
    let mut classes = vec![0_u32; CLASSES];
    for column in columns {
        for (sum, n) in classes.iter_mut().zip(&column.latencies) {
            *sum = sum.saturating_add(*n);
        }
    }
    (quantile(&classes, 0.5), quantile(&classes, 0.99))
}

/// The middle of the class that a share of all latencies lies in or below.
fn quantile(classes: &[u32], share: f64) -> Option<u64> {
    let total: u64 = classes.iter().map(|n| u64::from(*n)).sum();
    if total == 0 {
        return None;
    }
    let wanted = (to_f64(total) * share).max(1.0);
    let mut sum = 0_u64;
    let class = classes.iter().position(|n| {
        sum += u64::from(*n);
        to_f64(sum) >= wanted
    })?;
    Some(u64::midpoint(class_begin(class), class_begin(class + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_quarters_of_octaves() {
        for class in 0..CLASSES - 1 {
            let begin = class_begin(class);
            assert_eq!(class_of(begin), class);
            assert_eq!(class_of(class_begin(class + 1) - 1), class);
        }
        assert_eq!((class_of(0), class_of(u64::MAX)), (0, CLASSES - 1));
        assert_eq!(class_begin(4), 256);
    }

    /// The time of requests in flight is the same however often intervals were merged.
    #[test]
    fn depth_is_exact_across_merges() {
        bolero::check!()
            .with_type::<Vec<(u32, u32)>>()
            .for_each(|requests| {
                let mut builder = Builder::default();
                let mut wanted = 0.0;
                for (time, latency) in requests {
                    wanted += f64::from(*latency);
                    builder.push(&Record {
                        time: (*time).into(),
                        op: Op::Flush,
                        offset: 0,
                        len: 0,
                        queue: 0,
                        latency: Some((*latency).into()),
                        error: None,
                    });
                }
                let timeline = builder.finish();
                let found: f64 = timeline.columns.iter().map(|c| c.in_flight_time).sum();
                assert!((found - wanted).abs() <= wanted * 1e-9, "{found} {wanted}");
                assert!(timeline.columns.iter().all(|c| c.depth >= 0.0));
            });
    }
}
