//! The heat map: latencies over time, one column for each interval, denser where more requests are.

use std::collections::VecDeque;
use ublk_metrics::QueueSnapshot;

/// Bands of latencies: the first ends at 2 µs, each further one at twice the one before, the last has no end.
pub const BANDS: usize = 24;

/// Requests of an interval by band.
pub type Column = [u64; BANDS];

/// From few requests to many; readable without colour.
const SHADES: [char; 9] = ['.', ':', '-', '=', '+', '*', '#', '%', '@'];

/// The latencies of an interval.
pub fn column(total: &QueueSnapshot) -> Column {
    let mut column = [0; BANDS];
    for (latency, n) in total.ops.iter().flat_map(|op| op.latency.buckets()) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let power = (nanos | 1).ilog2().saturating_sub(10);
        let band = usize::try_from(power).unwrap_or(BANDS).min(BANDS - 1);
        column[band] += n;
    }
    column
}

/// A line of the map.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// The shortest latency of the line, in nanoseconds.
    pub from: u64,
    /// A shade for each interval, the latest last; `None` without requests.
    pub cells: Vec<Option<usize>>,
}

/// The character of a shade.
pub fn character(shade: usize) -> char {
    SHADES[shade.min(SHADES.len() - 1)]
}

/// Whether a shade is in the upper third.
pub const fn is_hot(shade: usize) -> bool {
    shade * 3 >= SHADES.len() * 2
}

/// The map of the latest `width` intervals on at most `height` lines, the longest latencies first. It has the bands that
/// occur and those between them; several share a line where the height does not suffice.
pub fn map(past: &VecDeque<Column>, width: usize, height: usize) -> Vec<Row> {
    let shown: Vec<&Column> = past.iter().skip(past.len().saturating_sub(width)).collect();
    let used = |band: &usize| shown.iter().any(|column| column[*band] > 0);
    let (Some(first), Some(last)) = ((0..BANDS).find(used), (0..BANDS).rfind(used)) else {
        return Vec::new();
    };
    let per_line = (last - first + 1).div_ceil(height.max(1));
    let starts: Vec<usize> = (first..=last).step_by(per_line).collect();
    let most = |column: &&Column| column.iter().sum::<u64>();
    let most = shown.iter().map(most).max().unwrap_or(0).max(1);
    let row = |start: &usize| {
        let end = (start + per_line).min(BANDS);
        let cell = |column: &&Column| shade(column[*start..end].iter().sum(), most);
        Row {
            from: if *start == 0 { 0 } else { 1 << (start + 10) },
            cells: shown.iter().map(cell).collect(),
        }
    };
    starts.iter().rev().map(row).collect()
}

/// By the logarithm of the number: a single slow request among a million is visible.
fn shade(n: u64, most: u64) -> Option<usize> {
    let power = n.checked_ilog2()? as usize;
    let highest = (most.ilog2() as usize).max(1);
    Some(
        (power * (SHADES.len() - 1))
            .div_ceil(highest)
            .min(SHADES.len() - 1),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use ublk_metrics::Operation;

    #[test]
    fn a_single_slow_request_is_visible_among_many() {
        let mut total = QueueSnapshot::new(0, 0);
        let latency = &mut total.op_mut(Operation::Read).latency;
        for _ in 0..100_000 {
            latency.record(Duration::from_micros(50));
        }
        latency.record(Duration::from_millis(300));
        let past = VecDeque::from([[0; BANDS], column(&total)]);
        let map = map(&past, 10, 30);
        let first = map.first().expect("the slowest");
        assert_eq!(
            (first.from, &first.cells[..]),
            (1 << 28, &[None, Some(0)][..])
        );
        let last = map.last().expect("the fastest");
        assert_eq!(
            (last.from, &last.cells[..]),
            (1 << 15, &[None, Some(8)][..])
        );
        assert_eq!(map.len(), 14);
        // Bands share lines where there are few.
        assert_eq!(super::map(&past, 1, 4).len(), 4);
        assert_eq!(super::map(&past, 1, 4)[0].cells, [Some(0)]);
    }

    #[test]
    fn nothing_has_no_map() {
        assert_eq!(map(&VecDeque::new(), 10, 10), []);
        assert_eq!(map(&VecDeque::from([[0; BANDS]]), 10, 10), []);
    }

    #[test]
    fn every_latency_has_a_band() {
        for (time, band) in [(Duration::ZERO, 0), (Duration::from_secs(3600), BANDS - 1)] {
            let mut total = QueueSnapshot::new(0, 0);
            total.op_mut(Operation::Write).latency.record(time);
            assert_eq!(column(&total)[band], 1, "{time:?}");
        }
    }
}
