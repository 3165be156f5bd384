//! A mount namespace of one's own (L36).

use super::check;
use std::io;

/// Moves the calling process into a mount namespace of its own: what it mounts is not seen outside. What others mount
/// and unmount is seen here (slave propagation), so that nothing is held here that they have unmounted: a copy that
/// hears nothing would keep every file system busy that is mounted at this moment, also one on the device of a server
/// that is being replaced. Call it while the process has one thread.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: unshare takes a flag word and touches no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
    // SAFETY: the target is a NUL-terminated constant; source, type and data may be null for a
    // change of propagation (mount(2)).
    check(unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REC | libc::MS_SLAVE,
            std::ptr::null(),
        )
    })
    .map(drop)
}
