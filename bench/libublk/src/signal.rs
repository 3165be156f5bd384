//! SIGTERM, taken by one thread.

use std::mem::MaybeUninit;

fn term() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to memory of the type that the call initialises.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was initialised above; SIGTERM is a valid signal.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM) };
    // SAFETY: initialised by sigemptyset.
    unsafe { set.assume_init() }
}

/// Blocks SIGTERM in this thread and those that it starts.
pub fn hold_back() {
    let set = term();
    // SAFETY: `set` is initialised, and a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
}

/// Waits until SIGTERM comes.
pub fn wait() {
    let set = term();
    let mut signal = 0;
    // SAFETY: both pointers are to live values of the types the call takes.
    while unsafe { libc::sigwait(&raw const set, &raw mut signal) } != 0 {}
}
