//! The shipped protocol under loom: `RUSTFLAGS="--cfg loom" cargo test -p uring-lite --release loom_`.
//!
//! loom checks each access to an entry's cell against all others, so that a missing acquire or release is reported as a
//! race, and a lost wake-up as a deadlock.

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use crate::cq::Cq;
use crate::heap;
use crate::park::Park;
use crate::sq::Sq;

/// More entries than the queue has, so that the indices wrap.
const COUNT: u64 = 3;

#[test]
fn loom_sq_entries_arrive_whole_and_in_order() {
    loom::model(|| {
        let (memory, mut kernel) = heap::sq(2, u32::MAX, 0_u64);
        let consumer = thread::spawn(move || {
            for expected in 1..=COUNT {
                loop {
                    if let Some(entry) = kernel.take() {
                        assert_eq!(entry, expected);
                        break;
                    }
                    thread::yield_now();
                }
            }
        });
        let mut sq = Sq::new(memory).expect("a power of two");
        for id in 1..=COUNT {
            while sq.push(&id).is_err() {
                thread::yield_now();
            }
            sq.publish();
        }
        consumer.join().expect("consumer");
    });
}

#[test]
fn loom_cq_entries_arrive_whole_and_in_order() {
    loom::model(|| {
        let (memory, mut kernel) = heap::cq(2, u32::MAX, 0_u64);
        let producer = thread::spawn(move || {
            for id in 1..=COUNT {
                while !kernel.post(id) {
                    thread::yield_now();
                }
            }
        });
        let mut cq = Cq::new(memory).expect("a power of two");
        for expected in 1..=COUNT {
            loop {
                if let Some(entry) = cq.pop() {
                    assert_eq!(entry, expected);
                    break;
                }
                cq.release();
                thread::yield_now();
            }
        }
        producer.join().expect("producer");
    });
}

/// The eventfd and the sleeping kernel: a count, and a wait for it to exceed the last seen value.
struct Bell {
    rung: Mutex<u32>,
    heard: Condvar,
}

/// L55 no wake-up is lost: the sleeper ends only when it has seen the work of every waker. A lost wake-up is a
/// deadlock.
///
/// `preemptions` bounds how often a thread is preempted needlessly; `None` tries everything.
fn wakers(count: u32, preemptions: Option<usize>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        let park = Arc::new(Park::default());
        let bell = Arc::new(Bell {
            rung: Mutex::new(0),
            heard: Condvar::new(),
        });
        let work = Arc::new(loom::sync::atomic::AtomicU32::new(0));
        let threads: Vec<_> = (0..count)
            .map(|_| {
                let (park, bell, work) = (Arc::clone(&park), Arc::clone(&bell), Arc::clone(&work));
                thread::spawn(move || {
                    // Relaxed on purpose: the notice must make it visible.
                    work.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if park.notify() {
                        *bell.rung.lock().expect("lock") += 1;
                        bell.heard.notify_one();
                    }
                })
            })
            .collect();
        let mut seen = 0;
        let mut sleeps = 0;
        while work.load(std::sync::atomic::Ordering::Relaxed) < count {
            if park.park() {
                sleeps += 1;
                let mut rung = bell.rung.lock().expect("lock");
                while *rung == seen {
                    rung = bell.heard.wait(rung).expect("wait");
                }
                seen = *rung;
                drop(rung);
                park.unpark();
            }
        }
        // Each sleep is ended by its own write to the eventfd: no wake-up without a wake.
        assert!(sleeps <= count, "{sleeps} sleeps for {count} wakes");
        for thread in threads {
            thread.join().expect("waker");
        }
    });
}

#[test]
fn loom_park_one_waker() {
    wakers(1, None);
}

#[test]
fn loom_park_two_wakers() {
    // Without a bound it passes, too, in four minutes.
    wakers(2, Some(3));
}
