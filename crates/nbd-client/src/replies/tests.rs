use super::pending::MAX_PIECES;
use super::*;
use crate::{CommandFlags, Request};

const SIMPLE: Framing = Framing::Simple;
const STRUCTURED: Framing = Framing::Structured;
const EXTENDED: Framing = Framing::Extended;

fn request(command: Command, cookie: u64, offset: u64, len: u64) -> Request {
    Request {
        command,
        flags: CommandFlags::default(),
        cookie,
        offset,
        len,
    }
}

fn replies(framing: Framing, requests: &[Request]) -> Replies {
    let mut replies = Replies::new(framing, 8);
    for request in requests {
        assert!(replies.expect(request));
    }
    replies
}

fn simple(code: u32, cookie: u64) -> Vec<u8> {
    let mut bytes = SIMPLE_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes
}

fn chunk(flags: u16, kind: u16, cookie: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = STRUCTURED_REPLY_MAGIC.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

fn piece(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut body = offset.to_be_bytes().to_vec();
    body.extend(data);
    chunk(flags, CHUNK_OFFSET_DATA, cookie, &body)
}

fn hole(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut body = offset.to_be_bytes().to_vec();
    body.extend(len.to_be_bytes());
    chunk(flags, CHUNK_OFFSET_HOLE, cookie, &body)
}

/// The same chunks with extended headers; what is no chunk stays as it is.
fn widened(mut bytes: &[u8]) -> Vec<u8> {
    let mut wide = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<20>() {
        if head[..4] != STRUCTURED_REPLY_MAGIC.to_be_bytes() {
            break;
        }
        wide.extend(EXTENDED_REPLY_MAGIC.to_be_bytes());
        wide.extend(&head[4..16]);
        wide.extend([0; 12]);
        wide.extend(&head[16..]);
        let len = usize::try_from(u32::from_be_bytes(head[16..].try_into().unwrap())).unwrap();
        let (body, more) = rest.split_at(len.min(rest.len()));
        wide.extend(body);
        bytes = more;
    }
    wide.extend(bytes);
    wide
}

/// Feeds `step` bytes at a time, receives data into `buffer`, and returns the other events.
fn feed(
    replies: &mut Replies,
    bytes: &[u8],
    step: usize,
    buffer: &mut [u8],
) -> Result<Vec<Event>, ProtocolError> {
    let (mut events, mut held, mut at) = (Vec::new(), Vec::new(), 0_usize);
    let mut input = bytes.chunks(step);
    loop {
        let wanted = usize::try_from(replies.payload()).unwrap();
        if wanted > 0 && !held.is_empty() {
            let now = wanted.min(held.len());
            buffer[at..at + now].copy_from_slice(&held[..now]);
            held.drain(..now);
            at += now;
            events.extend(replies.received(u32::try_from(now).unwrap())?);
            continue;
        }
        if let Some((cookie, reply)) = replies.simple(&held) {
            let data = match reply {
                Simple::Read(data) => data,
                Simple::Done => &[],
            };
            buffer[..data.len()].copy_from_slice(data);
            let used = Replies::SIMPLE + data.len();
            held.drain(..used);
            events.push(answered(cookie));
            continue;
        }
        let (used, event) = replies.next(&held)?;
        held.drain(..used);
        match event {
            Some(Event::Data { at: to, .. }) => at = usize::try_from(to).unwrap(),
            Some(Event::Hole { at: to, len, .. }) => {
                let to = usize::try_from(to).unwrap();
                buffer[to..to + usize::try_from(len).unwrap()].fill(0);
            }
            Some(event) => events.push(event),
            None if used == 0 => match input.next() {
                Some(more) => held.extend(more),
                None => return Ok(events),
            },
            None => {}
        }
    }
}

fn answered(cookie: u64) -> Event {
    Event::Answered {
        cookie,
        result: Ok(()),
    }
}

/// Simple and structured replies, out of order and in chunks of any size: data lands where it belongs and each request
/// is answered once.
#[test]
fn replies_in_any_order_and_any_pieces() {
    for step in [1, 3, 7, 16, 20, 28, 1000] {
        let mut r = replies(
            SIMPLE,
            &[
                request(Command::Read, 1, 0, 5),
                request(Command::Write, 2, 0, 5),
            ],
        );
        let mut bytes = simple(0, 2);
        bytes.extend(simple(0, 1));
        bytes.extend(b"hello");
        let mut buffer = [9; 5];
        let events = feed(&mut r, &bytes, step, &mut buffer).unwrap();
        assert_eq!(events, [answered(2), answered(1)]);
        assert_eq!((&buffer, r.in_flight()), (b"hello", 0));

        let mut r = replies(
            STRUCTURED,
            &[
                request(Command::Read, 7, 100, 10),
                request(Command::Flush, 8, 0, 0),
            ],
        );
        let mut bytes = piece(0, 7, 106, b"ghij");
        bytes.extend(simple(0, 8));
        bytes.extend(hole(0, 7, 103, 3));
        bytes.extend(piece(REPLY_DONE, 7, 100, b"abc"));
        let mut buffer = [9; 10];
        let events = feed(&mut r, &bytes, step, &mut buffer).unwrap();
        assert_eq!(events, [answered(8), answered(7)]);
        assert_eq!(&buffer, b"abc\0\0\0ghij");
        assert_eq!(r.in_flight(), 0);
    }
}

/// A reply may end with a hole, with extents, or with a chunk of its own.
#[test]
fn replies_end_in_every_way() {
    let read = request(Command::Read, 7, 0, 8);
    let status = request(Command::BlockStatus, 8, 0, 8);
    let mut r = replies(STRUCTURED, &[read, status]);
    let mut bytes = hole(REPLY_DONE, 7, 0, 8);
    let mut body = 3_u32.to_be_bytes().to_vec();
    body.extend([0, 0, 0, 8, 0, 0, 0, 1]);
    bytes.extend(chunk(REPLY_DONE, CHUNK_BLOCK_STATUS, 8, &body));
    let events = feed(&mut r, &bytes, 5, &mut [1; 8]).unwrap();
    let extents = Event::Extents {
        cookie: 8,
        context: 3,
        extents: vec![(8, 1)],
    };
    assert_eq!(events, [answered(7), extents, answered(8)]);
    let mut r = replies(STRUCTURED, &[read]);
    let mut bytes = piece(0, 7, 0, b"12345678");
    bytes.extend(chunk(REPLY_DONE, CHUNK_NONE, 7, &[]));
    let events = feed(&mut r, &bytes, 5, &mut [1; 8]).unwrap();
    assert_eq!(events, [answered(7)]);
}

/// The first error counts, with or without an offset; data that arrived before it does not turn it into a success.
#[test]
fn errors_are_the_servers() {
    let read = request(Command::Read, 7, 0, 8);
    let mut r = replies(SIMPLE, &[read]);
    let events = feed(&mut r, &simple(28, 7), 4, &mut []).unwrap();
    let failed = |code| Event::Answered {
        cookie: 7,
        result: Err(ErrorCode(code)),
    };
    assert_eq!(events, [failed(28)]);
    let mut r = replies(STRUCTURED, &[read]);
    let mut bytes = piece(0, 7, 0, b"1234");
    bytes.extend(chunk(
        0,
        CHUNK_ERROR_OFFSET,
        7,
        &[0, 0, 0, 5, 0, 2, b'n', b'o', 0, 0, 0, 0, 0, 0, 0, 4],
    ));
    bytes.extend(chunk(REPLY_DONE, CHUNK_ERROR | 1, 7, &[0, 0, 0, 12, 0, 0]));
    let events = feed(&mut r, &bytes, 3, &mut [0; 8]).unwrap();
    assert_eq!(events, [failed(5)]);
    assert_eq!(ErrorCode(777).errno(), 22);
    assert_eq!(ErrorCode::ESHUTDOWN.to_string(), "NBD_ESHUTDOWN");
}

/// A protocol violation ends the connection, and none of its bytes are taken for data. L76 Wrong magics, unknown
/// cookies, lengths beyond the request and the like end the connection with a clear error.
#[test]
fn l76_a_server_that_breaks_the_protocol_is_found_out() {
    let read = request(Command::Read, 7, 100, 8);
    let flush = request(Command::Flush, 8, 0, 0);
    let cases: [(Framing, Vec<u8>); 16] = [
        (SIMPLE, vec![0; 16]),
        (SIMPLE, simple(0, 9)),
        (SIMPLE, chunk(REPLY_DONE, CHUNK_NONE, 7, &[])),
        (STRUCTURED, simple(0, 7)),
        (STRUCTURED, chunk(0, CHUNK_NONE, 7, &[])),
        (STRUCTURED, chunk(REPLY_DONE, CHUNK_NONE, 7, &[])),
        (STRUCTURED, chunk(REPLY_DONE, CHUNK_NONE, 7, &[1])),
        (STRUCTURED, piece(0, 7, 99, b"x")),
        (STRUCTURED, piece(0, 7, 104, b"12345")),
        (STRUCTURED, piece(0, 7, u64::MAX, b"x")),
        (STRUCTURED, piece(0, 7, 100, b"")),
        (STRUCTURED, hole(0, 7, 100, 0)),
        (STRUCTURED, hole(0, 7, 100, u32::MAX)),
        (STRUCTURED, piece(0, 8, 0, b"x")),
        (
            STRUCTURED,
            chunk(REPLY_DONE, CHUNK_ERROR | 1, 7, &[0, 0, 0, 0, 0, 0]),
        ),
        (
            STRUCTURED,
            chunk(REPLY_DONE, CHUNK_ERROR | 1, 7, &[0, 0, 0, 5, 0, 9]),
        ),
    ];
    for (n, (framing, bytes)) in cases.into_iter().enumerate() {
        let mut r = replies(framing, &[read, flush]);
        let result = feed(&mut r, &bytes, 1000, &mut [0; 8]);
        assert!(result.is_err(), "case {n}: {result:?}");
        let mut r = replies(EXTENDED, &[read, flush]);
        let result = feed(&mut r, &widened(&bytes), 1000, &mut [0; 8]);
        assert!(result.is_err(), "case {n}, extended: {result:?}");
        // Chunks of the other kind are none.
        let mut r = replies(EXTENDED, &[read, flush]);
        let result = feed(&mut r, &bytes, 1000, &mut [0; 8]);
        assert!(result.is_err(), "case {n}, not extended: {result:?}");
    }
    let mut mixed = chunk(0, CHUNK_ERROR | 1, 8, &[0, 0, 0, 5, 0, 0]);
    mixed.extend(simple(0, 8));
    let mut r = replies(STRUCTURED, &[flush]);
    assert!(feed(&mut r, &mixed, 1000, &mut []).is_err());
    let mut twice = piece(0, 7, 100, b"1234");
    twice.extend(hole(0, 7, 103, 2));
    let mut r = replies(STRUCTURED, &[read]);
    let error = feed(&mut r, &twice, 1000, &mut [0; 8]).unwrap_err();
    assert!(error.to_string().contains("twice"), "{error}");
    let mut short = piece(REPLY_DONE, 7, 100, b"1234567");
    let mut r = replies(STRUCTURED, &[read]);
    let error = feed(&mut r, &short, 1000, &mut [0; 8]).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    // Lengths that would have to be stored are refused before any of their bytes arrive.
    short = chunk(0, CHUNK_BLOCK_STATUS, 7, &[]);
    short.truncate(16);
    short.extend(u32::MAX.to_be_bytes());
    let mut r = replies(STRUCTURED, &[request(Command::BlockStatus, 7, 0, 8)]);
    assert!(feed(&mut r, &short, 1000, &mut []).is_err());
}

/// Disjoint pieces are limited, and a cookie in use is refused.
#[test]
fn pieces_and_cookies_are_bounded() {
    let len = 4 * u32::try_from(MAX_PIECES).unwrap();
    let mut r = replies(STRUCTURED, &[request(Command::Read, 7, 0, len.into())]);
    assert!(!r.expect(&request(Command::Flush, 7, 0, 0)));
    assert!(r.expect(&request(Command::Disconnect, 7, 0, 0)));
    let mut result = Ok(Vec::new());
    let mut pieces = 0;
    while result.is_ok() && pieces < 2 * MAX_PIECES {
        let at = 2 * u64::try_from(pieces).unwrap();
        result = feed(
            &mut r,
            &hole(0, 7, at, 1),
            100,
            &mut vec![0; 4 * MAX_PIECES],
        );
        pieces += 1;
    }
    assert_eq!(pieces, MAX_PIECES + 1);
    assert!(result.unwrap_err().to_string().contains("too many"));
}

/// Random bytes neither panic nor complete a READ.
#[test]
fn noise_is_no_answer() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..3000 {
        let mut bytes = match next() % 3 {
            0 => simple(0, 7),
            1 => piece(REPLY_DONE, 7, 100, b"12345678"),
            _ => hole(REPLY_DONE, 7, 100, 8),
        };
        let at = usize::try_from(next()).unwrap() % bytes.len();
        bytes[at] ^= u8::try_from(next() % 255 + 1).unwrap();
        // The buffer's old contents show up if a byte was not written.
        let of = |before: u8| {
            let mut r = replies(STRUCTURED, &[request(Command::Read, 7, 100, 8)]);
            let mut buffer = [before; 8];
            let events = feed(&mut r, &bytes, 1 + at, &mut buffer);
            let whole = events.is_ok_and(|events| events.contains(&answered(7)));
            whole.then_some(buffer)
        };
        assert_eq!(of(0xee), of(0x11), "{bytes:?}");
    }
}

/// Cookies that share a slot are told apart, in flight at once and one after the other.
#[test]
fn cookies_of_one_slot_are_told_apart() {
    let ok = |cookie: u64| {
        let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
        bytes.extend([0; 4]);
        bytes.extend(cookie.to_be_bytes());
        bytes
    };
    // Four slots.
    let mut replies = Replies::new(SIMPLE, 3);
    let cookies = [1, 5, 9, 2, 1 << 40 | 1];
    for cookie in cookies {
        assert!(replies.expect(&request(Command::Flush, cookie, 0, 0)));
        assert!(!replies.expect(&request(Command::Flush, cookie, 0, 0)));
    }
    assert_eq!(replies.in_flight(), cookies.len());
    for (left, cookie) in [5, 1, 1 << 40 | 1, 9, 2].into_iter().enumerate() {
        let (used, event) = replies.next(&ok(cookie)).unwrap();
        let result = Ok(());
        assert_eq!(used, 16);
        assert_eq!(event, Some(Event::Answered { cookie, result }));
        assert_eq!(replies.in_flight(), cookies.len() - left - 1);
        // Answered once.
        assert!(replies.next(&ok(cookie)).is_err());
    }
    assert!(replies.next(&ok(13)).is_err());
}

/// What comes in chunks is the same with extended headers, at any pace.
#[test]
fn extended_replies_in_any_order_and_any_pieces() {
    for step in [1, 3, 20, 32, 44, 1000] {
        let requests = [
            request(Command::Read, 7, 100, 10),
            request(Command::Flush, 8, 0, 0),
            request(Command::Trim, 9, 0, 1 << 40),
        ];
        let mut r = replies(EXTENDED, &requests);
        let mut bytes = piece(0, 7, 106, b"ghij");
        bytes.extend(chunk(REPLY_DONE, CHUNK_NONE, 8, &[]));
        bytes.extend(hole(0, 7, 103, 3));
        bytes.extend(chunk(REPLY_DONE, CHUNK_ERROR | 1, 9, &[0, 0, 0, 28, 0, 0]));
        bytes.extend(piece(REPLY_DONE, 7, 100, b"abc"));
        let mut buffer = [9; 10];
        let events = feed(&mut r, &widened(&bytes), step, &mut buffer).unwrap();
        let full = Event::Answered {
            cookie: 9,
            result: Err(ErrorCode::ENOSPC),
        };
        assert_eq!(events, [answered(8), full, answered(7)]);
        assert_eq!(&buffer, b"abc\0\0\0ghij");
    }
}

fn wide_extents(count: u32, extents: &[(u64, u64)]) -> Vec<u8> {
    let mut body = 3_u32.to_be_bytes().to_vec();
    body.extend(count.to_be_bytes());
    for (len, flags) in extents {
        body.extend(len.to_be_bytes());
        body.extend(flags.to_be_bytes());
    }
    widened(&chunk(REPLY_DONE, CHUNK_BLOCK_STATUS_EXT, 8, &body))
}

/// Extents have lengths of 32 bits or, with extended headers, also of 64; the last one may reach beyond the request.
#[test]
fn extents_of_both_widths() {
    let status = request(Command::BlockStatus, 8, 0, 1 << 40);
    let told = |framing, bytes: &[u8]| {
        let mut r = replies(framing, &[status]);
        feed(&mut r, bytes, 7, &mut [])
    };
    let of = |extents| Event::Extents {
        cookie: 8,
        context: 3,
        extents,
    };
    let extents = vec![(1 << 33, 3), (1 << 41, 0)];
    for count in [0, 2] {
        let events = told(EXTENDED, &wide_extents(count, &extents)).unwrap();
        assert_eq!(events, [of(extents.clone()), answered(8)]);
    }
    let narrow = [0, 0, 0, 3, 0, 0, 16, 0, 0, 0, 0, 1];
    let narrow = chunk(REPLY_DONE, CHUNK_BLOCK_STATUS, 8, &narrow);
    let events = told(EXTENDED, &widened(&narrow)).unwrap();
    assert_eq!(events, [of(vec![(4096, 1)]), answered(8)]);
    // Another count, no bytes, one behind the end, and none at all.
    let broken = [
        wide_extents(1, &extents),
        wide_extents(0, &[(0, 0)]),
        wide_extents(0, &[(1 << 40, 0), (1, 0)]),
        widened(&chunk(REPLY_DONE, CHUNK_NONE, 8, &[])),
        [widened(&narrow[..]), widened(&narrow)].concat(),
    ];
    for (n, bytes) in broken.iter().enumerate() {
        assert!(told(EXTENDED, bytes).is_err(), "case {n}");
    }
    // Twice in one reply.
    let mut first = narrow.clone();
    first[5] = 0;
    let twice = [widened(&first), widened(&narrow)].concat();
    let error = told(EXTENDED, &twice).unwrap_err().to_string();
    assert!(error.contains("twice"), "{error}");
}

/// A length that the headers have no room for is not sent.
#[test]
fn long_ranges_need_extended_headers() {
    let long = |command| request(command, 1, 0, 1 << 32);
    for command in [Command::Trim, Command::WriteZeroes, Command::BlockStatus] {
        assert!(!Replies::new(STRUCTURED, 1).expect(&long(command)));
        assert!(Replies::new(EXTENDED, 1).expect(&long(command)));
    }
    for command in [Command::Read, Command::Write] {
        assert!(!Replies::new(EXTENDED, 1).expect(&long(command)));
    }
}

/// A window of [`Replies::header`] is enough to go on.
#[test]
fn a_window_of_a_header_is_enough() {
    for framing in [SIMPLE, STRUCTURED, EXTENDED] {
        let mut r = replies(framing, &[request(Command::Read, 7, 0, 8)]);
        let chunks = [hole(0, 7, 0, 4), piece(REPLY_DONE, 7, 4, b"1234")].concat();
        let bytes = match framing {
            Framing::Simple => [&simple(0, 7), &b"12345678"[..]].concat(),
            Framing::Structured => chunks,
            Framing::Extended => widened(&chunks),
        };
        let window = &bytes[..r.header().min(bytes.len())];
        let (used, event) = r.next(window).unwrap();
        assert!(used > 0 && event.is_some(), "{framing:?}");
    }
}
