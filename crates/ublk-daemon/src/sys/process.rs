//! Sessions, pidfds, standard streams and the one fork.

use super::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Makes the caller the leader of a new session, so that it receives no signals from the terminal.
///
/// # Errors
/// EPERM for a process that already leads a group.
pub fn new_session() -> io::Result<()> {
    // SAFETY: the call takes nothing and touches no memory.
    check(unsafe { libc::setsid() }).map(drop)
}

/// Whether the caller leads a process group, as one does that was started into a group of its own.
#[must_use]
pub fn leads_group() -> bool {
    // SAFETY: the call takes nothing, touches no memory and cannot fail.
    let group = unsafe { libc::getpgrp() };
    u32::try_from(group).is_ok_and(|group| group == std::process::id())
}

/// The effective user.
#[must_use]
pub fn effective_uid() -> u32 {
    // SAFETY: the call takes nothing, touches no memory and cannot fail.
    unsafe { libc::geteuid() }
}

/// A descriptor of the process `pid` that can be read once it has ended. Linux 5.3.
///
/// # Errors
/// ESRCH when there is no such process.
pub fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: pidfd_open takes two integers and touches no memory; it always sets CLOEXEC.
    let res = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = RawFd::try_from(res).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process behind a pidfd: never to a later one with the same number.
///
/// # Errors
/// ESRCH when it has ended, EPERM for a process of somebody else.
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

/// A copy of a descriptor of the process behind a pidfd: the same open file, with its locks and claims. Linux 5.6.
///
/// # Errors
/// EPERM where that process may not be looked into (another user's, one with more capabilities, Yama), EBADF where it has
/// no such descriptor.
pub fn take_descriptor(pidfd: BorrowedFd<'_>, descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd takes three integers and touches no memory; what it gives is closed on exec.
    let res = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), descriptor, 0) };
    let fd = RawFd::try_from(res).map_err(io::Error::other)?;
    check(fd)?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A standard stream that a role replaces of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Descriptor 0.
    In,
    /// Descriptor 1.
    Out,
    /// Descriptor 2.
    Err,
}

/// Makes a standard stream name the file behind `fd`. Children inherit it.
///
/// # Errors
/// The error of `dup2(2)`.
pub fn redirect(fd: BorrowedFd<'_>, stream: Stream) -> io::Result<()> {
    let to = match stream {
        Stream::In => libc::STDIN_FILENO,
        Stream::Out => libc::STDOUT_FILENO,
        Stream::Err => libc::STDERR_FILENO,
    };
    // SAFETY: dup2 touches no memory. Descriptors 0, 1 and 2 belong to the whole process and are
    // owned by no OwnedFd, so nobody's descriptor is closed behind its back.
    check(unsafe { libc::dup2(fd.as_raw_fd(), to) }).map(drop)
}

/// What a fork returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// This is the child.
    Child,
    /// This is the parent of this child.
    Parent(u32),
}

/// Copies the process. Refuses when it has more than one thread: the child would inherit locks that
/// no thread of its own can ever release.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] with several threads, else the error of `fork(2)`.
pub fn fork_single_threaded() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the process has {threads} threads already"),
        ));
    }
    // SAFETY: this thread is the only one (counted above; no other thread exists that could make a
    // new one), so the child has every lock in a state that its only thread can release.
    let pid = check(unsafe { libc::fork() })?;
    Ok(match u32::try_from(pid) {
        Ok(0) | Err(_) => Forked::Child,
        Ok(pid) => Forked::Parent(pid),
    })
}

/// Collects an ended child without waiting: its exit text, `None` while it runs.
///
/// # Errors
/// ECHILD when `pid` is no child of ours.
pub fn reap(pid: u32) -> io::Result<Option<std::process::ExitStatus>> {
    use std::os::unix::process::ExitStatusExt;
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: `status` is one writable int that outlives the call.
    let res = check(unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) })?;
    Ok((res != 0).then(|| std::process::ExitStatus::from_raw(status)))
}
