//! What a server gives up before it serves: capabilities, new privileges, system calls.
//!
//! What a server serves comes from a kernel queue and from files of others. What goes wrong there shall find a process
//! that can do nothing but serve. So its backend, its memory, its log and its device are opened first; then
//!
//! 1. [`drop_capabilities`], while the process has one thread: every set is emptied, and threads made from then on have
//!    nothing either;
//! 2. [`filter_calls`], once every queue is armed: all threads at once (SECCOMP_FILTER_FLAG_TSYNC) may make the calls
//!    listed here and no other. Another call fails with EPERM: a request that fails, or a message that is missing, and
//!    never the end of a device.
//!
//! What a ring does is no system call and is not filtered: it reaches the files opened before, and its operations are
//! chosen by the engine. Both steps go as far as the process may: a user of the machine has no capabilities to lose.
#![forbid(unsafe_code)]

use crate::sys::surroundings;
use caps::{CapSet, Capability};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// The environment variable that leaves the filter out (`off`), or has it log only what it would refuse (`log`): to
/// find out whether it is in the way.
pub const VARIABLE: &str = "UBLKCTL_SECCOMP";

/// Gives up all capabilities of the calling thread, which must be the only one, and of what it executes. What they were
/// for is settled first: memory may be locked without limit, and this thread's mark of memory reclaim goes to the
/// threads that it makes.
pub fn drop_capabilities() {
    surroundings::lock_without_limit();
    ublk_queue::thread::set_io_flusher();
    // The bounding set needs CAP_SETPCAP, which the effective set loses next.
    for set in [
        CapSet::Ambient,
        CapSet::Bounding,
        CapSet::Inheritable,
        CapSet::Effective,
        CapSet::Permitted,
    ] {
        if let Err(e) = caps::clear(None, set) {
            tracing::debug!("the {set:?} capabilities stay: {e}");
        }
    }
    let left = caps::read(None, CapSet::Permitted);
    if left.is_ok_and(|left: std::collections::HashSet<Capability>| !left.is_empty()) {
        tracing::warn!("the server could not give up its capabilities");
    }
}

/// Refuses every call but those of a server that serves, to all threads of this process, for good. A kernel, or an
/// architecture, that cannot filter serves without, and says so.
pub fn filter_calls() {
    let action = match std::env::var(VARIABLE).as_deref() {
        Ok("off") => return,
        Ok("log") => SeccompAction::Log,
        _ => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
    };
    let done = program(action)
        .map_err(|e| e.to_string())
        .and_then(|p| seccompiler::apply_filter_all_threads(&p).map_err(|e| e.to_string()));
    if let Err(e) = done {
        tracing::warn!("the server's system calls are not filtered: {e}");
    }
}

fn program(action: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules()?, action, SeccompAction::Allow, arch)?.try_into()
}

/// The calls, and for some of them with what.
fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let one = |arg, len, op, value| -> Result<SeccompRule, seccompiler::BackendError> {
        SeccompRule::new(vec![SeccompCondition::new(arg, len, op, value)?])
    };
    // Files are opened to be read: /proc by a late thread, the program by a backtrace.
    let writes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC).unsigned_abs();
    let read_only = |arg| one(arg, Dword, MaskedEq(writes.into()), 0);
    rules.insert(libc::SYS_openat, vec![read_only(2)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![read_only(1)?]);
    // Limits are asked for, not set.
    rules.insert(libc::SYS_prlimit64, vec![one(2, Qword, Eq, 0)?]);
    let ioctls = IOCTLS.iter().map(|cmd| one(1, Dword, Eq, *cmd));
    rules.insert(libc::SYS_ioctl, ioctls.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// BLKSSZGET, BLKPBSZGET, BLKGETSIZE64, BLKDISCARD, BLKZEROOUT (linux/fs.h), FIONBIO (asm-generic/ioctls.h).
const IOCTLS: [u64; 6] = [0x1268, 0x127b, 0x8008_1272, 0x1277, 0x127f, 0x5421];

const CALLS: &[i64] = &[
    // The rings.
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
    libc::SYS_sync_file_range,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_membarrier,
    // Threads, those of a pool that grows included, and their end.
    libc::SYS_clone,
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
    libc::SYS_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals, the one by which a process ends itself included.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    // Time and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // The link, the log, and waiting for both.
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
    // What is read in /proc.
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_uname,
    libc::SYS_sysinfo,
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
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
    // How a test kills a role at a named place.
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

    /// Everything listed compiles to a filter, and no call by which a process gets more than it has is in it.
    #[test]
    fn the_list_makes_a_filter_without_a_way_out() {
        let filter = program(SeccompAction::Errno(1)).unwrap();
        assert!((100..4096).contains(&filter.len()), "{}", filter.len());
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
        ] {
            assert!(!CALLS.contains(&call), "{call}");
        }
    }
}
