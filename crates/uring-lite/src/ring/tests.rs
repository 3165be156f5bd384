use std::time::Duration;

use super::*;
use crate::fake::{self, Call, Completion, FakeKernel, Fault};
use crate::op::nop;
use crate::setup::Ladder;

type FakeRing = Ring<Sqe64, Cqe16, FakeKernel<Sqe64, Cqe16>>;
type Kernel = FakeKernel<Sqe64, Cqe16>;

const GETEVENTS: u32 = sys::IORING_ENTER_GETEVENTS;
const SECOND: Option<Duration> = Some(Duration::from_secs(1));

fn ring(sq: u32, cq: u32) -> (FakeRing, Kernel) {
    fake::ring(sq, cq, u32::MAX - 1, Ladder::SingleIssuerDefer)
}

fn push(ring: &mut FakeRing, ids: std::ops::Range<u64>) {
    for id in ids {
        ring.push(&nop().user_data(id)).expect("room");
    }
}

fn pop_all(ring: &mut FakeRing) -> Vec<u64> {
    // Bounded, so that a ring that never empties fails instead of filling memory.
    std::iter::from_fn(|| ring.next_cqe())
        .take(1000)
        .map(|cqe| cqe.user_data)
        .collect()
}

#[test]
fn one_enter_submits_all_and_waits() {
    let (mut ring, kernel) = ring(8, 16);
    kernel.set_completion(Completion::OnWait);
    push(&mut ring, 0..5);
    let entered = ring.enter(3, None).expect("enter");
    assert_eq!(
        entered,
        Entered {
            submitted: 5,
            ready: 3,
            ..Entered::default()
        }
    );
    assert_eq!(
        kernel.calls(),
        [Call {
            to_submit: 5,
            min_complete: 3,
            flags: GETEVENTS,
            timeout: false
        }]
    );
    assert_eq!(pop_all(&mut ring), [0, 1, 2]);
}

#[test]
fn enough_completions_are_no_reason_to_enter() {
    let (mut ring, kernel) = ring(8, 16);
    push(&mut ring, 0..2);
    ring.enter(0, None).expect("submit");
    assert_eq!(ring.enter(2, None).map(|e| e.ready), Ok(2));
    assert_eq!(kernel.calls().len(), 1);
    // With something to submit it enters, but does not ask to wait.
    push(&mut ring, 2..3);
    ring.enter(2, SECOND).expect("enter");
    assert_eq!(
        kernel.calls()[1],
        Call {
            to_submit: 1,
            min_complete: 0,
            flags: 0,
            timeout: false
        }
    );
}

#[test]
fn a_flush_runs_deferred_work_and_plain_rings_have_none() {
    let (mut ring, kernel) = ring(8, 16);
    ring.submit().expect("flush");
    assert_eq!(
        kernel.calls(),
        [Call {
            to_submit: 0,
            min_complete: 0,
            flags: GETEVENTS,
            timeout: false
        }]
    );
    let (mut ring, kernel): (FakeRing, Kernel) = fake::ring(8, 16, 0, Ladder::Plain);
    ring.submit().expect("nothing to do");
    assert_eq!(kernel.calls(), []);
}

/// L50 EINTR: a signal ends the wait, is reported, and loses nothing.
#[test]
fn l50_eintr_ends_the_wait_and_loses_nothing() {
    let (mut ring, kernel) = ring(8, 16);
    kernel.set_completion(Completion::OnWait);
    kernel.inject(Fault::Fail(libc::EINTR));
    push(&mut ring, 0..2);
    let entered = ring.enter(1, SECOND).expect("EINTR is no error");
    assert_eq!(
        entered,
        Entered {
            left: 2,
            interrupted: true,
            ..Entered::default()
        }
    );
    // After a submit the kernel returns the count; the ring sees that the wait ended early.
    kernel.inject(Fault::SignalInWait);
    let entered = ring.enter(1, None).expect("enter");
    assert_eq!(
        entered,
        Entered {
            submitted: 2,
            interrupted: true,
            ..Entered::default()
        }
    );
    assert_eq!(ring.enter(2, None).map(|e| e.ready), Ok(2));
    assert_eq!(pop_all(&mut ring), [0, 1]);
}

/// L50 EAGAIN, EBUSY and ENOMEM: transient, and every entry goes with the next call, once.
#[test]
fn l50_transient_errors_keep_every_entry() {
    for (errno, error) in [
        (libc::EAGAIN, EnterError::Again),
        (libc::EBUSY, EnterError::Busy),
        (libc::ENOMEM, EnterError::NoMemory),
    ] {
        let (mut ring, kernel) = ring(4, 8);
        kernel.inject(Fault::Fail(errno));
        push(&mut ring, 0..4);
        assert_eq!(ring.enter(4, None), Err(error));
        assert!(error.is_transient());
        assert_eq!((ring.sq_pending(), ring.sq_space()), (4, 0));
        assert_eq!(ring.enter(4, None).map(|e| e.submitted), Ok(4));
        assert_eq!(pop_all(&mut ring), [0, 1, 2, 3]);
    }
}

/// L50 permanent errors are distinguished.
#[test]
fn l50_fatal_errors_are_told_apart() {
    for (errno, error) in [
        (libc::EBADR, EnterError::Lost),
        (libc::EEXIST, EnterError::WrongThread),
        (
            libc::ENXIO,
            EnterError::Unusable {
                errno: Errno::new(libc::ENXIO),
            },
        ),
    ] {
        let (mut ring, kernel) = ring(4, 8);
        kernel.inject(Fault::Fail(errno));
        assert_eq!(ring.enter(1, None), Err(error));
        assert!(!error.is_transient());
    }
}

/// L50 short submit: the rest is reported and goes with the next call, in order.
#[test]
fn l50_short_submit_leaves_the_rest() {
    let (mut ring, kernel) = ring(8, 16);
    kernel.inject(Fault::Short(3));
    push(&mut ring, 0..5);
    let entered = ring.enter(5, None).expect("enter");
    assert_eq!(
        entered,
        Entered {
            submitted: 3,
            left: 2,
            ready: 3,
            ..Entered::default()
        }
    );
    let entered = ring.enter(5, None).expect("enter");
    assert_eq!((entered.submitted, entered.left, entered.ready), (2, 0, 5));
    assert_eq!(pop_all(&mut ring), [0, 1, 2, 3, 4]);
}

/// L50 ETIME: reported as a timeout, even if the same call submitted.
#[test]
fn l50_timeouts_are_told() {
    let (mut ring, kernel) = ring(8, 16);
    kernel.set_completion(Completion::Held);
    let timed_out = Entered {
        timed_out: true,
        ..Entered::default()
    };
    assert_eq!(ring.enter(1, SECOND), Ok(timed_out));
    push(&mut ring, 0..1);
    assert_eq!(
        ring.enter(1, SECOND),
        Ok(Entered {
            submitted: 1,
            ..timed_out
        })
    );
    assert!(kernel.complete(0, 0, false));
    assert_eq!(
        ring.enter(1, SECOND),
        Ok(Entered {
            ready: 1,
            ..Entered::default()
        })
    );
}

/// L51 indices run through 2^32 with entries in the queues.
#[test]
fn l51_indices_wrap_with_entries_in_flight() {
    for start in [
        u32::MAX,
        u32::MAX - 3,
        u32::MAX - 100,
        i32::MAX.cast_unsigned() - 3,
    ] {
        let (mut ring, kernel): (FakeRing, Kernel) = fake::ring(4, 8, start, Ladder::Plain);
        kernel.set_completion(Completion::OnWait);
        let mut seen = Vec::new();
        for id in (0..200).step_by(4) {
            push(&mut ring, id..id + 4);
            assert_eq!(ring.push(&nop()), Err(Full));
            ring.enter(2, None).expect("enter");
            seen.extend(ring.next_cqe().map(|c| c.user_data));
            ring.enter(3, None).expect("enter");
            seen.extend(pop_all(&mut ring));
        }
        assert_eq!(seen, (0..200).collect::<Vec<_>>(), "start {start}");
    }
}

/// L52 CQ overflow: counted, nothing lost, brought in as soon as there is room.
#[test]
fn l52_overflow_is_counted_and_nothing_is_lost() {
    let (mut ring, kernel) = ring(8, 8);
    push(&mut ring, 0..8);
    ring.submit().expect("submit");
    push(&mut ring, 8..12);
    ring.submit().expect("submit");
    assert_eq!((ring.cq_ready(), ring.overflow_enters()), (8, 0));
    assert_eq!(pop_all(&mut ring), (0..8).collect::<Vec<_>>());
    // Nothing to submit, and a ring flag says that CQEs wait: one enter with GETEVENTS fetches them.
    assert_eq!(ring.enter(1, None).map(|e| e.ready), Ok(4));
    assert_eq!(kernel.calls().last().map(|c| c.flags), Some(GETEVENTS));
    assert_eq!(pop_all(&mut ring), (8..12).collect::<Vec<_>>());
    assert_eq!(
        (ring.overflow_enters(), ring.overflowed(), ring.dropped()),
        (1, 0, 0)
    );
    // Without room and memory a CQE is lost: the ring counts and reports it.
    kernel.lose_cqe();
    assert_eq!(
        (ring.enter(1, None), ring.overflowed()),
        (Err(EnterError::Lost), 1)
    );
}

/// L52 the overflow flag alone makes `submit` flush, on a ring without deferred work, too.
#[test]
fn l52_submit_flushes_an_overflow() {
    let (mut ring, _kernel): (FakeRing, Kernel) = fake::ring(4, 4, 0, Ladder::Plain);
    for ids in [0..4, 4..8] {
        push(&mut ring, ids);
        ring.submit().expect("submit");
    }
    assert_eq!(pop_all(&mut ring), [0, 1, 2, 3]);
    ring.submit().expect("flush");
    assert_eq!(pop_all(&mut ring), [4, 5, 6, 7]);
}

/// L52 a full SQ never splits a chain.
#[test]
fn l52_a_chain_is_never_split() {
    let (mut ring, kernel) = ring(4, 8);
    push(&mut ring, 0..2);
    let chain: Vec<Sqe64> = (10..13)
        .map(|id| nop().user_data(id).flags(op::SqeFlags::LINK))
        .collect();
    assert_eq!(ring.push_linked(&chain), Err(ChainError::Full));
    assert_eq!(ring.sq_pending(), 2);
    assert_eq!(
        ring.push_linked(&[nop(); 5]),
        Err(ChainError::TooLong { len: 5, entries: 4 })
    );
    ring.submit().expect("submit");
    assert_eq!(ring.push_linked(&chain), Ok(()));
    ring.submit().expect("submit");
    assert_eq!(kernel.calls().last().map(|c| c.to_submit), Some(3));
    assert_eq!(pop_all(&mut ring), [0, 1, 10, 11, 12]);
}

/// L53 user_data passes through unchanged, every bit, so generations in it survive; with completions in any order.
#[test]
fn l53_user_data_passes_through_untouched() {
    let (mut ring, kernel) = ring(64, 128);
    kernel.set_completion(Completion::Reordered(7));
    let mut ids: Vec<u64> = (0..63).map(|bit| 1 << bit).chain([u64::MAX - 1]).collect();
    for id in &ids {
        ring.push(&nop().user_data(*id)).expect("room");
    }
    ring.enter(64, None).expect("enter");
    let mut seen = pop_all(&mut ring);
    assert_ne!(seen, ids, "the fake kernel did not reorder");
    seen.sort_unstable();
    ids.sort_unstable();
    assert_eq!(seen, ids);
}

/// L54 a failed push changes nothing: the entry is not half written, the others are submitted, a retry works.
#[test]
fn l54_a_full_push_changes_nothing() {
    let (mut ring, kernel) = ring(2, 4);
    push(&mut ring, 0..2);
    for _ in 0..3 {
        assert_eq!(ring.push(&nop().user_data(99)), Err(Full));
    }
    assert_eq!(ring.sq_pending(), 2);
    ring.submit().expect("submit");
    assert_eq!(kernel.calls()[0].to_submit, 2);
    ring.push(&nop().user_data(2)).expect("room again");
    ring.submit().expect("submit");
    assert_eq!(pop_all(&mut ring), [0, 1, 2]);
}

/// L55 the waker's own completions are not shown, and a poll that ended is armed again.
#[test]
fn l55_wake_completions_are_hidden_and_rearmed() {
    let (mut ring, kernel) = ring(2, 4);
    let _waker = ring.waker().expect("eventfd");
    // The SQ is full: arming makes room by submitting.
    push(&mut ring, 0..2);
    assert_eq!(ring.enter(1, None).map(|e| e.ready), Ok(2));
    assert_eq!(kernel.in_flight().len(), 1);
    assert_eq!(pop_all(&mut ring), [0, 1]);
    kernel.complete(WAKE_USER_DATA, 1, true);
    assert_eq!(ring.enter(1, None).map(|e| e.ready), Ok(1));
    assert_eq!(pop_all(&mut ring), []);
    // Ended without F_MORE: the next waiting enter pushes a new poll.
    kernel.complete(WAKE_USER_DATA, -libc::ECANCELED, false);
    assert_eq!(pop_all(&mut ring), []);
    assert_eq!(kernel.in_flight().len(), 0);
    ring.enter(1, SECOND).expect("enter");
    assert_eq!(kernel.in_flight().len(), 1);
}

/// L55 a wake while the ring is awake is kept, and then used up.
#[test]
fn l55_a_wake_while_awake_is_kept() {
    let (mut ring, kernel) = ring(2, 4);
    let waker = ring.waker().expect("eventfd");
    waker.wake();
    waker.wake();
    assert!(ring.enter(1, None).expect("enter").woken);
    // It did not sleep, but let deferred completions in: frequent wake-ups must not starve them.
    let flush = kernel.calls().last().map(|c| (c.min_complete, c.flags));
    assert_eq!(flush, Some((0, GETEVENTS)));
    assert!(!ring.enter(1, SECOND).expect("enter").woken);
    assert!(kernel.calls().iter().all(|c| c.min_complete < 2));
}

#[test]
fn a_serving_ring_submits_and_sleeps_in_one_call() {
    let (mut ring, kernel) = ring(8, 16);
    kernel.set_completion(Completion::OnWait);
    push(&mut ring, 0..3);
    ring.submit_and_wait(2, SECOND).expect("enter");
    assert_eq!(
        kernel.calls(),
        [Call {
            to_submit: 3,
            min_complete: 2,
            flags: GETEVENTS,
            timeout: true
        }]
    );
    assert_eq!(pop_all(&mut ring), [0, 1]);
}

/// L61 A ring with entries that the kernel has not taken, as after EAGAIN, does not let its owner sleep in another
/// call.
#[test]
fn l61_a_ring_with_unsubmitted_entries_does_not_park() {
    let (mut ring, _kernel) = ring(8, 16);
    assert_eq!(ring.park(), Ok(true));
    push(&mut ring, 0..1);
    assert_eq!(ring.park(), Ok(false));
    ring.enter(0, None).expect("enter");
    assert_eq!(pop_all(&mut ring), [0]);
    assert_eq!(ring.park(), Ok(true));
}

/// L55 A wake-up that came before prevents the sleep. (Completions that are there already end the wait in the kernel.)
#[test]
fn l55_a_serving_ring_does_not_sleep_on_a_wake() {
    let (mut ring, kernel) = ring(8, 16);
    let waker = ring.waker().expect("eventfd");
    ring.enter(0, None).expect("arm");
    waker.wake();
    push(&mut ring, 0..1);
    ring.submit_and_wait(1, None).expect("enter");
    assert!(
        kernel.calls().iter().all(|call| call.min_complete == 0),
        "{:?}",
        kernel.calls()
    );
    assert_eq!(pop_all(&mut ring), [0]);
}
