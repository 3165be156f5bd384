//! Latency histograms at rest.

use std::time::Duration;

use crate::buckets;

/// How long requests took. Histograms add up, and subtract to those of an interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Histogram {
    /// Requests by bucket, up to the last one that is not empty.
    counts: Vec<u64>,
    /// Sum of the latencies in nanoseconds.
    sum: u64,
}

impl Histogram {
    pub(crate) fn of(mut counts: Vec<u64>, sum: u64) -> Self {
        counts.truncate(buckets::COUNT);
        let used = counts.iter().rposition(|n| *n > 0).map_or(0, |at| at + 1);
        counts.truncate(used);
        counts.shrink_to_fit();
        Self { counts, sum }
    }

    /// Adds a request.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let index = buckets::index_of(nanos);
        if self.counts.len() <= index {
            self.counts.resize(index + 1, 0);
        }
        self.counts[index] = self.counts[index].saturating_add(1);
        self.sum = self.sum.saturating_add(nanos);
    }

    /// Number of requests.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// Sum of the latencies.
    #[must_use]
    pub const fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The mean latency; zero without requests.
    #[must_use]
    pub fn mean(&self) -> Duration {
        Duration::from_nanos(self.sum.checked_div(self.count()).unwrap_or(0))
    }

    /// The latency that this share of the requests (0.0 to 1.0) does not exceed, within 3 % from 1 µs to 100 s; zero
    /// without requests.
    #[must_use]
    pub fn percentile(&self, share: f64) -> Duration {
        let count = self.count();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a rank among the requests, clamped to their number"
        )]
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0_u64;
        for (index, n) in self.counts.iter().enumerate() {
            seen = seen.saturating_add(*n);
            if seen >= rank {
                return Duration::from_nanos(buckets::middle_of(index));
            }
        }
        Duration::ZERO
    }

    /// The end of the longest request's bucket, at most 3.2 % above its latency; zero without requests.
    #[must_use]
    pub fn max(&self) -> Duration {
        let last = self.counts.iter().rposition(|n| *n > 0);
        last.map_or(Duration::ZERO, |at| {
            Duration::from_nanos(buckets::start_of(at + 1))
        })
    }

    /// Number of requests that took less than this, to the resolution of the buckets. Exact for powers of two of
    /// nanoseconds from 1.024 µs on.
    #[must_use]
    pub fn below(&self, latency: Duration) -> u64 {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let ends = buckets::index_of(nanos);
        let below = self.counts.iter().take(ends);
        below.fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The buckets that are not empty: the shortest latency of each, and its requests.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let all = self.counts.iter().copied().enumerate();
        let used = all.filter(|(_, n)| *n > 0);
        used.map(|(at, n)| (Duration::from_nanos(buckets::start_of(at)), n))
    }

    /// Adds the requests of another histogram.
    pub fn add(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (to, n) in self.counts.iter_mut().zip(&other.counts) {
            *to = to.saturating_add(*n);
        }
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// Takes away the requests of an earlier histogram of the same queue.
    pub fn subtract(&mut self, earlier: &Self) {
        for (from, n) in self.counts.iter_mut().zip(&earlier.counts) {
            *from = from.saturating_sub(*n);
        }
        let left = self.sum.saturating_sub(earlier.sum);
        *self = Self::of(std::mem::take(&mut self.counts), left);
    }
}

/// As JSON has it: the sum, and the buckets that are not empty.
#[cfg(feature = "serde")]
#[derive(serde::Serialize, serde::Deserialize)]
struct Sparse {
    sum_ns: u64,
    /// Pairs of a bucket's number and its requests.
    buckets: Vec<(u16, u64)>,
}

#[cfg(feature = "serde")]
impl serde::Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let used = (0_u16..).zip(&self.counts).filter(|(_, n)| **n > 0);
        let sparse = Sparse {
            sum_ns: self.sum,
            buckets: used.map(|(at, n)| (at, *n)).collect(),
        };
        sparse.serialize(serializer)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Histogram {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sparse = Sparse::deserialize(deserializer)?;
        let mut counts = vec![0_u64; buckets::COUNT];
        for (at, n) in sparse.buckets {
            let place = counts.get_mut(usize::from(at)).ok_or_else(|| {
                let last = buckets::COUNT - 1;
                serde::de::Error::custom(format!("bucket {at} is beyond the last one, {last}"))
            })?;
            *place = place.saturating_add(n);
        }
        Ok(Self::of(counts, sparse.sum_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    fn of(latencies: &[Duration]) -> Histogram {
        let mut histogram = Histogram::default();
        for latency in latencies {
            histogram.record(*latency);
        }
        histogram
    }

    fn close(shown: Duration, wanted: Duration) -> bool {
        shown.abs_diff(wanted) <= wanted.mul_f64(0.032)
    }

    #[test]
    fn percentiles_are_those_of_the_requests() {
        let latencies: Vec<_> = (1..=1000).map(|n| n * US).collect();
        let histogram = of(&latencies);
        assert_eq!(histogram.count(), 1000);
        for (share, wanted) in [
            (0.0, US),
            (0.5, 500 * US),
            (0.9, 900 * US),
            (0.999, 999 * US),
            (1.0, 1000 * US),
        ] {
            let shown = histogram.percentile(share);
            assert!(close(shown, wanted), "{share}: {shown:?}");
        }
        assert!(close(histogram.max(), 1000 * US));
        assert!(histogram.max() >= 1000 * US);
        assert_eq!(histogram.mean(), Duration::from_nanos(500_500));
        assert_eq!(histogram.below(Duration::from_nanos(1 << 19)), 524);
    }

    #[test]
    fn nothing_recorded_is_zero_everywhere() {
        let none = Histogram::default();
        assert_eq!(
            (none.count(), none.mean(), none.max(), none.percentile(0.5)),
            (0, Duration::ZERO, Duration::ZERO, Duration::ZERO)
        );
    }

    /// What was added is taken away again; an interval before the earlier one is empty, not an overflow.
    #[test]
    fn sums_and_differences_agree() {
        let (a, b) = (of(&[US, 70 * US]), of(&[3 * US, 900 * 1000 * US]));
        let mut sum = a.clone();
        sum.add(&b);
        assert_eq!(sum.count(), 4);
        let mut rest = sum.clone();
        rest.subtract(&b);
        assert_eq!(rest, a);
        rest.subtract(&sum);
        assert_eq!(rest, Histogram::default());
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_is_sparse_and_bounded() {
        let histogram = of(&[US, 5 * US, 5 * US]);
        let text = serde_json::to_string(&histogram).expect("JSON");
        assert_eq!(text, "{\"sum_ns\":11000,\"buckets\":[[31,1],[103,2]]}");
        assert_eq!(
            serde_json::from_str::<Histogram>(&text).expect("the same"),
            histogram
        );
        let beyond = "{\"sum_ns\":0,\"buckets\":[[896,1]]}";
        let error = serde_json::from_str::<Histogram>(beyond).expect_err("no such bucket");
        assert!(error.to_string().contains("beyond the last one"), "{error}");
    }
}
