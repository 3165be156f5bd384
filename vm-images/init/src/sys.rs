//! System calls of process one that std lacks.
//!
//! `unsafe` is allowed only here: mount, finit_module, wait, terminal mode, sync and reboot are plain calls into libc,
//! each wrapped in a safe function that owns every pointer it passes.
#![expect(
    unsafe_code,
    reason = "process one needs calls that std does not offer"
)]

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::path::Path;

/// How a reaped child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Exit(i32),
    /// This signal killed it.
    Signal(i32),
}

fn nul(error: NulError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Mounts a file system of type `kind` (no device, no options) on `target`.
///
/// # Errors
/// Errors of mount(2); EBUSY if the kernel has already mounted it.
pub fn mount(kind: &str, target: &str) -> io::Result<()> {
    let kind = CString::new(kind).map_err(nul)?;
    let target = CString::new(target).map_err(nul)?;
    // SAFETY: the three strings are NUL-terminated and outlive the call; the data pointer may be
    // null, which means "no options".
    let result = unsafe {
        libc::mount(
            kind.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    check(result)
}

/// Loads the kernel module in `file` with `params`; an already loaded module is not an error.
///
/// # Errors
/// Errors of finit_module(2): ENOENT for an unknown symbol, EINVAL for a bad parameter.
pub fn load_module(file: &Path, params: &str) -> io::Result<()> {
    let module = File::open(file)?;
    let params = CString::new(params).map_err(nul)?;
    let fd = libc::c_long::from(module.as_raw_fd());
    // SAFETY: the descriptor is open for the whole call, `params` is NUL-terminated and outlives
    // it, and the flags word is zero.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, fd, params.as_ptr(), 0_i64) };
    if result == -1 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EEXIST) {
            return Ok(());
        }
        return Err(error);
    }
    Ok(())
}

/// Waits for any child and returns which one ended and how; `None` when there is no child left.
///
/// # Errors
/// Errors of waitpid(2) except EINTR, which is retried.
pub fn reap_any() -> io::Result<Option<(u32, Ended)>> {
    loop {
        let mut status: libc::c_int = 0;
        // SAFETY: `status` is a live, writable c_int for the whole call.
        let pid = unsafe { libc::waitpid(-1, &mut status, 0) };
        if let Ok(pid) = u32::try_from(pid) {
            if libc::WIFEXITED(status) {
                return Ok(Some((pid, Ended::Exit(libc::WEXITSTATUS(status)))));
            }
            if libc::WIFSIGNALED(status) {
                return Ok(Some((pid, Ended::Signal(libc::WTERMSIG(status)))));
            }
            continue;
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ECHILD) => return Ok(None),
            Some(libc::EINTR) => {}
            _ => return Err(error),
        }
    }
}

/// Switches a terminal to raw mode, so that bytes pass unchanged; does nothing for other files.
///
/// # Errors
/// Errors of tcgetattr(3) and tcsetattr(3) except ENOTTY.
pub fn make_raw(terminal: &File) -> io::Result<()> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the descriptor is open and `settings` is writable memory of termios' size.
    if unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) } == -1 {
        let error = io::Error::last_os_error();
        if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) {
            return Ok(());
        }
        return Err(error);
    }
    // SAFETY: tcgetattr returned 0, so it has filled the whole structure.
    let mut settings = unsafe { settings.assume_init() };
    // SAFETY: `settings` is a valid termios and ours alone.
    unsafe { libc::cfmakeraw(&mut settings) };
    // SAFETY: the descriptor is open and `settings` outlives the call, which only reads it.
    check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings) })
}

/// Waits until a terminal has sent all output; does nothing for other files.
pub fn drain(terminal: &File) {
    // SAFETY: the descriptor is open for the whole call. The result is not needed: other files have nothing to wait
    // for.
    let _ = unsafe { libc::tcdrain(terminal.as_raw_fd()) };
}

/// Writes dirty pages back.
pub fn sync() {
    // SAFETY: sync(2) takes no argument and touches no memory of ours.
    unsafe { libc::sync() };
}

/// Powers the machine off; returns only if the kernel refuses.
///
/// # Errors
/// Errors of reboot(2): EPERM if this is not the machine's process one.
pub fn power_off() -> io::Result<()> {
    // SAFETY: RB_POWER_OFF takes no pointer.
    check(unsafe { libc::reboot(libc::RB_POWER_OFF) })
}
