//! Per-thread set-up: CPU affinity, the I/O flusher flag, capabilities; and the eventfd that signals a thread's end.
#![expect(unsafe_code, reason = "sched_setaffinity, prctl, capset and eventfd")]

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use ublk_core::{CpuMask, Errno};

/// `PR_SET_IO_FLUSHER` (linux/prctl.h, 5.6).
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// `PR_GET_IO_FLUSHER`.
const PR_GET_IO_FLUSHER: libc::c_int = 58;

/// Pins the calling thread to the CPUs of a mask, of any size (more than 1024 CPUs included).
///
/// # Errors
/// EINVAL if none of the CPUs exists or is allowed.
pub fn pin(mask: &CpuMask) -> Result<(), Errno> {
    let words = mask.words();
    // SAFETY: the pointer and the length are those of a live slice, which the call only reads.
    let res = unsafe {
        libc::sched_setaffinity(
            0,
            size_of_val(words),
            words.as_ptr().cast::<libc::cpu_set_t>(),
        )
    };
    if res == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Marks the calling thread as one that memory reclaim may depend on (PR_SET_IO_FLUSHER, since Linux 5.6), so that its
/// own allocations never wait for I/O to the device it serves, and returns the flag as read back (L37). Without
/// CAP_SYS_RESOURCE a thread only has the flag if it inherited it.
pub fn set_io_flusher() -> bool {
    let one: libc::c_ulong = 1;
    let zero: libc::c_ulong = 0;
    // SAFETY: prctl with these arguments reads and writes no memory of ours.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, one, zero, zero, zero) };
    // SAFETY: as above.
    match unsafe { libc::prctl(PR_GET_IO_FLUSHER, zero, zero, zero, zero) } {
        -1 => is_marked(),
        marked => marked == 1,
    }
}

/// Reads the flag from /proc, which needs no capability (`PF_MEMALLOC_NOIO`, field 9 of proc_pid_stat(5)).
fn is_marked() -> bool {
    const PF_MEMALLOC_NOIO: u64 = 0x0008_0000;
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
    let flags = stat
        .rsplit_once(") ")
        .and_then(|(_, fields)| fields.split(' ').nth(9 - 3)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & PF_MEMALLOC_NOIO != 0)
}

/// `CAP_SYS_ADMIN` (linux/capability.h), in the first word of a thread's capabilities.
const CAP_SYS_ADMIN: u32 = 1 << 21;

/// `struct __user_cap_header_struct`, version 3 (linux/capability.h), for the calling thread.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAP_HEADER: CapHeader = CapHeader {
    version: 0x2008_0522,
    pid: 0,
};

fn set_capabilities(caps: &[CapData; 2]) -> bool {
    let mut header = CAP_HEADER;
    // SAFETY: the pointers are those of live structs, as many as version 3 has; the call writes at most the header.
    unsafe { libc::syscall(libc::SYS_capset, &raw mut header, caps.as_ptr()) == 0 }
}

/// Drops `CAP_SYS_ADMIN` from the calling thread's effective set until this value is dropped on that thread. The driver
/// does not scan a device for partitions unless all of its queues were fetched with the capability
/// (`ublk_ctrl_start_dev`, drivers/block/ublk_drv.c).
#[derive(Debug)]
pub(crate) struct WithoutAdmin {
    /// The previous sets, if they were changed.
    had: Option<[CapData; 2]>,
    /// Bound to this thread.
    _here: PhantomData<*const ()>,
}

impl WithoutAdmin {
    pub(crate) fn here() -> Self {
        let (mut header, mut had) = (CAP_HEADER, [CapData::default(); 2]);
        // SAFETY: the pointers are those of live structs for the call to fill, as many as version 3 has.
        let read = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, had.as_mut_ptr()) };
        let mut without = had;
        without[0].effective &= !CAP_SYS_ADMIN;
        let changed = read == 0 && without[0].effective != had[0].effective;
        Self {
            had: (changed && set_capabilities(&without)).then_some(had),
            _here: PhantomData,
        }
    }
}

impl Drop for WithoutAdmin {
    fn drop(&mut self) {
        if let Some(had) = &self.had {
            // A permitted capability can be made effective again.
            set_capabilities(had);
        }
    }
}

/// Gives up `CAP_SYS_ADMIN` of the calling thread for good. False if that fails; nothing else reports it.
pub fn give_up_admin() -> bool {
    let (mut header, mut caps) = (CAP_HEADER, [CapData::default(); 2]);
    // SAFETY: the pointers are those of live structs for the call to fill, as many as version 3 has.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, caps.as_mut_ptr()) } != 0 {
        return false;
    }
    for set in [
        &mut caps[0].effective,
        &mut caps[0].permitted,
        &mut caps[0].inheritable,
    ] {
        *set &= !CAP_SYS_ADMIN;
    }
    set_capabilities(&caps)
}

/// Blocks SIGPIPE for the calling thread, so that a write to a socket whose peer is gone only fails with EPIPE. (The
/// kernel sends the signal to the writing thread.) For writes to sockets by the ring, which have no flag against it.
pub fn block_sigpipe() {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is that of a live set, which the call initialises.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was made just above.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE) };
    // SAFETY: the set was made just above, the call only reads it; the old set is not requested.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) };
}

/// Creates an eventfd, close-on-exec.
pub(crate) fn event_fd() -> std::io::Result<OwnedFd> {
    // SAFETY: eventfd has no preconditions; the result is checked below.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes an eventfd readable.
pub(crate) fn signal_event(fd: BorrowedFd<'_>) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the pointer and length are those of a live array, which the call only reads. The write fails only if the
    // eventfd's count is at its maximum, and then it is readable already.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}

/// Drains an eventfd, so that it is no longer readable.
pub(crate) fn drain_event(fd: BorrowedFd<'_>) {
    let mut count = [0u8; 8];
    // SAFETY: the pointer and length are those of a live array. The descriptor is non-blocking.
    unsafe { libc::read(fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
}

pub(crate) fn last_errno() -> Errno {
    Errno::from_io(&std::io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CAP_SYS_RESOURCE (bit 24) is among this thread's effective capabilities.
    fn has_sys_resource() -> bool {
        has_capability(24)
    }

    fn has_capability(bit: u32) -> bool {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("procfs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .expect("a CapEff line");
        u64::from_str_radix(line.trim(), 16).expect("hexadecimal") & (1 << bit) != 0
    }

    /// L80 The capability is dropped while the guard lives, and nothing else is.
    #[test]
    fn l80_sys_admin_is_laid_down_and_taken_up() {
        std::thread::spawn(|| {
            let (admin, resource) = (has_capability(21), has_sys_resource());
            let without = WithoutAdmin::here();
            assert_eq!(without.had.is_some(), admin);
            assert!(!has_capability(21) && has_sys_resource() == resource);
            drop(without);
            assert_eq!(has_capability(21), admin);
        })
        .join()
        .expect("no panic");
    }

    /// A capability that was given up stays away, and nothing else is lost.
    #[test]
    fn sys_admin_is_given_up_for_good() {
        std::thread::spawn(|| {
            let resource = has_sys_resource();
            assert!(give_up_admin());
            drop(WithoutAdmin::here());
            assert!(!has_capability(21) && has_sys_resource() == resource);
            let mut caps = [CapData::default(); 2];
            caps[0].effective = CAP_SYS_ADMIN;
            caps[0].permitted = CAP_SYS_ADMIN;
            assert!(!set_capabilities(&caps), "it came back");
        })
        .join()
        .expect("no panic");
    }

    /// L37 The flag is set to 1, not 0, and the result is what the kernel reports.
    #[test]
    fn l37_io_flusher_is_set_and_read_back() {
        std::thread::spawn(|| {
            // SAFETY: prctl with these arguments touches no memory of ours.
            let read = || unsafe { libc::prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) };
            let marked = set_io_flusher();
            assert_eq!(marked, read() == 1);
            assert_eq!(
                marked,
                has_sys_resource(),
                "permitted with CAP_SYS_RESOURCE, refused without"
            );
        })
        .join()
        .expect("no panic");
    }

    /// L11 A queue's thread gets EPIPE from a broken connection, and no fatal signal.
    #[test]
    fn l11_a_broken_pipe_is_an_errno() {
        use std::io::Write;
        std::thread::spawn(|| {
            block_sigpipe();
            // SAFETY: restores the default action, which the runtime has replaced: it ends the process.
            let old = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let (mut near, far) = std::os::unix::net::UnixStream::pair().expect("sockets");
            drop(far);
            // SAFETY: the pointer and the length are those of a live array, which the call only reads.
            let res = unsafe { libc::write(near.as_raw_fd(), [0_u8; 1].as_ptr().cast(), 1) };
            let errno = last_errno();
            // SAFETY: restores the previous action.
            unsafe { libc::signal(libc::SIGPIPE, old) };
            assert_eq!((res, errno), (-1, Errno::new(libc::EPIPE)));
            near.flush().expect("nothing to do");
        })
        .join()
        .expect("no panic");
    }

    #[test]
    fn pins_to_a_cpu_and_refuses_none() {
        std::thread::spawn(|| {
            let mut mask = CpuMask::new();
            assert_eq!(pin(&mask), Err(Errno::EINVAL));
            // SAFETY: sched_getcpu has no preconditions.
            let here = u32::try_from(unsafe { libc::sched_getcpu() }).expect("a CPU");
            mask.insert(here);
            mask.insert(2000);
            assert_eq!(pin(&mask), Ok(()));
        })
        .join()
        .expect("no panic");
    }
}
