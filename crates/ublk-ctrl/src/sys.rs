//! System calls without a safe form in std.
//!
//! # Why there is `unsafe` here
//! Calls of libc that read or set a number.
#![expect(unsafe_code, reason = "calls of libc")]

use core::mem::MaybeUninit;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use ublk_core::Errno;
use ublk_core::kernel::Release;

/// The machine's page size in bytes, for [`DeviceSpec::check`](ublk_core::DeviceSpec::check).
#[must_use]
pub fn page_size() -> u32 {
    // SAFETY: sysconf reads a number and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).unwrap_or(4096)
}

/// The release of the running kernel (`uname -r`), if it is available.
pub(crate) fn release() -> Option<Release> {
    let mut name = MaybeUninit::<libc::utsname>::zeroed();
    // SAFETY: the pointer is valid for the struct, which the kernel fills during the call.
    if unsafe { libc::uname(name.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the struct consists of byte arrays, for which zeroes are valid, and the kernel has filled it.
    let name = unsafe { name.assume_init() };
    let bytes: Vec<u8> = name.release.iter().map(|c| c.cast_unsigned()).collect();
    Release::parse(CStr::from_bytes_until_nul(&bytes).ok()?.to_str().ok()?)
}

/// The soft limit of locked memory in bytes; `None` for no limit.
pub(crate) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit that the kernel fills during the call.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// Whether this process may read a file, by its effective permissions; the errno if not. Opens nothing.
pub(crate) fn may_read(path: &Path) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the pointer is that of a live NUL-terminated string, which the call only reads.
    let done =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::R_OK, libc::AT_EACCESS) };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io(&std::io::Error::last_os_error())),
    }
}

/// Major and minor of a device number.
pub(crate) fn device_number(number: u64) -> (u32, u32) {
    (libc::major(number), libc::minor(number))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_running_kernel_has_a_release() {
        let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert_eq!(super::release().unwrap().to_string(), text.trim());
    }

    #[test]
    fn page_size_is_a_page_size() {
        let size = super::page_size();
        assert!(size.is_power_of_two() && size >= 4096, "{size}");
    }
}
