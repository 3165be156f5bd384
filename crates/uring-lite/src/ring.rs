//! The ring: both queues, and the system call between them.
//!
//! # Why there is `unsafe` here
//! Two entries name descriptors: the poll of the ring's own eventfd, and the close of a descriptor that the caller gave
//! away.
#![expect(
    unsafe_code,
    reason = "entries that name descriptors the ring has or was given"
)]

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cq::Cq;
use crate::entry::{CqEntry, Cqe16, SqEntry, Sqe64};
use crate::errno::Errno;
use crate::error::{ChainError, EnterError, Full, RegisterError};
use crate::linux::Linux;
use crate::op;
use crate::port::Port;
use crate::setup::{Builder, Setup};
use crate::sq::Sq;
use crate::sys;
use crate::waker::{WAKE_USER_DATA, WakeSide, Waker};

/// An io_uring ring for one thread.
///
/// Neither `Send` nor `Sync`: with `SINGLE_ISSUER` the kernel only serves the task that created the ring, and the
/// registered descriptor is an index into that task's table. Other threads reach a ring through its [`Waker`]. The
/// kernel's own interface between rings, [`op::msg_ring`], is unsafe, since a ring's owner trusts completions.
///
/// # Drop
/// Dropping it unregisters its descriptor, unmaps the queues, and closes it. **This is no barrier** (L09): the kernel
/// tears a ring down asynchronously, and operations in flight may write to their memory after `drop` has returned.
/// Before freeing memory that the kernel was given, reap until nothing is in flight, or leak it.
pub struct Ring<S: SqEntry = Sqe64, C: CqEntry = Cqe16, P: Port<S, C> = Linux> {
    sq: Sq<S, P::Sq>,
    cq: Cq<C, P::Cq>,
    setup: Setup,
    wake: Option<WakeSide>,
    overflow_enters: u64,
    // Declared after the queues, which point into its mappings.
    port: P,
    /// Identifies the ring within the process; ids are not reused.
    id: u64,
    _thread: PhantomData<*mut ()>,
}

/// The id of a new ring.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

static_assertions::assert_not_impl_any!(Ring<Sqe64, Cqe16, Linux>: Send, Sync);

/// Result of one [`enter`](Ring::enter).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entered {
    /// Number of entries that the kernel took.
    pub submitted: u32,
    /// Number of entries still in the SQ: a short submit. They go with the next call.
    pub left: u32,
    /// Number of CQEs that can be popped now, including that of a wake-up.
    pub ready: u32,
    /// The timeout expired before `want` CQEs had arrived. The kernel reports how a wait ended only if the call
    /// submitted nothing; after a call that did, an early end of a wait with a timeout counts as this.
    pub timed_out: bool,
    /// A signal ended the wait. After a call that also submitted: a wait without a timeout ended early.
    pub interrupted: bool,
    /// A [`Waker`] ended the wait, or was used since the last one.
    pub woken: bool,
}

impl<S: SqEntry, C: CqEntry> Ring<S, C> {
    /// Options for a ring with at least `sq_entries` SQ entries (rounded up to a power of two).
    pub const fn builder(sq_entries: u32) -> Builder<S, C> {
        Builder::new(sq_entries)
    }

    pub(crate) fn register_own_fd(&mut self) {
        self.setup.ring_fd_registered = self.port.register_fd();
    }
}

impl<S: SqEntry, C: CqEntry> AsFd for Ring<S, C> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

impl<S: SqEntry, C: CqEntry, P: Port<S, C>> std::fmt::Debug for Ring<S, C, P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("setup", &self.setup)
            .finish_non_exhaustive()
    }
}

impl<S: SqEntry, C: CqEntry, P: Port<S, C>> Ring<S, C, P> {
    /// Creates a ring on any kernel side; `None` if a queue's size is not a power of two.
    pub fn from_parts(port: P, sq: P::Sq, cq: P::Cq, setup: Setup) -> Option<Self> {
        Some(Self {
            sq: Sq::new(sq)?,
            cq: Cq::new(cq)?,
            setup,
            wake: None,
            overflow_enters: 0,
            port,
            id: next_id(),
            _thread: PhantomData,
        })
    }

    /// The set-up that the kernel granted.
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Adds an entry to the SQ; the kernel sees it at the next [`enter`](Self::enter).
    ///
    /// # Errors
    /// [`Full`], with nothing changed (L54).
    ///
    /// # Panics
    /// With debug assertions, if `user_data` is `u64::MAX`, which is reserved for the waker.
    #[inline]
    pub fn push(&mut self, entry: &S) -> Result<(), Full> {
        debug_assert_ne!(
            entry.get_user_data(),
            WAKE_USER_DATA,
            "this user_data belongs to the waker"
        );
        self.sq.push(entry)
    }

    /// Adds the entry that `make` returns, built in place. `make` is called only if there is room.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    #[inline(always)]
    pub fn push_with(&mut self, make: impl FnOnce() -> S) -> Result<(), Full> {
        self.sq.push_with(make)
    }

    /// Adds a chain of entries (each but the last with `IOSQE_IO_LINK` or `IOSQE_IO_HARDLINK`), all or nothing: a chain
    /// ends where a submission ends, so half a chain would become two (L52).
    ///
    /// # Errors
    /// [`ChainError`], with nothing changed.
    pub fn push_linked(&mut self, chain: &[S]) -> Result<(), ChainError> {
        self.sq.push_linked(chain)
    }

    /// Pushes a close of a descriptor (`IORING_OP_CLOSE`, 5.6), which the ring owns from now on. A ring that ends
    /// before it has submitted the entry leaves the descriptor open.
    ///
    /// # Errors
    /// The descriptor, if the SQ is full.
    pub fn push_close(&mut self, fd: OwnedFd, user_data: u64) -> Result<(), OwnedFd> {
        // SAFETY: ownership is given up below, once the only entry is in the SQ, from which entries are never copied.
        let close = unsafe { op::close(fd.as_raw_fd()) };
        match self.push(&S::from_sqe64(close.user_data(user_data))) {
            Ok(()) => {
                let _ = fd.into_raw_fd();
                Ok(())
            }
            Err(Full) => Err(fd),
        }
    }

    /// Number of free SQ entries.
    pub fn sq_space(&mut self) -> u32 {
        self.sq.space()
    }

    /// Number of pushed entries that the kernel has not taken.
    pub fn sq_pending(&mut self) -> u32 {
        self.sq.pending()
    }

    /// The next completion, copied out; `None` if there is none now. With `DEFER_TASKRUN` completions only appear
    /// inside [`enter`](Self::enter).
    #[inline]
    pub fn next_cqe(&mut self) -> Option<C> {
        self.next_cqe_with(|_| false)
    }

    /// [`next_cqe`](Self::next_cqe) for callers that recognise most completions by their `user_data`: those for which
    /// `known` returns true are not compared with the waker's. `known` must return false for [`WAKE_USER_DATA`].
    #[inline(always)]
    pub fn next_cqe_with(&mut self, known: impl Fn(u64) -> bool) -> Option<C> {
        loop {
            let cqe = self.cq.pop()?;
            if known(cqe.user_data()) {
                return Some(cqe);
            }
            std::hint::cold_path();
            if cqe.user_data() != WAKE_USER_DATA {
                return Some(cqe);
            }
            self.take_wake_cqe(&cqe);
        }
    }

    /// Number of CQEs that can be popped now, including that of a wake-up.
    #[inline]
    pub fn cq_ready(&mut self) -> u32 {
        self.cq.ready()
    }

    /// Gives the slots of popped CQEs back to the kernel. [`enter`](Self::enter) does this, too.
    #[inline]
    pub fn release_cqes(&mut self) {
        self.cq.release();
    }

    /// Number of lost CQEs: the CQ ring was full and the kernel had no memory to keep them. `enter` returns
    /// [`EnterError::Lost`] for the first one.
    pub fn overflowed(&self) -> u32 {
        self.cq.overflow()
    }

    /// Number of `enter` calls that found completions waiting outside the full CQ ring (`IORING_SQ_CQ_OVERFLOW`). None
    /// of them is lost, but each costs the kernel an allocation: make the CQ larger.
    pub const fn overflow_enters(&self) -> u64 {
        self.overflow_enters
    }

    /// Number of entries that the kernel rejected. Always 0 unless the ring's memory is corrupted.
    pub fn dropped(&self) -> u32 {
        self.sq.dropped()
    }

    /// Submits all pushed entries without waiting.
    ///
    /// # Errors
    /// As for [`enter`](Self::enter).
    #[inline]
    pub fn submit(&mut self) -> Result<Entered, EnterError> {
        self.enter(0, None)
    }

    /// Submits all pushed entries and waits until `want` CQEs can be popped, in one system call, or none if there is
    /// nothing to submit and enough to pop.
    ///
    /// Returns early on timeout, signal, wake-up or short submit; see [`Entered`]. With a [`Waker`] it waits for one
    /// more CQE whatever `want` is, because a wake-up must end the wait. CQEs that were not popped before the call
    /// count towards `want`, which is limited to the size of the CQ.
    ///
    /// # Errors
    /// [`EnterError`]; pushed entries stay in the SQ.
    #[inline]
    pub fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<Entered, EnterError> {
        self.cq.release();
        let ready = self.cq.ready();
        let mut woken = false;
        let mut parked = false;
        // The kernel cannot wait for more than the CQ holds, and limits it, too.
        let want = want.min(self.setup.cq_entries);
        let mut wait = if ready < want { want } else { 0 };
        if wait > 0 && self.wake.is_some() {
            self.arm_waker()?;
            if let Some(side) = &self.wake {
                parked = side.waker.park().park();
                woken = !parked;
                // A wake-up must end the wait whatever `want` is: wait for one more CQE than there are.
                wait = if parked { ready + 1 } else { 0 };
            }
        }
        self.sq.publish();
        let to_submit = self.sq.pending();
        let mut flags = 0;
        // After a wake-up that prevented the sleep, still look for completions: frequent wake-ups must not starve them.
        if self.work_pending(woken || want == 0) || wait > 0 {
            flags = sys::IORING_ENTER_GETEVENTS;
        }
        if to_submit == 0 && flags == 0 {
            // Not parked here: parked implies wait > 0.
            return Ok(Entered {
                ready,
                woken,
                ..Entered::default()
            });
        }
        let ts = timeout.filter(|_| wait > 0).map(timespec);
        let result = self.port.enter(to_submit, wait, flags, ts.as_ref());
        if parked && let Some(side) = &self.wake {
            woken = side.waker.park().unpark();
        }
        let mut entered = Entered {
            left: self.sq.pending(),
            ready: self.cq.ready(),
            woken,
            ..Entered::default()
        };
        entered.submitted = match result {
            Ok(n) => n,
            Err(errno) => failed(errno, &mut entered)?,
        };
        // If the call submitted, the kernel returns the count however the wait ended; only the CQ can tell. A short
        // submit (left > 0) does not wait at all.
        let hidden = entered.submitted > 0 && entered.left == 0 && !entered.woken;
        if hidden && entered.ready < wait {
            entered.timed_out = timeout.is_some();
            entered.interrupted = timeout.is_none();
        }
        Ok(entered)
    }

    /// What a serving thread does between two batches: submits all pushed entries and sleeps until `want` CQEs (not 0)
    /// can be popped, including those already there, or it is woken, or the timeout expires, in one system call. Like
    /// [`enter`](Self::enter) without the report: the caller checks the CQ and its work afterwards anyway.
    ///
    /// With `want` above 1 a wake-up ends the wait only together with CQEs that arrive at once anyway: pass one more
    /// than the number of entries that complete during their submission, and a timeout.
    ///
    /// # Errors
    /// As for [`enter`](Self::enter).
    #[inline(always)]
    pub fn submit_and_wait(
        &mut self,
        want: u32,
        timeout: Option<Duration>,
    ) -> Result<(), EnterError> {
        self.cq.release();
        let unusual = match &self.wake {
            Some(side) => !side.armed || !side.waker.park().park(),
            None => false,
        };
        if unusual {
            // A wake-up that `park` has taken prevents the sleep, as in `enter`.
            return self.submit_without_sleep();
        }
        self.sq.publish();
        let flags = sys::IORING_ENTER_GETEVENTS;
        let pending = self.sq.pending();
        // Separate calls, so that without a timeout no stack space is used for one.
        let result = match timeout {
            None => self.port.enter(pending, want, flags, None),
            Some(timeout) => {
                let ts = timespec(timeout);
                self.port.enter(pending, want, flags, Some(&ts))
            }
        };
        if let Some(side) = &self.wake {
            side.waker.park().unpark();
        }
        match result {
            Ok(_) => Ok(()),
            Err(errno) => wait_failed(errno),
        }
    }

    /// For an owner that sleeps in another call, such as an epoll that also watches the ring's descriptor: announces
    /// the sleep, so that a [`Waker`] makes the descriptor readable. Submit pushed entries first. Returns `false` if
    /// there is work already (a completion, a wake-up, or entries that the kernel has not taken): do not sleep. Call
    /// [`unpark`](Self::unpark) after the sleep; a ring with no activity may stay parked through any number of sleeps.
    ///
    /// # Errors
    /// As for [`enter`](Self::enter), which the first call needs to arm the waker's poll.
    pub fn park(&mut self) -> Result<bool, EnterError> {
        if self.wake.as_ref().is_some_and(|side| !side.armed) {
            self.arm_waker_now()?;
            self.enter(0, None)?;
        }
        self.cq.release();
        // An entry that stays here has no completion that could end the sleep (L61).
        if self.cq.ready() != 0 || self.sq.pending() != 0 {
            return Ok(false);
        }
        let mut sides = self.wake.iter();
        Ok(sides.all(|side| side.waker.park().park()))
    }

    /// Ends [`park`](Self::park): wake-ups need not write to the eventfd until the next one.
    pub fn unpark(&mut self) {
        if let Some(side) = &self.wake {
            side.waker.park().unpark();
        }
    }

    /// Whether an [`enter`](Self::enter) would now return something without sleeping: completions are there, or the
    /// kernel has some to post (shown by [`taskrun_flag`](crate::Builder::taskrun_flag)), or the ring was woken. Three
    /// loads.
    #[inline]
    pub fn has_work(&mut self) -> bool {
        let flags = sys::IORING_SQ_TASKRUN | sys::IORING_SQ_CQ_OVERFLOW;
        let woken = || {
            self.wake
                .as_ref()
                .is_some_and(|side| side.waker.park().is_notified())
        };
        self.cq.ready() != 0 || self.sq.flags() & flags != 0 || woken()
    }

    /// Submits without sleeping: there is work already, or the waker's poll is not armed.
    #[cold]
    #[inline(never)]
    fn submit_without_sleep(&mut self) -> Result<(), EnterError> {
        let armed = self.wake.as_ref().is_none_or(|side| side.armed);
        if armed {
            self.enter(0, None).map(|_| ())
        } else {
            self.enter(1, None).map(|_| ())
        }
    }

    /// Whether the kernel holds completions that only GETEVENTS makes visible.
    #[inline]
    fn work_pending(&mut self, flush: bool) -> bool {
        let flags = self.sq.flags();
        if flags & sys::IORING_SQ_CQ_OVERFLOW != 0 {
            // CQEs wait for room in the CQ (L52).
            self.overflow_enters += 1;
            return true;
        }
        // With DEFER_TASKRUN, completion work runs nowhere else. If `want` CQEs are there already, the caller has work
        // to do first; with `want` 0 it came to flush. COOP_TASKRUN shows it by its flag.
        let defer = self.setup.flags & sys::IORING_SETUP_DEFER_TASKRUN != 0;
        (defer && flush) || flags & sys::IORING_SQ_TASKRUN != 0
    }

    /// The thread-safe handle that wakes this ring; every call returns a clone of the same waker. The first call
    /// creates the eventfd, and the next waiting `enter` arms its poll: one multishot poll in flight that completes
    /// only on a wake-up.
    ///
    /// # Errors
    /// [`RegisterError::Call`] if the eventfd cannot be created.
    pub fn waker(&mut self) -> Result<Waker, RegisterError> {
        if let Some(side) = &self.wake {
            return Ok(side.waker.clone());
        }
        let waker = Waker::new().map_err(|errno| RegisterError::Call {
            what: "the waker's eventfd",
            errno,
        })?;
        self.wake = Some(WakeSide {
            waker: waker.clone(),
            armed: false,
        });
        Ok(waker)
    }

    /// Pushes the waker's poll unless it is armed.
    #[inline]
    fn arm_waker(&mut self) -> Result<(), EnterError> {
        match &self.wake {
            Some(side) if !side.armed => self.arm_waker_now(),
            _ => Ok(()),
        }
    }

    #[cold]
    fn arm_waker_now(&mut self) -> Result<(), EnterError> {
        if self.sq.space() == 0 {
            // No room for the poll: submit without waiting. If the kernel takes nothing, the caller must reap.
            self.sq.publish();
            let pending = self.sq.pending();
            if let Err(errno) = self.port.enter(pending, 0, 0, None) {
                failed(errno, &mut Entered::default())?;
            }
        }
        let Some(side) = &mut self.wake else {
            return Ok(());
        };
        // A poll that ended may leave a count in the eventfd. It is drained: the parked word, not the count, tells
        // wake-ups.
        side.waker.drain();
        // SAFETY: the eventfd is the waker's, which the ring holds as long as it submits.
        let bell = unsafe { op::Fd::raw(side.waker.bell()) };
        let poll = op::poll_add(bell, op::POLL_IN, true).user_data(WAKE_USER_DATA);
        self.sq
            .push(&S::from_sqe64(poll))
            .map_err(|Full| EnterError::Again)?;
        side.armed = true;
        Ok(())
    }

    #[cold]
    fn take_wake_cqe(&mut self, cqe: &C) {
        // Without F_MORE the multishot poll has ended (CQ overflow, or an error): arm it again before the next wait.
        if cqe.flags() & sys::IORING_CQE_F_MORE == 0
            && let Some(side) = &mut self.wake
        {
            side.armed = false;
        }
    }

    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// The kernel side.
    pub const fn port(&self) -> &P {
        &self.port
    }
}

#[inline]
fn timespec(d: Duration) -> sys::__kernel_timespec {
    sys::__kernel_timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(d.subsec_nanos()),
    }
}

/// [`failed`] for [`Ring::submit_and_wait`], which reports nothing.
#[cold]
#[inline(never)]
fn wait_failed(errno: Errno) -> Result<(), EnterError> {
    failed(errno, &mut Entered::default()).map(|_| ())
}

/// Handles the errnos of enter (L50): nothing was submitted. The end of a wait is not an error.
#[cold]
#[inline(never)]
fn failed(errno: Errno, entered: &mut Entered) -> Result<u32, EnterError> {
    match errno.get() {
        // A signal came during the sleep. Not retried here: the caller may have a stop flag to check.
        libc::EINTR => {
            entered.interrupted = true;
            Ok(0)
        }
        // The timeout of EXT_ARG expired.
        libc::ETIME => {
            entered.timed_out = true;
            Ok(0)
        }
        // No request could be allocated. Completions free some.
        libc::EAGAIN => Err(EnterError::Again),
        // Completions wait outside the full CQ and did not fit in: make room first.
        libc::EBUSY => Err(EnterError::Busy),
        libc::ENOMEM => Err(EnterError::NoMemory),
        // Completions that fitted neither into the CQ nor into memory are lost.
        libc::EBADR => Err(EnterError::Lost),
        // SINGLE_ISSUER: not the task that created the ring.
        libc::EEXIST => Err(EnterError::WrongThread),
        // EBADF, ENXIO, EFAULT, EINVAL, EOPNOTSUPP, EBADFD: the ring or our use of it is broken.
        _ => Err(EnterError::Unusable { errno }),
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
