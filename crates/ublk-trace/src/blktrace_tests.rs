use super::*;

/// An event, little-endian.
fn event(time: u64, sector: u64, bytes: u32, action: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((MAGIC | VERSION).to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    out.extend(time.to_le_bytes());
    out.extend(sector.to_le_bytes());
    out.extend(bytes.to_le_bytes());
    out.extend(action.to_le_bytes());
    out.extend(77_u32.to_le_bytes());
    out.extend(8_u32.to_le_bytes());
    out.extend(3_u32.to_le_bytes());
    out.extend(0_u16.to_le_bytes());
    out.extend(0_u16.to_le_bytes());
    out
}

const Q: u32 = QUEUE | 1 << 20;
const D: u32 = ISSUE | 1 << 22;
const C: u32 = COMPLETE | 1 << 23;
const R: u32 = 1 << 16;
const W: u32 = WRITE;

fn read(events: &[Vec<u8>]) -> (Vec<Record>, u64) {
    // Times are relative to the first event.
    let bytes = [event(0, 0, 0, NOTIFY), events.concat()].concat();
    let mut trace = Blktrace::new(&bytes[..]);
    let mut records = Vec::new();
    while let Some(record) = trace.next_record().unwrap() {
        records.push(record);
    }
    (records, trace.unmatched())
}

fn shape(records: &[Record]) -> Vec<(u64, Op, u64, u64, Option<u64>)> {
    let shape = |r: &Record| (r.time, r.op, r.offset, r.len, r.latency);
    records.iter().map(shape).collect()
}

#[test]
fn queue_issue_and_completion_are_one_request() {
    let (records, unmatched) = read(&[
        event(100, 8, 4096, Q | R),
        event(150, 8, 4096, D | R),
        event(400, 8, 4096, C | R),
    ]);
    assert_eq!(shape(&records), [(100, Op::Read, 4096, 4096, Some(300))]);
    assert_eq!((unmatched, records[0].queue), (0, 3));
}

/// Requests that were merged end with the completion that covers them; one that was split ends with its last part.
#[test]
fn merges_and_splits_are_matched() {
    let (records, unmatched) = read(&[
        event(100, 0, 4096, Q | W),
        event(110, 8, 4096, Q | W),
        event(150, 0, 8192, D | W),
        event(300, 0, 8192, C | W),
    ]);
    let wanted = [
        (100, Op::Write, 0, 4096, Some(200)),
        (110, Op::Write, 4096, 4096, Some(190)),
    ];
    assert_eq!((shape(&records), unmatched), (wanted.to_vec(), 0));
    let (records, unmatched) = read(&[
        event(100, 0, 8192, Q | R),
        event(150, 0, 4096, D | R),
        event(151, 8, 4096, D | R),
        event(200, 0, 4096, C | R),
        event(260, 8, 4096, C | R),
    ]);
    let wanted = [(100, Op::Read, 0, 8192, Some(160))];
    assert_eq!((shape(&records), unmatched), (wanted.to_vec(), 0));
}

#[test]
fn what_is_half_in_the_trace_has_no_latency() {
    let (records, unmatched) = read(&[
        event(10, 64, 512, C | R),
        event(20, 80, 512, D | R),
        event(30, 80, 512, C | R),
        event(40, 96, 512, Q | W),
    ]);
    let wanted = [
        (10, Op::Read, 32_768, 512, None),
        (20, Op::Read, 40_960, 512, Some(10)),
        (40, Op::Write, 49_152, 512, None),
    ];
    assert_eq!((shape(&records), unmatched), (wanted.to_vec(), 2));
}

#[test]
fn flushes_discards_and_messages_are_told_apart() {
    let mut message = event(5, 0, 0, 2 | NOTIFY);
    let last = message.len() - 2;
    message[last..].copy_from_slice(&3_u16.to_le_bytes());
    message.extend(b"abc");
    let mut failed = event(60, 0, 1 << 20, C | W | DISCARD);
    let at = failed.len() - 4;
    failed[at..at + 2].copy_from_slice(&(-5_i16).to_le_bytes());
    let (records, unmatched) = read(&[
        message,
        event(10, 0, 0, Q | W | FLUSH),
        event(20, 0, 0, C | W | FLUSH),
        event(50, 0, 1 << 20, Q | W | DISCARD),
        failed,
    ]);
    let wanted = [
        (10, Op::Flush, 0, 0, Some(10)),
        (50, Op::Discard, 0, 1 << 20, Some(10)),
    ];
    assert_eq!((shape(&records), unmatched), (wanted.to_vec(), 0));
    assert_eq!(records[1].error.map(NonZeroU16::get), Some(5));
}

#[test]
fn either_byte_order_is_read() {
    let mut bytes = Vec::new();
    for event in [
        event(0, 0, 0, NOTIFY),
        event(100, 8, 4096, Q | R),
        event(400, 8, 4096, C | R),
    ] {
        for (at, len) in [
            (0, 4),
            (4, 4),
            (8, 8),
            (16, 8),
            (24, 4),
            (28, 4),
            (32, 4),
            (36, 4),
            (40, 4),
            (44, 2),
            (46, 2),
        ] {
            bytes.extend(event[at..at + len].iter().rev());
        }
    }
    assert!(is_one(&bytes));
    let first = Blktrace::new(&bytes[..]).next_record().unwrap();
    let records: Vec<_> = first.into_iter().collect();
    assert_eq!(shape(&records), [(100, Op::Read, 4096, 4096, Some(300))]);
}

#[test]
fn bad_bytes_are_named() {
    let told = |bytes: &[u8]| Blktrace::new(bytes).next_record().unwrap_err().to_string();
    assert_eq!(told(&[1; 48]), "byte 0: no event begins here");
    assert_eq!(
        told(&event(1, 1, 1, Q)[..47]),
        "byte 0: an event is cut off"
    );
    let mut newer = event(1, 1, 512, Q);
    newer[0] = 8;
    assert!(told(&newer).contains("version 8 is not supported"));
    let mut long = event(1, 8, 512, NOTIFY);
    long[46] = 200;
    assert!(told(&long).contains("data of an event is cut off"));
}

/// More requests in flight than are remembered: the oldest lose their latency, and memory is bounded.
#[test]
fn requests_in_flight_are_bounded() {
    let n = u64::try_from(MAX_IN_FLIGHT).unwrap() + 10;
    let events: Vec<_> = (0..n).map(|i| event(i, i * 8, 4096, Q | R)).collect();
    let bytes = events.concat();
    let mut trace = Blktrace::new(&bytes[..]);
    let first = trace.next_record().unwrap().unwrap();
    assert_eq!((first.time, first.latency), (0, None));
    assert!(trace.in_flight.len() <= MAX_IN_FLIGHT && trace.ages.len() <= MAX_IN_FLIGHT);
}
