//! Whether standard output was closed when the process began.
//!
//! Rust's runtime opens /dev/null in the place of a standard stream that is closed, before `main`: what is printed then is
//! written without an error and lost. So the check runs before the runtime starts.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

extern "C" fn look() {
    // SAFETY: F_GETFD looks at the table of descriptors and touches no memory; it needs no runtime.
    let flags = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_GETFD) };
    CLOSED.store(flags < 0, Ordering::Relaxed);
}

// SAFETY: the section holds pointers to C functions, which the C runtime calls one after the other before `main`; this one
// takes no arguments, so it does not matter which it is given.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

/// Whether standard output was closed when the process began.
#[must_use]
pub fn standard_output() -> bool {
    CLOSED.load(Ordering::Relaxed)
}
