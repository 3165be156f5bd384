//! Errors of creating a backend.

#![forbid(unsafe_code)]

use ublk_core::Errno;

/// Why a backend could not be created: invalid numbers, or not enough memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The logical block size is not supported.
    #[error("block size {0} is not supported: give 512 or 4096")]
    BlockSize(u32),

    /// The size is 0 or not a multiple of the block size.
    #[error("size {size} is not a positive multiple of the block size {block_size}: {}",
            hint(*.size, *.block_size))]
    Size {
        /// The requested size in bytes.
        size: u64,
        /// The logical block size in bytes.
        block_size: u32,
    },

    /// The size exceeds that of any block device: the kernel counts bytes in a signed 64-bit number.
    #[error("size {size} is too large: a block device ends below 8 EiB ({max} bytes at most)")]
    TooLarge {
        /// The requested size in bytes.
        size: u64,
        /// The largest size in bytes.
        max: u64,
    },

    /// The kernel refused the address space for a memory device.
    #[error(
        "cannot reserve {size} bytes of address space for a memory device: {errno}; give a smaller \
         size, lift the address-space limit (ulimit -v unlimited), or allow overcommit \
         (sysctl vm.overcommit_memory=1)"
    )]
    Reserve {
        /// The requested size in bytes.
        size: u64,
        /// The errno of mmap.
        errno: Errno,
    },

    /// A call on the file of a file device failed before the device was created.
    #[error("cannot {doing}: {errno}{}{hint}", if hint.is_empty() { "" } else { "; " })]
    File {
        /// What was attempted.
        doing: &'static str,
        /// The kernel's errno.
        errno: Errno,
        /// What to do next; may be empty.
        hint: &'static str,
    },

    /// The path leads to something that does not store data.
    #[error("it is a {what}; give a regular file or a block device")]
    NotStorage {
        /// The kind of file.
        what: &'static str,
    },

    /// The file is too small for a single block.
    #[error(
        "the file of {size} bytes has no whole block of {block_size} bytes at offset {offset}; \
         make it longer (truncate -s)"
    )]
    Empty {
        /// Size of the file in bytes.
        size: u64,
        /// Offset of the device in the file, in bytes.
        offset: u64,
        /// The logical block size in bytes.
        block_size: u32,
    },

    /// The window extends beyond the end of the file.
    #[error(
        "{length} bytes at offset {offset} extend beyond the end of the file ({size} bytes); give a window inside it"
    )]
    Window {
        /// Offset of the device in the file, in bytes.
        offset: u64,
        /// Length of the window in bytes.
        length: u64,
        /// Size of the file in bytes.
        size: u64,
    },

    /// Offset or length of the window is not a multiple of the block size.
    #[error("{what} {value} is not a multiple of the block size {block_size}: {}", hint(*.value, *.block_size))]
    Unaligned {
        /// `offset` or `length`.
        what: &'static str,
        /// Its value in bytes.
        value: u64,
        /// The logical block size in bytes.
        block_size: u32,
    },

    /// A composed device has no members, or too many.
    #[error("a device of several files has 1 to 64 members, not {0}; give fewer, or at least one")]
    Members(usize),

    /// The chunk of a stripe is not supported.
    #[error(
        "chunk size {0} is not supported: it must be a power of two from 4096 to 268435456 (256 MiB); 65536 is a good value"
    )]
    Chunk(u32),

    /// A member of a stripe is smaller than a chunk.
    #[error(
        "member {} of {size} bytes is smaller than a chunk of {chunk}; make it longer (truncate -s), or give a smaller chunk",
        .member + 1
    )]
    NoChunk {
        /// Index of the member, from 0.
        member: usize,
        /// Its size in bytes.
        size: u64,
        /// The chunk in bytes.
        chunk: u32,
    },

    /// A member of a linear device does not consist of whole blocks of the device.
    #[error(
        "member {} of {size} bytes is not whole blocks of {block_size} bytes, which another member has; give it a length of {}",
        .member + 1,
        .size / u64::from(*.block_size) * u64::from(*.block_size)
    )]
    MemberBlocks {
        /// Index of the member, from 0.
        member: usize,
        /// Its size in bytes.
        size: u64,
        /// The largest logical block size of the members.
        block_size: u32,
    },

    /// The zones of a zoned device do not fit.
    #[error("these zones are not possible: {0}")]
    Zones(&'static str),

    /// The driver does not allow such integrity metadata.
    #[error(transparent)]
    Integrity(#[from] ublk_core::IntegrityRule),

    /// The file with the integrity metadata of a device cannot be used.
    #[error(transparent)]
    SideFile(#[from] SideFileError),

    /// The file with the write pointers of a zoned device cannot be used.
    #[error(transparent)]
    ZonesFile(#[from] ZonesFileError),

    /// Two members share bytes of a file.
    #[error(
        "members {} and {} are the same bytes of one file; give each its own offset and length",
        .first + 1,
        .second + 1
    )]
    Overlap {
        /// Index of a member, from 0.
        first: usize,
        /// Index of the other.
        second: usize,
    },
}

/// Why a file of write pointers cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZonesFileError {
    /// There is none, and the device had one.
    #[error(
        "the device's write pointers are missing: without them its data cannot be told from what was never written; bring the \
         file back"
    )]
    Missing,
    /// The file has no content.
    #[error("the file of write pointers is empty; restore it from a backup")]
    Empty,
    /// The file has other content.
    #[error("it is not a file of write pointers; move it away if it is not needed")]
    Foreign,
    /// Another release wrote it.
    #[error(
        "another release wrote this file of write pointers; serve the device with that release"
    )]
    Version,
    /// The header, or a zone's word, is not what was written.
    #[error(
        "the write pointers are damaged; restore the file from a backup, or move it away and add the device anew: its zones are \
         empty then"
    )]
    Damaged,
    /// The end is missing.
    #[error(
        "the file of write pointers is truncated: it has {length} bytes instead of {needed}; restore it from a backup"
    )]
    Truncated {
        /// Bytes of the file.
        length: u64,
        /// Bytes that its zones need.
        needed: u64,
    },
    /// It is of a device with other zones.
    #[error(
        "the write pointers are of a device with {layout} --block-size {block_size}; give these, or move the file away to begin \
         with empty zones"
    )]
    Layout {
        /// The zones of that device.
        layout: crate::ZoneLayout,
        /// Its logical block size in bytes.
        block_size: u32,
    },
    /// It is of a device at another place of the file with the data.
    #[error(
        "the write pointers are of a device at offset {found} of its file, not {offset}; a file can have one zoned device"
    )]
    Offset {
        /// Offset of that device in bytes.
        found: u64,
        /// Offset of this device in bytes.
        offset: u64,
    },
    /// It is of a device of another size.
    #[error(
        "the write pointers are of a device of {found} bytes, not {size}; give --length {found}, or move the file away to begin \
         with empty zones"
    )]
    Size {
        /// Size of that device in bytes, in whole zones.
        found: u64,
        /// Size of this device in bytes, in whole zones.
        size: u64,
    },
    /// It is of another file with data.
    #[error("the write pointers are those of another file; bring back the device's own")]
    Other,
    /// Another server uses it.
    #[error("another server uses these write pointers; delete its device first (`ublkctl list`)")]
    Locked,
}

/// Why a file of integrity metadata cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SideFileError {
    /// There is none, and the device had one.
    #[error(
        "the integrity metadata is missing; bring the file back, or start without metadata: delete the device if there is one, and \
         add it without --read-only"
    )]
    Missing,
    /// The file has other content.
    #[error(
        "it is not a file of integrity metadata; bring that back, or name another one with --integrity-file when the device is added"
    )]
    Foreign,
    /// A later release wrote it.
    #[error(
        "a later release wrote this file of integrity metadata; serve the device with that release"
    )]
    Version,
    /// The header is not what was written.
    #[error(
        "the header of the integrity metadata is damaged; restore the file from a backup; without it, delete \
         the device if there is one, move the file away, and add the device: it starts without metadata"
    )]
    Damaged,
    /// The end is missing.
    #[error(
        "the integrity metadata is truncated: it has {length} bytes instead of {needed}; restore the file from a backup; \
         without it, delete the device if there is one, move the file away, and add the device: it starts without metadata"
    )]
    Truncated {
        /// Bytes of the file.
        length: u64,
        /// Bytes that its header tells.
        needed: u64,
    },
    /// It is of a device with other metadata.
    #[error(
        "the metadata is of a device with --integrity {integrity} --block-size {block_size}; give these, or move the file away \
         to start without metadata"
    )]
    Format {
        /// The metadata of that device.
        integrity: ublk_core::Integrity,
        /// Its logical block size in bytes.
        block_size: u32,
    },
    /// It is of a device at another place of the file with the data.
    #[error(
        "the metadata is of a device at offset {found} of its file, not {offset}; name another file (--integrity-file)"
    )]
    Offset {
        /// Offset of that device in bytes.
        found: u64,
        /// Offset of this device in bytes.
        offset: u64,
    },
    /// It is of a device of another size.
    #[error(
        "the metadata is of a device of {found} bytes, not {size}; give --length {found} and grow the device with `ublkctl \
         resize`, or move the file away to start without metadata"
    )]
    Size {
        /// Size of that device in bytes.
        found: u64,
        /// Size of this device in bytes.
        size: u64,
    },
    /// It is of another file with data.
    #[error("the integrity metadata is that of another file; bring back the device's own")]
    Other,
    /// Another server uses it.
    #[error(
        "another server uses this integrity metadata; delete its device first (`ublkctl list`)"
    )]
    Locked,
    /// A read-only device cannot repair what a crash left.
    #[error(
        "the last server of this integrity metadata did not end cleanly; serve the device without --read-only once, which \
         checks the metadata"
    )]
    Unclean,
}

impl Error {
    /// True if the numbers or the kind of file are invalid on any machine; false if this machine or the state of the
    /// file is the cause.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        !matches!(
            self,
            Self::Reserve { .. } | Self::File { .. } | Self::SideFile(_) | Self::ZonesFile(_)
        )
    }
}

/// Suggests a valid size.
fn hint(size: u64, block_size: u32) -> String {
    let block = u64::from(block_size);
    match size / block * block {
        0 => format!("give {block} or more"),
        below => format!("give for example {below}"),
    }
}

/// The largest size of a block device: whole 4096-byte blocks below 2^63.
pub(crate) const MAX_SIZE: u64 = (i64::MAX as u64) / 4096 * 4096;

/// Checks block size and size, for every backend.
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

    /// L13 Sizes of 8 EiB and more are refused, those just below are accepted.
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
