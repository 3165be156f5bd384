//! Histograms that one thread writes while others read them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Histogram;
use crate::buckets;

/// A latency histogram with a single writer: plain loads and stores, no locked instruction.
///
/// A reader may see a request in the count and not yet in the sum, or the reverse. A second writer would lose counts,
/// and nothing worse.
pub struct LiveHistogram {
    counts: Box<[AtomicU64]>,
    /// Sum of the latencies in nanoseconds; wraps after 584 years of waiting.
    sum: AtomicU64,
}

impl Default for LiveHistogram {
    fn default() -> Self {
        Self {
            counts: (0..buckets::COUNT).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }
}

impl std::fmt::Debug for LiveHistogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl LiveHistogram {
    /// Records `requests` requests that took this long each.
    #[inline]
    pub fn record(&self, nanos: u64, requests: u64) {
        if let Some(count) = self.counts.get(buckets::index_of(nanos)) {
            add(count, requests);
            add(&self.sum, nanos.wrapping_mul(requests));
        }
    }

    /// What has been recorded.
    #[must_use]
    pub fn snapshot(&self) -> Histogram {
        let counts = self.counts.iter().map(|n| n.load(Ordering::Relaxed));
        Histogram::of(counts.collect(), self.sum.load(Ordering::Relaxed))
    }
}

#[inline]
fn add(to: &AtomicU64, n: u64) {
    // Relaxed, and no read-modify-write: there is one writer, and readers need no order.
    to.store(
        to.load(Ordering::Relaxed).wrapping_add(n),
        Ordering::Relaxed,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_reader_sees_what_was_written() {
        let live = LiveHistogram::default();
        live.record(1_000_000, 3);
        live.record(u64::MAX, 1);
        let seen = live.snapshot();
        assert_eq!(seen.count(), 4);
        assert!(
            seen.percentile(0.5).abs_diff(Duration::from_millis(1)) < Duration::from_micros(30)
        );
        // What is longer than the last bucket counts there.
        assert!(seen.max() > Duration::from_secs(100));
    }

    /// One thread writes, another reads: counts never go back, and none is lost.
    #[test]
    fn counts_only_grow_under_a_reader() {
        let live = LiveHistogram::default();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut last = 0;
                while last < 100_000 {
                    let now = live.snapshot().count();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            });
            for n in 0..100_000 {
                live.record(n % 5_000, 1);
            }
            reader.join().expect("counts grow");
        });
        assert_eq!(live.snapshot().count(), 100_000);
    }
}
