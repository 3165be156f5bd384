//! Operations on sockets.
//!
//! `flags` are those of the system call (`MSG_*`). Sends and receives may be short unless [`MSG_WAITALL`] is set. To
//! transfer data to and from a registered buffer, use [`send_fixed`] and [`recv_fixed`], on kernels before 7.2
//! [`read_fixed`](super::read_fixed) and [`write_fixed`](super::write_fixed), which work on sockets, too, or
//! [`send_zc_fixed`].
#![expect(unsafe_code, reason = "unsafe fn: entries that name memory")]

use super::{Fd, rw};
use crate::entry::Sqe64;
use crate::sys;

/// Continue until everything is sent or received (`MSG_WAITALL`; for sends since 5.19). An error in between gives a
/// short count.
pub const MSG_WAITALL: u32 = 0x100;
/// No SIGPIPE if the peer is gone (`MSG_NOSIGNAL`).
pub const MSG_NOSIGNAL: u32 = 0x4000;
/// The network reads the memory even after the completion, and reports on the socket's error queue when it is done
/// (`MSG_ZEROCOPY`, for sockets with `SO_ZEROCOPY`). [`send_zc`] reports it with a CQE.
pub const MSG_ZEROCOPY: u32 = 0x400_0000;
/// More data follows at once: TCP waits for it before it sends a partial segment (`MSG_MORE`).
pub const MSG_MORE: u32 = 0x8000;
/// Fail with `EAGAIN` instead of waiting (`MSG_DONTWAIT`).
pub const MSG_DONTWAIT: u32 = 0x40;

/// In the flags of a receive's completion: the socket has more data (`IORING_CQE_F_SOCK_NONEMPTY`, 5.19). Kernels before
/// 6.17 do not set it for unix sockets.
pub const CQE_F_SOCK_NONEMPTY: u32 = sys::IORING_CQE_F_SOCK_NONEMPTY;

/// In the flags of a completion: the memory of a zero-copy send is free again (`IORING_CQE_F_NOTIF`, 6.0).
pub const CQE_F_NOTIF: u32 = sys::IORING_CQE_F_NOTIF;

/// Makes a send or receive wait for the socket before its first attempt (`IORING_RECVSEND_POLL_FIRST`, 5.19): cheaper
/// where that would fail, dearer where it would not.
#[inline]
#[must_use]
pub fn poll_first(mut sqe: Sqe64) -> Sqe64 {
    sqe.0.ioprio |= sys::IORING_RECVSEND_POLL_FIRST;
    sqe
}

#[inline]
fn transfer(opcode: u8, fd: Fd, addr: u64, len: u32, flags: u32) -> Sqe64 {
    let mut sqe = rw(opcode, fd, addr, len, 0);
    sqe.0.rw_flags = flags;
    sqe
}

/// A transfer from or to a registered buffer.
#[inline]
fn fixed(opcode: u8, fd: Fd, index: u16, addr: u64, len: u32, flags: u32) -> Sqe64 {
    let mut sqe = transfer(opcode, fd, addr, len, flags);
    sqe.0.buf_index = index;
    sqe.0.ioprio = sys::IORING_RECVSEND_FIXED_BUF;
    sqe
}

/// `IORING_OP_SEND` (5.6): completes with the byte count.
///
/// # Safety
/// `buf` must be valid for reads of `len` bytes until the CQE; with [`MSG_ZEROCOPY`] until the socket's error queue
/// reports it.
#[inline]
#[must_use]
pub unsafe fn send(fd: Fd, buf: *const u8, len: u32, flags: u32) -> Sqe64 {
    transfer(sys::IORING_OP_SEND, fd, buf as u64, len, flags)
}

/// `IORING_OP_RECV` (5.6): completes with the byte count, 0 at the end of the stream. With
/// [`SqeFlags::BUFFER_SELECT`](super::SqeFlags::BUFFER_SELECT) `buf` may be null: the group's buffer is used.
///
/// # Safety
/// `buf` must be valid for writes of `len` bytes until the CQE.
#[inline]
#[must_use]
pub unsafe fn recv(fd: Fd, buf: *mut u8, len: u32, flags: u32) -> Sqe64 {
    transfer(sys::IORING_OP_RECV, fd, buf as u64, len, flags)
}

/// [`send`] from registered buffer `index` (`IORING_RECVSEND_FIXED_BUF`, for this operation 7.2; older kernels: `EINVAL`).
/// `addr` is an address inside it, or the byte offset for a buffer that the kernel registered (6.15).
///
/// # Safety
/// The registered buffer's memory must be valid for reads until the CQE.
#[inline]
#[must_use]
pub unsafe fn send_fixed(fd: Fd, index: u16, addr: u64, len: u32, flags: u32) -> Sqe64 {
    fixed(sys::IORING_OP_SEND, fd, index, addr, len, flags)
}

/// [`recv`] into registered buffer `index`, named as for [`send_fixed`] (7.2; older kernels: `EINVAL`).
///
/// # Safety
/// The registered buffer's memory must be valid for writes until the CQE.
#[inline]
#[must_use]
pub unsafe fn recv_fixed(fd: Fd, index: u16, addr: u64, len: u32, flags: u32) -> Sqe64 {
    fixed(sys::IORING_OP_RECV, fd, index, addr, len, flags)
}

/// `IORING_OP_SENDMSG` (5.3): sends the pieces of `msg`, with address and control data.
///
/// # Safety
/// `msg` and all memory it names, including its pieces, must be valid for reads until the CQE.
#[inline]
#[must_use]
pub unsafe fn sendmsg(fd: Fd, msg: *const libc::msghdr, flags: u32) -> Sqe64 {
    transfer(sys::IORING_OP_SENDMSG, fd, msg as u64, 1, flags)
}

/// `IORING_OP_RECVMSG` (5.3): receives into the pieces of `msg`, which also gets the sender's address.
///
/// # Safety
/// `msg` and all memory it names, including its pieces, must be valid for reads and writes until the CQE.
#[inline]
#[must_use]
pub unsafe fn recvmsg(fd: Fd, msg: *mut libc::msghdr, flags: u32) -> Sqe64 {
    transfer(sys::IORING_OP_RECVMSG, fd, msg as u64, 1, flags)
}

/// `IORING_OP_SEND_ZC` (6.0): [`send`] without a copy. The first CQE has the count. If [more](crate::Cqe16::has_more)
/// follow, a second one with the same `user_data`, a [notification](crate::Cqe16::is_notification), says that the
/// kernel no longer needs the memory.
///
/// # Safety
/// `buf` must be valid for reads of `len` bytes until the last CQE; the kernel may send its content as of any time
/// until then.
#[inline]
#[must_use]
pub unsafe fn send_zc(fd: Fd, buf: *const u8, len: u32, flags: u32) -> Sqe64 {
    transfer(sys::IORING_OP_SEND_ZC, fd, buf as u64, len, flags)
}

/// [`send_zc`] from registered buffer `index` (`IORING_RECVSEND_FIXED_BUF`, 6.0). `addr` is an address inside it, or
/// the byte offset for a buffer that the kernel registered (6.15).
///
/// # Safety
/// The registered buffer's memory must be valid until the last CQE.
#[inline]
#[must_use]
pub unsafe fn send_zc_fixed(fd: Fd, index: u16, addr: u64, len: u32, flags: u32) -> Sqe64 {
    fixed(sys::IORING_OP_SEND_ZC, fd, index, addr, len, flags)
}

/// Makes the notification of a zero-copy send say in its result whether the kernel copied after all
/// (`IORING_SEND_ZC_REPORT_USAGE`, 6.2), see [`was_copied`]. It does where nothing is gained: on loopback, and for network
/// cards that take no pieces.
#[inline]
#[must_use]
pub fn report_usage(mut sqe: Sqe64) -> Sqe64 {
    sqe.0.ioprio |= sys::IORING_SEND_ZC_REPORT_USAGE;
    sqe
}

/// Whether the kernel copied at least a part of a zero-copy send, by the result of its notification
/// (`IORING_NOTIF_USAGE_ZC_COPIED`); asked for by [`report_usage`].
#[inline]
#[must_use]
pub const fn was_copied(res: i32) -> bool {
    res.cast_unsigned() & sys::IORING_NOTIF_USAGE_ZC_COPIED != 0
}

/// `IORING_OP_SENDMSG_ZC` (6.1): [`sendmsg`] without a copy, with CQEs as for [`send_zc`].
///
/// # Safety
/// As for [`sendmsg`], until the last CQE.
#[inline]
#[must_use]
pub unsafe fn sendmsg_zc(fd: Fd, msg: *const libc::msghdr, flags: u32) -> Sqe64 {
    transfer(sys::IORING_OP_SENDMSG_ZC, fd, msg as u64, 1, flags)
}

/// `IORING_OP_CONNECT` (5.5) to an address of `len` bytes.
///
/// # Safety
/// `addr` must be valid for reads of `len` bytes until `enter` has submitted the entry.
#[inline]
#[must_use]
pub unsafe fn connect(fd: Fd, addr: *const libc::sockaddr, len: u32) -> Sqe64 {
    rw(sys::IORING_OP_CONNECT, fd, addr as u64, 0, u64::from(len))
}

/// `IORING_OP_ACCEPT` (5.5): completes with a new descriptor, created with the `flags` of `accept4` (`SOCK_CLOEXEC` …).
/// `addr` and `len` may both be null; otherwise the peer's address is written there.
///
/// # Safety
/// `len` must be null or valid for reads and writes, and `addr` null or valid for writes of `*len` bytes, until the
/// CQE.
#[inline]
#[must_use]
pub unsafe fn accept(
    fd: Fd,
    addr: *mut libc::sockaddr,
    len: *mut libc::socklen_t,
    flags: u32,
) -> Sqe64 {
    let mut sqe = rw(sys::IORING_OP_ACCEPT, fd, addr as u64, 0, len as u64);
    sqe.0.rw_flags = flags;
    sqe
}

/// [`accept`] for many connections (`IORING_ACCEPT_MULTISHOT`, 5.19): posts a CQE with a new descriptor for each, until
/// one without [more](crate::Cqe16::has_more).
#[inline]
#[must_use]
pub fn accept_multishot(fd: Fd, flags: u32) -> Sqe64 {
    let mut sqe = rw(sys::IORING_OP_ACCEPT, fd, 0, 0, 0);
    sqe.0.ioprio = sys::IORING_ACCEPT_MULTISHOT;
    sqe.0.rw_flags = flags;
    sqe
}

/// `IORING_OP_SHUTDOWN` (5.11) with the `how` of `shutdown(2)`: 0 receiving, 1 sending, 2 both.
#[inline]
#[must_use]
pub fn shutdown(fd: Fd, how: u32) -> Sqe64 {
    rw(sys::IORING_OP_SHUTDOWN, fd, 0, how, 0)
}

/// `IORING_OP_SOCKET` (5.19) with the arguments of `socket(2)`: completes with a new descriptor.
#[inline]
#[must_use]
pub fn socket(domain: i32, kind: u32, protocol: u32) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        opcode: sys::IORING_OP_SOCKET,
        fd: domain,
        off: u64::from(kind),
        len: protocol,
        ..Default::default()
    })
}
