//! Answers from other threads: a lock-free list with one node per tag.
//!
//! Any thread pushes; since it owns the tag's request, each tag is in the list at most once. The worker takes the whole
//! list at a time. The nodes are linked in place, so nothing is allocated and the list cannot be full.

use crossbeam_utils::CachePadded;

use crate::sync::{AtomicI32, AtomicU32, Ordering};
use ublk_core::{Answer, Errno, Tag};

const END: u32 = u32::MAX;

struct AnswerSlot {
    result: AtomicI32,
    next: AtomicU32,
}

/// The answers that other threads recorded for a lane.
pub(crate) struct RemoteAnswers {
    /// On a cache line of its own: answering threads write it, while the worker reads its neighbours for each request.
    head: CachePadded<AtomicU32>,
    slots: Box<[AnswerSlot]>,
}

impl RemoteAnswers {
    pub(crate) fn new(depth: u16) -> Self {
        let slot = |_| AnswerSlot {
            result: AtomicI32::new(0),
            next: AtomicU32::new(END),
        };
        Self {
            head: CachePadded::new(AtomicU32::new(END)),
            slots: (0..depth).map(slot).collect(),
        }
    }

    /// Records the answer for a tag. The caller owns the tag's request and gives it up with this call.
    pub(crate) fn push(&self, tag: Tag, answer: Answer) {
        let slot = &self.slots[tag.index()];
        slot.result.store(answer.result(), Ordering::Relaxed);
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            slot.next.store(head, Ordering::Relaxed);
            // Release: pairs with the acquire swap in `drain`; the node, and the answering thread's writes to the
            // request's buffer, become visible first. There is no ABA: a tag is pushed again only after the worker took
            // the whole list.
            match self.head.compare_exchange_weak(
                head,
                u32::from(tag.get()),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// True if the list is empty now: a plain load for the common case.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == END
    }

    /// True if the tag's answer is in the list. Any thread; while answers come and go it may be mistaken.
    pub(crate) fn has(&self, tag: Tag) -> bool {
        let mut at = self.head.load(Ordering::Relaxed);
        // Bounded: the list may change under this walk, and lead in a circle.
        for _ in 0..self.slots.len() {
            let slot = usize::try_from(at).ok().and_then(|n| self.slots.get(n));
            let Some(slot) = slot else { return false };
            if at == u32::from(tag.get()) {
                return true;
            }
            at = slot.next.load(Ordering::Relaxed);
        }
        false
    }

    /// Takes all answers and passes each to `each`. Worker only.
    pub(crate) fn drain(&self, mut each: impl FnMut(Tag, Result<u32, Errno>)) {
        let mut at = self.head.swap(END, Ordering::Acquire);
        while let Some(tag) = u16::try_from(at).ok().and_then(|tag| Tag::new(tag).ok()) {
            let slot = &self.slots[tag.index()];
            // Read before the answer is passed on: after that the tag may be pushed again.
            at = slot.next.load(Ordering::Relaxed);
            each(tag, Errno::from_result(slot.result.load(Ordering::Relaxed)));
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn tag(n: u16) -> Tag {
        Tag::new(n).expect("below 4096")
    }

    #[test]
    fn an_answer_is_found_until_it_is_taken() {
        let answers = RemoteAnswers::new(4);
        answers.push(tag(2), Answer::full(0));
        answers.push(tag(0), Answer::full(0));
        assert_eq!(
            [0, 1, 2, 3].map(|n| answers.has(tag(n))),
            [true, false, true, false]
        );
        answers.drain(|_, _| ());
        assert!(!answers.has(tag(2)));
    }

    #[test]
    fn answers_of_many_threads_all_arrive_once() {
        let answers = Arc::new(RemoteAnswers::new(64));
        let threads: Vec<_> = (0..4u16)
            .map(|t| {
                let answers = Arc::clone(&answers);
                std::thread::spawn(move || {
                    for i in 0..16 {
                        answers.push(tag(t * 16 + i), Answer::full(u32::from(t * 16 + i)));
                    }
                })
            })
            .collect();
        let mut seen = [0u32; 64];
        let mut count = 0;
        while count < 64 {
            answers.drain(|tag, res| {
                assert_eq!(res, Ok(u32::from(tag.get())));
                seen[tag.index()] += 1;
                count += 1;
            });
        }
        for thread in threads {
            thread.join().expect("no panic");
        }
        assert_eq!(seen, [1; 64]);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::Arc;

    /// Two threads answer, the worker drains meanwhile: each answer arrives exactly once.
    #[test]
    fn loom_answers_arrive_once() {
        loom::model(|| {
            let answers = Arc::new(RemoteAnswers::new(2));
            let threads: Vec<_> = (0..2u16)
                .map(|t| {
                    let answers = Arc::clone(&answers);
                    loom::thread::spawn(move || {
                        answers.push(Tag::new(t).expect("small"), Answer::full(u32::from(t) + 1));
                    })
                })
                .collect();
            let mut seen = [0u32; 2];
            let mut collect = |tag: Tag, res: Result<u32, Errno>| {
                assert_eq!(res, Ok(u32::from(tag.get()) + 1));
                seen[tag.index()] += 1;
            };
            answers.drain(&mut collect);
            for thread in threads {
                thread.join().expect("no panic");
            }
            answers.drain(&mut collect);
            assert_eq!(seen, [1, 1]);
        });
    }
}
