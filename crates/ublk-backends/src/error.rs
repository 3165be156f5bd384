//! Why a backend could not be made.

#![forbid(unsafe_code)]

use ublk_core::Errno;

/// Why a backend could not be made: wrong numbers, or no memory for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The logical block size is none of those offered.
    #[error("block size {0} is not offered: give 512 or 4096")]
    BlockSize(u32),

    /// The size is 0 or ends inside a block.
    #[error("size {size} is not a positive multiple of the block size {block_size}: {}",
            hint(*.size, *.block_size))]
    Size {
        /// The size given, in bytes.
        size: u64,
        /// The logical block size, in bytes.
        block_size: u32,
    },

    /// The size is beyond what a block device can have: the kernel counts bytes in a signed 64-bit
    /// number.
    #[error("size {size} is too large: a block device ends below 8 EiB ({max} bytes at most)")]
    TooLarge {
        /// The size given, in bytes.
        size: u64,
        /// The largest size, in bytes.
        max: u64,
    },

    /// The kernel refused the address space for a memory device.
    #[error(
        "cannot reserve {size} bytes of address space for a memory device: {errno}; give a smaller \
         size, lift the address-space limit (ulimit -v unlimited), or allow overcommit \
         (sysctl vm.overcommit_memory=1)"
    )]
    Reserve {
        /// The size asked for, in bytes.
        size: u64,
        /// What mmap answered.
        errno: Errno,
    },

    /// A call on the file of a file device failed before the device was made.
    #[error("cannot {doing}: {errno}{}{hint}", if hint.is_empty() { "" } else { "; " })]
    File {
        /// What was tried.
        doing: &'static str,
        /// What the kernel answered.
        errno: Errno,
        /// What to do next; may be empty.
        hint: &'static str,
    },

    /// The path leads to something that holds no data of its own.
    #[error("it is a {what}; give a regular file or a block device")]
    NotStorage {
        /// What it is.
        what: &'static str,
    },

    /// The file has no whole block to serve.
    #[error(
        "the file has {size} bytes, which leaves no block of {block_size} bytes from offset {offset} on; \
         make it longer (truncate -s)"
    )]
    Empty {
        /// Bytes of the file.
        size: u64,
        /// Where the device was to begin, in bytes.
        offset: u64,
        /// The logical block size, in bytes.
        block_size: u32,
    },

    /// The window given ends behind the file.
    #[error(
        "{length} bytes from offset {offset} on end behind the file of {size} bytes; give a window inside it"
    )]
    Window {
        /// Where the device was to begin, in bytes.
        offset: u64,
        /// How long it was to be, in bytes.
        length: u64,
        /// Bytes of the file.
        size: u64,
    },

    /// Offset or length of the window is no multiple of the block size.
    #[error("{what} {value} is not a multiple of the block size {block_size}: {}", hint(*.value, *.block_size))]
    Unaligned {
        /// `offset` or `length`.
        what: &'static str,
        /// The number given, in bytes.
        value: u64,
        /// The logical block size, in bytes.
        block_size: u32,
    },
}

impl Error {
    /// True where the numbers or the kind of file are wrong for any machine; false where this machine or the file's
    /// state refused.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        !matches!(self, Self::Reserve { .. } | Self::File { .. })
    }
}

/// What to give instead of a size that is no multiple.
fn hint(size: u64, block_size: u32) -> String {
    let block = u64::from(block_size);
    match size / block * block {
        0 => format!("give {block} or more"),
        below => format!("give for example {below}"),
    }
}

/// The largest size of a block device: whole 4096-byte blocks below 2^63.
pub(crate) const MAX_SIZE: u64 = (i64::MAX as u64) / 4096 * 4096;

/// Checks block size and size together, the way every backend does.
pub(crate) const fn check(size: u64, block_size: u32) -> Result<(), Error> {
    if block_size != 512 && block_size != 4096 {
        return Err(Error::BlockSize(block_size));
    }
    if size == 0 || !size.is_multiple_of(block_size as u64) {
        return Err(Error::Size { size, block_size });
    }
    if size > MAX_SIZE {
        return Err(Error::TooLarge {
            size,
            max: MAX_SIZE,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L13 Sizes of 8 EiB and more are refused, those just below pass.
    #[test]
    fn l13_sizes_are_checked_at_both_ends() {
        assert!(check(512, 512).is_ok());
        assert!(check(MAX_SIZE, 4096).is_ok());
        for (size, block_size) in [(0, 512), (513, 512), (512, 4096), (MAX_SIZE + 1, 512)] {
            let found = check(size, block_size);
            assert!(matches!(found, Err(Error::Size { .. })), "{size} {found:?}");
        }
        for size in [1 << 63, MAX_SIZE + 4096, u64::MAX - 4095] {
            let found = check(size, 4096);
            assert!(matches!(found, Err(Error::TooLarge { .. })), "{found:?}");
        }
        assert_eq!(check(4096, 1024), Err(Error::BlockSize(1024)));
        assert_eq!(check(4096, 0), Err(Error::BlockSize(0)));
    }

    #[test]
    fn messages_say_what_to_do() {
        let text = |size, block| check(size, block).map_err(|e| e.to_string());
        assert!(text(5000, 4096).is_err_and(|t| t.contains("give for example 4096")));
        assert!(text(0, 4096).is_err_and(|t| t.contains("give 4096 or more")));
        assert!(text(512, 1).is_err_and(|t| t.contains("512 or 4096")));
    }
}
