//! A fake kernel on the heap that completes, delays, reorders, overflows, submits short and fails on request.

#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::entry::{CqEntry, SqEntry};
use crate::errno::Errno;
use crate::heap::{HeapCq, HeapSq, KernelCq, KernelSq};
use crate::port::Port;
use crate::ring::Ring;
use crate::setup::{Ladder, Setup};
use crate::sys;
use crate::waker::WAKE_USER_DATA;
use crate::{heap, op};

/// When submitted entries complete (with `res` 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Completion {
    /// During submission.
    AtOnce,
    /// While the application waits, in order.
    OnWait,
    /// While the application waits, in an order derived from the seed.
    Reordered(u64),
    /// Only by [`FakeKernel::complete`].
    Held,
}

/// A fault of the next `enter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Fails with this errno (of libc) and does nothing.
    Fail(i32),
    /// Submits this many entries, returns the count, and does not wait.
    Short(u32),
    /// Submits everything, then is interrupted before it waits.
    SignalInWait,
}

/// One call of `enter`, as the kernel saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// Number of entries offered.
    pub to_submit: u32,
    /// Number of CQEs to wait for.
    pub min_complete: u32,
    /// `IORING_ENTER_*`.
    pub flags: u32,
    /// Whether a timeout was given.
    pub timeout: bool,
}

struct State<S, C> {
    sq: KernelSq<S>,
    cq: KernelCq<C>,
    completion: Completion,
    faults: VecDeque<Fault>,
    in_flight: VecDeque<S>,
    backlog: VecDeque<C>,
    calls: Vec<Call>,
}

/// The kernel side of a ring on the heap, and the handle that controls it: clones are the same kernel.
///
/// It cannot sleep. A wait that nothing in flight can end is ended by its timeout if it has one, else by a signal.
pub struct FakeKernel<S, C>(Rc<RefCell<State<S, C>>>);

impl<S, C> Clone for FakeKernel<S, C> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

/// A ring and the fake kernel it runs on.
pub type FakeRing<S, C> = (Ring<S, C, FakeKernel<S, C>>, FakeKernel<S, C>);

/// Creates a ring on a fake kernel. Both sizes must be powers of two; the indices of both queues start at `start`.
///
/// # Panics
/// If a size is not a power of two.
pub fn ring<S: SqEntry, C: CqEntry>(
    sq_entries: u32,
    cq_entries: u32,
    start: u32,
    ladder: Ladder,
) -> FakeRing<S, C> {
    let (heap_sq, sq) = heap::sq(sq_entries, start, S::from_sqe64(op::nop()));
    let (heap_cq, cq) = heap::cq(cq_entries, start, C::default());
    let state = State {
        sq,
        cq,
        completion: Completion::AtOnce,
        faults: VecDeque::new(),
        in_flight: VecDeque::new(),
        backlog: VecDeque::new(),
        calls: Vec::new(),
    };
    let kernel = FakeKernel(Rc::new(RefCell::new(state)));
    let flags = match ladder {
        Ladder::SingleIssuerDefer => {
            sys::IORING_SETUP_SINGLE_ISSUER | sys::IORING_SETUP_DEFER_TASKRUN
        }
        Ladder::CoopTaskrun => sys::IORING_SETUP_COOP_TASKRUN | sys::IORING_SETUP_TASKRUN_FLAG,
        Ladder::Plain => 0,
    };
    let setup = Setup {
        ladder,
        sq_entries,
        cq_entries,
        flags,
        features: u32::MAX,
        ring_fd_registered: false,
    };
    let ring =
        Ring::from_parts(kernel.clone(), heap_sq, heap_cq, setup).expect("sizes are powers of two");
    (ring, kernel)
}

impl<S: SqEntry, C: CqEntry> FakeKernel<S, C> {
    /// Sets when entries complete from now on.
    pub fn set_completion(&self, completion: Completion) {
        self.0.borrow_mut().completion = completion;
    }

    /// Queues a fault for a later `enter`, after the faults queued before.
    pub fn inject(&self, fault: Fault) {
        self.0.borrow_mut().faults.push_back(fault);
    }

    /// Completes the entry in flight with this `user_data`; `false` if there is none. With `more` it stays in flight.
    pub fn complete(&self, user_data: u64, res: i32, more: bool) -> bool {
        let mut state = self.0.borrow_mut();
        let Some(at) = state
            .in_flight
            .iter()
            .position(|sqe| sqe.get_user_data() == user_data)
        else {
            return false;
        };
        if !more {
            state.in_flight.remove(at);
        }
        let flags = if more { sys::IORING_CQE_F_MORE } else { 0 };
        state.post(C::from_parts(user_data, res, flags));
        true
    }

    /// Posts a CQE without an entry.
    pub fn post(&self, cqe: C) {
        self.0.borrow_mut().post(cqe);
    }

    /// Loses a CQE as if memory were short: counts it, and the next `enter` fails with `EBADR`.
    pub fn lose_cqe(&self) {
        let mut state = self.0.borrow_mut();
        state.cq.count_overflow();
        state.faults.push_front(Fault::Fail(libc::EBADR));
    }

    /// Entries in flight, oldest first.
    #[must_use]
    pub fn in_flight(&self) -> Vec<S> {
        self.0.borrow().in_flight.iter().copied().collect()
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.0.borrow().calls.clone()
    }
}

impl<S: SqEntry, C: CqEntry> State<S, C> {
    fn post(&mut self, cqe: C) {
        // Nothing may overtake the backlog.
        if self.backlog.is_empty() && self.cq.post(cqe) {
            return;
        }
        self.backlog.push_back(cqe);
        self.sq.set_flags(sys::IORING_SQ_CQ_OVERFLOW);
    }

    fn flush_backlog(&mut self) {
        while let Some(cqe) = self.backlog.front() {
            if !self.cq.post(*cqe) {
                return;
            }
            self.backlog.pop_front();
        }
        self.sq.set_flags(0);
    }

    fn submit(&mut self, up_to: u32) -> u32 {
        let mut taken = 0;
        while taken < up_to {
            let Some(sqe) = self.sq.take() else { break };
            taken += 1;
            if self.completion == Completion::AtOnce && sqe.get_user_data() != WAKE_USER_DATA {
                self.post(C::from_parts(sqe.get_user_data(), 0, 0));
            } else {
                self.in_flight.push_back(sqe);
            }
        }
        taken
    }

    /// Completes one entry while the application waits; `false` if there is none.
    fn complete_one(&mut self) -> bool {
        let ready: Vec<usize> = (0..self.in_flight.len())
            .filter(|i| self.in_flight[*i].get_user_data() != WAKE_USER_DATA)
            .collect();
        if ready.is_empty() {
            return false;
        }
        let at = match &mut self.completion {
            Completion::Held => return false,
            Completion::AtOnce | Completion::OnWait => 0,
            Completion::Reordered(seed) => {
                // Knuth's MMIX generator; its upper bits are the random ones.
                *seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(*seed >> 40).unwrap_or(0) % ready.len()
            }
        };
        let Some(sqe) = self.in_flight.remove(ready[at]) else {
            return false;
        };
        self.post(C::from_parts(sqe.get_user_data(), 0, 0));
        true
    }
}

impl<S: SqEntry, C: CqEntry> Port<S, C> for FakeKernel<S, C> {
    type Sq = HeapSq<S>;
    type Cq = HeapCq<C>;

    fn enter(
        &mut self,
        to_submit: u32,
        min_complete: u32,
        flags: u32,
        timeout: Option<&sys::__kernel_timespec>,
    ) -> Result<u32, Errno> {
        let mut state = self.0.borrow_mut();
        state.calls.push(Call {
            to_submit,
            min_complete,
            flags,
            timeout: timeout.is_some(),
        });
        let fault = state.faults.pop_front();
        let up_to = match fault {
            Some(Fault::Fail(errno)) => return Err(Errno::new(errno)),
            Some(Fault::Short(n)) => return Ok(state.submit(n.min(to_submit))),
            Some(Fault::SignalInWait) | None => to_submit,
        };
        let submitted = state.submit(up_to);
        // Like the kernel: the count takes precedence over the end of the wait.
        let or_errno = |errno| {
            if submitted > 0 {
                Ok(submitted)
            } else {
                Err(Errno::new(errno))
            }
        };
        if flags & sys::IORING_ENTER_GETEVENTS == 0 {
            return Ok(submitted);
        }
        state.flush_backlog();
        if fault == Some(Fault::SignalInWait) {
            return or_errno(libc::EINTR);
        }
        while state.cq.used() < min_complete {
            if !state.complete_one() {
                return or_errno(if timeout.is_some() {
                    libc::ETIME
                } else {
                    libc::EINTR
                });
            }
        }
        Ok(submitted)
    }
}
