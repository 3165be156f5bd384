//! Tests of the pool with a list as its submission queue.

use std::rc::Rc;

use super::*;

#[derive(Default)]
struct List {
    pushed: Vec<(u8, Operation)>,
    room: usize,
}

impl List {
    fn with_room(room: usize) -> Self {
        Self {
            pushed: Vec::new(),
            room,
        }
    }
}

impl Sink for List {
    fn push(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), Full> {
        if self.pushed.len() == self.room {
            return Err(Full);
        }
        self.pushed.push((sqe.as_raw().opcode, operation));
        Ok(())
    }

    fn word(&self, operation: Operation) -> u64 {
        u64::from(operation.slot) | u64::from(operation.turn) << 16
    }
}

fn granted(pool: &Pool) -> u16 {
    match pool.ask(|| WakeBy::Nobody) {
        Asked::Granted(slot) => slot,
        Asked::Ticket(_) => panic!("the pool is exhausted"),
    }
}

fn ticket(pool: &Pool, tag: u16) -> u64 {
    match pool.ask(|| WakeBy::Tag(tag)) {
        Asked::Granted(_) => panic!("the pool has a free slot"),
        Asked::Ticket(ticket) => ticket,
    }
}

fn submit(pool: &Pool, slot: u16) -> Operation {
    // SAFETY: no memory is named.
    unsafe { pool.submit(slot, &Kind::Nop, None, |_| Ok(None)) }.expect("a nop")
}

fn fly(pool: &Pool) -> Operation {
    let operation = submit(pool, granted(pool));
    assert!(pool.flush(&mut List::with_room(9), |_| {}));
    operation
}

fn tag_of(by: &WakeBy) -> Option<u16> {
    match by {
        WakeBy::Tag(tag) => Some(*tag),
        _ => None,
    }
}

fn result(pool: &Pool, operation: Operation) -> Option<i32> {
    pool.result(operation, || WakeBy::Tag(7))
        .map(|(res, _)| res)
}

/// A buffer that reports when it is freed.
struct Buffer(Rc<Cell<bool>>);

impl Drop for Buffer {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// L53 A completion of an earlier turn of a slot is not taken for one of the present turn.
#[test]
fn l53_a_completion_of_an_earlier_turn_is_ignored() {
    let pool = Pool::new(1, 1);
    let first = fly(&pool);
    assert_eq!(result(&pool, first), None);
    assert_eq!(tag_of(&pool.completed(first, 5, 0)), Some(7));
    assert_eq!(result(&pool, first), Some(5));
    let second = fly(&pool);
    assert_eq!((second.slot, second.turn), (first.slot, first.turn + 1));
    pool.completed(first, 6, 0);
    assert_eq!((result(&pool, second), pool.stale()), (None, 1));
    pool.completed(second, 8, 0);
    pool.completed(second, 9, 0);
    assert_eq!((result(&pool, second), pool.stale()), (Some(8), 2));
}

/// L56 A dropped operation keeps its buffer until the kernel is done with it, and is cancelled.
#[test]
fn l56_an_orphan_keeps_its_buffer_until_its_completion() {
    let pool = Pool::new(2, 1);
    let operation = fly(&pool);
    let freed = Rc::new(Cell::new(false));
    pool.abandon(operation, || Some(Box::new(Buffer(Rc::clone(&freed)))));
    let mut list = List::with_room(9);
    assert!(pool.flush(&mut list, |_| {}));
    assert_eq!(list.pushed, [(sys::IORING_OP_ASYNC_CANCEL, CANCEL)]);
    assert_eq!((pool.busy(), freed.get()), (1, false));
    // The other slot is used meanwhile, this one is not.
    assert_ne!(granted(&pool), operation.slot);
    assert!(matches!(pool.ask(|| WakeBy::Nobody), Asked::Ticket(_)));
    // The cancellation found nothing, which is no error.
    pool.completed(CANCEL, -2, 0);
    assert!(!freed.get());
    pool.completed(operation, 100, 0);
    assert_eq!((pool.busy(), freed.get()), (0, true));
}

/// L56 An entry that the kernel never saw is not submitted after the drop, and nothing is kept for it.
#[test]
fn l56_what_is_dropped_before_it_was_submitted_never_is() {
    let pool = Pool::new(1, 1);
    let operation = submit(&pool, granted(&pool));
    pool.abandon(operation, || panic!("nothing to keep"));
    let mut list = List::with_room(9);
    assert!(pool.flush(&mut list, |_| {}));
    assert_eq!((list.pushed.len(), pool.busy()), (0, 0));
    assert_eq!(granted(&pool), operation.slot);
}

#[test]
fn a_zero_copy_send_is_over_with_its_notification() {
    let pool = Pool::new(1, 1);
    let operation = fly(&pool);
    pool.completed(operation, 300, sys::IORING_CQE_F_MORE);
    assert_eq!(result(&pool, operation), None);
    pool.completed(operation, 0, sys::IORING_CQE_F_NOTIF);
    assert_eq!(result(&pool, operation), Some(300));
}

/// Slots go to those who waited longest; leaving the wait queue costs the others nothing.
#[test]
fn an_exhausted_pool_is_fair() {
    let pool = Pool::new(1, 4);
    let operation = fly(&pool);
    let tickets = [1, 2, 3].map(|tag| ticket(&pool, tag));
    assert!(pool.leave_line(tickets[1]).is_none());
    pool.completed(operation, 0, 0);
    let (_, woken) = pool.result(operation, || WakeBy::Nobody).expect("done");
    assert_eq!(tag_of(&woken), Some(1));
    // A newcomer waits behind them, though the slot is unused so far.
    let late = ticket(&pool, 4);
    assert_eq!(pool.given(tickets[2], || WakeBy::Tag(3)), None);
    let given = pool.given(tickets[0], || WakeBy::Tag(1)).expect("its turn");
    assert_eq!(tag_of(&pool.release(given)), Some(3));
    // It was given one and left: the next in the wait queue gets it.
    let woken = pool
        .leave_line(tickets[2])
        .expect("it had been granted a slot");
    assert_eq!(tag_of(&woken), Some(4));
    assert!(pool.given(late, || WakeBy::Nobody).is_some());
}

/// L52 Entries that do not fit into the submission queue go with the next flush, in order.
#[test]
fn l52_a_full_submission_queue_loses_nothing() {
    let pool = Pool::new(3, 1);
    let operations: Vec<_> = (0..3).map(|_| submit(&pool, granted(&pool))).collect();
    let mut pushed = Vec::new();
    for (room, done) in [(0, false), (2, false), (2, true)] {
        let mut list = List::with_room(room);
        assert_eq!(pool.flush(&mut list, |_| {}), done);
        pushed.extend(list.pushed.iter().map(|(_, operation)| *operation));
    }
    assert_eq!(pushed, operations);
}

/// L09 A pool that ends before its operations leaks memory that the kernel may use, and counts that.
#[test]
fn l09_what_is_flying_at_the_end_is_leaked_and_counted() {
    let freed = Rc::new(Cell::new(false));
    let before = leaked_operations();
    let pool = Pool::new(2, 1);
    let operation = fly(&pool);
    pool.abandon(operation, || Some(Box::new(Buffer(Rc::clone(&freed)))));
    drop(pool);
    assert!(!freed.get());
    assert!(leaked_operations() > before);
}

/// A descriptor whose future is gone is closed.
#[test]
fn an_unwanted_descriptor_is_closed() {
    use std::io::Read;
    use std::os::fd::IntoRawFd;
    for late in [false, true] {
        let pool = Pool::new(1, 1);
        let (mut reader, writer) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let limit = Some(std::time::Duration::from_secs(5));
        reader.set_read_timeout(limit).expect("a deadline");
        let listening = SharedFd::new(std::fs::File::open("/dev/null").expect("null"));
        // SAFETY: accept names no memory.
        let operation = unsafe {
            pool.submit(granted(&pool), &Kind::Accept, Some(&listening), |_| {
                Ok(None)
            })
        }
        .expect("an entry");
        assert!(pool.flush(&mut List::with_room(9), |_| {}));
        if late {
            pool.abandon(operation, || None);
        }
        pool.completed(operation, writer.into_raw_fd(), 0);
        if !late {
            pool.abandon(operation, || None);
        }
        assert_eq!(reader.read(&mut [0; 1]).expect("the end"), 0);
    }
}
