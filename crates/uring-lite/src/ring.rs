//! The ring: both queues, and the one call between them.
//!
//! # Why there is `unsafe` here
//! Two entries name descriptors: the poll of the ring's own bell, and a close of what the caller gave away.
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
/// Neither `Send` nor `Sync`: with `SINGLE_ISSUER` the kernel serves the task that made the ring and no other, and
/// the registered descriptor is an index into that task's table. Other threads reach a ring by [`Waker`]; the kernel's
/// own way between rings, [`op::msg_ring`], is unsafe, since an owner believes completions.
///
/// # Drop
/// Unregisters its descriptor, unmaps, closes. **This is no barrier** (L09): the kernel ends a ring
/// asynchronously, and operations in flight may write to their memory after `drop` has returned. Reap until nothing
/// is in flight before freeing what the kernel was given, or leak it.
pub struct Ring<S: SqEntry = Sqe64, C: CqEntry = Cqe16, P: Port<S, C> = Linux> {
    sq: Sq<S, P::Sq>,
    cq: Cq<C, P::Cq>,
    setup: Setup,
    wake: Option<WakeSide>,
    overflow_enters: u64,
    // Behind the queues, which point into its mappings.
    port: P,
    /// Tells it apart from all others of the process, those that are gone too.
    id: u64,
    _thread: PhantomData<*mut ()>,
}

/// The id of a new ring.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

static_assertions::assert_not_impl_any!(Ring<Sqe64, Cqe16, Linux>: Send, Sync);

/// What one [`enter`](Ring::enter) did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entered {
    /// Entries the kernel took.
    pub submitted: u32,
    /// Entries still in the SQ: a short submit. They go with the next call.
    pub left: u32,
    /// CQEs that can be popped now, a wake-up's own among them.
    pub ready: u32,
    /// The time was over before `want` CQEs were there. The kernel tells how a wait ended only when the same call
    /// submitted nothing; after one that did, a wait with a timeout that ended early counts as this.
    pub timed_out: bool,
    /// A signal ended the wait. After a call that also submitted: a wait without timeout that ended early.
    pub interrupted: bool,
    /// A [`Waker`] ended the wait, or had been used since the last one.
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
    /// A ring on any kernel side; `None` if a queue's size is no power of two.
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

    /// What was granted.
    pub const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Writes an entry behind the others; the kernel sees it at the next [`enter`](Self::enter).
    ///
    /// # Errors
    /// [`Full`], with nothing changed (L54).
    ///
    /// # Panics
    /// For `u64::MAX` as `user_data`, which is the waker's, where assertions are on.
    #[inline]
    pub fn push(&mut self, entry: &S) -> Result<(), Full> {
        debug_assert_ne!(
            entry.get_user_data(),
            WAKE_USER_DATA,
            "this user_data belongs to the waker"
        );
        self.sq.push(entry)
    }

    /// Writes the entry that `make` makes, which is called only if there is room: it can be made in its place.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    #[inline(always)]
    pub fn push_with(&mut self, make: impl FnOnce() -> S) -> Result<(), Full> {
        self.sq.push_with(make)
    }

    /// Writes a chain of entries (each but the last with `IOSQE_IO_LINK` or `IOSQE_IO_HARDLINK`), all or nothing:
    /// the kernel ends a chain where a submission ends, so half a chain would be two (L52).
    ///
    /// # Errors
    /// [`ChainError`], with nothing changed.
    pub fn push_linked(&mut self, chain: &[S]) -> Result<(), ChainError> {
        self.sq.push_linked(chain)
    }

    /// Has the kernel close a descriptor (`IORING_OP_CLOSE`, 5.6), which is the ring's from here on: a ring that ends
    /// before it has submitted the entry leaves it open.
    ///
    /// # Errors
    /// The descriptor, when the SQ is full.
    pub fn push_close(&mut self, fd: OwnedFd, user_data: u64) -> Result<(), OwnedFd> {
        // SAFETY: given up below, when the one entry is in the SQ, of which entries are never copied.
        let close = unsafe { op::close(fd.as_raw_fd()) };
        match self.push(&S::from_sqe64(close.user_data(user_data))) {
            Ok(()) => {
                let _ = fd.into_raw_fd();
                Ok(())
            }
            Err(Full) => Err(fd),
        }
    }

    /// Free SQ entries.
    pub fn sq_space(&mut self) -> u32 {
        self.sq.space()
    }

    /// Entries pushed and not yet taken by the kernel.
    pub fn sq_pending(&mut self) -> u32 {
        self.sq.pending()
    }

    /// The next completion, copied out; `None` when there is none now. With `DEFER_TASKRUN` completions appear
    /// inside [`enter`](Self::enter) only.
    #[inline]
    pub fn next_cqe(&mut self) -> Option<C> {
        self.next_cqe_with(|_| false)
    }

    /// The same for a caller who knows most completions by their word: those for which `known` answers true are not
    /// compared with the waker's. It answers false for [`WAKE_USER_DATA`].
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

    /// CQEs that can be popped now, a wake-up's own among them.
    #[inline]
    pub fn cq_ready(&mut self) -> u32 {
        self.cq.ready()
    }

    /// Gives the popped CQEs' places back to the kernel. [`enter`](Self::enter) does this too.
    #[inline]
    pub fn release_cqes(&mut self) {
        self.cq.release();
    }

    /// CQEs that are lost: the CQ ring was full and the kernel had no memory to keep them. `enter` answers the first
    /// with [`EnterError::Lost`].
    pub fn overflowed(&self) -> u32 {
        self.cq.overflow()
    }

    /// Calls of `enter` that found completions waiting outside the full CQ ring (`IORING_SQ_CQ_OVERFLOW`). None of
    /// them is lost, but each costs the kernel an allocation: make the CQ larger.
    pub const fn overflow_enters(&self) -> u64 {
        self.overflow_enters
    }

    /// Entries the kernel would not look at, so far. Always 0 unless the ring's memory is damaged.
    pub fn dropped(&self) -> u32 {
        self.sq.dropped()
    }

    /// Submits what was pushed and waits for nothing.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    #[inline]
    pub fn submit(&mut self) -> Result<Entered, EnterError> {
        self.enter(0, None)
    }

    /// Submits everything pushed and waits until `want` CQEs can be popped, in one system call; in none, when there
    /// is nothing to submit and enough to pop.
    ///
    /// Ends early by timeout, signal, wake or short submit, which [`Entered`] tells: callers loop anyway. With a
    /// [`Waker`] the wait is for one more CQE whatever `want`, because a wake must end it. `want` CQEs that were not
    /// popped before the call count. `want` is cut to the size of the CQ.
    ///
    /// # Errors
    /// [`EnterError`]; what was pushed stays in the SQ.
    #[inline]
    pub fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<Entered, EnterError> {
        self.cq.release();
        let ready = self.cq.ready();
        let mut woken = false;
        let mut parked = false;
        // More than the CQ holds cannot be waited for; the kernel cuts it too.
        let want = want.min(self.setup.cq_entries);
        let mut wait = if ready < want { want } else { 0 };
        if wait > 0 && self.wake.is_some() {
            self.arm_waker()?;
            if let Some(side) = &self.wake {
                parked = side.waker.park().park();
                woken = !parked;
                // A wake must end the wait whatever `want`: one more than what is there.
                wait = if parked { ready + 1 } else { 0 };
            }
        }
        self.sq.publish();
        let to_submit = self.sq.pending();
        let mut flags = 0;
        // A wake that kept us from sleeping still looks for completions: frequent wakes must not starve them.
        if self.work_pending(woken || want == 0) || wait > 0 {
            flags = sys::IORING_ENTER_GETEVENTS;
        }
        if to_submit == 0 && flags == 0 {
            // Not parked here: parked means wait > 0.
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
        // The kernel answers with the count when it submitted, however the wait ended; only the CQ can tell. A
        // short submit (left > 0) does not wait at all.
        let hidden = entered.submitted > 0 && entered.left == 0 && !entered.woken;
        if hidden && entered.ready < wait {
            entered.timed_out = timeout.is_some();
            entered.interrupted = timeout.is_none();
        }
        Ok(entered)
    }

    /// What a thread that serves does between two batches: submits everything pushed and sleeps until `want` CQEs
    /// (not 0) can be popped, those included that are there already, a wake arrives, or the timeout is over, in one
    /// system call. As [`enter`](Self::enter)
    /// without the report: the caller looks at the CQ and for work after it, whatever ended the wait.
    ///
    /// With `want` above 1 a wake ends the wait only together with the CQEs that were to come at once anyway: ask
    /// for one more than entries that complete during their submission, and with a timeout.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
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
            // A wake that `park` has taken keeps this call from sleeping, as it would the general one.
            return self.submit_without_sleep();
        }
        self.sq.publish();
        let flags = sys::IORING_ENTER_GETEVENTS;
        let pending = self.sq.pending();
        // Apart, so that where there is no timeout no place is kept for one.
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

    /// For an owner who sleeps elsewhere, in an epoll that watches the ring's descriptor among others: announces the
    /// sleep, so that a [`Waker`] makes the descriptor readable. Submit what was pushed before. `false` if there is
    /// something already, a completion, a wake, or entries that the kernel has not taken: do not sleep. After the sleep comes [`unpark`](Self::unpark); a ring
    /// that nothing happened to may stay parked through any number of sleeps.
    ///
    /// # Errors
    /// As [`enter`](Self::enter), which the first call needs to arm the waker's poll.
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

    /// Awake again after [`park`](Self::park): wakes need not be heard until the next.
    pub fn unpark(&mut self) {
        if let Some(side) = &self.wake {
            side.waker.park().unpark();
        }
    }

    /// Whether an [`enter`](Self::enter) now would bring something without sleeping: completions are there, or the
    /// kernel has some to make (told by [`taskrun_flag`](crate::Builder::taskrun_flag)), or a wake came. Three loads.
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

    /// Something is there already, or the waker's poll is not.
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
        // DEFER_TASKRUN runs completion work nowhere else. When `want` CQEs are already there the caller has work
        // to do first; without a wish it came to flush. COOP_TASKRUN tells by its flag.
        let defer = self.setup.flags & sys::IORING_SETUP_DEFER_TASKRUN != 0;
        (defer && flush) || flags & sys::IORING_SQ_TASKRUN != 0
    }

    /// The thread-safe handle that wakes this ring; clones of one waker. The first call makes the eventfd and the
    /// next waiting `enter` arms its poll: one multishot poll in flight, that completes only when rung.
    ///
    /// # Errors
    /// [`RegisterError::Call`] when no eventfd can be made.
    pub fn waker(&mut self) -> Result<Waker, RegisterError> {
        if let Some(side) = &self.wake {
            return Ok(side.waker.clone());
        }
        let waker = Waker::new().map_err(|errno| RegisterError::Call {
            what: "eventfd of the waker",
            errno,
        })?;
        self.wake = Some(WakeSide {
            waker: waker.clone(),
            armed: false,
        });
        Ok(waker)
    }

    /// Puts the waker's poll into the SQ if it is not armed.
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
            // No place for the poll: submit without waiting. If the kernel takes nothing, the caller must reap.
            self.sq.publish();
            let pending = self.sq.pending();
            if let Err(errno) = self.port.enter(pending, 0, 0, None) {
                failed(errno, &mut Entered::default())?;
            }
        }
        let Some(side) = &mut self.wake else {
            return Ok(());
        };
        // A poll that ended leaves old rings in the counter; they are told by the parked word, not by it.
        side.waker.drain();
        // SAFETY: the bell is the waker's, which the ring has as long as it submits.
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
        // Without F_MORE the multishot poll is over (CQ overflow, or an error): arm again before the next wait.
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

/// The same for [`Ring::submit_and_wait`], which reports nothing.
#[cold]
#[inline(never)]
fn wait_failed(errno: Errno) -> Result<(), EnterError> {
    failed(errno, &mut Entered::default()).map(|_| ())
}

/// The outcomes of enter that are an errno (L50): nothing was submitted. Ends of a wait are no errors.
#[cold]
#[inline(never)]
fn failed(errno: Errno, entered: &mut Entered) -> Result<u32, EnterError> {
    match errno.get() {
        // A signal came while we slept. Not repeated here: the caller may have a stop flag to look at.
        libc::EINTR => {
            entered.interrupted = true;
            Ok(0)
        }
        // The time of EXT_ARG is over.
        libc::ETIME => {
            entered.timed_out = true;
            Ok(0)
        }
        // No request could be allocated. Freed by completions.
        libc::EAGAIN => Err(EnterError::Again),
        // Completions wait outside the full CQ and could not be brought in: room first.
        libc::EBUSY => Err(EnterError::Busy),
        libc::ENOMEM => Err(EnterError::NoMemory),
        // Completions that fitted neither into the CQ nor into memory are gone.
        libc::EBADR => Err(EnterError::Lost),
        // SINGLE_ISSUER: not the task that made the ring.
        libc::EEXIST => Err(EnterError::WrongThread),
        // EBADF, ENXIO, EFAULT, EINVAL, EOPNOTSUPP, EBADFD: the ring or our use of it is broken.
        _ => Err(EnterError::Unusable { errno }),
    }
}

#[cfg(all(test, not(loom)))]
#[path = "ring_tests.rs"]
mod tests;
