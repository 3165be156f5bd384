//! Drops what a server does not need before it serves: capabilities, new privileges, system calls.
//!
//! A server parses the contents of a kernel queue and of other users' files. An attacker who exploits a bug there must
//! gain only a process that can serve and do nothing else. The server therefore first opens its backend, memory and
//! device (the agent passes the open log), and then
//!
//! 1. [`drop_capabilities`] empties every set but for CAP_SYS_ADMIN while the process has one thread, so that later
//!    threads, and what rings do on their own, have none either;
//! 2. each queue's thread gives up that one when its queue is armed ([`Plan::gives_up_admin`](ublk_queue::Plan)): the
//!    driver has the kernel look for partitions only where every queue was armed with it;
//! 3. [`filter_calls`] does the same for the calling thread, and limits all threads at once (SECCOMP_FILTER_FLAG_TSYNC)
//!    to the calls listed here. Any other call fails with EPERM: that may fail a request or lose a message, it never
//!    ends a device.
//!
//! The operations of a ring are no system calls and pass by the filter; without capabilities they reach what the user
//! of the process may reach. Both steps go as far as the process may: a user has no capabilities to lose.
#![forbid(unsafe_code)]

use crate::sys::surroundings;
use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// The environment variable that makes the filter log what it would refuse (`log`), or disables it (`off`), to find out
/// whether the filter causes a problem.
pub const VARIABLE: &str = "UBLKCTL_SECCOMP";

/// Drops the capabilities of the calling thread, which must be the only one. First does what later needs them: lifts
/// the limit on locked memory, and marks this thread for memory reclaim, a mark that new threads inherit.
///
/// CAP_SYS_ADMIN stays until the queues are armed, and CAP_IPC_LOCK for good if the limit on locked memory cannot be
/// raised.
pub fn drop_capabilities() {
    ublk_queue::thread::set_io_flusher();
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let kept = kept(&held, !surroundings::lock_without_limit());
    if kept.contains(&Capability::CAP_IPC_LOCK) {
        tracing::warn!(
            "the server keeps CAP_IPC_LOCK: the limit of locked memory cannot be raised"
        );
    }
    // In this order: the bounding set needs CAP_SETPCAP, and the effective set is part of the permitted one.
    for (set, given_up) in [
        (CapSet::Ambient, caps::clear(None, CapSet::Ambient)),
        (CapSet::Bounding, caps::clear(None, CapSet::Bounding)),
        (CapSet::Inheritable, caps::clear(None, CapSet::Inheritable)),
        (CapSet::Effective, caps::set(None, CapSet::Effective, &kept)),
        (CapSet::Permitted, caps::set(None, CapSet::Permitted, &kept)),
    ] {
        if let Err(e) = given_up {
            tracing::debug!("cannot drop the {set:?} capabilities: {e}");
        }
    }
    if caps::read(None, CapSet::Permitted).is_ok_and(|left| left != kept) {
        tracing::warn!("the server cannot drop its capabilities");
    }
}

/// The held capabilities that arming and serving need.
fn kept(held: &CapsHashSet, for_locked_memory: bool) -> CapsHashSet {
    [
        (true, Capability::CAP_SYS_ADMIN),
        (for_locked_memory, Capability::CAP_IPC_LOCK),
    ]
    .into_iter()
    .filter_map(|(needed, capability)| (needed && held.contains(&capability)).then_some(capability))
    .collect()
}

/// Drops what arming needed, and permanently restricts all threads of this process to the system calls of a serving
/// server. A server on a kernel or an architecture that cannot filter serves without, and says so.
pub fn filter_calls(connects: bool) {
    if !ublk_queue::thread::give_up_admin() {
        tracing::warn!("the server cannot drop CAP_SYS_ADMIN");
    }
    let action = match std::env::var(VARIABLE).as_deref() {
        Ok("off") => return,
        Ok("log") => SeccompAction::Log,
        _ => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    };
    let done = programs(action, connects).map_err(|e| e.to_string());
    let done = done.and_then(|programs| {
        let mut programs = programs.iter();
        programs
            .try_for_each(|program| seccompiler::apply_filter_all_threads(program))
            .map_err(|e| e.to_string())
    });
    if let Err(e) = done {
        tracing::warn!("the server's system calls are not filtered: {e}");
    }
}

/// Two filters, both of which a call must pass. The first makes clone3, whose flags are in memory that no filter can
/// read, fail such that C libraries fall back to clone, as on an old kernel.
fn programs(action: SeccompAction, connects: bool) -> Result<[BpfProgram; 2], BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let without = SeccompFilter::new(clone3, SeccompAction::Allow, absent, arch)?;
    let listed = SeccompFilter::new(rules(connects)?, action, SeccompAction::Allow, arch)?;
    Ok([without.try_into()?, listed.try_into()?])
}

/// The permitted calls, some with conditions on arguments. For calls without conditions the kernel keeps a bitmap
/// (Linux 5.11), so that their position in the filter costs nothing.
fn rules(connects: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let one = |arg, len, op, value| -> Result<SeccompRule, BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(arg, len, op, value)?])
    };
    let any = |arg, values: &[u64]| -> Result<Vec<SeccompRule>, BackendError> {
        values
            .iter()
            .map(|value| one(arg, Dword, Eq, *value))
            .collect()
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    if connects {
        rules.extend(CONNECTING.iter().map(|call| (*call, Vec::new())));
    }
    // Files may only be opened for reading: /proc by a late thread, the program by a backtrace.
    let writes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).unsigned_abs();
    let read_only = |arg| one(arg, Dword, MaskedEq(writes.into()), 0);
    rules.insert(libc::SYS_openat, vec![read_only(2)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![read_only(1)?]);
    // No memory may become executable.
    let code = u64::from(libc::PROT_EXEC.unsigned_abs());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![one(2, Dword, MaskedEq(code), 0)?]);
    }
    // Threads may be created but not processes, and signals go to this process only.
    let thread = u64::from(libc::CLONE_THREAD.unsigned_abs());
    let thread = one(0, Qword, MaskedEq(thread), thread)?;
    rules.insert(libc::SYS_clone, vec![thread]);
    let own = one(0, Dword, Eq, std::process::id().into())?;
    rules.insert(libc::SYS_tgkill, vec![own]);
    // Limits may be read but not set.
    rules.insert(libc::SYS_prlimit64, vec![one(2, Qword, Eq, 0)?]);
    rules.insert(libc::SYS_prctl, any(0, &PRCTLS)?);
    rules.insert(libc::SYS_ioctl, any(1, &IOCTLS)?);
    Ok(rules)
}

/// PR_SET_NAME, PR_GET_NAME; PR_SET_IO_FLUSHER, PR_GET_IO_FLUSHER; PR_SET_VMA, by which glibc names malloc's mappings
/// (linux/prctl.h).
const PRCTLS: [u64; 5] = [15, 16, 57, 58, 0x5356_4d41];

/// BLKDISCARD (linux/fs.h); FIONBIO, FIOCLEX (asm-generic/ioctls.h).
const IOCTLS: [u64; 3] = [0x1277, 0x5421, 0x5451];

/// What a server that makes connections calls besides: sockets, and the resolver of the C library.
const CONNECTING: &[i64] = &[
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_uname,
];

const CALLS: &[i64] = &[
    // Rings.
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Backends, and the data of user copy.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads and their exit. The first filter handles clone3.
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and random numbers.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // The link, a new agent, the log, and waiting for all of them.
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_eventfd2,
    // Reads in /proc, and by a backtrace.
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // Older calls that C libraries use on this architecture.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    // How musl raises a fatal signal.
    #[cfg(target_env = "musl")]
    libc::SYS_tkill,
    // How a test kills a role at a kill point.
    #[cfg(feature = "kill-points")]
    libc::SYS_pidfd_open,
    #[cfg(feature = "kill-points")]
    libc::SYS_pidfd_send_signal,
    #[cfg(feature = "kill-points")]
    libc::SYS_kill,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The list compiles to filters that the kernel accepts (BPF_MAXINSNS), and contains no call by which a process
    /// gains privileges.
    #[test]
    fn the_list_makes_filters_without_a_way_out() {
        let [without, listed] = programs(SeccompAction::Errno(1), false).unwrap();
        assert!((1..100).contains(&without.len()), "{}", without.len());
        assert!((100..4096).contains(&listed.len()), "{}", listed.len());
        let rules = rules(false).unwrap();
        for call in [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_openat2,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_process_vm_writev,
            libc::SYS_init_module,
            libc::SYS_pkey_mprotect,
        ] {
            assert!(!rules.contains_key(&call), "{call}");
        }
    }

    /// Only capabilities that serving needs are kept, and only if they were held.
    #[test]
    fn only_what_serving_takes_is_kept() {
        use Capability::{CAP_DAC_OVERRIDE, CAP_IPC_LOCK, CAP_SYS_ADMIN};
        let all: CapsHashSet = [CAP_DAC_OVERRIDE, CAP_IPC_LOCK, CAP_SYS_ADMIN].into();
        assert_eq!(kept(&all, false), [CAP_SYS_ADMIN].into());
        assert_eq!(kept(&all, true), [CAP_IPC_LOCK, CAP_SYS_ADMIN].into());
        assert!(kept(&CapsHashSet::new(), true).is_empty());
    }
}
