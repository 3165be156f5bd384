//! Scaling with several queues, from rows with one and with two.

use super::figures::Figure;
use super::limits::Scaling;
use super::wall::Wall;

/// The rows to compare: instructions in a guest with two CPUs.
pub const COUNTED: [&str; 2] = [
    "smp_null_1q-4k-randread-qd64-1j",
    "smp_null_2q-4k-randread-qd64-2j",
];
const ONE: &str = COUNTED[0];
const TWO: &str = COUNTED[1];
/// The wall-clock rows to compare.
pub const WALL: [&str; 2] = ["null_1q-4k-randread-qd64-1j", "null_2q-4k-randread-qd64-4j"];

/// One thread, and two, on a queue with a busy backend.
pub const BUSY: [&str; 2] = ["busy_1t-4k-randread-qd16-1j", "busy_2t-4k-randread-qd16-1j"];

/// An NBD server by one connection, and by four.
pub const CONNECTIONS: [&str; 2] = [
    "nbd_unix_1c-4k-randread-qd16-4j",
    "nbd_unix_4c-4k-randread-qd16-4j",
];

/// Required growth of the rate with threads or queues.
struct Growth {
    what: &'static str,
    rows: [&'static str; 2],
    /// Minimum ratio of the rates.
    least: f64,
    /// Required number of processors on the host.
    processors: usize,
    /// Whether emulation shows it as well: the work is the backend's, and all threads are slowed alike.
    emulated: bool,
}

/// How rates grow, or why that cannot be measured here, and which grow too little.
pub fn wall(
    rows: &[Wall],
    kvm: bool,
    processors: usize,
    limits: &Scaling,
) -> (Vec<String>, Vec<String>) {
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for growth in [
        Growth {
            what: "four CPUs: 4 jobs on 2 queues against 1 job on 1 queue",
            rows: WALL,
            least: limits.wall,
            processors: 4,
            emulated: false,
        },
        Growth {
            what: "an NBD server, four CPUs: 4 jobs on 4 connections against 1 connection",
            rows: CONNECTIONS,
            least: limits.connections,
            processors: 4,
            emulated: false,
        },
        Growth {
            what: "a busy backend: 2 threads on a queue against 1",
            rows: BUSY,
            least: limits.busy,
            processors: 2,
            emulated: true,
        },
    ] {
        let (text, fault) = growth.judge(rows, kvm, processors);
        found.push(text);
        faults.extend(fault);
    }
    (found, faults)
}

impl Growth {
    fn judge(&self, rows: &[Wall], kvm: bool, processors: usize) -> (String, Option<String>) {
        let Self {
            what,
            rows: [first, second],
            least,
            ..
        } = self;
        let rate = |name: &str| rows.iter().find(|row| row.name == name).map(|row| row.iops);
        let why = if !kvm && !self.emulated {
            Some("KVM does not work here".to_owned())
        } else if processors < self.processors {
            Some(format!("this host has {processors} processors"))
        } else {
            None
        };
        if let Some(why) = why {
            let text = format!("{what} (at least {least} times): not measured, {why}");
            return (text, None);
        }
        let (Some(one), Some(two)) = (rate(first), rate(second)) else {
            return (format!("{what}: not among the rows of this run"), None);
        };
        let ratio = two / one;
        let text = format!("{what}: {ratio:.2} times the rate (at least {least})");
        let grows = !ratio.is_nan() && ratio >= *least;
        let fault = format!("{second}: {ratio:.2} times the rate of {first}, at least {least}");
        (text, (!grows).then_some(fault))
    }
}

/// The ratio of instructions per I/O and the share of each queue; empty if neither row was selected.
///
/// The first list has the findings, the second the violations.
pub fn counted(figures: &[Figure], limits: &Scaling) -> (Vec<String>, Vec<String>) {
    let find = |name: &str| figures.iter().find(|figure| figure.name == name);
    let (Some(one), Some(two)) = (find(ONE), find(TWO)) else {
        return (Vec::new(), Vec::new());
    };
    let ratio = two.total / one.total;
    let mut found = vec![format!(
        "two CPUs: 2 jobs on 2 queues cost {ratio:.3} times the instructions per I/O of 1 job on \
         1 queue (limit {})",
        limits.counted
    )];
    let mut faults = Vec::new();
    if ratio.is_nan() || ratio > limits.counted {
        faults.push(format!(
            "{TWO}: {ratio:.3} times the instructions per I/O of {ONE}, limit {}",
            limits.counted
        ));
    }
    let shares = shares(two);
    let (least, most) = limits.share;
    let text: Vec<_> = shares.iter().map(|share| format!("{share:.1}")).collect();
    found.push(format!(
        "{TWO}: completions of the server's rings: {} % (each of the two queues {least} to {most})",
        text.join(", ")
    ));
    let queues = &shares[..shares.len().min(2)];
    let fair = |share: &f64| (least..=most).contains(share);
    if queues.len() < 2 || !queues.iter().all(fair) {
        faults.push(format!(
            "{TWO}: the queues carry {} % of the requests, not {least} to {most} each",
            text.join(", ")
        ));
    }
    (found, faults)
}

/// Share of all completions in per cent per ring, the busiest first.
fn shares(figure: &Figure) -> Vec<f64> {
    let counts = figure.seen.ring_completions.clone().unwrap_or_default();
    let sum: f64 = counts.iter().map(|count| f64::from(*count)).sum();
    counts
        .iter()
        .map(|count| f64::from(*count) / sum * 100.0)
        .filter(|share| *share >= 0.1)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{BUSY, CONNECTIONS, ONE, TWO, WALL, counted, wall};
    use crate::bench::figures::Figure;
    use crate::bench::label::Seen;
    use crate::bench::limits::Scaling;
    use crate::bench::wall::Wall;

    const LIMITS: Scaling = Scaling {
        counted: 1.05,
        share: (40.0, 60.0),
        wall: 1.7,
        busy: 1.4,
        connections: 1.3,
    };

    fn faults(two: f64, rings: &[u32]) -> Vec<String> {
        let mut second = Figure::example(TWO, two, 1.0);
        second.seen.ring_completions = Some(rings.to_vec());
        counted(&[Figure::example(ONE, 1000.0, 1.0), second], &LIMITS).1
    }

    /// L93 Two jobs that end up on one queue, or cost more than one, are reported.
    #[test]
    fn l93_a_queue_without_its_share_is_named() {
        assert!(faults(1050.0, &[5100, 4900, 3]).is_empty());
        assert_eq!(faults(1051.0, &[5100, 4900]).len(), 1);
        for rings in [&[10_000][..], &[6100, 3900], &[], &[4000, 3000, 3000]] {
            assert_eq!(faults(1000.0, rings).len(), 1, "{rings:?}");
        }
        assert!(counted(&[], &LIMITS).1.is_empty());
    }

    fn rate(name: &str, iops: f64) -> Wall {
        Wall {
            name: name.into(),
            iops,
            p50_ns: 0,
            p99_ns: 0,
            p999_ns: 0,
            cpu_ns: 0.0,
            server_ns: None,
            seen: Seen::default(),
        }
    }

    /// L92 Growth is not measured without enough processors; with them, too little growth is a failure.
    #[test]
    fn l92_growth_needs_processors() {
        let rows = |two| [rate(WALL[0], 100.0), rate(WALL[1], two)];
        assert!(wall(&rows(170.0), true, 4, &LIMITS).1.is_empty());
        assert_eq!(wall(&rows(169.0), true, 4, &LIMITS).1.len(), 1);
        for (kvm, processors) in [(false, 8), (true, 2)] {
            let (text, faults) = wall(&rows(1.0), kvm, processors, &LIMITS);
            assert!(text[0].contains("not measured") && faults.is_empty());
        }
        assert!(wall(&[], true, 4, &LIMITS).1.is_empty());
        let busy = |two| [rate(BUSY[0], 100.0), rate(BUSY[1], two)];
        assert!(wall(&busy(140.0), false, 2, &LIMITS).1.is_empty());
        assert_eq!(wall(&busy(139.0), false, 2, &LIMITS).1.len(), 1);
        assert!(wall(&busy(1.0), false, 1, &LIMITS).0[2].contains("not measured"));
        let four = |rate_of_four| {
            [
                rate(CONNECTIONS[0], 100.0),
                rate(CONNECTIONS[1], rate_of_four),
            ]
        };
        assert!(wall(&four(130.0), true, 4, &LIMITS).1.is_empty());
        assert_eq!(wall(&four(129.0), true, 4, &LIMITS).1.len(), 1);
        assert!(wall(&four(1.0), true, 2, &LIMITS).0[1].contains("not measured"));
    }
}
