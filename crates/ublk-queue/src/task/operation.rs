//! The future of a ring operation.
#![expect(unsafe_code, reason = "submits operations on buffers that it owns")]

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use ublk_core::Errno;

use super::buf::BufferLocation;
use super::core::Core;
use super::entry::{Kind, Scratch};
use super::fd::SharedFd;
use super::pool::Asked;
use crate::operations::Operation;

/// How the result of an operation with buffer `B` becomes the future's output.
pub trait Outcome<B>: sealed::Sealed {
    /// The future's output.
    type Output;

    #[doc(hidden)]
    fn of(result: Result<u32, Errno>, buffer: B) -> Self::Output;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! outcome {
    ($(#[$meta:meta])* $name:ident, $output:ty, |$result:ident, $buffer:ident| $make:expr) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub struct $name;
        impl sealed::Sealed for $name {}
        impl<B> Outcome<B> for $name {
            type Output = $output;
            fn of($result: Result<u32, Errno>, $buffer: B) -> Self::Output {
                $make
            }
        }
    };
}

outcome!(
    /// Byte count and buffer; the buffer comes back with an error, too.
    Transferred, (Result<u32, Errno>, B), |result, buffer| (result, buffer)
);
outcome!(
    /// Success or an error.
    Done, Result<(), Errno>, |result, _buffer| result.map(|_| ())
);
outcome!(
    /// A number.
    Number, Result<u32, Errno>, |result, _buffer| result
);
outcome!(
    /// Expiry of a timeout: `ETIME` is success.
    Elapsed, Result<(), Errno>, |result, _buffer| match result {
        Err(errno) if errno.get() == libc::ETIME => Ok(()),
        other => other.map(|_| ()),
    }
);
outcome!(
    /// A new descriptor.
    Descriptor, Result<SharedFd, Errno>, |result, _buffer| result.map(owned)
);

fn owned(fd: u32) -> SharedFd {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: the operation has just made this descriptor for this future, which takes its result once.
    SharedFd::new(unsafe { OwnedFd::from_raw_fd(fd.cast_signed()) })
}

/// Names a buffer to the kernel; pieces are recorded in the scratch.
pub(super) type Lend<B> = fn(&mut B, &mut Scratch) -> Result<Option<BufferLocation>, Errno>;

#[derive(Debug, Clone, Copy)]
enum State {
    New,
    /// Waits for a slot of the pool.
    Waiting(u64),
    Submitted(Operation),
    /// Not submitted, with this error.
    Refused(Errno),
    Over,
}

/// An operation on the ring. It starts with the first poll, waits for a slot if the pool is exhausted, and returns the
/// buffer with the result.
///
/// Dropping it never frees memory that the kernel uses: the operation is cancelled, and its buffer and descriptor are
/// kept until it completes. A request whose own buffer it holds is not answered before.
#[must_use = "an operation does nothing before it is polled"]
pub struct RingOp<B: 'static, O> {
    core: Rc<Core>,
    kind: Kind,
    fd: Option<SharedFd>,
    buffer: Option<B>,
    lend: Lend<B>,
    state: State,
    _outcome: PhantomData<fn() -> O>,
}

impl<B, O> std::fmt::Debug for RingOp<B, O> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RingOp")
            .field("kind", &self.kind)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

// The kernel never points into this value: buffers lend memory that does not move with them.
impl<B, O> Unpin for RingOp<B, O> {}

impl<B: 'static, O> RingOp<B, O> {
    pub(super) fn new(
        core: &Rc<Core>,
        kind: Kind,
        fd: Option<&SharedFd>,
        buffer: B,
        lend: Lend<B>,
    ) -> Self {
        Self {
            core: Rc::clone(core),
            kind,
            fd: fd.cloned(),
            buffer: Some(buffer),
            lend,
            state: State::New,
            _outcome: PhantomData,
        }
    }

    /// Cancels the operation. It still completes, usually with ECANCELED, and returns its buffer.
    pub fn cancel(&mut self) {
        match self.state {
            State::New => self.state = State::Refused(Errno::ECANCELED),
            State::Waiting(ticket) => {
                self.state = State::Refused(Errno::ECANCELED);
                if let Some(woken) = self.core.pool.leave_line(ticket) {
                    self.core.wake(woken);
                }
            }
            State::Submitted(operation) => self.core.pool.cancel(operation),
            State::Refused(_) | State::Over => {}
        }
    }

    fn submit(&mut self, slot: u16) -> State {
        let (buffer, lend, ring) = (self.buffer.as_mut(), self.lend, self.core.ring);
        let lend = |scratch: &mut Scratch| {
            let Some(buffer) = buffer else {
                return Ok(None);
            };
            let place = lend(buffer, scratch)?;
            // In another ring the same index would name other pages.
            let fits = place.is_none_or(|place| place.is_for(ring));
            if fits { Ok(place) } else { Err(Errno::EINVAL) }
        };
        // SAFETY: `self.buffer` lends memory that is valid while the buffer's value lives, wherever that moves. It is
        // neither accessed nor dropped before the operation completes: `poll` takes it out after the result, and `drop`
        // hands it to the pool.
        let submitted = unsafe {
            self.core
                .pool
                .submit(slot, &self.kind, self.fd.as_ref(), lend)
        };
        match submitted {
            Ok(operation) => {
                // From here on the slot holds it.
                self.fd = None;
                State::Submitted(operation)
            }
            Err(errno) => {
                let woken = self.core.pool.release(slot);
                self.core.wake(woken);
                State::Refused(errno)
            }
        }
    }
}

impl<B: 'static, O: Outcome<B>> Future for RingOp<B, O> {
    type Output = O::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<O::Output> {
        let this = &mut *self;
        loop {
            let wake_by = || this.core.wake_by(cx.waker());
            this.state = match this.state {
                State::New => match this.core.pool.ask(wake_by) {
                    Asked::Granted(slot) => this.submit(slot),
                    Asked::Ticket(ticket) => {
                        this.state = State::Waiting(ticket);
                        return Poll::Pending;
                    }
                },
                State::Waiting(ticket) => match this.core.pool.given(ticket, wake_by) {
                    Some(slot) => this.submit(slot),
                    None => return Poll::Pending,
                },
                State::Submitted(operation) => {
                    let Some(res) = this.core.result(operation, cx) else {
                        return Poll::Pending;
                    };
                    this.state = State::Over;
                    return this.over(Errno::from_result(res));
                }
                State::Refused(errno) => {
                    this.state = State::Over;
                    return this.over(Err(errno));
                }
                State::Over => panic!("an operation was polled after its end"),
            };
        }
    }
}

impl<B: 'static, O: Outcome<B>> RingOp<B, O> {
    fn over(&mut self, result: Result<u32, Errno>) -> Poll<O::Output> {
        let buffer = self.buffer.take().expect("taken only here, once");
        Poll::Ready(O::of(result, buffer))
    }
}

impl<B: 'static, O> Drop for RingOp<B, O> {
    fn drop(&mut self) {
        match self.state {
            State::Waiting(ticket) => {
                if let Some(woken) = self.core.pool.leave_line(ticket) {
                    self.core.wake(woken);
                }
            }
            State::Submitted(operation) => {
                let buffer = &mut self.buffer;
                let core = Rc::clone(&self.core);
                core.abandon(operation, || {
                    let buffer: Box<dyn Any> = Box::new(buffer.take());
                    Some(buffer)
                });
            }
            State::New | State::Refused(_) | State::Over => {}
        }
    }
}
