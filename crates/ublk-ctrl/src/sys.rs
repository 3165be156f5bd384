//! The system calls that std has no safe form of.
//!
//! # Why there is `unsafe` here
//! Two calls of libc that read a number.
#![expect(unsafe_code, reason = "calls of libc")]

/// The machine's page size in bytes, for [`DeviceSpec::check`](ublk_core::DeviceSpec::check).
#[must_use]
pub fn page_size() -> u32 {
    // SAFETY: sysconf reads a number and touches no memory of ours.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u32::try_from(size).unwrap_or(4096)
}

/// The soft limit of locked memory in bytes; `None` for no limit.
pub(crate) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid rlimit for the kernel to fill, for the length of the call.
    let done = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (done == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_size_is_a_page_size() {
        let size = super::page_size();
        assert!(size.is_power_of_two() && size >= 4096, "{size}");
    }
}
