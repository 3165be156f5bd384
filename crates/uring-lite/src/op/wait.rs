//! Operations for readiness, timeouts and cancellation.
#![expect(unsafe_code, reason = "unsafe fn: entries that name memory")]

use super::{Fd, on};
use crate::entry::Sqe64;
use crate::sys;

pub use crate::sys::__kernel_timespec as Timespec;

/// Readable, for [`poll_add`] (`POLLIN`).
pub const POLL_IN: u32 = 0x1;
/// Writable, for [`poll_add`] (`POLLOUT`).
pub const POLL_OUT: u32 = 0x4;

/// `IORING_OP_POLL_ADD` (5.1): completes with the ready events; `multishot` stays armed (5.13).
#[inline]
#[must_use]
pub fn poll_add(fd: Fd, events: u32, multishot: bool) -> Sqe64 {
    let len = if multishot {
        sys::IORING_POLL_ADD_MULTI
    } else {
        0
    };
    // Big-endian kernels expect swapped halves, since poll once had 16-bit events.
    let events = if cfg!(target_endian = "big") {
        events.rotate_left(16)
    } else {
        events
    };
    Sqe64(sys::io_uring_sqe {
        len,
        rw_flags: events,
        ..on(sys::IORING_OP_POLL_ADD, fd)
    })
}

/// `IORING_OP_POLL_REMOVE` (5.1): removes the poll with this `user_data`, which completes with `ECANCELED`. The result
/// is 0, `ENOENT` if there is none, or `EALREADY` if it is completing.
#[inline]
#[must_use]
pub fn poll_remove(user_data: u64) -> Sqe64 {
    by_user_data(sys::IORING_OP_POLL_REMOVE, user_data, 0)
}

/// `IORING_OP_TIMEOUT` (5.4): completes with `ETIME` after the time, or with 0 after `count` other completions (0:
/// after the time only).
///
/// # Safety
/// `ts` must be valid for reads until `enter` has submitted the entry.
#[inline]
#[must_use]
pub unsafe fn timeout(ts: *const Timespec, count: u32) -> Sqe64 {
    timer(sys::IORING_OP_TIMEOUT, ts, count, 0)
}

/// [`timeout`] at an absolute time of the monotonic clock (`IORING_TIMEOUT_ABS`, 5.5).
///
/// # Safety
/// As for [`timeout`].
#[inline]
#[must_use]
pub unsafe fn timeout_absolute(ts: *const Timespec, count: u32) -> Sqe64 {
    timer(sys::IORING_OP_TIMEOUT, ts, count, sys::IORING_TIMEOUT_ABS)
}

/// `IORING_OP_LINK_TIMEOUT` (5.5): pushed after an entry with [`SqeFlags::LINK`](super::SqeFlags::LINK), it cancels
/// that entry if it takes longer. Completes with `ETIME` if it did, with `ECANCELED` otherwise.
///
/// # Safety
/// As for [`timeout`].
#[inline]
#[must_use]
pub unsafe fn link_timeout(ts: *const Timespec) -> Sqe64 {
    timer(sys::IORING_OP_LINK_TIMEOUT, ts, 0, 0)
}

fn timer(opcode: u8, ts: *const Timespec, count: u32, flags: u32) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        opcode,
        fd: -1,
        addr: ts as u64,
        len: 1,
        off: u64::from(count),
        rw_flags: flags,
        ..Default::default()
    })
}

/// `IORING_OP_TIMEOUT_REMOVE` (5.5): removes the timeout with this `user_data`, which completes with `ECANCELED`. The
/// result is 0, `ENOENT` if there is none, or `EBUSY` if it is expiring.
#[inline]
#[must_use]
pub fn timeout_remove(user_data: u64) -> Sqe64 {
    by_user_data(sys::IORING_OP_TIMEOUT_REMOVE, user_data, 0)
}

/// `IORING_OP_ASYNC_CANCEL` (5.5): cancels the request with this `user_data`. The result is 0 if cancelled, `ENOENT` if
/// there is none, or `EALREADY` if it is running and was notified.
#[inline]
#[must_use]
pub fn async_cancel(user_data: u64) -> Sqe64 {
    by_user_data(sys::IORING_OP_ASYNC_CANCEL, user_data, 0)
}

/// Like [`async_cancel`], for all requests with this `user_data` (`IORING_ASYNC_CANCEL_ALL`, 5.19); completes with
/// their number.
#[inline]
#[must_use]
pub fn async_cancel_all(user_data: u64) -> Sqe64 {
    let flags = sys::IORING_ASYNC_CANCEL_ALL;
    by_user_data(sys::IORING_OP_ASYNC_CANCEL, user_data, flags)
}

/// Like [`async_cancel`], for all requests on a file (`IORING_ASYNC_CANCEL_FD`, 5.19), which must be named the same way
/// as in those; completes with their number.
#[inline]
#[must_use]
pub fn async_cancel_file(fd: Fd) -> Sqe64 {
    let fixed = if fd.is_registered() {
        sys::IORING_ASYNC_CANCEL_FD_FIXED
    } else {
        0
    };
    let mut sqe = on(sys::IORING_OP_ASYNC_CANCEL, fd);
    // The operation's own flags say what kind of number it is.
    sqe.flags &= !sys::IOSQE_FIXED_FILE;
    sqe.rw_flags = sys::IORING_ASYNC_CANCEL_FD | sys::IORING_ASYNC_CANCEL_ALL | fixed;
    Sqe64(sqe)
}

/// Like [`async_cancel`], for every request of the ring (`IORING_ASYNC_CANCEL_ANY`, 5.19), including a waker's poll;
/// completes with their number.
#[inline]
#[must_use]
pub fn async_cancel_any() -> Sqe64 {
    let flags = sys::IORING_ASYNC_CANCEL_ANY | sys::IORING_ASYNC_CANCEL_ALL;
    by_user_data(sys::IORING_OP_ASYNC_CANCEL, 0, flags)
}

fn by_user_data(opcode: u8, user_data: u64, flags: u32) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        opcode,
        fd: -1,
        addr: user_data,
        rw_flags: flags,
        ..Default::default()
    })
}
