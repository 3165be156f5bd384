//! Messages of a process: to standard error, which a role moves to its device's log, or to the journal.
#![forbid(unsafe_code)]

pub(crate) mod journal;
mod pace;
mod setup;
mod stderr;

pub(crate) use setup::set_level;
pub use setup::start;
pub use stderr::{Stderr, plain};

use crate::state::Store;
use crate::sys::process;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// Reports panics as messages.
pub(crate) fn tell_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("unnamed");
        tracing::error!("thread '{name}' {panic}");
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!("{trace}");
        }
    }));
}

/// Moves this process's messages to a file.
pub(crate) fn to(path: &Path) {
    match Store::open_log(path) {
        Ok(file) => into(file.as_fd()),
        Err(e) => tracing::warn!("cannot log to {}: {e}", path.display()),
    }
}

/// As `to`, for an open file.
pub(crate) fn into(file: BorrowedFd<'_>) {
    journal::leave();
    if let Err(e) = process::redirect(file, process::Stream::Err) {
        tracing::warn!("cannot log to the file of this device: {e}");
    }
}
