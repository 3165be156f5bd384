//! Resets what a process inherits from its parent to what a daemon needs (execve(2), L45).
//!
//! [`shed`] is for every role and runs first. [`reset_limits`] is for roles that outlive their caller: only the
//! machine's settings then determine their scheduling and resource limits. A role that serves in the foreground keeps
//! what its service manager has set.
//!
//! A fork has already cleared timers, pending signals and the parent-death signal. The control group stays: the machine
//! accounts for the process by it, and only the service manager should change it.

use super::check;
use std::io;

/// Limit on open descriptors: the hard limit that systemd gives to every service.
const DESCRIPTORS: libc::rlim_t = 512 * 1024;

/// The kernel's own default of PR_SET_TIMERSLACK, in nanoseconds.
const TIMER_SLACK: libc::c_ulong = 50_000;

/// The last signal (`_NSIG`).
const LAST_SIGNAL: libc::c_int = 64;

/// Drops inherited state: descriptors beyond the standard streams, blocked and ignored signals, the working directory,
/// the umask, the session and its terminal (unless this process leads a process group), core files. Call it first in a
/// program that was started as a role, because it closes every descriptor above 2.
pub fn shed() {
    log_failure("descriptors", close_others());
    log_failure("signals", signals());
    log_failure("working directory", std::env::set_current_dir("/"));
    // SAFETY: umask takes a number, touches no memory and cannot fail.
    unsafe { libc::umask(0o077) };
    // A parent that started this process in its own group wants it to stay in the session.
    if !super::process::leads_group() {
        log_failure("session", super::process::new_session());
    }
    log_failure("core files", limit(libc::RLIMIT_CORE, 0, 0));
    log_failure("descriptor limit", raise(libc::RLIMIT_NOFILE));
}

/// Resets scheduling and resource limits to the machine's defaults, as far as the caller is permitted.
pub fn reset_limits() {
    log_failure("scheduling policy", normal_policy());
    log_failure("nice value", nice_zero());
    log_failure("I/O priority", no_io_priority());
    log_failure("CPU affinity", all_cpus());
    log_failure("memory policy", default_memory_policy());
    for (what, option, value) in [
        ("timer slack", libc::PR_SET_TIMERSLACK, TIMER_SLACK),
        ("huge pages", libc::PR_SET_THP_DISABLE, 0),
    ] {
        log_failure(what, prctl(option, value));
    }
    // SAFETY: personality takes a flag word and touches no memory.
    log_failure(
        "personality",
        check(unsafe { libc::personality(0) }).map(drop),
    );
    for resource in [
        libc::RLIMIT_AS,
        libc::RLIMIT_CPU,
        libc::RLIMIT_DATA,
        libc::RLIMIT_FSIZE,
        libc::RLIMIT_RTTIME,
    ] {
        let unlimited = limit(resource, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
        log_failure("resource limit", unlimited.or_else(|_| raise(resource)));
    }
    let most = current(libc::RLIMIT_NOFILE).map_or(0, |limit| limit.rlim_max);
    let wanted = most.max(DESCRIPTORS);
    let _ = limit(libc::RLIMIT_NOFILE, wanted, wanted);
    log_failure("process limit", raise(libc::RLIMIT_NPROC));
}

/// Lifts the limit on locked memory. Returns whether that was permitted: without CAP_IPC_LOCK the limit applies.
pub fn lock_without_limit() -> bool {
    let unlimited = libc::RLIM_INFINITY;
    let done = limit(libc::RLIMIT_MEMLOCK, unlimited, unlimited);
    let without = done.is_ok();
    log_failure("limit of locked memory", done);
    without
}

/// Logs what could not be reset; an unprivileged user may not change everything.
fn log_failure(what: &str, done: io::Result<()>) {
    if let Err(e) = done {
        tracing::debug!("cannot reset the {what} of this process: {e}");
    }
}

fn close_others() -> io::Result<()> {
    // SAFETY: close_range takes numbers and touches no memory. The process was just exec'd and has opened nothing
    // itself, so no descriptor above 2 has an owner in it.
    let res = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    check(i32::try_from(res).map_err(io::Error::other)?).map(drop)
}

/// Unblocks all signals and resets them to their defaults, except three that are ignored: SIGPIPE, as in Rust; SIGHUP,
/// because there is no terminal; and SIGXFSZ, so that exceeding a file size limit is an error of the write.
fn signals() -> io::Result<()> {
    for signal in 1..=LAST_SIGNAL {
        let handler = match signal {
            libc::SIGPIPE | libc::SIGHUP | libc::SIGXFSZ => libc::SIG_IGN,
            _ if is_ignored(signal) => libc::SIG_DFL,
            _ => continue,
        };
        // SAFETY: both dispositions are constants that run no code of ours; the process has not installed a handler
        // yet, so none is replaced.
        unsafe { libc::signal(signal, handler) };
    }
    unblock_all()
}

/// Unblocks every signal for the calling thread.
///
/// # Errors
/// None that the kernel documents for these words.
pub fn unblock_all() -> io::Result<()> {
    let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset writes the whole set it is given, which outlives the call.
    check(unsafe { libc::sigemptyset(none.as_mut_ptr()) })?;
    // SAFETY: the set was written by sigemptyset and is only read; the old mask is not requested.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut()) })
        .map(drop)
}

/// Keeps ended children until they are reaped; the caller may have ignored SIGCHLD.
pub fn keep_children() {
    if is_ignored(libc::SIGCHLD) {
        // SAFETY: the disposition is a constant that runs no code of ours.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    }
}

/// Whether a signal is currently ignored.
#[must_use]
pub fn is_ignored(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, which changes nothing; the old one is written into `action`, which outlives the
    // call.
    let res = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: all-zero bytes are a valid sigaction, and the call has at most written another.
    let action = unsafe { action.assume_init() };
    res == 0 && action.sa_sigaction == libc::SIG_IGN
}

fn normal_policy() -> io::Result<()> {
    let normal = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are one live struct that is only read; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const normal) }).map(drop)
}

fn nice_zero() -> io::Result<()> {
    // SAFETY: setpriority takes numbers and touches no memory.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) }).map(drop)
}

fn no_io_priority() -> io::Result<()> {
    /// `IOPRIO_WHO_PROCESS` (linux/ioprio.h).
    const WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_set takes three numbers and touches no memory; 0 is the class "none".
    let res = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, 0) };
    check(i32::try_from(res).map_err(io::Error::other)?).map(drop)
}

fn all_cpus() -> io::Result<()> {
    // The kernel ignores CPUs that the machine or the cpuset lacks.
    let all = [u8::MAX; 1024];
    // SAFETY: the mask is `all.len()` bytes long and only read; the kernel accepts any length in whole words.
    check(unsafe { libc::sched_setaffinity(0, all.len(), all.as_ptr().cast()) }).map(drop)
}

fn default_memory_policy() -> io::Result<()> {
    // SAFETY: MPOL_DEFAULT (0) takes no nodes, so the pointer may be null if the count is 0.
    let res = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            0,
            std::ptr::null::<libc::c_ulong>(),
            0,
        )
    };
    check(i32::try_from(res).map_err(io::Error::other)?).map(drop)
}

fn prctl(option: libc::c_int, value: libc::c_ulong) -> io::Result<()> {
    let none: libc::c_ulong = 0;
    // SAFETY: the two options of this module take numbers and touch no memory.
    check(unsafe { libc::prctl(option, value, none, none, none) }).map(drop)
}

/// The type of `RLIMIT_*`, which differs between C libraries.
#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

fn current(resource: Resource) -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the limit is one live struct that is ours alone to write.
    check(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    Ok(limit)
}

fn limit(resource: Resource, soft: libc::rlim_t, hard: libc::rlim_t) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: the limit is one live struct that is only read.
    check(unsafe { libc::setrlimit(resource, &raw const limit) }).map(drop)
}

/// Raises the soft limit to the hard limit, which needs no privilege.
fn raise(resource: Resource) -> io::Result<()> {
    let most = current(resource)?.rlim_max;
    limit(resource, most, most)
}
