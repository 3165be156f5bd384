use super::*;

fn tag(n: u16) -> Tag {
    Tag::new(n).expect("below 4096")
}

/// L03 The places of neighbouring tags do not overlap, at any advertised maximum.
#[test]
fn l03_places_are_disjoint_and_hold_the_maximum() {
    for max in [1u32, 512, 4096, 4097, 512 << 10] {
        let arena = Arena::new(4, max).expect("memory");
        for n in 0..3 {
            assert!(arena.addr(tag(n + 1)) - arena.addr(tag(n)) >= u64::from(max));
        }
    }
}

/// L05 Buffers are zero before first use.
#[test]
fn l05_buffers_begin_as_zeroes() {
    let arena = Arena::new(2, 8192).expect("memory");
    // SAFETY: no request token and no driver exist for this arena.
    let bytes = unsafe { arena.slice(tag(1), 8192) };
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// L09 Lanes of one queue share the buffers, which stay mapped until the last lane is gone.
#[test]
fn l09_buffers_stay_while_a_lane_has_them() {
    let arena = Arena::new(2, 4096).expect("memory");
    let other = arena.clone();
    assert_eq!(arena.addr(tag(1)), other.addr(tag(1)));
    assert!(arena.is_shared());
    drop(arena);
    assert!(!other.is_shared());
    // SAFETY: no request token and no driver exist for this arena.
    assert_eq!(unsafe { other.slice(tag(1), 4096) }[4095], 0);
}

/// L05 Huge pages, if available, are zero and hold the maximum; small queues use none.
#[test]
fn l05_huge_pages_begin_as_zeroes() {
    let arena = Arena::with(8, 512 << 10, true).expect("memory");
    assert_eq!(arena.extent().0, 4 << 20);
    assert!(arena.addr(tag(7)) - arena.addr(tag(0)) == 7 * (512 << 10));
    // SAFETY: no request token and no driver exist for this arena.
    let bytes = unsafe { arena.slice_mut(tag(7), 512 << 10) };
    assert!(bytes.iter().all(|byte| *byte == 0));
    bytes.fill(1);
    let small = Arena::with(4, 4096, true).expect("memory");
    assert_eq!(small.extent(), (4 * 4096, Pages::Small));
}

/// The place that came back last is reused first, and no place is assigned twice.
#[test]
fn places_that_are_dealt_are_few_and_disjoint() {
    let mut arena = Arena::new(4, 4096).expect("memory");
    let mut buffers = arena.pool(4);
    buffers.lend(tag(3));
    let first = arena.addr(tag(3));
    buffers.lend(tag(3));
    assert_eq!(arena.addr(tag(3)), first, "a tag keeps what it has");
    buffers.lend(tag(1));
    assert!(arena.addr(tag(1)).abs_diff(first) >= 4096);
    buffers.take_back(tag(3));
    buffers.take_back(tag(3));
    buffers.lend(tag(2));
    assert_eq!(arena.addr(tag(2)), first, "the last one back");
    buffers.lend(tag(0));
    buffers.lend(tag(3));
    let mut all: Vec<_> = (0..4).map(|n| arena.addr(tag(n))).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4);
}

#[test]
#[should_panic(expected = "beyond the arena")]
fn a_tag_without_a_place_has_no_memory() {
    let mut arena = Arena::new(2, 4096).expect("memory");
    let _pool = arena.pool(2);
    arena.addr(tag(0));
}

#[test]
#[should_panic(expected = "beyond the arena")]
fn a_tag_beyond_the_depth_is_refused() {
    let arena = Arena::new(2, 4096).expect("memory");
    arena.addr(tag(2));
}
