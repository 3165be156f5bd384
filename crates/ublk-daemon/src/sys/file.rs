//! File operations that std lacks.

use super::{check, check_len};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Writes back all dirty data of the file system that holds `path`.
///
/// # Errors
/// Errors of `open(2)` and `syncfs(2)`: EIO if data could not be written.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: syncfs takes a descriptor, open for the length of the call, and touches no memory.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// Writes as many bytes as one write(2) takes.
///
/// # Errors
/// Those of the call.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one live slice, which the call only reads; the descriptor is borrowed,
    // hence open.
    check_len(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// The number of the block device at a path; `None` if it is not one. Does not revalidate attributes, so that a file on
/// an unreachable network or FUSE server blocks nobody.
#[must_use]
pub fn block_device(path: &Path) -> Option<(u32, u32)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // Called by number: std refers to the function weakly. In a static program with link-time optimisation that makes
    // our reference weak, too, and the call jumps to address 0. SAFETY: `path` is a NUL-terminated string and `found`
    // has room for one statx; both outlive the call.
    let res = unsafe {
        libc::syscall(
            libc::SYS_statx,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_STATX_DONT_SYNC,
            libc::STATX_TYPE,
            found.as_mut_ptr(),
        )
    };
    if res != 0 {
        return None;
    }
    // SAFETY: the memory was zeroed, which is valid for every field, and the call succeeded.
    let found = unsafe { found.assume_init() };
    let kind = u32::from(found.stx_mode) & libc::S_IFMT;
    (kind == libc::S_IFBLK).then_some((found.stx_rdev_major, found.stx_rdev_minor))
}

/// The arguments of `cachestat(2)`.
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// What `cachestat(2)` counts, in pages.
#[repr(C)]
#[derive(Default)]
struct Counts {
    cached: u64,
    dirty: u64,
    under_write_back: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// `cachestat(2)`, Linux 6.5: one number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Pages of a file's page cache that are dirty or under writeback. Does not block.
///
/// # Errors
/// ENOSYS before Linux 6.5, EPERM for callers who may not write the file or whose seccomp filter refuses the call.
pub fn dirty_pages(file: &File) -> io::Result<u64> {
    let range = Range { offset: 0, len: 0 };
    let mut counts = Counts::default();
    // SAFETY: the descriptor is open, and both structures have the layout of the kernel's UAPI and outlive the call.
    let res = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            &raw const range,
            &raw mut counts,
            0,
        )
    };
    check(i32::try_from(res).map_err(io::Error::other)?)?;
    Ok(counts.dirty.saturating_add(counts.under_write_back))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_block_devices_have_a_number() {
        assert_eq!(block_device(Path::new("/dev/null")), None);
        assert_eq!(block_device(Path::new("/nonexistent")), None);
    }

    #[test]
    fn dirty_pages_are_counted() {
        use std::io::Write;
        let mut file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.write_all(&[7; 65_536]).unwrap();
        match dirty_pages(&file) {
            Ok(_) => {
                file.sync_all().unwrap();
                assert_eq!(dirty_pages(&file).unwrap(), 0);
            }
            Err(e) => assert!(
                matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)),
                "{e}"
            ),
        }
    }
}
