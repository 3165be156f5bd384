//! Operations on files.
#![expect(
    unsafe_code,
    reason = "unsafe fn: entries that name memory or descriptors"
)]

use std::os::fd::RawFd;

use super::{Fd, on, rw};
use crate::entry::Sqe64;
use crate::sys;

/// `IORING_OP_READ` (5.6): reads `len` bytes at `offset` of the file, `u64::MAX` for the current position. With
/// [`BUFFER_SELECT`](super::SqeFlags::BUFFER_SELECT) `buf` may be null: the group's buffer is used.
///
/// # Safety
/// `buf` must be valid for writes of `len` bytes until the CQE.
#[inline]
#[must_use]
pub unsafe fn read(fd: Fd, buf: *mut u8, len: u32, offset: u64) -> Sqe64 {
    rw(sys::IORING_OP_READ, fd, buf as u64, len, offset)
}

/// `IORING_OP_WRITE` (5.6): writes `len` bytes at `offset` of the file, `u64::MAX` for the current position.
///
/// # Safety
/// `buf` must be valid for reads of `len` bytes until the CQE.
#[inline]
#[must_use]
pub unsafe fn write(fd: Fd, buf: *const u8, len: u32, offset: u64) -> Sqe64 {
    rw(sys::IORING_OP_WRITE, fd, buf as u64, len, offset)
}

/// `IORING_OP_READV` (5.1): reads into `count` pieces at `offset` of the file, `u64::MAX` for the current position.
///
/// # Safety
/// `iovecs` must be valid for reads of `count` elements until `enter` has submitted the entry; the memory they name
/// must be valid for writes until the CQE.
#[inline]
#[must_use]
pub unsafe fn readv(fd: Fd, iovecs: *const libc::iovec, count: u32, offset: u64) -> Sqe64 {
    rw(sys::IORING_OP_READV, fd, iovecs as u64, count, offset)
}

/// `IORING_OP_WRITEV` (5.1): writes `count` pieces at `offset` of the file, `u64::MAX` for the current position.
///
/// # Safety
/// As for [`readv`], with the memory valid for reads.
#[inline]
#[must_use]
pub unsafe fn writev(fd: Fd, iovecs: *const libc::iovec, count: u32, offset: u64) -> Sqe64 {
    rw(sys::IORING_OP_WRITEV, fd, iovecs as u64, count, offset)
}

/// `IORING_OP_READ_FIXED` (5.1): reads into registered buffer `index`. `addr` is an address inside it, or the byte
/// offset for a buffer that the kernel registered.
///
/// # Safety
/// The registered buffer's memory must be valid until the CQE.
#[inline]
#[must_use]
pub unsafe fn read_fixed(fd: Fd, index: u16, addr: u64, len: u32, offset: u64) -> Sqe64 {
    let mut sqe = rw(sys::IORING_OP_READ_FIXED, fd, addr, len, offset);
    sqe.0.buf_index = index;
    sqe
}

/// `IORING_OP_WRITE_FIXED` (5.1): writes from registered buffer `index`; `addr` as for [`read_fixed`].
///
/// # Safety
/// The registered buffer's memory must be valid until the CQE.
#[inline]
#[must_use]
pub unsafe fn write_fixed(fd: Fd, index: u16, addr: u64, len: u32, offset: u64) -> Sqe64 {
    let mut sqe = rw(sys::IORING_OP_WRITE_FIXED, fd, addr, len, offset);
    sqe.0.buf_index = index;
    sqe
}

/// `IORING_OP_FSYNC` (5.1), or fdatasync with `data_only`.
#[inline]
#[must_use]
pub fn fsync(fd: Fd, data_only: bool) -> Sqe64 {
    let rw_flags = if data_only {
        sys::IORING_FSYNC_DATASYNC
    } else {
        0
    };
    Sqe64(sys::io_uring_sqe {
        rw_flags,
        ..on(sys::IORING_OP_FSYNC, fd)
    })
}

/// `IORING_OP_FALLOCATE` (5.6) with the `mode` of `fallocate(2)`; the range is in bytes.
#[inline]
#[must_use]
pub fn fallocate(fd: Fd, mode: u32, offset: u64, len: u64) -> Sqe64 {
    // The length goes into `addr` and the mode into `len`.
    rw(sys::IORING_OP_FALLOCATE, fd, len, mode, offset)
}

/// `IORING_OP_CLOSE` (5.6) of a descriptor. [`Ring::push_close`](crate::Ring::push_close) is the safe interface.
///
/// # Safety
/// The caller must own the descriptor and give it up: the entry is submitted once, copies of it never, and nobody uses
/// or closes the descriptor afterwards.
#[inline]
#[must_use]
pub unsafe fn close(fd: RawFd) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        opcode: sys::IORING_OP_CLOSE,
        fd,
        ..Default::default()
    })
}

/// `IORING_OP_CLOSE` of a registered file (5.15): empties the slot.
#[inline]
#[must_use]
pub fn close_registered(slot: u32) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        opcode: sys::IORING_OP_CLOSE,
        // The kernel counts from one here; 0 means "by descriptor".
        file_index: slot.wrapping_add(1),
        ..Default::default()
    })
}
