//! Queue entries. Their size is a type, which also sets the ring flag, so that the two cannot disagree.
//!
//! # Why there is `unsafe` here
//! [`SqEntry`] and [`CqEntry`] are unsafe to implement (and sealed): queue memory is read and written as arrays of
//! these types, so they must have exactly the kernel's size and accept every bit pattern.
#![expect(unsafe_code, reason = "marker traits that queue memory relies on")]

use static_assertions::{assert_impl_all, const_assert_eq};

use crate::errno::Errno;
use crate::sys;

mod sealed {
    pub trait Sealed {}
}

/// A submission queue entry: [`Sqe64`] or [`Sqe128`].
///
/// # Safety
/// The type must be `repr(C)` with the size that `SETUP_FLAG` requests from the kernel, and every bit pattern must be a
/// valid value.
pub unsafe trait SqEntry: sealed::Sealed + Copy + 'static {
    /// Flag of `io_uring_setup` for this size, or 0.
    const SETUP_FLAG: u32;

    /// Converts a 64-byte entry; the remaining bytes are zero.
    fn from_sqe64(sqe: Sqe64) -> Self;

    /// The `user_data` that the CQE will carry.
    fn get_user_data(&self) -> u64;

    /// `IOSQE_*` flags.
    fn get_flags(&self) -> u8;
}

/// A completion queue entry: [`Cqe16`] or [`Cqe32`].
///
/// # Safety
/// The type must be `repr(C)` with the size that `SETUP_FLAG` requests from the kernel, and every bit pattern must be a
/// valid value.
pub unsafe trait CqEntry: sealed::Sealed + Copy + Default + 'static {
    /// Flag of `io_uring_setup` for this size, or 0.
    const SETUP_FLAG: u32;

    /// `user_data` of the SQE.
    fn user_data(&self) -> u64;

    /// Result, or a negative errno.
    fn res(&self) -> i32;

    /// `IORING_CQE_F_*`.
    fn flags(&self) -> u32;

    /// Builds an entry, for a fake kernel.
    fn from_parts(user_data: u64, res: i32, flags: u32) -> Self;
}

/// Submission queue entry of 64 bytes, built by [`op`](crate::op).
///
/// The fields are private: an entry can make the kernel write to memory, so setting a field that names memory is
/// unsafe.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sqe64(pub(crate) sys::io_uring_sqe);

/// Submission queue entry of 128 bytes (`IORING_SETUP_SQE128`, 5.19). The command area of 80 bytes runs from byte 48 to
/// the end (L58).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sqe128 {
    pub(crate) sqe: sys::io_uring_sqe,
    pub(crate) cmd_rest: [u8; 64],
}

impl Sqe64 {
    /// Replaces the 16 bytes of payload, given as two words in memory order.
    ///
    /// # Safety
    /// Memory that the new payload names must be valid as for [`op::uring_cmd`](crate::op::uring_cmd).
    #[inline(always)]
    #[must_use]
    pub const unsafe fn with_payload(mut self, words: [u64; 2]) -> Self {
        let [first, second] = [words[0].to_ne_bytes(), words[1].to_ne_bytes()];
        let mut n = 0;
        while n < 8 {
            self.0.cmd[n] = first[n];
            self.0.cmd[n + 8] = second[n];
            n += 1;
        }
        self
    }
}

impl Sqe64 {
    /// The first word of the payload, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn payload_head(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0.cmd;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// Sets offset and length of the entry, keeping its address.
    ///
    /// # Safety
    /// The entry's memory must be valid for `len` bytes of the operation until its last CQE.
    #[inline(always)]
    pub const unsafe fn set_range(&mut self, offset: u64, len: u32) {
        self.0.off = offset;
        self.0.len = len;
    }

    /// The file offset of a read or write.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.0.off
    }
}

const_assert_eq!(size_of::<Sqe64>(), 64);
const_assert_eq!(size_of::<Sqe128>(), 128);
const_assert_eq!(align_of::<Sqe64>(), 8);
const_assert_eq!(align_of::<Sqe128>(), 8);
// L58: byte 48, and the second part follows the first without a gap.
const_assert_eq!(memoffset::offset_of!(Sqe128, cmd_rest), 48 + 16);

/// Completion queue entry of 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cqe16 {
    /// `user_data` of the SQE.
    pub user_data: u64,
    /// Result, or a negative errno.
    pub res: i32,
    /// `IORING_CQE_F_*`.
    pub flags: u32,
}

/// Completion queue entry of 32 bytes (`IORING_SETUP_CQE32`, 5.19).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cqe32 {
    /// `user_data` of the SQE.
    pub user_data: u64,
    /// Result, or a negative errno.
    pub res: i32,
    /// `IORING_CQE_F_*`.
    pub flags: u32,
    /// Additional data of the operation.
    pub big: [u64; 2],
}

const_assert_eq!(size_of::<Cqe16>(), 16);
const_assert_eq!(size_of::<Cqe32>(), 32);
const_assert_eq!(memoffset::offset_of!(Cqe32, big), 16);
assert_impl_all!(Sqe64: Send, Sync);
assert_impl_all!(Cqe32: Send, Sync);

impl sealed::Sealed for Sqe64 {}
impl sealed::Sealed for Sqe128 {}
impl sealed::Sealed for Cqe16 {}
impl sealed::Sealed for Cqe32 {}

// SAFETY: 64 bytes by the assertion above, integers only, and no flag asks for 64-byte entries.
unsafe impl SqEntry for Sqe64 {
    const SETUP_FLAG: u32 = 0;

    #[inline]
    fn from_sqe64(sqe: Sqe64) -> Self {
        sqe
    }

    #[inline]
    fn get_user_data(&self) -> u64 {
        self.0.user_data
    }

    #[inline]
    fn get_flags(&self) -> u8 {
        self.0.flags
    }
}

// SAFETY: 128 bytes by the assertion above, integers only, and the flag asks for 128-byte entries.
unsafe impl SqEntry for Sqe128 {
    const SETUP_FLAG: u32 = sys::IORING_SETUP_SQE128;

    #[inline]
    fn from_sqe64(sqe: Sqe64) -> Self {
        Self {
            sqe: sqe.0,
            cmd_rest: [0; 64],
        }
    }

    #[inline]
    fn get_user_data(&self) -> u64 {
        self.sqe.user_data
    }

    #[inline]
    fn get_flags(&self) -> u8 {
        self.sqe.flags
    }
}

impl From<Sqe64> for Sqe128 {
    fn from(sqe: Sqe64) -> Self {
        Self::from_sqe64(sqe)
    }
}

macro_rules! cq_entry {
    ($name:ident, $flag:expr, { $($rest:tt)* }) => {
        // SAFETY: the size is asserted above, integers only, and the flag (0 for 16 bytes) asks for that size.
        unsafe impl CqEntry for $name {
            const SETUP_FLAG: u32 = $flag;

            #[inline]
            fn user_data(&self) -> u64 {
                self.user_data
            }

            #[inline]
            fn res(&self) -> i32 {
                self.res
            }

            #[inline]
            fn flags(&self) -> u32 {
                self.flags
            }

            fn from_parts(user_data: u64, res: i32, flags: u32) -> Self {
                Self { user_data, res, flags, $($rest)* }
            }
        }

        impl $name {
            /// Splits `res` into value or errno.
            ///
            /// # Errors
            /// The errno, if `res` is negative.
            #[inline]
            pub const fn result(&self) -> Result<u32, Errno> {
                Errno::check(self.res)
            }

            /// The id of the provided buffer that was used, if any (`IORING_CQE_F_BUFFER`).
            #[inline]
            #[must_use]
            pub const fn buffer_id(&self) -> Option<u16> {
                if self.flags & sys::IORING_CQE_F_BUFFER == 0 {
                    return None;
                }
                Some((self.flags >> sys::IORING_CQE_BUFFER_SHIFT) as u16)
            }

            /// Whether the SQE will post more CQEs (`IORING_CQE_F_MORE`).
            #[inline]
            #[must_use]
            pub const fn has_more(&self) -> bool {
                self.flags & sys::IORING_CQE_F_MORE != 0
            }

            /// Whether it is the notification that a zero-copy send's memory is free again (`IORING_CQE_F_NOTIF`, 6.0).
            #[inline]
            #[must_use]
            pub const fn is_notification(&self) -> bool {
                self.flags & sys::IORING_CQE_F_NOTIF != 0
            }
        }
    };
}

cq_entry!(Cqe16, 0, {});
cq_entry!(Cqe32, sys::IORING_SETUP_CQE32, { big: [0; 2] });
