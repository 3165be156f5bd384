//! Shared by the tests on the running kernel. They need io_uring and fail without it: a ring that cannot be made is
//! not a pass.

#![allow(dead_code, reason = "each test program uses its part")]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use uring_lite::{CqEntry, Cqe16, Fd, Ladder, Ring, SqEntry};

/// Deadline of every wait in the tests.
pub const DEADLINE: Option<Duration> = Some(Duration::from_secs(10));

pub fn ring<S: SqEntry, C: CqEntry>(entries: u32) -> Ring<S, C> {
    Ring::<S, C>::builder(entries)
        .build()
        .unwrap_or_else(|e| panic!("these tests need io_uring: {e}"))
}

pub fn ring_on<S: SqEntry, C: CqEntry>(entries: u32, ladder: Ladder) -> Ring<S, C> {
    let built = Ring::<S, C>::builder(entries).ladder(ladder).build();
    built.unwrap_or_else(|e| panic!("these tests need io_uring: {e}"))
}

/// A descriptor of a test, for its entries.
#[allow(
    unsafe_code,
    reason = "a test's descriptors outlive its rings' entries"
)]
pub fn open(fd: &impl AsFd) -> Fd {
    // SAFETY: the tests submit and reap what they push before they close what it names.
    unsafe { Fd::raw(fd.as_fd()) }
}

/// Says why a test cannot run here. With `URING_LITE_SKIPS=deny` that is a failure.
pub fn skip(why: &str) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(
        std::env::var_os("URING_LITE_SKIPS").is_none_or(|v| v != "deny"),
        "{name} skipped: {why}"
    );
    eprintln!("SKIPPED {name}: {why}");
}

/// Submits, then waits for `count` completions, in order of arrival.
pub fn reap<S: SqEntry, C: CqEntry>(ring: &mut Ring<S, C>, count: usize) -> Vec<C> {
    let mut cqes = Vec::new();
    let start = Instant::now();
    while cqes.len() < count {
        let missing = u32::try_from(count - cqes.len()).expect("few");
        let entered = ring.enter(missing, DEADLINE).expect("enter");
        cqes.extend(std::iter::from_fn(|| ring.next_cqe()));
        let late = entered.timed_out || DEADLINE.is_some_and(|d| start.elapsed() > d);
        assert!(
            !late || cqes.len() >= count,
            "{} of {count} completions came",
            cqes.len()
        );
    }
    assert_eq!(cqes.len(), count);
    cqes
}

/// Pushes one entry and waits for its completion.
pub fn run<S: SqEntry>(ring: &mut Ring<S, Cqe16>, entry: &S) -> Cqe16 {
    ring.push(entry).expect("room");
    let cqe = reap(ring, 1)[0];
    assert_eq!(cqe.user_data, entry.get_user_data());
    cqe
}
