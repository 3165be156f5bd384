//! The system calls. Only this module and `mmap` use raw descriptors and the C library's errno.
//!
//! # Why there is `unsafe` here
//! libc has no wrappers for `io_uring_*`, and pointers go to the kernel. Each call states what it reads or writes.
#![expect(unsafe_code, reason = "system calls")]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::errno::Errno;
use crate::sys;

/// Converts the result of a raw call: −1 and errno, or a non-negative number that fits an `i32`.
#[inline]
fn check(ret: libc::c_long) -> Result<u32, Errno> {
    match u32::try_from(ret) {
        Ok(value) => Ok(value),
        Err(_) => Err(Errno::last()),
    }
}

/// `io_uring_setup(2)`; the kernel makes the descriptor close-on-exec.
pub(crate) fn setup(entries: u32, params: &mut sys::io_uring_params) -> Result<OwnedFd, Errno> {
    let params: *mut sys::io_uring_params = params;
    // SAFETY: the kernel reads and writes one io_uring_params, which is what `params` borrows for the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params) })?;
    let fd = RawFd::try_from(fd).map_err(|_| Errno::new(libc::EBADF))?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `io_uring_enter(2)`. With a timeout the argument is an `io_uring_getevents_arg` (EXT_ARG).
#[inline]
pub(crate) fn enter(
    fd: RawFd,
    to_submit: u32,
    min_complete: u32,
    flags: u32,
    timeout: Option<&sys::__kernel_timespec>,
) -> Result<u32, Errno> {
    let Some(ts) = timeout else {
        // SAFETY: the call has no argument; the entries it submits were vouched for when they were built.
        return unsafe { enter_raw(fd, to_submit, min_complete, flags, std::ptr::null(), 0) };
    };
    let arg = sys::io_uring_getevents_arg {
        ts: std::ptr::from_ref(ts) as u64,
        ..Default::default()
    };
    let flags = flags | sys::IORING_ENTER_EXT_ARG;
    let (arg, size) = (
        std::ptr::from_ref(&arg).cast(),
        size_of::<sys::io_uring_getevents_arg>(),
    );
    // SAFETY: the kernel reads `size` bytes at `arg`, and through it one timespec; both live until the call returns.
    unsafe { enter_raw(fd, to_submit, min_complete, flags, arg, size) }
}

/// The call's number, of which the kernel reads the lower half of rax (arch/x86/entry/common.c).
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
const SYS_IO_URING_ENTER: i32 = 426;

/// The system call, inlined: going through libc's `syscall` costs as much as the rest of an enter.
///
/// # Safety
/// `arg` and `size` must match `flags`.
#[cfg(all(target_arch = "x86_64", target_pointer_width = "64", not(miri)))]
#[inline(always)]
unsafe fn enter_raw(
    fd: RawFd,
    to_submit: u32,
    min_complete: u32,
    flags: u32,
    arg: *const libc::c_void,
    size: usize,
) -> Result<u32, Errno> {
    let ret: i32;
    // SAFETY: the kernel's calling convention: it changes rax, rcx and r11, no memory except that of the caller's
    // contract, and does not touch our stack.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("eax") SYS_IO_URING_ENTER => ret,
            in("edi") fd,
            in("esi") to_submit,
            in("edx") min_complete,
            in("r10d") flags,
            in("r8") arg,
            in("r9") size,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    // A count of entries, at most 32,768, or a negated errno: both fit into the lower half of rax.
    if ret < 0 {
        Err(Errno::new(-ret))
    } else {
        Ok(ret.cast_unsigned())
    }
}

/// The system call.
///
/// # Safety
/// `arg` and `size` must match `flags`.
#[cfg(not(all(target_arch = "x86_64", target_pointer_width = "64", not(miri))))]
#[inline]
unsafe fn enter_raw(
    fd: RawFd,
    to_submit: u32,
    min_complete: u32,
    flags: u32,
    arg: *const libc::c_void,
    size: usize,
) -> Result<u32, Errno> {
    // SAFETY: the caller's contract.
    check(unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            to_submit,
            min_complete,
            flags,
            arg,
            size,
        )
    })
}

/// `io_uring_register(2)` with `arg` an array of `nr` values of the operation's type, or its other argument.
///
/// # Safety
/// `arg` and `nr` must be what `opcode` expects: the kernel accesses that memory during the call and, if the operation
/// registers memory, afterwards.
pub(crate) unsafe fn register(
    fd: BorrowedFd<'_>,
    opcode: u32,
    arg: *mut libc::c_void,
    nr: u32,
) -> Result<u32, Errno> {
    // SAFETY: the caller's contract.
    check(unsafe { libc::syscall(libc::SYS_io_uring_register, fd.as_raw_fd(), opcode, arg, nr) })
}

/// Registers the ring's descriptor with this task; returns the index for `IORING_ENTER_REGISTERED_RING`.
pub(crate) fn register_ring_fd(fd: BorrowedFd<'_>) -> Result<u32, Errno> {
    let raw = u64::try_from(fd.as_raw_fd()).map_err(|_| Errno::new(libc::EBADF))?;
    let mut update = sys::io_uring_rsrc_update {
        offset: u32::MAX,
        resv: 0,
        data: raw,
    };
    // SAFETY: one io_uring_rsrc_update, read and written during the call.
    let n = unsafe {
        register(
            fd,
            sys::IORING_REGISTER_RING_FDS,
            (&raw mut update).cast(),
            1,
        )
    }?;
    if n == 1 {
        Ok(update.offset)
    } else {
        Err(Errno::new(libc::EINVAL))
    }
}

/// Undoes [`register_ring_fd`]; must run on the same task.
pub(crate) fn unregister_ring_fd(fd: BorrowedFd<'_>, index: u32) -> Result<u32, Errno> {
    let mut update = sys::io_uring_rsrc_update {
        offset: index,
        resv: 0,
        data: 0,
    };
    // SAFETY: one io_uring_rsrc_update, read during the call.
    unsafe {
        register(
            fd,
            sys::IORING_UNREGISTER_RING_FDS,
            (&raw mut update).cast(),
            1,
        )
    }
}

/// Creates a non-blocking, close-on-exec eventfd at zero.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Adds one to an eventfd.
pub(crate) fn eventfd_add(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: eight readable bytes.
    let n = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    if n < 0 { Err(Errno::last()) } else { Ok(()) }
}

/// Resets an eventfd to zero, if it is not.
pub(crate) fn eventfd_drain(fd: BorrowedFd<'_>) {
    let mut value = [0_u8; 8];
    // SAFETY: eight writable bytes. EAGAIN means that it was zero; there is no other failure to act on.
    let _ = unsafe { libc::read(fd.as_raw_fd(), value.as_mut_ptr().cast(), value.len()) };
}

/// `RLIMIT_MEMLOCK` in bytes; `None` if there is no limit, or it cannot be read.
pub(crate) fn memlock_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: one rlimit, written during the call.
    let ret = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (ret == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
