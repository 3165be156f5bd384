//! Serving a request allocates nothing, as counted by the allocator.
#![expect(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nbd_client::{Command, CommandFlags, Event, Framing, Replies, Request};

thread_local! {
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is the system allocator's; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests in flight at once.
const DEPTH: u64 = 64;

fn request(command: Command, cookie: u64) -> Request {
    Request {
        command,
        flags: CommandFlags::default(),
        cookie,
        offset: 4096 * cookie,
        len: 4096,
    }
}

/// The header of a chunk.
fn head(framing: Framing, reply: &mut Vec<u8>, kind: [u8; 4], cookie: u64, len: u32) {
    let extended = framing == Framing::Extended;
    let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
    reply.extend(magic.to_be_bytes());
    reply.extend(kind);
    reply.extend(cookie.to_be_bytes());
    if extended {
        reply.extend([0; 12]);
    }
    reply.extend(len.to_be_bytes());
}

/// Memory reclaim may wait for a request, so serving one must not allocate: reads and writes at full depth, with simple
/// and structured replies, in one piece and in two.
#[test]
fn requests_allocate_nothing() {
    for framing in [Framing::Simple, Framing::Structured, Framing::Extended] {
        let structured = framing.has_chunks();
        let mut replies = Replies::new(framing, usize::try_from(DEPTH).unwrap());
        let mut reply = Vec::with_capacity(64);
        let mut answered = 0;
        let mut allocated = 0;
        for round in 0..100_u64 {
            let before = COUNT.with(Cell::get);
            for n in 0..DEPTH {
                let cookie = round * DEPTH + n;
                let command = if n % 2 == 0 {
                    Command::Read
                } else {
                    Command::Write
                };
                assert!(replies.expect(&request(command, cookie)));
            }
            for n in 0..DEPTH {
                let cookie = round * DEPTH + n;
                let pieces: u32 = if structured && n % 2 == 0 { 2 } else { 1 };
                for piece in 0..pieces {
                    reply.clear();
                    if structured && n % 2 == 0 {
                        // Send the second half first.
                        let at = 4096 * cookie + 2048 * u64::from(1 - piece);
                        head(
                            framing,
                            &mut reply,
                            [0, u8::from(piece == 1), 0, 1],
                            cookie,
                            2056,
                        );
                        reply.extend(at.to_be_bytes());
                    } else if framing == Framing::Extended {
                        head(framing, &mut reply, [0, 1, 0, 0], cookie, 0);
                    } else {
                        reply.extend(0x6744_6698_u32.to_be_bytes());
                        reply.extend(0_u32.to_be_bytes());
                        reply.extend(cookie.to_be_bytes());
                    }
                    let (used, mut event) = replies.next(&reply).unwrap();
                    assert_eq!(used, reply.len());
                    if matches!(event, Some(Event::Data { .. })) {
                        event = replies.received(replies.payload()).unwrap();
                    }
                    answered += u64::from(matches!(event, Some(Event::Answered { .. })));
                }
            }
            if round > 0 {
                allocated += COUNT.with(Cell::get) - before;
            }
        }
        assert_eq!((answered, allocated), (100 * DEPTH, 0), "{framing:?}");
    }
}
