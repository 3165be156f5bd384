use super::*;
use crate::{Analysis, Op, Record};

/// A second of reads that get slower, of writes in bursts, and of flushes.
fn example() -> Summary {
    let mut analysis = Analysis::default();
    let mut random = 12_345_u64;
    for i in 0..20_000_u64 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let (op, offset, len) = match i % 10 {
            0..=5 => (Op::Read, (random >> 20) % (1 << 18) * 4096, 4096),
            6..=8 if (i / 2000) % 2 == 0 => (Op::Write, i * 65_536, 65_536),
            9 if i % 100 == 99 => (Op::Flush, 0, 0),
            _ => (Op::Read, i * 16_384, 16_384),
        };
        let latency = 50_000 + i * 5 + (random >> 40) % 60_000;
        let slow = if random >> 33 & 0x7f == 0 { 40 } else { 1 };
        analysis.push(&Record {
            time: i * 50_000,
            op,
            offset,
            len,
            queue: 0,
            latency: Some(latency * slow),
            error: None,
        });
    }
    analysis.finish()
}

/// Every panel has its title and its figures; nothing in the title is markup. `UBLK_PICTURE` keeps the file.
#[test]
fn all_panels_are_drawn() {
    let text = svg("a <b> & c", &example()).unwrap();
    for title in [
        "Requests per second",
        "Bytes per second",
        "Latency (dark",
        "Latency by percentile",
        "Requests in flight",
        "Requests by size",
        "Address of",
        "Operations",
        "a &lt;b&gt; &amp; c",
        "99.9 %",
        "KiB",
    ] {
        assert!(text.contains(title), "{title}");
    }
    assert!(!text.contains("NaN") && !text.contains("not in the trace"));
    if let Some(path) = std::env::var_os("UBLK_PICTURE") {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn an_empty_trace_and_one_request_can_be_drawn() {
    let text = svg("empty", &Analysis::default().finish()).unwrap();
    assert!(text.contains("not in the trace"));
    let mut analysis = Analysis::default();
    analysis.push(&Record {
        time: 0,
        op: Op::Read,
        offset: crate::MAX_END,
        len: 0,
        queue: 0,
        latency: Some(0),
        error: None,
    });
    let text = svg("one", &analysis.finish()).unwrap();
    assert!(!text.contains("NaN"), "{text}");
}
