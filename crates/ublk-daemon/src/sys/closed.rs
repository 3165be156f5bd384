//! Detects whether standard output was closed when the process started.
//!
//! Before `main`, Rust's runtime opens /dev/null in place of a closed standard stream, so that output is lost without
//! an error. The check therefore runs before the runtime starts.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: F_GETFD reads the descriptor table and touches no memory; it needs no runtime.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    CLOSED.store(flags < 0, Ordering::Relaxed);
}

// SAFETY: the section holds pointers to C functions, which the C runtime calls in turn before `main`. This function
// takes no arguments, so it ignores those that the runtime passes.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether standard output was closed when the process started.
#[must_use]
pub fn standard_output() -> bool {
    CLOSED.load(Ordering::Relaxed)
}
