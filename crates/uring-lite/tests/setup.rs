//! Creating and closing rings on the running kernel.

mod common;

use common::{reap, ring, ring_on, skip};
use uring_lite::{CqEntry, Cqe16, Cqe32, Ladder, Ring, SqEntry, Sqe64, Sqe128, op, sys};

fn works<S: SqEntry, C: CqEntry>(ring: &mut Ring<S, C>) {
    // Three times around: every slot, at every stride, with wrapped indices.
    let entries = u64::from(ring.setup().sq_entries);
    for round in 0..3 {
        for id in 0..entries {
            ring.push(&S::from_sqe64(op::nop().user_data(round * 1000 + id)))
                .expect("room");
        }
        let cqes = reap(ring, usize::try_from(entries).expect("few"));
        let ids: Vec<u64> = cqes.iter().map(CqEntry::user_data).collect();
        assert_eq!(
            ids,
            (round * 1000..round * 1000 + entries).collect::<Vec<_>>()
        );
        assert!(cqes.iter().all(|cqe| cqe.res() == 0));
    }
    assert_eq!((ring.overflowed(), ring.dropped()), (0, 0));
}

fn every_rung<S: SqEntry, C: CqEntry>() {
    for ladder in [
        Ladder::SingleIssuerDefer,
        Ladder::CoopTaskrun,
        Ladder::Plain,
    ] {
        let mut ring = ring_on::<S, C>(8, ladder);
        let setup = *ring.setup();
        if setup.ladder != ladder {
            skip(&format!(
                "the kernel grants {:?} where {ladder:?} was asked",
                setup.ladder
            ));
        }
        let defer = sys::IORING_SETUP_SINGLE_ISSUER | sys::IORING_SETUP_DEFER_TASKRUN;
        let coop = sys::IORING_SETUP_COOP_TASKRUN | sys::IORING_SETUP_TASKRUN_FLAG;
        let expected = match setup.ladder {
            Ladder::SingleIssuerDefer => defer,
            Ladder::CoopTaskrun => coop,
            _ => 0,
        };
        assert_eq!(setup.flags & (defer | coop), expected);
        assert_eq!((setup.sq_entries, setup.cq_entries), (8, 16));
        assert!(setup.has_feature(sys::IORING_FEAT_EXT_ARG));
        works(&mut ring);
    }
}

#[test]
fn every_rung_of_the_ladder() {
    every_rung::<Sqe64, Cqe16>();
}

#[test]
fn every_rung_with_sqe128() {
    every_rung::<Sqe128, Cqe16>();
}

#[test]
fn every_rung_with_cqe32() {
    every_rung::<Sqe64, Cqe32>();
}

#[test]
fn every_rung_with_both() {
    every_rung::<Sqe128, Cqe32>();
}

#[test]
fn with_and_without_the_index_array() {
    let mut ring = Ring::<Sqe64, Cqe16>::builder(4)
        .sq_array(true)
        .build()
        .expect("ring");
    assert!(!ring.setup().has_flag(sys::IORING_SETUP_NO_SQARRAY));
    works(&mut ring);
    let mut ring = common::ring::<Sqe128, Cqe16>(4);
    if !ring.setup().has_flag(sys::IORING_SETUP_NO_SQARRAY) {
        return skip("the kernel is older than 6.6 and has no NO_SQARRAY");
    }
    works(&mut ring);
}

#[test]
fn sizes_are_rounded_and_clamped() {
    let ring = Ring::<Sqe64, Cqe16>::builder(5)
        .cq_entries(100)
        .build()
        .expect("ring");
    assert_eq!((ring.setup().sq_entries, ring.setup().cq_entries), (8, 128));
    let ring = Ring::<Sqe64, Cqe16>::builder(1 << 20)
        .clamp(true)
        .build()
        .expect("ring");
    assert_eq!(
        (ring.setup().sq_entries, ring.setup().cq_entries),
        (32768, 65536)
    );
}

#[test]
fn the_ring_descriptor_is_registered_and_given_back() {
    // A thread has 16 slots: a leak would show at the seventeenth ring.
    for i in 0..40 {
        let mut ring = ring::<Sqe64, Cqe16>(2);
        assert!(ring.setup().ring_fd_registered, "ring {i}");
        works(&mut ring);
    }
    // More rings than slots work, too.
    let mut rings: Vec<Ring> = (0..18).map(|_| ring(2)).collect();
    assert!(!rings[17].setup().ring_fd_registered);
    rings.iter_mut().for_each(works);
    let mut ring = Ring::<Sqe64, Cqe16>::builder(2)
        .register_ring_fd(false)
        .build()
        .expect("ring");
    assert!(!ring.setup().ring_fd_registered);
    works(&mut ring);
}
