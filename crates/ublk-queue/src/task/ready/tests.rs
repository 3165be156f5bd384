//! Tests of the wakers, on real threads.

use std::sync::atomic::AtomicUsize;

use super::*;

#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn ready(tags: u16) -> (Ready, Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    (Ready::new(tags, bell.clone()), bell)
}

fn drained(ready: &Ready) -> Vec<u16> {
    let mut tags = Vec::new();
    ready.drain(|tag| tags.push(tag));
    tags.sort_unstable();
    tags
}

/// L55 A wake on the worker's own thread does not wake the ring while the worker will look before it sleeps, and does
/// once it has looked; a wake from another thread always does.
#[test]
fn l55_other_threads_ring_and_the_own_one_only_when_settled() {
    let (ready, bell) = ready(4);
    let rung = || bell.0.load(Ordering::SeqCst);
    ready.lend(2).wake_by_ref();
    ready.lend(2).wake_by_ref();
    assert_eq!((drained(&ready), rung()), (vec![2], 0));
    ready.settle(true);
    ready.lend(3).wake_by_ref();
    assert_eq!((drained(&ready), rung()), (vec![3], 1));
    ready.settle(false);
    let waker = Waker::clone(&ready.lend(1));
    std::thread::spawn(move || waker.wake())
        .join()
        .expect("no panic");
    assert_eq!((drained(&ready), rung()), (vec![1], 2));
}

#[test]
fn wakers_outlive_their_executor() {
    let (ready, bell) = ready(2);
    let waker = Waker::clone(&ready.lend(1));
    let shared = Arc::downgrade(&ready.0);
    drop(ready);
    std::thread::spawn(move || {
        waker.wake_by_ref();
        drop(waker.clone());
        waker.wake();
    })
    .join()
    .expect("no panic");
    assert!(bell.0.load(Ordering::SeqCst) >= 1);
    assert!(shared.upgrade().is_none(), "no count was kept");
}

#[test]
fn counts_go_up_and_down_with_the_wakers() {
    let (ready, _bell) = ready(2);
    let count = || Arc::strong_count(&ready.0);
    assert_eq!(count(), 1);
    {
        let lent = ready.lend(0);
        assert_eq!(count(), 1, "lending takes no count");
        let owned = Waker::clone(&lent);
        assert_eq!(count(), 2);
        assert!(owned.will_wake(&lent));
    }
    assert_eq!(count(), 1);
}

#[test]
fn own_wakers_are_known() {
    let ((one, _), (other, _)) = (ready(3), ready(3));
    assert_eq!(one.tag_of(&one.lend(2)), Some(2));
    assert_eq!(one.tag_of(&other.lend(2)), None);
    assert_eq!(one.tag_of(Waker::noop()), None);
}

/// L55 A thread's writes before its wake are seen by the poll that follows; no wake of many threads is lost.
#[test]
fn l55_wakes_of_many_threads_arrive() {
    let (ready, _bell) = ready(8);
    let counts: Arc<[AtomicUsize; 8]> = Arc::default();
    let threads: Vec<_> = (0..8usize)
        .map(|tag| {
            let (counts, waker) = (Arc::clone(&counts), Waker::clone(&ready.lend(tag)));
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    counts[tag].fetch_add(1, Ordering::Relaxed);
                    waker.wake_by_ref();
                }
            })
        })
        .collect();
    let mut seen = [0; 8];
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while seen != [1000; 8] {
        assert!(std::time::Instant::now() < deadline, "{seen:?}");
        ready.drain(|tag| {
            let tag = usize::from(tag);
            seen[tag] = counts[tag].load(Ordering::Relaxed);
        });
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
}
