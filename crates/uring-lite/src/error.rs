//! What can go wrong, by what the caller can do next.

#![forbid(unsafe_code)]

use crate::errno::Errno;

/// A ring could not be made.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// `EPERM`: switched off by sysctl, or by a seccomp filter.
    #[error(
        "io_uring is not permitted (kernel.io_uring_disabled is {}): set the sysctl to 0, or join the group of \
         kernel.io_uring_group; containers often forbid it by seccomp",
        .sysctl.map_or_else(|| "not readable".to_owned(), |v| v.to_string())
    )]
    Disabled {
        /// Value of `/proc/sys/kernel/io_uring_disabled`, where it could be read.
        sysctl: Option<u8>,
    },
    /// `ENOSYS`: this kernel has no io_uring.
    #[error("this kernel has no io_uring: use linux 5.19 or newer, built with CONFIG_IO_URING")]
    NotSupported,
    /// `ENOMEM`: out of memory, or over the limit of locked memory.
    #[error(
        "no memory for a ring of {sq_entries} entries: raise the locked memory limit (ulimit -l, now {}), or ask \
         for fewer entries", .memlock.map_or_else(|| "without bound".to_owned(), |v| format!("{v} bytes"))
    )]
    NoMemory {
        /// SQ entries asked for.
        sq_entries: u32,
        /// `RLIMIT_MEMLOCK` in bytes; `None` for no limit.
        memlock: Option<u64>,
    },
    /// `EMFILE` or `ENFILE`.
    #[error("no file descriptor left for the ring ({errno}): raise the limit (ulimit -n)")]
    TooManyFiles {
        /// Which of the two.
        errno: Errno,
    },
    /// The sizes or flags asked for cannot be had on any rung of the ladder.
    #[error("ring set-up refused: {what}")]
    InvalidArgument {
        /// What is wrong with the arguments.
        what: &'static str,
    },
    /// The kernel lacks something this crate needs.
    #[error("this kernel lacks {what}, which came with linux {since}: use a newer kernel")]
    Missing {
        /// Name in `linux/io_uring.h`.
        what: &'static str,
        /// Kernel release that brought it.
        since: &'static str,
    },
    /// The kernel's answer is not believable.
    #[error("the kernel's ring layout is not sound: {what}")]
    BadLayout {
        /// What was checked.
        what: &'static str,
    },
    /// Any other system call of the set-up.
    #[error("{call} failed: {errno}")]
    Call {
        /// System call.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
}

/// `io_uring_enter` did not do its work. Nothing was submitted by the failed call and nothing is lost: entries
/// that were pushed stay in the SQ and go with the next call.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// `EAGAIN`: the kernel could not get memory or a request slot just now.
    #[error("the kernel is short of requests (EAGAIN): reap completions, then enter again")]
    Again,
    /// `EBUSY`: completions that did not fit into the CQ wait in the kernel.
    #[error(
        "completions wait outside the full CQ ring (EBUSY): reap and release them, then enter again"
    )]
    Busy,
    /// `ENOMEM`.
    #[error("no memory in the kernel (ENOMEM): reap completions, then enter again")]
    NoMemory,
    /// `EBADR`: completions were dropped for want of memory. Requests in flight will never be answered here.
    #[error(
        "the kernel dropped completions (EBADR): stop using this ring, its in-flight count is wrong"
    )]
    Lost,
    /// `EEXIST`: a ring for a single issuer used by another task than its maker.
    #[error("ring belongs to another thread (EEXIST): make the ring in the thread that uses it")]
    WrongThread,
    /// The ring does not work any more.
    #[error("io_uring_enter failed for good: {errno}")]
    Unusable {
        /// What the kernel said.
        errno: Errno,
    },
}

impl EnterError {
    /// Whether reaping completions and entering again can help.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Again | Self::Busy | Self::NoMemory)
    }
}

/// `io_uring_register` failed, or something to go with it.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// `EINVAL` or `EOPNOTSUPP` where the arguments are fine: the kernel is too old.
    #[error("{what} refused ({errno}): it needs linux {since}, or the arguments are out of range")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// First kernel that has it.
        since: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// `ENOMEM`: locked memory (L59), or out of memory.
    #[error(
        "{what}: no memory; raise the locked memory limit (ulimit -l, now {}) or register less",
        .memlock.map_or_else(|| "without bound".to_owned(), |v| format!("{v} bytes"))
    )]
    NoMemory {
        /// What was asked.
        what: &'static str,
        /// `RLIMIT_MEMLOCK` in bytes; `None` for no limit.
        memlock: Option<u64>,
    },
    /// `EBUSY` or `EEXIST`: there is one already.
    #[error("{what}: there is one already ({errno}); unregister it first")]
    Exists {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// Anything else.
    #[error("{what} failed: {errno}")]
    Call {
        /// What was asked.
        what: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
}

/// The SQ has no room; nothing was changed. Enter the ring, then push again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the submission queue is full: enter the ring, then push again")]
pub struct Full;

/// A chain was not pushed; nothing was changed.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No room for the whole chain now. A split chain would be two chains (L52).
    #[error(
        "the submission queue has no room for the whole chain: enter the ring, then push again"
    )]
    Full,
    /// The chain is longer than the SQ and will never fit.
    #[error(
        "a chain of {len} entries cannot fit a submission queue of {entries}: make a larger ring"
    )]
    TooLong {
        /// Entries of the chain.
        len: usize,
        /// Entries of the SQ.
        entries: u32,
    },
}
