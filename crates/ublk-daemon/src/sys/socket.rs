//! Sequenced-packet sockets: they keep message borders and tell when the other end is gone.

use super::{check, check_len};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Two connected `SOCK_SEQPACKET` sockets, closed on exec.
///
/// # Errors
/// The error of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [-1; 2];
    // SAFETY: `fds` is two ints long, as the call wants, and outlives it.
    check(unsafe {
        libc::socketpair(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC,
            0,
            fds.as_mut_ptr(),
        )
    })?;
    // SAFETY: the call succeeded, so fds[0] is open and nobody else knows it.
    let a = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    // SAFETY: as above, for fds[1].
    let b = unsafe { OwnedFd::from_raw_fd(fds[1]) };
    Ok((a, b))
}

/// Is `fd` a Unix socket of sequenced packets?
#[must_use]
pub fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    option(fd, libc::SO_TYPE) == Some(libc::SOCK_SEQPACKET)
        && option(fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX)
}

fn option(fd: BorrowedFd<'_>, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut len = libc::socklen_t::try_from(size_of::<libc::c_int>()).ok()?;
    // SAFETY: `value` has `len` writable bytes and both outlive the call; the descriptor is open.
    let res = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    (res == 0).then_some(value)
}

/// Sends one packet whole, without waiting and without SIGPIPE.
///
/// # Errors
/// EAGAIN when the other end does not read, EPIPE when it is gone.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    loop {
        // SAFETY: pointer and length are those of one live slice, which the call only reads.
        let res = unsafe {
            libc::send(
                fd.as_raw_fd(),
                bytes.as_ptr().cast(),
                bytes.len(),
                libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT,
            )
        };
        match check_len(res) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Takes one packet without waiting. Returns its true length, which is larger than `buf` when the
/// packet was cut, and 0 at the end of the stream.
///
/// # Errors
/// EAGAIN when there is none.
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: pointer and length are those of one live slice that is ours alone to write.
        let res = unsafe {
            libc::recv(
                fd.as_raw_fd(),
                buf.as_mut_ptr().cast(),
                buf.len(),
                libc::MSG_DONTWAIT | libc::MSG_TRUNC,
            )
        };
        match check_len(res) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The other end left with words of ours unread. The kernel says so once, and before it
            // gives what the other end had said: its last words are still to come.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => return other,
        }
    }
}

/// Ends both directions of a connection, for every process that holds it.
///
/// # Errors
/// ENOTCONN when it is over already.
pub fn shut_down(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown takes two integers and touches no memory; the descriptor is open.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) }).map(drop)
}
