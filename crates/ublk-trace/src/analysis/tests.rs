use super::*;
use crate::record::{MAX_END, MAX_TIME};
use std::num::NonZeroU16;

fn record(time: u64, op: Op, offset: u64, len: u64, latency: u64) -> Record {
    Record {
        time,
        op,
        offset,
        len,
        queue: 0,
        latency: Some(latency),
        error: None,
    }
}

fn summary(records: impl IntoIterator<Item = Record>) -> Summary {
    let mut analysis = Analysis::default();
    for record in records {
        analysis.push(&record);
    }
    analysis.finish()
}

#[test]
fn a_sequential_reader_and_a_random_writer_are_told_apart() {
    let reads = (0..1000).map(|i| record(i * 1000, Op::Read, i * 4096, 4096, 500));
    let writes = (0..1000).map(|i| {
        record(
            i * 1000,
            Op::Write,
            (1 << 30) + (i * 7919 % 1000) * 8192,
            4096,
            2500,
        )
    });
    let found = summary(reads.zip(writes).flat_map(|(r, w)| [r, w]));
    assert_eq!((found.requests, found.bytes), (2000, 2000 * 4096));
    let [read, write] = &found.ops[..] else {
        panic!("{:?}", found.ops);
    };
    assert!(read.sequential > 0.99 && write.sequential < 0.01);
    assert_eq!(read.latency.unwrap().p50, 500);
    assert!((2498..=2502).contains(&write.latency.unwrap().p99));
    assert_eq!(found.duration, 999_000 + 2500);
    // A read in flight for half of the time, and 2.5 writes.
    assert!(
        (found.mean_depth.unwrap() - 3.0).abs() < 0.01,
        "{:?}",
        found.mean_depth
    );
    let working = found.working_set.unwrap();
    assert_eq!(
        (working.region, working.bytes, working.read),
        (4096, 2000 * 4096, 1000 * 4096)
    );
    assert_eq!(
        found.sizes,
        [SizeClass {
            up_to: 4096,
            reads: 1000,
            writes: 1000
        }]
    );
    assert_eq!(found.unaligned, 0.0);
}

#[test]
fn a_hot_spot_is_found() {
    // 90 % of the accesses go to a tenth of 1000 regions.
    let hot = (0..9000).map(|i| record(i, Op::Read, (i % 100) * 4096, 4096, 1));
    let cold = (0..900).map(|i| record(i, Op::Read, (100 + i) * 4096, 4096, 1));
    let working = summary(hot.chain(cold)).working_set.unwrap();
    assert!((0.09..0.11).contains(&working.hot90), "{working:?}");
    assert!(working.hot50 < 0.06);
}

#[test]
fn failures_are_counted_by_errno() {
    let mut failed = record(5, Op::Read, 0, 512, 1);
    failed.error = NonZeroU16::new(5);
    let found = summary([record(0, Op::Read, 0, 512, 1), failed]);
    assert_eq!(found.errors, BTreeMap::from([(5, 1)]));
    assert_eq!((found.ops[0].errors, found.unaligned), (1, 1.0));
}

/// The largest numbers, and many far apart, neither overflow nor take memory.
#[test]
fn hostile_records_are_bounded() {
    let mut analysis = Analysis::default();
    for i in 0..30_000_u64 {
        analysis.push(&record(
            i * (MAX_TIME / 30_000),
            Op::Read,
            i * (MAX_END / 40_000),
            1 << 30,
            MAX_TIME,
        ));
    }
    analysis.push(&record(0, Op::Write, 0, MAX_END, 0));
    analysis.push(&record(u64::MAX, Op::Write, u64::MAX, u64::MAX, 0));
    let found = analysis.finish();
    assert_eq!(found.requests, 30_001);
    assert!(found.timeline.columns.len() <= 256);
    assert!(found.mean_depth.unwrap() > 1000.0);
}

#[test]
fn an_empty_trace_has_figures_too() {
    let found = summary([]);
    assert_eq!((found.requests, found.duration), (0, 0));
    assert!(found.working_set.is_none() && found.timeline.columns.is_empty());
    assert!(serde_json::to_value(&found).is_ok());
}
