//! Encoded command numbers: what `_IOR` and `_IOWR` compute (`asm/ioctl.h`).
//!
//! The driver dispatches on the number alone and ignores direction and size, except for `UBLK_U_CMD_GET_FEATURES`,
//! where it compares the whole word. They are computed all the same, so that the words equal those of the C header.

/// Width of the size field; the direction is above it.
const SIZE_BITS: u32 = if OLD_ABI { 13 } else { 14 };
/// Architectures with a different direction encoding.
const OLD_ABI: bool = cfg!(any(
    target_arch = "mips",
    target_arch = "mips64",
    target_arch = "powerpc",
    target_arch = "powerpc64",
    target_arch = "sparc64"
));
/// The caller reads: the kernel writes to the argument.
const READ: u32 = 2;
/// The caller writes: the kernel reads the argument.
const WRITE: u32 = if OLD_ABI { 4 } else { 1 };

const fn encode(direction: u32, kind: u8, nr: u8, size: usize) -> u32 {
    assert!(
        size < 1 << SIZE_BITS,
        "the argument is larger than an ioctl word can say"
    );
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line above")]
    let size = size as u32;
    direction << (16 + SIZE_BITS) | size << 16 | (kind as u32) << 8 | nr as u32
}

/// `_IOR(kind, nr, T)`: a command whose argument `T` the kernel fills in.
///
/// # Panics
/// If `T` is larger than the word's size field can express (16 KiB, 8 KiB on some architectures); the commands of this
/// crate are computed at compile time, where this is a build error.
#[doc(alias = "_IOR")]
#[must_use]
pub const fn ior<T>(kind: u8, nr: u8) -> u32 {
    encode(READ, kind, nr, size_of::<T>())
}

/// `_IOWR(kind, nr, T)`: a command whose argument `T` the kernel reads and fills in.
///
/// # Panics
/// As [`ior`].
#[doc(alias = "_IOWR")]
#[must_use]
pub const fn iowr<T>(kind: u8, nr: u8) -> u32 {
    encode(READ | WRITE, kind, nr, size_of::<T>())
}

/// The number of a command, encoded or legacy: the value that the driver dispatches on (`_IOC_NR`).
#[doc(alias = "_IOC_NR")]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "only the low byte is used")]
pub const fn nr(command: u32) -> u8 {
    command as u8
}

/// The type byte of a command (`_IOC_TYPE`): `'u'` for an encoded ublk command, 0 for a legacy one.
#[doc(alias = "_IOC_TYPE")]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "only the second byte is used"
)]
pub const fn kind(command: u32) -> u8 {
    (command >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::*;

    #[test]
    #[cfg(not(any(
        target_arch = "powerpc64",
        target_arch = "mips64",
        target_arch = "sparc64"
    )))]
    fn words_are_those_the_driver_documents() {
        assert_eq!(UBLK_U_CMD_GET_QUEUE_AFFINITY, 0x8020_7501);
        assert_eq!(UBLK_U_CMD_ADD_DEV, 0xc020_7504);
        assert_eq!(UBLK_U_CMD_GET_FEATURES, 0x8020_7513);
        assert_eq!(UBLK_U_IO_FETCH_REQ, 0xc010_7520);
        assert_eq!(UBLK_U_IO_FETCH_IO_CMDS, 0xc010_7527);
    }

    #[test]
    fn parts_come_back() {
        assert_eq!(nr(UBLK_U_CMD_UNREG_BUF), 0x19);
        assert_eq!(kind(UBLK_U_CMD_UNREG_BUF), b'u');
        assert_eq!(u32::from(nr(UBLK_U_IO_FETCH_REQ)), UBLK_IO_FETCH_REQ);
        assert_eq!(kind(UBLK_IO_FETCH_REQ), 0);
    }
}
