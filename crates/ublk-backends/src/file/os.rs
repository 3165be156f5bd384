//! File system calls that std lacks, and the layer for real files.

// Allowed here for statx, ioctl, fcntl, fallocate and preadv2: each wrapper owns the memory it passes, or borrows it
// for the call.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use ublk_core::Errno;

use super::layer::Layer;

/// `BLKDISCARD` of linux/fs.h, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// `BLKGETDISKSEQ` of linux/fs.h, `_IOR(0x12, 128, __u64)`.
const BLKGETDISKSEQ: libc::Ioctl = 0x8008_1280_u32 as libc::Ioctl;

/// File systems in memory (linux/magic.h).
const TMPFS_MAGIC: u32 = 0x0102_1994;
const RAMFS_MAGIC: u32 = 0x8584_58f6;
const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;

/// Converts a system call's result to a count or an errno.
fn check(answer: impl Into<i64>) -> Result<usize, Errno> {
    usize::try_from(answer.into()).map_err(|_| Errno::from_io(&io::Error::last_os_error()))
}

/// Alignment that O_DIRECT requires, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Alignment of memory.
    pub(crate) memory: u32,
    /// Alignment of positions and lengths.
    pub(crate) position: u32,
}

/// Calls statx(2) on an open file.
fn statx(file: &fs::File, wanted: u32) -> Result<libc::statx, Errno> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // By number: std refers to the function weakly, and in a static program with link-time optimisation that makes our
    // reference weak, too. Nothing then pulls it out of libc.a, and the call goes to address 0.
    // SAFETY: the descriptor is open for the call, the path is an empty NUL-terminated constant, and `found` has room
    // for the result.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            wanted,
            found.as_mut_ptr(),
        )
    };
    check(answer)?;
    // SAFETY: all bytes were zeroed, and zeroes are a valid statx; the kernel has filled in the rest.
    Ok(unsafe { found.assume_init() })
}

/// The alignment that the file reports for O_DIRECT: `None` if it reports nothing (before Linux 6.1, and on some file
/// systems), `Some(None)` if direct I/O is not available.
///
/// STATX_DIOALIGN applies to reads and writes. The looser alignment for reads (STATX_DIO_READ_ALIGN, 6.14) is of no use
/// to a writable device.
pub(crate) fn direct_alignment(file: &fs::File, read_only: bool) -> Option<Option<Alignment>> {
    let found = statx(file, libc::STATX_DIOALIGN | libc::STATX_DIO_READ_ALIGN).ok()?;
    if found.stx_mask & libc::STATX_DIOALIGN == 0 {
        return None;
    }
    let mut position = found.stx_dio_offset_align;
    if read_only
        && found.stx_mask & libc::STATX_DIO_READ_ALIGN != 0
        && found.stx_dio_read_offset_align != 0
    {
        position = found.stx_dio_read_offset_align;
    }
    Some((position != 0).then_some(Alignment {
        memory: found.stx_dio_mem_align,
        position,
    }))
}

/// Creation time of the file in nanoseconds since 1970, if the file system stores it.
pub(crate) fn born(file: &fs::File) -> Option<u64> {
    let found = statx(file, libc::STATX_BTIME).ok()?;
    if found.stx_mask & libc::STATX_BTIME == 0 {
        return None;
    }
    let seconds = u64::try_from(found.stx_btime.tv_sec).ok()?;
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(found.stx_btime.tv_nsec.into())
}

/// Sequence number of the disk behind a block device, unique since boot. Linux 5.15.
pub(crate) fn disk_sequence(file: &fs::File) -> Result<u64, Errno> {
    let mut sequence = 0_u64;
    // SAFETY: the request writes one u64, for which `sequence` has room.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), BLKGETDISKSEQ, &raw mut sequence) };
    check(answer)?;
    Ok(sequence)
}

/// The flags that a file was opened with (F_GETFL).
pub(crate) fn open_flags(file: &fs::File) -> Result<i32, Errno> {
    // SAFETY: F_GETFL has no argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    Ok(flags)
}

/// Logical and physical block size of a block device.
pub(crate) fn block_sizes(file: &fs::File) -> Result<(u32, u32), Errno> {
    let ask = |request: libc::Ioctl| {
        let mut value: libc::c_int = 0;
        // SAFETY: both requests write one int (`BLKSSZGET` an int, `BLKPBSZGET` an unsigned one), for which
        // `value` has room.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut value) };
        check(answer)?;
        u32::try_from(value).map_err(|_| Errno::EINVAL)
    };
    Ok((ask(libc::BLKSSZGET)?, ask(libc::BLKPBSZGET)?))
}

/// Whether the file's system is in memory, so that no call waits for a disk.
pub(crate) fn is_in_memory(file: &fs::File) -> bool {
    let mut found = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open for the call, and `found` has room for the result.
    let answer = unsafe { libc::fstatfs(file.as_raw_fd(), found.as_mut_ptr()) };
    if check(answer).is_err() {
        return false;
    }
    // SAFETY: all bytes were zeroed, and zeroes are a valid statfs; the kernel has filled in the rest.
    let found = unsafe { found.assume_init() };
    // The type of this field differs between C libraries and machines; the magic numbers have 32 bits.
    let magic = u32::try_from(found.f_type & 0xffff_ffff);
    matches!(magic, Ok(TMPFS_MAGIC | RAMFS_MAGIC | HUGETLBFS_MAGIC))
}

/// Turns O_DIRECT off.
pub(crate) fn leave_direct(file: &fs::File) -> Result<(), Errno> {
    let flags = open_flags(file)?;
    // SAFETY: F_SETFL takes a word of flags by value.
    let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) };
    check(set).map(drop)
}

/// `fallocate`, repeated after signals.
pub(crate) fn allocate(file: &fs::File, mode: i32, at: u64, len: u64) -> Result<(), Errno> {
    let (Ok(at), Ok(len)) = (libc::off_t::try_from(at), libc::off_t::try_from(len)) else {
        return Err(Errno::EINVAL);
    };
    loop {
        // SAFETY: only numbers go in.
        let answer = unsafe { libc::fallocate(file.as_raw_fd(), mode, at, len) };
        match check(answer) {
            Err(Errno::EINTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Deallocates storage of a regular file; the range then reads as zeroes. On a block device, writes zeroes in a way
/// that deallocates storage, or returns EOPNOTSUPP.
pub(crate) const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// Zeroes a range that stays allocated.
pub(crate) const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// A real file.
#[derive(Debug)]
pub(crate) struct Os {
    pub(crate) file: fs::File,
    /// Uses `BLKDISCARD`, a block device's own discard.
    pub(crate) by_ioctl: bool,
}

/// Repeats a call that a signal interrupted.
fn again<T>(mut call: impl FnMut() -> io::Result<T>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(|error| Errno::from_io(&error)),
        }
    }
}

impl Layer for Os {
    #[inline]
    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
        again(|| self.file.read_at(buf, at))
    }

    #[inline]
    fn write(&self, buf: &[u8], at: u64) -> Result<usize, Errno> {
        again(|| self.file.write_at(buf, at))
    }

    fn sync(&self) -> Result<(), Errno> {
        again(|| self.file.sync_data())
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), Errno> {
        if !self.by_ioctl {
            return allocate(&self.file, PUNCH, at, len);
        }
        let range = [at, len];
        // SAFETY: the request reads two u64 from `range`.
        let answer = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        check(answer).map(drop)
    }

    fn unmap(&self, at: u64, len: u64) -> Result<(), Errno> {
        allocate(&self.file, PUNCH, at, len)
    }

    fn zero(&self, at: u64, len: u64) -> Result<(), Errno> {
        allocate(&self.file, ZERO, at, len)
    }
}
