//! Errors, classified by what the caller can do next.

#![forbid(unsafe_code)]

use crate::errno::Errno;

/// Why a ring could not be created.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// `EPERM`: disabled by sysctl or by a seccomp filter.
    #[error(
        "io_uring is not permitted (kernel.io_uring_disabled is {}): set the sysctl to 0, or join the group of \
         kernel.io_uring_group; containers often forbid it by seccomp",
        .sysctl.map_or_else(|| "not readable".to_owned(), |v| v.to_string())
    )]
    Disabled {
        /// Value of `/proc/sys/kernel/io_uring_disabled`, if readable.
        sysctl: Option<u8>,
    },
    /// `ENOSYS`: this kernel has no io_uring.
    #[error("this kernel has no io_uring: use linux 5.19 or newer, built with CONFIG_IO_URING")]
    NotSupported,
    /// `ENOMEM`: out of memory, or over the locked memory limit.
    #[error(
        "no memory for a ring of {sq_entries} entries: raise the locked memory limit (ulimit -l, now {}), or ask \
         for fewer entries", .memlock.map_or_else(|| "unlimited".to_owned(), |v| format!("{v} bytes"))
    )]
    NoMemory {
        /// Requested SQ entries.
        sq_entries: u32,
        /// `RLIMIT_MEMLOCK` in bytes; `None` for no limit.
        memlock: Option<u64>,
    },
    /// `EMFILE` or `ENFILE`: out of descriptors.
    #[error("no file descriptor left for the ring ({errno}): raise the limit (ulimit -n)")]
    TooManyFiles {
        /// Which of the two.
        errno: Errno,
    },
    /// The kernel refuses the requested sizes or flags in every variant of the set-up that is tried.
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
    /// The kernel's reply is not plausible.
    #[error("implausible ring layout from the kernel; expected: {what}")]
    BadLayout {
        /// The check that failed.
        what: &'static str,
    },
    /// Another system call of the set-up failed.
    #[error("{call} failed: {errno}")]
    Call {
        /// System call.
        call: &'static str,
        /// Its errno.
        errno: Errno,
    },
}

/// Why `io_uring_enter` failed. The call submitted nothing and lost nothing: pushed entries stay in the SQ and go with
/// the next call.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// `EAGAIN`: the kernel is out of memory or request slots for now.
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
    /// `EBADR`: the kernel dropped completions because it was out of memory. Some requests in flight will never
    /// complete here.
    #[error(
        "the kernel dropped completions (EBADR): stop using this ring, its in-flight count is wrong"
    )]
    Lost,
    /// `EEXIST`: a single-issuer ring was used by a task other than its creator.
    #[error("ring belongs to another thread (EEXIST): make the ring in the thread that uses it")]
    WrongThread,
    /// The ring is unusable.
    #[error("io_uring_enter failed for good: {errno}")]
    Unusable {
        /// The kernel's errno.
        errno: Errno,
    },
}

impl EnterError {
    /// Whether a retry after reaping completions may succeed.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Again | Self::Busy | Self::NoMemory)
    }
}

/// Why a registration with the ring failed.
#[non_exhaustive]
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// `EINVAL` or `EOPNOTSUPP` for valid arguments: the kernel is too old.
    #[error("{what} refused ({errno}): it needs linux {since}, or the arguments are out of range")]
    Refused {
        /// The operation.
        what: &'static str,
        /// First kernel that supports it.
        since: &'static str,
        /// The kernel's errno.
        errno: Errno,
    },
    /// `ENOMEM`: locked memory (L59), or out of memory.
    #[error(
        "{what}: no memory; raise the locked memory limit (ulimit -l, now {}) or register less",
        .memlock.map_or_else(|| "unlimited".to_owned(), |v| format!("{v} bytes"))
    )]
    NoMemory {
        /// The operation.
        what: &'static str,
        /// `RLIMIT_MEMLOCK` in bytes; `None` for no limit.
        memlock: Option<u64>,
    },
    /// `EBUSY` or `EEXIST`: already registered.
    #[error("{what}: there is one already ({errno}); unregister it first")]
    Exists {
        /// The operation.
        what: &'static str,
        /// The kernel's errno.
        errno: Errno,
    },
    /// Another error.
    #[error("{what} failed: {errno}")]
    Call {
        /// The operation.
        what: &'static str,
        /// The kernel's errno.
        errno: Errno,
    },
}

/// The SQ is full; nothing was changed. Enter the ring, then push again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the submission queue is full: enter the ring, then push again")]
pub struct Full;

/// Why a chain was not pushed; nothing was changed.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The whole chain does not fit now. A split chain would be two chains (L52).
    #[error(
        "the submission queue has no room for the whole chain: enter the ring, then push again"
    )]
    Full,
    /// The chain is longer than the SQ and will never fit.
    #[error(
        "a chain of {len} entries cannot fit a submission queue of {entries}: make a larger ring"
    )]
    TooLong {
        /// Length of the chain.
        len: usize,
        /// Entries of the SQ.
        entries: u32,
    },
}
