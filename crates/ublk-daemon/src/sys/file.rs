//! What std lacks for files.

use super::{check, check_len};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Writes back all that is dirty of the file system that `path` is on.
///
/// # Errors
/// The errors of `open(2)` and `syncfs(2)`: EIO where something could not be written.
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: syncfs takes a descriptor, open for the length of the call, and touches no memory.
    check(unsafe { libc::syncfs(file.as_raw_fd()) }).map(drop)
}

/// Writes what goes into one write(2).
///
/// # Errors
/// Those of the call.
pub fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are those of one live slice, which the call only reads; the descriptor is borrowed,
    // hence open.
    check_len(unsafe { libc::write(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) })
}

/// The number of the block device behind a path, `None` where it is none. Asks no file system for news, so that a
/// file of a network or FUSE server that is gone holds up nobody.
#[must_use]
pub fn block_device(path: &Path) -> Option<(u32, u32)> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // By number: std refers to the function weakly, which in a static program with link-time optimisation makes our
    // reference weak, too, and the call goes to address 0.
    // SAFETY: `path` is a string with its NUL and `found` room for one statx; both outlive the call.
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
    // SAFETY: it was zeroed, which is a value of every field, and the call succeeded.
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

/// Pages of a file's cache that are dirty or being written back. Waits for nothing.
///
/// # Errors
/// ENOSYS before Linux 6.5, EPERM for callers who may not write the file or whose filter lacks the call.
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
