//! The ready list: a lock-free list with one node per tag, and the wakers that push onto it.
//!
//! General safety argument. A task's waker is a pointer to its [`Node`]. Nodes live in a box that the [`ReadyList`]
//! part owns, which is allocated once and never moved nor freed before the last reference of its `Arc` is dropped. Each
//! owned waker holds one reference: `clone` takes one, `wake` and `drop` return it. The waker that is lent to a poll is
//! not owned (`ManuallyDrop`): the executor, which holds a reference of its own, is borrowed for the length of the
//! poll. A node's pointer to the shared part comes from `Arc::into_raw`, so the reference count can be changed through
//! it. Wakers only access atomics and a `Wake`, which is `Sync`; so they may be used from any thread, and may outlive
//! the executor: then they push onto a list that nobody takes.
#![expect(unsafe_code, reason = "the vtable of the tasks' wakers")]

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::AtomicPtr;
use std::task::{RawWaker, RawWakerVTable, Waker};

use crate::port::Wake;
use crate::sync::{AtomicU32, Ordering};

const END: u32 = u32::MAX;

struct Node {
    tag: u16,
    /// 1 while the tag is in the list, or about to be.
    queued: AtomicU32,
    next: AtomicU32,
    /// The shared part that owns this node; written once, before there is any waker.
    shared: AtomicPtr<ReadyList>,
}

/// The part that wakers on any thread access.
struct ReadyList {
    head: AtomicU32,
    /// 1 while the worker may sleep without another look at this list.
    settled: AtomicU32,
    /// The worker's thread.
    owner: usize,
    wake: Arc<dyn Wake>,
    nodes: Box<[Node]>,
}

// Wakers go to any thread.
static_assertions::assert_impl_all!(ReadyList: Send, Sync);

impl ReadyList {
    fn new(tags: u16, owner: usize, wake: Arc<dyn Wake>) -> Self {
        let node = |tag| Node {
            tag,
            queued: AtomicU32::new(0),
            next: AtomicU32::new(END),
            shared: AtomicPtr::new(std::ptr::null_mut()),
        };
        Self {
            head: AtomicU32::new(END),
            settled: AtomicU32::new(0),
            owner,
            wake,
            nodes: (0..tags).map(node).collect(),
        }
    }

    /// Pushes a tag unless it is in the list. `own` is true on the worker's thread, which looks at the list before it
    /// sleeps.
    fn wake(&self, node: &Node, own: bool) {
        // AcqRel: pairs with the swap in `drain`. A thread that finds 1 has its writes seen by that swap, which takes
        // the newest value; a thread that finds 0 pushes.
        if node.queued.swap(1, Ordering::AcqRel) == 1 {
            return;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            node.next.store(head, Ordering::Relaxed);
            // Release: pairs with the acquire swap of `drain`. There is no ABA: a node is pushed again only after
            // the worker took the whole list.
            let tag = u32::from(node.tag);
            let pushed =
                self.head
                    .compare_exchange_weak(head, tag, Ordering::Release, Ordering::Relaxed);
            match pushed {
                Ok(_) => break,
                Err(now) => head = now,
            }
        }
        if !own || self.settled.load(Ordering::Relaxed) == 1 {
            // L55: this wakes a sleeping ring at once; for one that is awake it is an atomic swap.
            self.wake.wake();
        }
    }

    /// Takes the list. Worker only.
    fn drain(&self, mut each: impl FnMut(u16)) {
        let mut at = self.head.swap(END, Ordering::Acquire);
        while let Some(node) = usize::try_from(at).ok().and_then(|at| self.nodes.get(at)) {
            // Read before the flag is cleared: from then on the node may be pushed again.
            at = node.next.load(Ordering::Relaxed);
            node.queued.swap(0, Ordering::AcqRel);
            each(node.tag);
        }
    }
}

thread_local! {
    static MARK: u8 = const { 0 };
}

/// Identifies the calling thread: the address of a thread-local.
fn here() -> usize {
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

/// The executor's side of the list.
pub(super) struct Ready(Arc<ReadyList>);

impl Ready {
    /// A list for this many tags, whose worker is the calling thread.
    pub(super) fn new(tags: u16, wake: Arc<dyn Wake>) -> Self {
        let shared = Arc::into_raw(Arc::new(ReadyList::new(tags, here(), wake)));
        // SAFETY: from `into_raw` just above, taken back once.
        let this = Self(unsafe { Arc::from_raw(shared) });
        for node in &this.0.nodes {
            node.shared.store(shared.cast_mut(), Ordering::Relaxed);
        }
        this
    }

    /// A tag's waker, lent for a poll.
    #[inline(always)]
    pub(super) fn lend(&self, tag: usize) -> ManuallyDrop<Waker> {
        let node = std::ptr::from_ref(&self.0.nodes[tag]);
        // SAFETY: the vtable's functions take a pointer to a node whose shared part lives; this one does while `self`
        // is borrowed, and a lent waker returns no reference.
        ManuallyDrop::new(unsafe { Waker::from_raw(RawWaker::new(node.cast(), &VTABLE)) })
    }

    /// The tag, if this is the waker of one of this executor's tasks, which need not be cloned then.
    pub(super) fn tag_of(&self, waker: &Waker) -> Option<u16> {
        if !std::ptr::eq(waker.vtable(), &raw const VTABLE) {
            return None;
        }
        // SAFETY: our vtable: its pointer is a node whose shared part lives while the waker does.
        let node = unsafe { &*waker.data().cast::<Node>() };
        let shared = node.shared.load(Ordering::Relaxed).cast_const();
        std::ptr::eq(shared, Arc::as_ptr(&self.0)).then_some(node.tag)
    }

    /// True if no tag was woken since the last [`drain`](Self::drain): a plain load.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.head.load(Ordering::Relaxed) == END
    }

    /// Takes the tags that were woken.
    pub(super) fn drain(&self, each: impl FnMut(u16)) {
        self.0.drain(each);
    }

    /// Sets whether the worker may sleep now without another look.
    pub(super) fn settle(&self, settled: bool) {
        // Only wakes on the worker's own thread test it; other threads always wake the ring.
        self.0.settled.store(u32::from(settled), Ordering::Relaxed);
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, release);

/// # Safety
/// `data` is the pointer of a waker with [`VTABLE`].
unsafe fn shared_of(data: *const ()) -> *const ReadyList {
    // SAFETY: the waker keeps (or borrows what keeps) the node's shared part alive.
    let node = unsafe { &*data.cast::<Node>() };
    node.shared.load(Ordering::Relaxed).cast_const()
}

/// # Safety
/// As [`shared_of`].
unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: the caller's contract.
    let shared = unsafe { shared_of(data) };
    // SAFETY: from `Arc::into_raw`, and at least one reference is held for the length of this call.
    unsafe { Arc::increment_strong_count(shared) };
    RawWaker::new(data, &VTABLE)
}

/// # Safety
/// As [`shared_of`], and the waker owns a reference.
unsafe fn wake(data: *const ()) {
    // SAFETY: the caller's contract.
    unsafe { wake_by_ref(data) };
    // SAFETY: the caller's contract.
    unsafe { release(data) };
}

/// # Safety
/// As [`shared_of`].
unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: the caller's contract.
    let shared = unsafe { shared_of(data) };
    // SAFETY: alive, as the waker is.
    let shared = unsafe { &*shared };
    // SAFETY: as in `shared_of`.
    let node = unsafe { &*data.cast::<Node>() };
    shared.wake(node, here() == shared.owner);
}

/// # Safety
/// As [`shared_of`], and the waker owns a reference.
unsafe fn release(data: *const ()) {
    // SAFETY: the caller's contract.
    let shared = unsafe { shared_of(data) };
    // SAFETY: from `Arc::into_raw`; the waker's own reference, returned once.
    unsafe { Arc::decrement_strong_count(shared) };
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    struct Bell(AtomicU32);

    impl Wake for Bell {
        fn wake(&self) {
            self.0.store(1, Ordering::Release);
        }
    }

    /// L55 Two threads write and wake the same task while its worker takes the list: the last poll sees both writes,
    /// and the ring has been woken.
    #[test]
    fn loom_the_last_poll_sees_what_was_written_before_a_wake() {
        loom::model(|| {
            let bell = std::sync::Arc::new(Bell(AtomicU32::new(0)));
            let shared = Arc::new(ReadyList::new(2, 1, bell.clone()));
            let data = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
            let threads: Vec<_> = (0..2)
                .map(|n: usize| {
                    let (shared, data) = (Arc::clone(&shared), Arc::clone(&data));
                    loom::thread::spawn(move || {
                        data[n].store(1, Ordering::Relaxed);
                        shared.wake(&shared.nodes[1], false);
                    })
                })
                .collect();
            let mut seen = [0, 0];
            let mut poll = |tag| {
                assert_eq!(tag, 1);
                seen = [0, 1].map(|n: usize| data[n].load(Ordering::Relaxed));
            };
            shared.drain(&mut poll);
            for thread in threads {
                thread.join().expect("no panic");
            }
            shared.drain(&mut poll);
            assert_eq!(seen, [1, 1]);
            assert_eq!(bell.0.load(Ordering::Acquire), 1);
        });
    }

    /// L55 A task that is woken again while the list with it is being taken removes no other from the list: each is
    /// found after its last wake, and the list ends.
    #[test]
    fn loom_a_task_woken_again_loses_no_other() {
        loom::model(|| {
            let bell = std::sync::Arc::new(Bell(AtomicU32::new(0)));
            let shared = Arc::new(ReadyList::new(2, 1, bell));
            // Both are in the list: 1 before 0.
            shared.wake(&shared.nodes[0], false);
            shared.wake(&shared.nodes[1], false);
            let again = {
                let shared = Arc::clone(&shared);
                loom::thread::spawn(move || shared.wake(&shared.nodes[1], false))
            };
            let mut seen = [0, 0];
            let mut found = |tag: u16| {
                seen[usize::from(tag)] += 1;
                assert!(seen[0] + seen[1] <= 3, "the list has no end");
            };
            shared.drain(&mut found);
            again.join().expect("no panic");
            shared.drain(&mut found);
            assert_eq!(seen[0], 1);
            assert!((1..=2).contains(&seen[1]));
        });
    }

    /// Two tasks woken at once are both found, each once.
    #[test]
    fn loom_each_task_is_found_once() {
        loom::model(|| {
            let bell = std::sync::Arc::new(Bell(AtomicU32::new(0)));
            let shared = Arc::new(ReadyList::new(2, 1, bell));
            let threads: Vec<_> = (0..2)
                .map(|n: usize| {
                    let shared = Arc::clone(&shared);
                    loom::thread::spawn(move || shared.wake(&shared.nodes[n], false))
                })
                .collect();
            let mut seen = [0, 0];
            shared.drain(|tag| seen[usize::from(tag)] += 1);
            for thread in threads {
                thread.join().expect("no panic");
            }
            shared.drain(|tag| seen[usize::from(tag)] += 1);
            assert_eq!(seen, [1, 1]);
        });
    }
}
