//! Builders of submission queue entries. All are straight-line stores.
//!
//! # Why there is `unsafe` here
//! An entry gives a pointer to the kernel, which reads or writes there some time between `enter` and the CQE. So
//! building an entry that names memory is unsafe; pushing it is not.
//!
//! Entries can be copied, and each copy can be pushed. Every contract here ("valid until the CQE") therefore covers
//! each push of the entry or of a copy: code that builds an entry which names memory or a descriptor must pass it only
//! to code that pushes it while the contract holds.
//!
//! Descriptors are numbers in an entry, looked up when the kernel takes it, so naming one is unsafe as well:
//! [`Fd::raw`]. A slot of the ring's own table ([`Fd::registered`]) is safe: the ring holds the file.
#![expect(
    unsafe_code,
    reason = "unsafe fn: entries that name memory or descriptors"
)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::entry::{Sqe64, Sqe128};
use crate::sys;

mod file;
mod net;
mod wait;

pub use file::{
    close, close_registered, fallocate, fsync, read, read_fixed, readv, write, write_fixed, writev,
};
pub use net::{
    CQE_F_NOTIF, CQE_F_SOCK_NONEMPTY, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, MSG_WAITALL,
    MSG_ZEROCOPY, accept, accept_multishot, connect, poll_first, recv, recv_fixed, recvmsg,
    report_usage, send, send_fixed, send_zc, send_zc_fixed, sendmsg, sendmsg_zc, shutdown, socket,
    was_copied,
};
pub use wait::{
    POLL_IN, POLL_OUT, Timespec, async_cancel, async_cancel_all, async_cancel_any,
    async_cancel_file, link_timeout, poll_add, poll_remove, timeout, timeout_absolute,
    timeout_remove,
};

/// The file of an operation: a descriptor, or a slot of the ring's registered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd {
    number: i32,
    /// `IOSQE_FIXED_FILE` for a slot.
    flags: u8,
}

impl Fd {
    /// An open descriptor. An entry only stores its number, which the kernel looks up when it takes the entry; from
    /// then on the kernel holds the file itself.
    ///
    /// # Safety
    /// The descriptor must stay open until `enter` has submitted every entry that names it, and no such entry may be
    /// pushed later: otherwise the operation works on whatever file has been given the number meanwhile.
    #[inline]
    #[must_use]
    pub unsafe fn raw(fd: BorrowedFd<'_>) -> Self {
        Self {
            number: fd.as_raw_fd(),
            flags: 0,
        }
    }

    /// A slot of the ring's registered files (`IOSQE_FIXED_FILE`).
    #[inline]
    #[must_use]
    pub const fn registered(slot: u32) -> Self {
        Self {
            number: slot.cast_signed(),
            flags: sys::IOSQE_FIXED_FILE,
        }
    }

    pub(crate) const fn is_registered(self) -> bool {
        self.flags != 0
    }
}

/// `IOSQE_*` flags of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SqeFlags(u8);

impl SqeFlags {
    /// The next entry starts once this one has succeeded (`IOSQE_IO_LINK`).
    #[doc(alias = "IOSQE_IO_LINK")]
    pub const LINK: Self = Self(sys::IOSQE_IO_LINK);
    /// The next entry starts once this one has completed, even if it failed (`IOSQE_IO_HARDLINK`).
    #[doc(alias = "IOSQE_IO_HARDLINK")]
    pub const HARDLINK: Self = Self(sys::IOSQE_IO_HARDLINK);
    /// Starts once all earlier entries have completed (`IOSQE_IO_DRAIN`).
    #[doc(alias = "IOSQE_IO_DRAIN")]
    pub const DRAIN: Self = Self(sys::IOSQE_IO_DRAIN);
    /// Runs on a kernel worker right away (`IOSQE_ASYNC`).
    #[doc(alias = "IOSQE_ASYNC")]
    pub const ASYNC: Self = Self(sys::IOSQE_ASYNC);
    /// Takes the buffer from the group set by [`buf_index`](Sqe64::buf_index) (`IOSQE_BUFFER_SELECT`).
    #[doc(alias = "IOSQE_BUFFER_SELECT")]
    pub const BUFFER_SELECT: Self = Self(sys::IOSQE_BUFFER_SELECT);
    /// Posts no CQE on success (`IOSQE_CQE_SKIP_SUCCESS`).
    #[doc(alias = "IOSQE_CQE_SKIP_SUCCESS")]
    pub const CQE_SKIP_SUCCESS: Self = Self(sys::IOSQE_CQE_SKIP_SUCCESS);

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The union with other flags.
    #[must_use]
    pub const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }
}

impl std::ops::BitOr for SqeFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

/// Packs two words in the memory order of C: `first` at the lower address.
#[inline]
const fn words(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        (second as u64) << 32 | first as u64
    } else {
        (first as u64) << 32 | second as u64
    }
}

#[inline]
fn on(opcode: u8, fd: Fd) -> sys::io_uring_sqe {
    sys::io_uring_sqe {
        opcode,
        flags: fd.flags,
        fd: fd.number,
        ..Default::default()
    }
}

macro_rules! setters {
    ($name:ident, $($sqe:tt)+) => {
        impl $name {
            /// Sets the value that the CQE will carry, passed through unchanged. `u64::MAX` is reserved for the waker.
            #[inline]
            #[must_use]
            pub const fn user_data(mut self, user_data: u64) -> Self {
                self.$($sqe)+.user_data = user_data;
                self
            }

            /// Adds flags.
            #[inline]
            #[must_use]
            pub const fn flags(mut self, flags: SqeFlags) -> Self {
                self.$($sqe)+.flags |= flags.bits();
                self
            }

            /// Sets the registered buffer, or the buffer group with [`SqeFlags::BUFFER_SELECT`].
            ///
            /// # Safety
            /// As for [`addr`](Self::addr), for the memory of that buffer or of any buffer of that group.
            #[inline]
            #[must_use]
            pub const unsafe fn buf_index(mut self, index: u16) -> Self {
                self.$($sqe)+.buf_index = index;
                self
            }

            /// Sets the operation's flags, `IORING_URING_CMD_*` for a command.
            ///
            /// # Safety
            /// The entry's contract must hold with these flags: they may change what the operation does to its memory,
            /// and how often.
            #[inline]
            #[must_use]
            pub const unsafe fn cmd_flags(mut self, flags: u32) -> Self {
                self.$($sqe)+.rw_flags = flags;
                self
            }

            /// Sets `addr` (byte 16).
            ///
            /// # Safety
            /// If the operation uses it as an address, the memory must be valid for the operation until its last CQE.
            #[inline]
            #[must_use]
            pub const unsafe fn addr(mut self, addr: u64) -> Self {
                self.$($sqe)+.addr = addr;
                self
            }

            /// Sets `len` (byte 24).
            ///
            /// # Safety
            /// As for [`addr`](Self::addr), with the new length.
            #[inline]
            #[must_use]
            pub const unsafe fn len(mut self, len: u32) -> Self {
                self.$($sqe)+.len = len;
                self
            }

            /// The (first) 64 bytes as the kernel sees them.
            #[must_use]
            pub const fn as_raw(&self) -> &sys::io_uring_sqe {
                &self.$($sqe)+
            }
        }
    };
}

setters!(Sqe64, 0);
setters!(Sqe128, sqe);

/// `IORING_OP_NOP`: completes with 0.
#[inline]
#[must_use]
pub fn nop() -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        opcode: sys::IORING_OP_NOP,
        fd: -1,
        ..Default::default()
    })
}

/// `IORING_OP_URING_CMD` with the 16 bytes of a 64-byte entry (5.19): a command for the file's driver.
///
/// # Safety
/// Any memory that the command names, in the payload or by [`addr`](Sqe64::addr), must be valid for what the driver
/// does with it until the command's last CQE.
#[inline]
#[must_use]
pub unsafe fn uring_cmd(fd: Fd, cmd_op: u32, payload: &[u8; 16]) -> Sqe64 {
    let mut sqe = on(sys::IORING_OP_URING_CMD, fd);
    sqe.off = words(cmd_op, 0);
    sqe.cmd = *payload;
    Sqe64(sqe)
}

/// `IORING_OP_URING_CMD` with the 80 bytes of a 128-byte entry (5.19).
///
/// # Safety
/// As for [`uring_cmd`].
///
/// # Panics
/// Never: an array of 80 bytes has 16 and 64.
#[inline]
#[must_use]
pub unsafe fn uring_cmd128(fd: Fd, cmd_op: u32, payload: &[u8; 80]) -> Sqe128 {
    let mut sqe = on(sys::IORING_OP_URING_CMD, fd);
    sqe.off = words(cmd_op, 0);
    let (first, rest) = payload.split_at(16);
    let mut whole = Sqe128 {
        sqe,
        cmd_rest: [0; 64],
    };
    whole.sqe.cmd.copy_from_slice(first);
    whole.cmd_rest.copy_from_slice(rest);
    whole
}

#[inline]
fn rw(opcode: u8, fd: Fd, addr: u64, len: u32, offset: u64) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        addr,
        len,
        off: offset,
        ..on(opcode, fd)
    })
}

/// `IORING_OP_MSG_RING` (5.18): posts a CQE with this `user_data` and `res` on the target ring.
///
/// # Safety
/// The owner of the target ring must be able to accept the completion. A ring's owner frees memory, takes ownership of
/// descriptors and hands out buffers because a completion says so: none of its operations, past or future, may have
/// this `user_data`. The rings of `ublk-queue` accept no messages.
#[inline]
#[must_use]
pub unsafe fn msg_ring(target: Fd, user_data: u64, res: i32) -> Sqe64 {
    Sqe64(sys::io_uring_sqe {
        addr: sys::IORING_MSG_DATA,
        len: res.cast_unsigned(),
        off: user_data,
        ..on(sys::IORING_OP_MSG_RING, target)
    })
}
