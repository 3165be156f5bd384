//! Named places where a test can kill a role (L31). Only with the feature `kill-points`, which
//! release builds lack: without it a kill point is nothing.

/// Kills this process if the environment variable `UBLK_KILL_AT` is `name`.
#[cfg(feature = "kill-points")]
pub(crate) fn kill_point(name: &str) {
    if std::env::var_os("UBLK_KILL_AT").is_some_and(|at| at == name) {
        tracing::error!("kill point {name}");
        if let Ok(me) = crate::sys::process::pidfd(std::process::id()) {
            use std::os::fd::AsFd;
            let _ = crate::sys::process::signal(me.as_fd(), libc::SIGKILL);
        }
        std::process::abort();
    }
}

/// Does nothing: this build has no kill points.
#[cfg(not(feature = "kill-points"))]
pub(crate) const fn kill_point(_name: &str) {}
