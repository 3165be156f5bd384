//! Locked memory, and the OOM score.

use super::check;
use std::io;

/// OOM score for a process that file systems may depend on; -1000 would make it immune.
const OOM_SCORE: &str = "-900";

/// Locks all memory of the process: current mappings are faulted in; future ones are locked as they are touched
/// (MCL_ONFAULT, Linux 4.4), so that untouched parts of a memory device use no memory.
///
/// # Errors
/// ENOMEM beyond RLIMIT_MEMLOCK, EPERM if that is 0; CAP_IPC_LOCK lifts the limit.
pub fn lock() -> io::Result<()> {
    // SAFETY: mlockall takes a flag word; it pins pages and does not change their contents.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) })?;
    let later = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: as above.
    check(unsafe { libc::mlockall(later) }).map(drop)
}

/// Lowers the process's OOM score, unless somebody has set one already.
///
/// # Errors
/// EACCES without CAP_SYS_RESOURCE.
pub fn spare_from_oom() -> io::Result<()> {
    let path = "/proc/self/oom_score_adj";
    if std::fs::read_to_string(path)?.trim() == "0" {
        std::fs::write(path, OOM_SCORE)?;
    }
    Ok(())
}

/// Resets a raised OOM score inherited from the caller.
pub fn unburden() {
    let path = "/proc/self/oom_score_adj";
    let burdened = std::fs::read_to_string(path).is_ok_and(|score| !score.starts_with(['-', '0']));
    if burdened && std::fs::write(path, OOM_SCORE).is_err() {
        let _ = std::fs::write(path, "0");
    }
}
