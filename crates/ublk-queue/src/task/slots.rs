//! Slots for tasks: one future per tag, allocated once and pinned for good.
//!
//! General safety argument. A slot's memory is an element of a box that is never moved or reallocated, and a future in
//! it is dropped in place before the slot is used again or the box is freed: `live` says which slots hold one; it is
//! set after a future was written and cleared before it is dropped; `Drop` drops the remaining ones. So futures are
//! pinned from `start` on. Slots are `UnsafeCell`s: no reference to the box as a whole makes a claim about the futures
//! inside, which may point into themselves.
#![expect(unsafe_code, reason = "pins futures in its own memory")]

use crate::panics::{catch, caught, discard};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

struct TaskSlot<F> {
    /// # Invariants
    /// True only while `future` holds one.
    live: Cell<bool>,
    future: UnsafeCell<MaybeUninit<F>>,
}

/// A task ended with a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Panicked;

impl<F> TaskSlot<F> {
    /// Drops the future, if there is one. False if that panicked.
    #[inline(always)]
    fn clear(&self) -> bool {
        if !self.live.replace(false) || !std::mem::needs_drop::<F>() {
            return true;
        }
        let future = self.future.get().cast::<F>();
        // SAFETY: `live` was set, so there is a future; it is cleared, so the future is dropped once, in place.
        caught(|| unsafe { future.drop_in_place() }).is_some()
    }
}

impl<F: Future> TaskSlot<F> {
    /// The result of a poll; drops a future that is ready or panicked.
    #[inline(always)]
    fn polled(
        &self,
        result: std::thread::Result<Poll<F::Output>>,
    ) -> Result<Poll<F::Output>, Panicked> {
        match result {
            Ok(Poll::Pending) => Ok(Poll::Pending),
            Ok(ready) if self.clear() => Ok(ready),
            Ok(_) => Err(Panicked),
            Err(panic) => self.panicked(panic),
        }
    }

    #[cold]
    fn panicked(&self, panic: Box<dyn Any + Send>) -> Result<Poll<F::Output>, Panicked> {
        self.clear();
        // The payload is not reported, only the panic.
        discard(panic);
        Err(Panicked)
    }
}

/// One place for a future per tag.
pub(super) struct Slots<F>(Box<[TaskSlot<F>]>);

impl<F: Future> Slots<F> {
    /// Slots for this many tags.
    pub(super) fn new(tags: usize) -> Self {
        let slot = |_| TaskSlot {
            live: Cell::new(false),
            future: UnsafeCell::new(MaybeUninit::uninit()),
        };
        Self((0..tags).map(slot).collect())
    }

    /// Puts a future into a slot, replaces the present one if any, and polls it.
    ///
    /// # Errors
    /// Making the future, or polling it, panicked (L25).
    #[inline(always)]
    pub(super) fn start(
        &mut self,
        tag: usize,
        make: impl FnOnce() -> F,
        context: &mut Context<'_>,
    ) -> Result<Poll<F::Output>, Panicked> {
        let slot = &self.0[tag];
        if slot.live.get() {
            slot.clear();
        }
        let place = slot.future.get().cast::<F>();
        let result = catch(|| {
            let future = make();
            // SAFETY: memory for one future, of which this is the only user (`&mut self`), and which holds none.
            unsafe { place.write(future) };
            slot.live.set(true);
            // SAFETY: just written, and as above.
            let future = unsafe { &mut *place };
            // SAFETY: it stays where it is until it is dropped (the head of this file).
            let future = unsafe { Pin::new_unchecked(future) };
            future.poll(context)
        });
        slot.polled(result)
    }

    /// Polls the future of a slot; drops it if it is ready or panics.
    ///
    /// # Errors
    /// The future panicked (L25).
    pub(super) fn poll(
        &mut self,
        tag: usize,
        context: &mut Context<'_>,
    ) -> Result<Poll<F::Output>, Panicked> {
        let slot = &self.0[tag];
        if !slot.live.get() {
            return Ok(Poll::Pending);
        }
        let future = slot.future.get().cast::<F>();
        // SAFETY: `live`, so the slot holds a future, and `&mut self` makes this the only access to it.
        let future = unsafe { &mut *future };
        // SAFETY: it stays where it is until it is dropped (the head of this file).
        let future = unsafe { Pin::new_unchecked(future) };
        // Nothing looks at its state after a panic: it is dropped.
        let result = catch(|| future.poll(context));
        slot.polled(result)
    }
}

impl<F> Slots<F> {
    /// Drops all futures.
    pub(super) fn clear_all(&mut self) {
        for slot in &self.0 {
            // A panic is contained, or the remaining futures would be freed without being dropped.
            let _ = slot.clear();
        }
    }
}

impl<F> Drop for Slots<F> {
    fn drop(&mut self) {
        self.clear_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::marker::PhantomPinned;
    use std::rc::Rc;
    use std::task::Waker;

    /// Checks that it is not moved, and counts its drops.
    struct Stays {
        at: Cell<usize>,
        left: Cell<u32>,
        drops: Rc<Cell<u32>>,
        panics: bool,
        _pin: PhantomPinned,
    }

    impl Stays {
        fn new(left: u32, drops: &Rc<Cell<u32>>, panics: bool) -> Self {
            Self {
                at: Cell::new(0),
                left: Cell::new(left),
                drops: Rc::clone(drops),
                panics,
                _pin: PhantomPinned,
            }
        }
    }

    impl Future for Stays {
        type Output = u32;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u32> {
            let here = std::ptr::from_ref(&*self).addr();
            let before = self.at.replace(here);
            assert!(before == 0 || before == here, "moved");
            assert!(!self.panics, "as asked");
            match self.left.get() {
                0 => Poll::Ready(7),
                left => {
                    self.left.set(left - 1);
                    Poll::Pending
                }
            }
        }
    }

    impl Drop for Stays {
        fn drop(&mut self) {
            self.drops.set(self.drops.get() + 1);
        }
    }

    fn poll(slots: &mut Slots<Stays>, tag: usize) -> Result<Poll<u32>, Panicked> {
        slots.poll(tag, &mut Context::from_waker(Waker::noop()))
    }

    fn start(slots: &mut Slots<Stays>, tag: usize, future: Stays) -> Result<Poll<u32>, Panicked> {
        slots.start(tag, || future, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn futures_stay_and_are_dropped_once() {
        let drops = Rc::new(Cell::new(0));
        let mut slots = Slots::new(3);
        assert_eq!(poll(&mut slots, 1), Ok(Poll::Pending), "an empty slot");
        let first = start(&mut slots, 1, Stays::new(3, &drops, false));
        assert_eq!(first, Ok(Poll::Pending));
        assert_eq!(
            start(&mut slots, 2, Stays::new(5, &drops, false)),
            Ok(Poll::Pending)
        );
        assert_eq!(poll(&mut slots, 1), Ok(Poll::Pending));
        let mut slots = Box::new(slots);
        assert_eq!(poll(&mut slots, 1), Ok(Poll::Pending));
        assert_eq!(poll(&mut slots, 1), Ok(Poll::Ready(7)));
        assert!(!slots.0[1].live.get() && slots.0[2].live.get());
        assert_eq!(drops.get(), 1);
        assert_eq!(
            start(&mut slots, 1, Stays::new(1, &drops, false)),
            Ok(Poll::Pending)
        );
        drop(slots);
        assert_eq!(drops.get(), 3);
    }

    /// L25 A panic of one future is contained in its slot.
    #[test]
    fn l25_a_panic_ends_one_future() {
        let drops = Rc::new(Cell::new(0));
        let mut slots = Slots::new(2);
        let panicked = start(&mut slots, 0, Stays::new(0, &drops, true));
        assert_eq!(panicked, Err(Panicked));
        assert_eq!(
            start(&mut slots, 1, Stays::new(1, &drops, false)),
            Ok(Poll::Pending)
        );
        assert!(!slots.0[0].live.get());
        assert_eq!(poll(&mut slots, 1), Ok(Poll::Ready(7)));
        assert_eq!(drops.get(), 2);
    }
}
