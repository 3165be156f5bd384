//! Properties of a file: kind, size, block sizes, capabilities.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use ublk_core::Errno;

use super::aligned::Aligned;
use super::layout::HEAD;
use super::os::{self, Alignment};
use crate::error::Error;

/// Largest DISCARD and WRITE_ZEROES: the file system's work grows with the number of extents in the range.
const MAX_DISCARD: u64 = 1 << 30;

/// Largest plausible block size and granularity: some file systems report their transfer size instead.
const MAX_GRANULARITY: u32 = 1 << 20;

/// The properties of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Facts {
    /// True for a block device, false for a regular file.
    pub(crate) is_block: bool,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Block sizes in bytes.
    pub(crate) logical: u32,
    pub(crate) physical: u32,
    /// Preferred I/O size in bytes, 0 for none.
    pub(crate) optimal: u32,
    pub(crate) rotational: bool,
    /// Largest DISCARD and its granularity in bytes; `None` if not supported.
    pub(crate) discard: Option<(u64, u32)>,
    /// Discards a block device with `BLKDISCARD`.
    pub(crate) by_ioctl: bool,
    /// Maximum number of segments of a request, 0 if unknown.
    pub(crate) max_segments: u16,
    pub(crate) max_segment_size: u32,
}

/// The error of a call that failed while the file was examined.
pub(crate) const fn failed(doing: &'static str, errno: Errno, hint: &'static str) -> Error {
    Error::File { doing, errno, hint }
}

/// Refuses files that do not store data. Also called before the open, which could block on a pipe.
pub(crate) fn check_kind(meta: &fs::Metadata) -> Result<(), Error> {
    let kind = meta.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let what = match () {
        () if kind.is_dir() => "directory",
        () if kind.is_char_device() => "character device",
        () if kind.is_fifo() => "pipe",
        () => "socket",
    };
    Err(Error::NotStorage { what })
}

impl Facts {
    /// Examines an open file.
    pub(crate) fn of(file: &fs::File) -> Result<Self, Error> {
        let meta = file
            .metadata()
            .map_err(|e| failed("examine the file", Errno::from_io(&e), ""))?;
        check_kind(&meta)?;
        if meta.file_type().is_block_device() {
            return Self::of_block(file, meta.rdev());
        }
        let block = u32::try_from(meta.blksize()).unwrap_or(0);
        let block = believed(block).unwrap_or(4096);
        let disk = Queue::of(meta.dev());
        Ok(Self {
            is_block: false,
            size: meta.len(),
            logical: 512,
            physical: block,
            optimal: 0,
            rotational: disk.number("rotational") == Some(1),
            discard: punches(file, meta.len()).then_some((MAX_DISCARD, block)),
            by_ioctl: false,
            // A file system splits and merges requests itself: the disk's limits would only keep the block layer from
            // merging.
            max_segments: 0,
            max_segment_size: 0,
        })
    }

    fn of_block(file: &fs::File, device: u64) -> Result<Self, Error> {
        let size = length(file).map_err(|errno| failed("get the size of the device", errno, ""))?;
        let (logical, physical) = os::block_sizes(file)
            .map_err(|errno| failed("get the block size of the device", errno, ""))?;
        let disk = Queue::of(device);
        let granularity = believed(disk.narrow("discard_granularity")).unwrap_or(logical);
        let most = disk.number("discard_max_bytes").unwrap_or(0);
        Ok(Self {
            is_block: true,
            size,
            logical,
            physical: believed(physical).unwrap_or(logical).max(logical),
            optimal: believed(disk.narrow("optimal_io_size")).unwrap_or(0),
            rotational: disk.number("rotational") == Some(1),
            discard: (most != 0).then_some((MAX_DISCARD, granularity)),
            by_ioctl: true,
            max_segments: disk.narrow("max_segments"),
            max_segment_size: disk.narrow("max_segment_size"),
        })
    }
}

/// Size in bytes of a regular file or a block device. Moves the descriptor's file position, which is not used.
pub(crate) fn length(mut file: &fs::File) -> Result<u64, Errno> {
    file.seek(SeekFrom::End(0)).map_err(|e| Errno::from_io(&e))
}

/// Accepts a power of two that can be a block size or a granularity.
fn believed(bytes: u32) -> Option<u32> {
    (bytes.is_power_of_two() && (512..=MAX_GRANULARITY).contains(&bytes)).then_some(bytes)
}

/// Whether the file system can punch holes: tried on a range beyond the end of the file, where there is nothing to
/// lose. The kernel returns EOPNOTSUPP before it looks at the range.
fn punches(file: &fs::File, size: u64) -> bool {
    let behind = size.next_multiple_of(1 << 20);
    !matches!(
        os::allocate(file, os::PUNCH, behind, 4096),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV)
    )
}

/// The alignment that a file opened with O_DIRECT requires; `None` if direct I/O is not available.
pub(crate) fn alignment(file: &fs::File, read_only: bool, is_block: bool) -> Option<Alignment> {
    if let Some(said) = os::direct_alignment(file, read_only) {
        return said;
    }
    if is_block {
        let (logical, _) = os::block_sizes(file).ok()?;
        return Some(Alignment {
            memory: logical,
            position: logical,
        });
    }
    // The file system does not tell: try a read, which is harmless.
    let mut buffer = Aligned::new(8192);
    let memory = buffer.bytes();
    let sizes = [512, 1024, 2048, 4096];
    let reads = |buf: &mut [u8]| std::os::unix::fs::FileExt::read_at(file, buf, 0).is_ok();
    let position = sizes.into_iter().find(|size| reads(&mut memory[..*size]))?;
    let place = sizes
        .into_iter()
        .find(|start| reads(&mut memory[*start..start + position]))?;
    Some(Alignment {
        memory: u32::try_from(place).ok()?,
        position: u32::try_from(position).ok()?,
    })
}

/// Reads the first bytes of a device at `base` in the file, as many as there are. Failures are ignored.
pub(crate) fn head(file: &fs::File, base: u64) -> Vec<u8> {
    // In whole pages, which satisfy direct I/O.
    let page = base / 4096 * 4096;
    let skipped = usize::try_from(base - page).unwrap_or(0);
    let mut memory = Aligned::new(HEAD + 4096);
    let bytes = memory.bytes();
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match std::os::unix::fs::FileExt::read_at(file, rest, page + done as u64) {
            // A read that ends inside a page has reached the end of the file.
            Ok(n) if n > 0 && n.is_multiple_of(4096) => done += n,
            Ok(n) => {
                done += n;
                break;
            }
            Err(_) => break,
        }
    }
    let end = done.min(skipped + HEAD);
    bytes.get(skipped..end).unwrap_or_default().to_vec()
}

/// The sysfs directory of a disk's queue; for a partition, that of the whole disk.
pub(crate) struct Queue(String);

impl Queue {
    /// For a device number, as in `st_dev` and `st_rdev`.
    pub(crate) fn of(device: u64) -> Self {
        let (major, minor) = (libc::major(device), libc::minor(device));
        Self(format!("/sys/dev/block/{major}:{minor}"))
    }

    /// Reads a numeric attribute; `None` if it does not exist.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        let text = ["queue", "../queue"]
            .iter()
            .find_map(|place| fs::read_to_string(format!("{}/{place}/{name}", self.0)).ok())?;
        text.trim().parse().ok()
    }

    /// Start of a partition on its disk, in sectors; 0 for a whole disk.
    pub(crate) fn start(&self) -> u64 {
        let text = fs::read_to_string(format!("{}/start", self.0)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Reads an attribute into a smaller type; 0 if it does not exist or does not fit.
    fn narrow<T: TryFrom<u64> + Default>(&self, name: &str) -> T {
        let number = self.number(name).and_then(|n| T::try_from(n).ok());
        number.unwrap_or_default()
    }
}
