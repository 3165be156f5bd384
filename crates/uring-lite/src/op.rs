//! Builders of submission queue entries. All are straight-line stores.
//!
//! # Why there is `unsafe` here
//! An entry is a pointer given away: the kernel reads or writes where it says, some time between `enter` and the
//! CQE. So making an entry that names memory is unsafe, and pushing it is not.
//!
//! Entries can be copied, and each copy pushed. Every contract here ("valid until the CQE") therefore holds for each
//! push of the entry or of a copy: whoever makes an entry that names memory or a descriptor keeps it to those who
//! push it while the promise stands.
//!
//! Descriptors are numbers in an entry and are looked up when the kernel takes it, so naming one is unsafe as well:
//! [`Fd::raw`]. A slot of the ring's own table ([`Fd::registered`]) is not: the ring holds the file.
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
    MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, MSG_ZEROCOPY, accept, accept_multishot, connect, recv,
    recvmsg, send, send_zc, send_zc_fixed, sendmsg, sendmsg_zc, shutdown, socket,
};
pub use wait::{
    POLL_IN, POLL_OUT, Timespec, async_cancel, async_cancel_all, async_cancel_any,
    async_cancel_file, link_timeout, poll_add, poll_remove, timeout, timeout_absolute,
    timeout_remove,
};

/// The file an operation works on: a descriptor, or a slot of the ring's registered files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd {
    number: i32,
    /// `IOSQE_FIXED_FILE` for a slot.
    flags: u8,
}

impl Fd {
    /// An open descriptor. An entry keeps its number only, and the kernel looks it up when it takes the entry; from
    /// then on it holds the file itself.
    ///
    /// # Safety
    /// The descriptor stays open until `enter` has submitted every entry that names it, and none is pushed later:
    /// else the operation works on whatever has got the number meanwhile.
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
    /// The next entry starts when this one has succeeded (`IOSQE_IO_LINK`).
    #[doc(alias = "IOSQE_IO_LINK")]
    pub const LINK: Self = Self(sys::IOSQE_IO_LINK);
    /// The next entry starts when this one is done (`IOSQE_IO_HARDLINK`).
    #[doc(alias = "IOSQE_IO_HARDLINK")]
    pub const HARDLINK: Self = Self(sys::IOSQE_IO_HARDLINK);
    /// Starts when all earlier entries are done (`IOSQE_IO_DRAIN`).
    #[doc(alias = "IOSQE_IO_DRAIN")]
    pub const DRAIN: Self = Self(sys::IOSQE_IO_DRAIN);
    /// Straight to a worker thread (`IOSQE_ASYNC`).
    #[doc(alias = "IOSQE_ASYNC")]
    pub const ASYNC: Self = Self(sys::IOSQE_ASYNC);
    /// The buffer comes from the group given by [`buf_index`](Sqe64::buf_index) (`IOSQE_BUFFER_SELECT`).
    #[doc(alias = "IOSQE_BUFFER_SELECT")]
    pub const BUFFER_SELECT: Self = Self(sys::IOSQE_BUFFER_SELECT);
    /// No CQE on success (`IOSQE_CQE_SKIP_SUCCESS`).
    #[doc(alias = "IOSQE_CQE_SKIP_SUCCESS")]
    pub const CQE_SKIP_SUCCESS: Self = Self(sys::IOSQE_CQE_SKIP_SUCCESS);

    /// The bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// These flags and others.
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

/// Two words in the memory order of C: `low` first.
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
            /// What the CQE will carry; passed through untouched. `u64::MAX` is the waker's.
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

            /// Registered buffer, or buffer group with [`SqeFlags::BUFFER_SELECT`].
            ///
            /// # Safety
            /// As [`addr`](Self::addr), for the memory of that buffer or of any buffer of that group.
            #[inline]
            #[must_use]
            pub const unsafe fn buf_index(mut self, index: u16) -> Self {
                self.$($sqe)+.buf_index = index;
                self
            }

            /// Sets the word of flags of the operation, for a command `IORING_URING_CMD_*`.
            ///
            /// # Safety
            /// What the entry promises holds with these flags: they may change what the operation does to its memory,
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
            /// Where the operation takes it for an address, the memory is valid for what the operation does until
            /// its last CQE.
            #[inline]
            #[must_use]
            pub const unsafe fn addr(mut self, addr: u64) -> Self {
                self.$($sqe)+.addr = addr;
                self
            }

            /// Sets `len` (byte 24).
            ///
            /// # Safety
            /// As [`addr`](Self::addr), for the new length.
            #[inline]
            #[must_use]
            pub const unsafe fn len(mut self, len: u32) -> Self {
                self.$($sqe)+.len = len;
                self
            }

            /// The 64 bytes (the first 64) as the kernel will see them.
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

/// `IORING_OP_URING_CMD` with the 16 bytes of a 64-byte entry (5.19): a command of the file's driver.
///
/// # Safety
/// Whatever memory the command names, in the payload or by [`addr`](Sqe64::addr), is valid for what the driver
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
/// As [`uring_cmd`].
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
/// The owner of the target ring takes the completion for what it is. A ring's owner frees memory, takes descriptors
/// for its own and hands out buffers because a completion says so: none of its operations, past or to come, has this
/// `user_data`. The rings of `ublk-queue` take no messages.
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
