//! Sessions, pidfds, standard streams and fork.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Makes the caller the leader of a new session, so that it receives no signals from the terminal.
///
/// # Errors
/// EPERM if the caller leads a process group.
pub fn new_session() -> io::Result<()> {
    // SAFETY: the call has no arguments and touches no memory.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Whether the caller leads a process group, because it was started in one of its own.
#[must_use]
pub fn leads_group() -> bool {
    // SAFETY: the call has no arguments, touches no memory and cannot fail.
    let group = unsafe { libc::getpgrp() };
    u32::try_from(group).is_ok_and(|group| group == std::process::id())
}

/// The effective user id.
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: the call has no arguments, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

/// A pidfd for process `pid`, readable once the process has exited. Linux 5.3.
///
/// # Errors
/// ESRCH if there is no such process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: pidfd_open takes two integers and touches no memory; it always sets CLOEXEC.
    let res = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(res).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process of a pidfd, never to a later one with the same pid.
///
/// # Errors
/// ESRCH if it has exited, EPERM for another user's process.
pub fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal takes integers, and a null siginfo is its documented default.
    let res = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(i32::try_from(res).map_err(io::Error::other)?).map(drop)
}

/// Duplicates a descriptor of the process behind a pidfd: the same open file, with its locks and claims. Linux 5.6.
///
/// # Errors
/// EPERM if ptrace access is denied (another user's process, one with more capabilities, Yama), EBADF if the process
/// has no such descriptor.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory; the new descriptor is closed on exec.
    let res = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) };
    let fd = RawFd::try_from(res).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A standard stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 0.
    In,
    /// Descriptor 1.
    Out,
    /// Descriptor 2.
    Err,
}

/// Makes a standard stream refer to the file behind `fd`. Children inherit it.
///
/// # Errors
/// Errors of `dup2(2)`.
pub fn redirect(fd: BorrowedFd<'_>, stream: Stream) -> io::Result<()> {
    let to = match stream {
        Stream::In => libc::STDIN_FILENO,
        Stream::Out => libc::STDOUT_FILENO,
        Stream::Err => libc::STDERR_FILENO,
    };
    // SAFETY: dup2 touches no memory. Descriptors 0, 1 and 2 belong to the whole process and to no OwnedFd, so no owned
    // descriptor is closed.
    check(unsafe { libc::dup2(fd.as_raw_fd(), to) }).map(drop)
}

/// The result of a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// In the child.
    Child,
    /// In the parent: the child's pid.
    Parent(u32),
}

/// Forks the process. Refuses if it has more than one thread, because the child would inherit locks that no thread of
/// its own can release.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] with several threads, else errors of `fork(2)`.
pub fn fork_single_threaded() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the process has {threads} threads already"),
        ));
    }
    // SAFETY: this thread is the only one (counted above, and no other thread exists that could create one), so the
    // child can release every lock that it inherits.
    let pid = check(unsafe { libc::fork() })?;
    Ok(match u32::try_from(pid) {
        Ok(0) | Err(_) => Forked::Child,
        Ok(pid) => Forked::Parent(pid),
    })
}

/// Reaps a child without blocking: its exit status, `None` while it runs.
///
/// # Errors
/// ECHILD if `pid` is not our child.
pub fn reap(pid: u32) -> io::Result<Option<std::process::ExitStatus>> {
    use std::os::unix::process::ExitStatusExt;
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: `status` is one writable int that outlives the call.
    let res = check(unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) })?;
    Ok((res != 0).then(|| std::process::ExitStatus::from_raw(status)))
}
