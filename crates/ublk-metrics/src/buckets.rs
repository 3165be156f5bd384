//! The buckets of latencies: log-linear, 32 in each power of two.
//!
//! A bucket of latencies from 1.024 µs on is a thirty-second of its power of two wide, so that its middle is less than
//! 1.6 % away from any latency in it. Shorter ones fall into 32 buckets of 32 ns. The last bucket takes whatever is
//! longer than 137 s.

/// Bits of a latency that its bucket keeps after the first.
const BITS: u32 = 5;

/// Power of two of the first latency, in nanoseconds, with the full resolution.
const FIRST: u32 = 10;

/// Powers of two with the full resolution: from 2^10 ns up to 2^37 ns, 137 s.
const POWERS: u32 = 27;

/// Number of buckets.
pub const COUNT: usize = ((POWERS + 1) << BITS) as usize;

/// The bucket of a latency in nanoseconds.
#[inline]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "at most 63, or below 32: the shifts leave 6 and 5 bits"
)]
pub const fn index_of(nanos: u64) -> usize {
    let power = (nanos | 1).ilog2();
    if power < FIRST {
        return (nanos >> (FIRST - BITS)) as usize;
    }
    // From 32 to 63.
    let digits = (nanos >> (power - BITS)) as usize;
    let index = (((power - FIRST) as usize) << BITS) + digits;
    if index < COUNT { index } else { COUNT - 1 }
}

/// The shortest latency of a bucket in nanoseconds. For [`COUNT`], the end of the last bucket.
#[must_use]
pub const fn start_of(index: usize) -> u64 {
    let index = if index < COUNT { index } else { COUNT };
    let (power, digits) = (index >> BITS, index as u64 & ((1 << BITS) - 1));
    if power == 0 {
        return digits << (FIRST - BITS);
    }
    (digits + (1 << BITS)) << (FIRST as usize - BITS as usize + power - 1)
}

/// The middle of a bucket in nanoseconds.
#[must_use]
pub const fn middle_of(index: usize) -> u64 {
    u64::midpoint(start_of(index), start_of(index + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bucket begins where the one before it ends, and holds what it says.
    #[test]
    fn buckets_are_contiguous() {
        assert_eq!(start_of(0), 0);
        for index in 0..COUNT {
            let (start, end) = (start_of(index), start_of(index + 1));
            assert!(start < end, "{index}");
            assert_eq!(index_of(start), index);
            assert_eq!(index_of(end - 1), index);
        }
        assert_eq!(index_of(u64::MAX), COUNT - 1);
        assert_eq!(start_of(COUNT), 1 << 37);
    }

    /// From 1 µs to 100 s the middle of a latency's bucket is at most 3 % away from it.
    #[test]
    fn the_error_is_at_most_three_per_cent() {
        bolero::check!()
            .with_type::<u64>()
            .for_each(|random: &u64| {
                // Even over the powers of two.
                let nanos = (random >> (random % 54)).clamp(1_000, 100_000_000_000);
                let shown = middle_of(index_of(nanos));
                assert!(shown.abs_diff(nanos) * 100 <= nanos * 3, "{nanos}: {shown}");
            });
    }
}
