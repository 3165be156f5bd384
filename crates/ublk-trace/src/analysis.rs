//! Figures of a trace, gathered in one pass and in bounded memory.

mod timeline;
mod working_set;

#[cfg(feature = "picture")]
pub(crate) use timeline::class_begin;
pub use timeline::{Column, Timeline, percentiles};
pub use working_set::WorkingSet;

use crate::record::{Op, Record};
use crate::units::to_f64;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// The longest latency that is told apart from longer ones: an hour.
const MAX_LATENCY: u64 = 3_600_000_000_000;

/// The largest request that is told apart from larger ones.
const MAX_SIZE: u64 = 1 << 40;

/// Ends of requests that are remembered, per operation: so many interleaved streams are seen as sequential.
const STREAMS: usize = 32;

/// The distribution of a figure: of latencies in nanoseconds, of sizes in bytes. Percentiles are exact to three digits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// The mean.
    pub mean: f64,
    /// The smallest.
    pub min: u64,
    /// The median.
    pub p50: u64,
    /// Nine in ten are at most this.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl Distribution {
    /// The distribution of what a histogram holds; `None` if that is nothing.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        // The histogram rounds up; sizes that are powers of two stay what they are when it rounds down.
        let at = |share| histogram.lowest_equivalent(histogram.value_at_quantile(share));
        let max = histogram.lowest_equivalent(histogram.max());
        (!histogram.is_empty()).then(|| Self {
            // Of the middles of its buckets, which may be above the largest value.
            mean: histogram.mean().clamp(to_f64(histogram.min()), to_f64(max)),
            min: histogram.min(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max,
        })
    }
}

/// Values by percentile, for a picture: the number of nines (1 for 90 %, 2 for 99 %), and the value. It ends where a
/// single request decides.
#[must_use]
pub fn curve(histogram: &Histogram<u64>) -> Vec<(f64, u64)> {
    let most = to_f64(histogram.len().max(1)).log10().min(5.0);
    let nines = (0_u8..=100).map(|step| f64::from(step) * 0.05);
    let nines = nines.take_while(|nines| *nines <= most);
    let point = |nines: f64| {
        let share = 1.0 - 0.1_f64.powf(nines);
        (nines, histogram.value_at_quantile(share))
    };
    match histogram.is_empty() {
        true => Vec::new(),
        false => nines.map(point).collect(),
    }
}

/// A histogram of latencies in nanoseconds: three digits, up to an hour.
#[must_use]
pub fn latencies() -> Histogram<u64> {
    histogram(MAX_LATENCY)
}

fn histogram(max: u64) -> Histogram<u64> {
    Histogram::new_with_max(max, 3).unwrap_or_else(|_| unreachable!("bounds are constants"))
}

/// Figures of one operation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpSummary {
    /// The operation.
    pub op: Op,
    /// Number of requests.
    pub requests: u64,
    /// Bytes they cover.
    pub bytes: u64,
    /// Number of requests that failed.
    pub errors: u64,
    /// Share of requests that begin where one of the 32 before them of the same operation ended.
    pub sequential: f64,
    /// Their sizes in bytes; `None` for flushes.
    pub size: Option<Distribution>,
    /// Their latencies in nanoseconds; `None` if the trace has none.
    pub latency: Option<Distribution>,
    /// Latencies by percentile, as [`curve`] returns them.
    #[serde(skip)]
    pub curve: Vec<(f64, u64)>,
}

/// Requests of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SizeClass {
    /// The largest size of the class in bytes, a power of two; the classes below it hold the smaller ones.
    pub up_to: u64,
    /// Number of reads.
    pub reads: u64,
    /// Number of writes, zone appends included.
    pub writes: u64,
}

/// What is known of a trace once all of it was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Number of requests.
    pub requests: u64,
    /// Bytes that were read and written.
    pub bytes: u64,
    /// Nanoseconds from the first submission to the last completion.
    pub duration: u64,
    /// Number of requests that failed, by errno.
    pub errors: BTreeMap<u16, u64>,
    /// By operation, those that occur.
    pub ops: Vec<OpSummary>,
    /// Reads and writes by size, classes that occur.
    pub sizes: Vec<SizeClass>,
    /// Share of reads and writes that do not begin and end at a multiple of 4096 bytes.
    pub unaligned: f64,
    /// Requests by queue, the 64 lowest numbers that occur.
    pub queues: BTreeMap<u16, u64>,
    /// What reads and writes touch.
    pub working_set: Option<WorkingSet>,
    /// The largest mean depth of an interval of the timeline; `None` without latencies.
    pub peak_depth: Option<f64>,
    /// The mean number of requests in flight; `None` without latencies.
    pub mean_depth: Option<f64>,
    /// Figures over time.
    pub timeline: Timeline,
}

/// Takes the requests of a trace, in any order.
#[derive(Debug)]
pub struct Analysis {
    ops: [OpFigures; 8],
    errors: BTreeMap<u16, u64>,
    queues: BTreeMap<u16, u64>,
    sizes: BTreeMap<u32, (u64, u64)>,
    unaligned: u64,
    first: u64,
    last: u64,
    touched: working_set::Touched,
    timeline: timeline::Builder,
}

#[derive(Debug, Default)]
struct OpFigures {
    requests: u64,
    bytes: u64,
    errors: u64,
    sequential: u64,
    ends: VecDeque<u64>,
    sizes: Option<Histogram<u64>>,
    latencies: Option<Histogram<u64>>,
}

impl Default for Analysis {
    fn default() -> Self {
        Self {
            ops: Default::default(),
            errors: BTreeMap::new(),
            queues: BTreeMap::new(),
            sizes: BTreeMap::new(),
            unaligned: 0,
            first: u64::MAX,
            last: 0,
            touched: working_set::Touched::default(),
            timeline: timeline::Builder::default(),
        }
    }
}

impl Analysis {
    /// Takes a request into account. Records that are not [sound](Record::is_sound) are ignored.
    pub fn push(&mut self, record: &Record) {
        if !record.is_sound() {
            return;
        }
        self.first = self.first.min(record.time);
        self.last = self.last.max(record.completed());
        if let Some(figures) = self.ops.get_mut(record.op.index()) {
            figures.push(record);
        }
        if let Some(errno) = record.error {
            *self.errors.entry(errno.get()).or_default() += 1;
        }
        *self.queues.entry(record.queue).or_default() += 1;
        if self.queues.len() > 64 {
            self.queues.pop_last();
        }
        if record.op.moves_data() {
            let class = self.sizes.entry(class_of(record.len)).or_default();
            match record.op {
                Op::Read => class.0 += 1,
                _ => class.1 += 1,
            }
            let aligned = (record.offset | record.len).is_multiple_of(4096);
            self.unaligned += u64::from(!aligned);
            self.touched.push(record);
        }
        self.timeline.push(record);
    }

    /// The latencies of all requests that move data.
    #[must_use]
    pub fn data_latencies(&self) -> Histogram<u64> {
        let mut all = latencies();
        for op in Op::ALL.iter().filter(|op| op.moves_data()) {
            let figures = self.ops.get(op.index());
            if let Some(latencies) = figures.and_then(|f| f.latencies.as_ref()) {
                // Both have the same bounds.
                let _ = all.add(latencies);
            }
        }
        all
    }

    /// The figures.
    #[must_use]
    pub fn finish(self) -> Summary {
        let ops = Op::ALL.into_iter().zip(&self.ops);
        let ops: Vec<_> = ops
            .filter(|(_, f)| f.requests > 0)
            .map(|(op, f)| f.summary(op))
            .collect();
        let data = |op: &&OpSummary| op.op.moves_data();
        let requests = ops.iter().map(|op| op.requests).sum();
        let data_requests: u64 = ops.iter().filter(data).map(|op| op.requests).sum();
        let has_latency = ops.iter().any(|op| op.latency.is_some());
        let timeline = self.timeline.finish();
        let duration = self.last.saturating_sub(self.first);
        let busy: f64 = timeline.columns.iter().map(|c| c.in_flight_time).sum();
        let peak = timeline.columns.iter().map(|c| c.depth).fold(0.0, f64::max);
        Summary {
            requests,
            bytes: sum(ops.iter().filter(data).map(|op| op.bytes)),
            duration,
            errors: self.errors,
            sizes: self.sizes.into_iter().map(size_class).collect(),
            unaligned: share(self.unaligned, data_requests),
            queues: self.queues,
            working_set: self.touched.finish(),
            peak_depth: has_latency.then_some(peak),
            mean_depth: (has_latency && duration > 0).then(|| busy / to_f64(duration)),
            timeline,
            ops,
        }
    }
}

impl OpFigures {
    fn push(&mut self, record: &Record) {
        self.requests += 1;
        self.bytes = self.bytes.saturating_add(record.len);
        self.errors += u64::from(record.error.is_some());
        if record.len > 0 {
            self.sequential += u64::from(self.ends.contains(&record.offset));
            // A stream that goes on has one end, not one for each of its requests.
            self.ends.retain(|end| *end != record.offset);
            self.ends.push_back(record.end());
            if self.ends.len() > STREAMS {
                self.ends.pop_front();
            }
            let sizes = self.sizes.get_or_insert_with(|| histogram(MAX_SIZE));
            sizes.saturating_record(record.len);
        }
        if let Some(latency) = record.latency {
            let latencies = self.latencies.get_or_insert_with(latencies);
            latencies.saturating_record(latency);
        }
    }

    fn summary(&self, op: Op) -> OpSummary {
        OpSummary {
            op,
            requests: self.requests,
            bytes: self.bytes,
            errors: self.errors,
            sequential: share(self.sequential, self.requests),
            size: self.sizes.as_ref().and_then(Distribution::of),
            latency: self.latencies.as_ref().and_then(Distribution::of),
            curve: self.latencies.as_ref().map(curve).unwrap_or_default(),
        }
    }
}

/// The exponent of the smallest power of two that a size fits into.
fn class_of(len: u64) -> u32 {
    len.max(1).next_power_of_two().trailing_zeros()
}

fn size_class((exponent, (reads, writes)): (u32, (u64, u64))) -> SizeClass {
    SizeClass {
        up_to: 1 << exponent,
        reads,
        writes,
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    to_f64(part) / to_f64(whole)
}

fn sum(values: impl Iterator<Item = u64>) -> u64 {
    values.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests;
