//! The pool of operations: slots that are allocated once and reused.
//!
//! A slot is free, given (to a future that has not used it yet), queued (its entry waits for the submission queue), in
//! flight, or done. Each use is a turn: a completion of an earlier turn is ignored (L53). When all slots are taken,
//! futures join a wait queue and get slots in its order. The wait queue is allocated in advance.
//!
//! General safety argument. The kernel holds pointers to the buffer of an operation in flight and to its slot's
//! [`Scratch`]. The buffer: while the future lives it holds it; a future that is dropped hands it to the slot (`keep`),
//! which frees it with the last completion (L56); a future that is leaked leaks it. The scratch: slots are boxed and
//! never move, and a pool that is dropped with operations in flight leaks them, `keep` and all (L09), and counts that.
#![expect(
    unsafe_code,
    reason = "a slot's scratch is written while the kernel does not have it"
)]

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use ublk_core::Errno;
use uring_lite::{Fd, Sqe64, SqeFlags, op, sys};

use super::buf::BufferLocation;
use super::entry::{Kind, Scratch, entry};
use super::fd::SharedFd;
use crate::operations::Operation;
use crate::port::Full;

/// Turns of a slot before the number wraps.
const TURNS: u16 = 4096;
/// The slot number of cancellations, whose completions are ignored.
const CANCEL: Operation = Operation {
    slot: u16::MAX,
    turn: 0,
};

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Number of operations of this process whose memory was leaked on purpose, because their ring ended before they did.
#[must_use]
pub fn leaked_operations() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// Whom to wake.
#[derive(Default)]
pub(super) enum WakeBy {
    #[default]
    Nobody,
    /// A task of the same executor.
    Tag(u16),
    Other(Waker),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    /// A future has the slot and has not used it yet.
    Given,
    /// The entry waits for the submission queue.
    Queued,
    /// Like queued, but the future is gone: the entry will not be submitted.
    Void,
    InFlight,
    Done,
}

struct OperationSlot {
    state: Cell<State>,
    turn: Cell<u16>,
    res: Cell<i32>,
    /// The future is gone.
    orphan: Cell<bool>,
    /// A cancellation is queued or sent.
    cancelled: Cell<bool>,
    gives_descriptor: Cell<bool>,
    wake: Cell<WakeBy>,
    /// Kept open until the operation is over.
    fd: Cell<Option<SharedFd>>,
    /// The buffer of an orphan.
    keep: Cell<Option<Box<dyn Any>>>,
    entry: Cell<Sqe64>,
    scratch: UnsafeCell<Scratch>,
}

impl OperationSlot {
    fn new() -> Self {
        Self {
            state: Cell::new(State::Free),
            turn: Cell::new(0),
            res: Cell::new(0),
            orphan: Cell::new(false),
            cancelled: Cell::new(false),
            gives_descriptor: Cell::new(false),
            wake: Cell::new(WakeBy::Nobody),
            fd: Cell::new(None),
            keep: Cell::new(None),
            entry: Cell::new(op::nop()),
            scratch: UnsafeCell::new(Scratch::new()),
        }
    }
}

/// The destination of entries: the worker's submission queue.
pub(super) trait Sink {
    fn push(&mut self, sqe: Sqe64, operation: Operation) -> Result<(), Full>;
    /// The `user_data` word of an operation, for a cancel request.
    fn word(&self, operation: Operation) -> u64;
}

#[derive(Debug, Clone, Copy)]
enum Order {
    Submit(u16),
    Cancel(Operation),
}

struct Waiting {
    ticket: u64,
    wake: WakeBy,
    given: Option<u16>,
}

/// Result of asking for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// A slot.
    Granted(u16),
    /// A ticket of the wait queue.
    Ticket(u64),
}

pub(super) struct Pool {
    slots: Box<[OperationSlot]>,
    free: RefCell<Vec<u16>>,
    queue: RefCell<VecDeque<Order>>,
    line: RefCell<VecDeque<Waiting>>,
    tickets: Cell<u64>,
    /// Number of operations that are queued or in flight.
    busy: Cell<usize>,
    stale: Cell<u64>,
    /// The leaks at the end have been counted.
    counted: Cell<bool>,
}

impl Pool {
    /// A pool of this many slots, at least one and at most 32,768.
    pub(super) fn new(slots: u16, line: usize) -> Self {
        let slots = slots.clamp(1, 1 << 15);
        let count = usize::from(slots);
        Self {
            slots: (0..slots).map(|_| OperationSlot::new()).collect(),
            free: RefCell::new((0..slots).rev().collect()),
            queue: RefCell::new(VecDeque::with_capacity(4 * count)),
            line: RefCell::new(VecDeque::with_capacity(line.max(count))),
            tickets: Cell::new(0),
            busy: Cell::new(0),
            stale: Cell::new(0),
            counted: Cell::new(false),
        }
    }

    /// Number of operations that are queued or in flight.
    pub(super) fn busy(&self) -> usize {
        self.busy.get()
    }

    /// Completions that matched no operation.
    #[cfg(test)]
    pub(super) fn stale(&self) -> u64 {
        self.stale.get()
    }

    /// True if entries wait for the submission queue.
    #[inline(always)]
    pub(super) fn has_orders(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    /// Returns a slot, or a ticket of the wait queue.
    pub(super) fn ask(&self, wake: impl FnOnce() -> WakeBy) -> Asked {
        // A free slot means that nobody waits without having been given one.
        if let Some(index) = self.free.borrow_mut().pop() {
            self.slots[usize::from(index)].state.set(State::Given);
            return Asked::Granted(index);
        }
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.line.borrow_mut().push_back(Waiting {
            ticket,
            wake: wake(),
            given: None,
        });
        Asked::Ticket(ticket)
    }

    /// Returns the slot that was given to a ticket and uses the ticket up, or records whom to wake.
    pub(super) fn given(&self, ticket: u64, wake: impl FnOnce() -> WakeBy) -> Option<u16> {
        let mut line = self.line.borrow_mut();
        let at = line.iter().position(|waiting| waiting.ticket == ticket)?;
        if let Some(index) = line[at].given {
            line.remove(at);
            return Some(index);
        }
        let before = std::mem::replace(&mut line[at].wake, wake());
        drop(line);
        // Dropping a waker may run foreign code.
        drop(before);
        None
    }

    /// Leaves the wait queue.
    pub(super) fn leave_line(&self, ticket: u64) -> Option<WakeBy> {
        let mut line = self.line.borrow_mut();
        let at = line.iter().position(|waiting| waiting.ticket == ticket)?;
        let left = line.remove(at)?;
        drop(line);
        left.given.map(|index| self.release(index))
    }

    /// Prepares the operation in a given slot; it goes with the next flush.
    ///
    /// # Safety
    /// Until the pool reports the operation as done, or the slot is abandoned with the buffer, the memory that
    /// `lend` returned or recorded must stay valid for what `kind` does.
    ///
    /// # Errors
    /// The operation is not possible; the slot is free again.
    pub(super) unsafe fn submit(
        &self,
        index: u16,
        kind: &Kind,
        fd: Option<&SharedFd>,
        lend: impl FnOnce(&mut Scratch) -> Result<Option<BufferLocation>, Errno>,
    ) -> Result<Operation, Errno> {
        let slot = &self.slots[usize::from(index)];
        let raw = match fd {
            // SAFETY: the slot keeps it open until the operation is over.
            Some(fd) => unsafe { Fd::raw(fd.as_fd()) },
            None => Fd::registered(0),
        };
        // SAFETY: the slot is given, neither queued nor in flight, so the kernel has no pointer to its scratch; and
        // this reference is gone before anything else is called that could make another.
        let scratch = unsafe { &mut *slot.scratch.get() };
        let buffer = lend(scratch)?;
        // SAFETY: slots stay where they are, and the scratch is not accessed until the operation is over; the buffer is
        // the caller's contract.
        let sqe = unsafe { entry(kind, raw, buffer, scratch) }?;
        slot.entry.set(sqe);
        slot.state.set(State::Queued);
        slot.orphan.set(false);
        slot.cancelled.set(false);
        slot.gives_descriptor.set(kind.gives_descriptor());
        slot.fd.set(fd.cloned());
        self.busy.set(self.busy.get() + 1);
        self.queue.borrow_mut().push_back(Order::Submit(index));
        Ok(Operation {
            slot: index,
            turn: slot.turn.get(),
        })
    }

    /// Returns the result of a completed operation and frees its slot, or records whom to wake.
    pub(super) fn result(
        &self,
        operation: Operation,
        wake: impl FnOnce() -> WakeBy,
    ) -> Option<(i32, WakeBy)> {
        let slot = &self.slots[usize::from(operation.slot)];
        debug_assert_eq!(slot.turn.get(), operation.turn);
        if slot.state.get() != State::Done {
            slot.wake.set(wake());
            return None;
        }
        Some((slot.res.get(), self.release(operation.slot)))
    }

    /// Requests cancellation of an operation, which still completes, soon.
    pub(super) fn cancel(&self, operation: Operation) {
        let slot = &self.slots[usize::from(operation.slot)];
        let wanted = matches!(slot.state.get(), State::InFlight | State::Queued);
        if wanted && !slot.cancelled.replace(true) {
            let mut queue = self.queue.borrow_mut();
            queue.push_back(Order::Cancel(operation));
        }
    }

    /// Abandons an operation whose future is gone (L56). An entry that the kernel never saw is undone at once;
    /// otherwise the buffer stays in the slot until the completion, and the operation is cancelled. Returns whom to
    /// wake.
    pub(super) fn abandon(
        &self,
        operation: Operation,
        buffer: impl FnOnce() -> Option<Box<dyn Any>>,
    ) -> WakeBy {
        let slot = &self.slots[usize::from(operation.slot)];
        match slot.state.get() {
            State::Queued => {
                slot.state.set(State::Void);
                drop(slot.wake.take());
            }
            State::InFlight => {
                slot.keep.set(buffer());
                slot.orphan.set(true);
                drop(slot.wake.take());
                self.cancel(operation);
            }
            State::Done => {
                close_unwanted(slot);
                return self.release(operation.slot);
            }
            State::Free | State::Given | State::Void => {}
        }
        WakeBy::Nobody
    }

    /// Returns an unused slot to the pool, or gives it to the first in the wait queue, who is returned.
    pub(super) fn release(&self, index: u16) -> WakeBy {
        let slot = &self.slots[usize::from(index)];
        slot.turn.set((slot.turn.get() + 1) % TURNS);
        let mut line = self.line.borrow_mut();
        let first = line.iter_mut().find(|waiting| waiting.given.is_none());
        if let Some(first) = first {
            first.given = Some(index);
            slot.state.set(State::Given);
            return std::mem::take(&mut first.wake);
        }
        slot.state.set(State::Free);
        self.free.borrow_mut().push(index);
        WakeBy::Nobody
    }

    /// Submits queued entries. False if the submission queue was full before the end.
    pub(super) fn flush(&self, sink: &mut impl Sink, wake: impl Fn(WakeBy)) -> bool {
        loop {
            let Some(order) = self.queue.borrow().front().copied() else {
                return true;
            };
            let mut woken = WakeBy::Nobody;
            match order {
                Order::Submit(index) => {
                    let slot = &self.slots[usize::from(index)];
                    if slot.state.get() == State::Void {
                        self.busy.set(self.busy.get() - 1);
                        drop(slot.fd.take());
                        woken = self.release(index);
                    } else {
                        let turn = slot.turn.get();
                        let operation = Operation { slot: index, turn };
                        if sink.push(slot.entry.get(), operation).is_err() {
                            return false;
                        }
                        slot.state.set(State::InFlight);
                    }
                }
                Order::Cancel(operation) => {
                    let slot = &self.slots[usize::from(operation.slot)];
                    let in_flight = slot.state.get() == State::InFlight;
                    if in_flight && slot.turn.get() == operation.turn {
                        let cancel = op::async_cancel(sink.word(operation))
                            .flags(SqeFlags::CQE_SKIP_SUCCESS);
                        if sink.push(cancel, CANCEL).is_err() {
                            return false;
                        }
                    }
                }
            }
            self.queue.borrow_mut().pop_front();
            wake(woken);
        }
    }

    /// Handles a completion. Returns whom to wake.
    pub(super) fn completed(&self, operation: Operation, res: i32, flags: u32) -> WakeBy {
        if operation == CANCEL {
            return WakeBy::Nobody;
        }
        let slot = self.slots.get(usize::from(operation.slot));
        let Some(slot) = slot.filter(|slot| {
            slot.state.get() == State::InFlight && slot.turn.get() == operation.turn
        }) else {
            self.stale.set(self.stale.get() + 1);
            return WakeBy::Nobody;
        };
        if flags & sys::IORING_CQE_F_NOTIF == 0 {
            slot.res.set(res);
        }
        if flags & sys::IORING_CQE_F_MORE != 0 {
            // A zero-copy send: this CQE has the count, but the kernel still uses the memory.
            return WakeBy::Nobody;
        }
        self.busy.set(self.busy.get() - 1);
        drop(slot.fd.take());
        slot.state.set(State::Done);
        if !slot.orphan.get() {
            return slot.wake.take();
        }
        close_unwanted(slot);
        let buffer = slot.keep.take();
        let woken = self.release(operation.slot);
        // Only once the slot is consistent: this may run foreign code, and answer a request.
        drop(buffer);
        woken
    }

    /// Cancels all operations.
    pub(super) fn cancel_all(&self) {
        for (index, slot) in (0..).zip(&self.slots) {
            self.cancel(Operation {
                slot: index,
                turn: slot.turn.get(),
            });
        }
    }
}

/// Closes a descriptor whose future is gone.
fn close_unwanted(slot: &OperationSlot) {
    if slot.gives_descriptor.get() && slot.res.get() >= 0 {
        // SAFETY: the operation made this descriptor for its future, which is gone without having taken it.
        drop(unsafe { OwnedFd::from_raw_fd(slot.res.get()) });
    }
}

impl Pool {
    /// Closes the descriptors once the ring is closed: operations that the kernel took hold the file themselves, and
    /// others are never taken.
    pub(super) fn close_descriptors(&self) {
        for slot in &self.slots {
            drop(slot.fd.take());
        }
    }

    /// Counts, once, the operations that the kernel has when the ring ends; the memory that they use is leaked, whoever
    /// holds it.
    pub(super) fn count_leaks(&self) -> usize {
        let states = self.slots.iter().map(|slot| slot.state.get());
        let in_flight = states.filter(|state| *state == State::InFlight).count();
        if !self.counted.replace(true) {
            LEAKED.fetch_add(
                u64::try_from(in_flight).unwrap_or(u64::MAX),
                Ordering::Relaxed,
            );
        }
        in_flight
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.count_leaks() != 0 {
            // Closing a ring is no barrier (L09).
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests;
