//! The sizes of batches.

/// How many requests a queue's thread found each time it woke: batches by powers of two of their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Batches {
    /// Batches of 1, 2 to 3, 4 to 7 requests, …, 4096 and more.
    pub counts: [u64; Self::SIZES],
    /// Requests in them.
    pub requests: u64,
}

impl Batches {
    /// Number of sizes that are told apart.
    pub const SIZES: usize = 13;

    /// The place in `counts` of a batch with this many requests, at least one.
    #[inline]
    #[must_use]
    pub const fn index_of(requests: u64) -> usize {
        let power = (requests | 1).ilog2() as usize;
        if power < Self::SIZES {
            power
        } else {
            Self::SIZES - 1
        }
    }

    /// Number of batches.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, n| sum.saturating_add(*n))
    }

    /// The mean size; zero without batches.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
    pub fn mean(&self) -> f64 {
        match self.count() {
            0 => 0.0,
            count => self.requests as f64 / count as f64,
        }
    }

    /// Adds those of another queue.
    pub fn add(&mut self, other: &Self) {
        for (to, n) in self.counts.iter_mut().zip(&other.counts) {
            *to = to.saturating_add(*n);
        }
        self.requests = self.requests.saturating_add(other.requests);
    }

    /// Takes away those of an earlier time.
    pub fn subtract(&mut self, earlier: &Self) {
        for (from, n) in self.counts.iter_mut().zip(&earlier.counts) {
            *from = from.saturating_sub(*n);
        }
        self.requests = self.requests.saturating_sub(earlier.requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_placed_by_size() {
        for (requests, place) in [(1, 0), (2, 1), (3, 1), (4, 2), (4096, 12), (u64::MAX, 12)] {
            assert_eq!(Batches::index_of(requests), place, "{requests}");
        }
        let mut batches = Batches::default();
        assert!(batches.mean().abs() < f64::EPSILON);
        batches.counts[1] = 2;
        batches.requests = 5;
        assert!((batches.mean() - 2.5).abs() < f64::EPSILON);
    }
}
