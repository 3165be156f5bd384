//! Locked memory, and the OOM score.

use super::check;
use std::io;

/// The OOM score of a process that a file system may depend on; -1000 would make it immune.
const OOM_SCORE: &str = "-900";

/// Locks all memory of the process: what is mapped now is read in, what is mapped later is locked as it is touched
/// (MCL_ONFAULT, Linux 4.4), so that the empty parts of a memory device cost nothing.
///
/// # Errors
/// ENOMEM beyond RLIMIT_MEMLOCK, EPERM where that is 0; with CAP_IPC_LOCK there is no limit.
pub fn lock() -> io::Result<()> {
    // SAFETY: mlockall takes a flag word; it changes how pages are kept, not what is in them.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT) })?;
    let later = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: as above.
    check(unsafe { libc::mlockall(later) }).map(drop)
}

/// Asks the OOM killer to take others first, unless somebody has set the score already.
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
