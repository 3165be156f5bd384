//! What reads and writes touch, and how unevenly.

use crate::analysis::share;
use crate::record::{Op, Record};
use crate::units::to_f64;
use serde::Serialize;
use std::collections::HashMap;

/// The regions that are counted at most; with more, regions are made larger.
const MAX_REGIONS: usize = 1 << 17;

/// The size of a region at first, as an exponent.
const SMALLEST: u32 = 12;

/// The most regions that one request is counted in.
const MAX_SPAN: u64 = 4096;

/// The largest request that counts, in bytes: a larger one is no transfer of data.
const MAX_LEN: u64 = 1 << 30;

/// What reads and writes touch. A region counts as touched as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct WorkingSet {
    /// The size of a region in bytes: 4096, or more if there were too many to count.
    pub region: u64,
    /// Bytes that were touched.
    pub bytes: u64,
    /// Bytes that were read.
    pub read: u64,
    /// Bytes that were written.
    pub written: u64,
    /// From the first touched byte to the last one.
    pub span: u64,
    /// The share of the touched bytes that half of all accesses go to.
    pub hot50: f64,
    /// The share that 90 % of all accesses go to.
    pub hot90: f64,
    /// How often a touched region is accessed, on average.
    pub accesses: f64,
}

#[derive(Debug, Default)]
struct Region {
    reads: u32,
    writes: u32,
}

#[derive(Debug)]
pub(super) struct Touched {
    shift: u32,
    regions: HashMap<u64, Region>,
}

impl Default for Touched {
    fn default() -> Self {
        Self {
            shift: SMALLEST,
            regions: HashMap::new(),
        }
    }
}

impl Touched {
    pub fn push(&mut self, record: &Record) {
        if record.len == 0 || record.len > MAX_LEN {
            return;
        }
        let last = record.end() - 1;
        while (last >> self.shift) - (record.offset >> self.shift) >= MAX_SPAN {
            self.coarsen();
        }
        for region in record.offset >> self.shift..=last >> self.shift {
            let region = self.regions.entry(region).or_default();
            let count = match record.op {
                Op::Read => &mut region.reads,
                _ => &mut region.writes,
            };
            *count = count.saturating_add(1);
        }
        while self.regions.len() > MAX_REGIONS {
            self.coarsen();
        }
    }

    /// Doubles the size of a region.
    fn coarsen(&mut self) {
        self.shift += 1;
        let mut merged: HashMap<u64, Region> = HashMap::with_capacity(self.regions.len() / 2);
        for (index, region) in self.regions.drain() {
            let into = merged.entry(index >> 1).or_default();
            into.reads = into.reads.saturating_add(region.reads);
            into.writes = into.writes.saturating_add(region.writes);
        }
        self.regions = merged;
    }

    pub fn finish(self) -> Option<WorkingSet> {
        let size = 1 << self.shift;
        let (first, last) = (self.regions.keys().min()?, self.regions.keys().max()?);
        let span = (last - first + 1).saturating_mul(size);
        let regions = self.regions.values();
        let bytes = |n: usize| u64::try_from(n).unwrap_or(u64::MAX).saturating_mul(size);
        let read = regions.clone().filter(|r| r.reads > 0).count();
        let written = regions.clone().filter(|r| r.writes > 0).count();
        let mut counts: Vec<u64> = regions
            .map(|r| u64::from(r.reads) + u64::from(r.writes))
            .collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let total: u64 = counts.iter().sum();
        let touched = u64::try_from(counts.len()).unwrap_or(u64::MAX);
        Some(WorkingSet {
            region: size,
            bytes: bytes(counts.len()),
            read: bytes(read),
            written: bytes(written),
            span,
            hot50: share(hot(&counts, to_f64(total) * 0.5), touched),
            hot90: share(hot(&counts, to_f64(total) * 0.9), touched),
            accesses: share(total, touched),
        })
    }
}

/// How many of the most frequent make up a number of accesses.
fn hot(counts: &[u64], wanted: f64) -> u64 {
    let mut sum = 0;
    let taken = counts.iter().take_while(|count| {
        let more = to_f64(sum) < wanted;
        sum += **count;
        more
    });
    u64::try_from(taken.count()).unwrap_or(u64::MAX)
}
