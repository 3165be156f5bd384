//! Sequenced-packet sockets: they keep message borders and tell when the other end is gone.

use super::{check, check_len};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

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

/// Room for the one descriptor that a packet may carry, aligned as the kernel's headers are.
#[repr(C, align(8))]
struct Ancillary([u8; ANCILLARY]);

/// A header of 16 bytes, a descriptor of 4, and the padding behind it.
const ANCILLARY: usize = 24;

/// Sends one packet whole, and a descriptor with it if there is one, without waiting and without SIGPIPE.
///
/// # Errors
/// EAGAIN when the other end does not read, EPIPE when it is gone.
pub fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut ancillary = Ancillary([0; ANCILLARY]);
    let mut part = libc::iovec {
        // Only read by the call, whatever the type says.
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut message = header(&mut part);
    if let Some(descriptor) = descriptor {
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_controllen = ANCILLARY as _;
        // SAFETY: `message` names `ANCILLARY` writable, aligned bytes, so the first header is inside or null.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        let first = NonNull::new(first).ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the length is a constant of 4 bytes of data; the macro only adds.
        let len = unsafe { libc::CMSG_LEN(DESCRIPTOR) };
        // SAFETY: `first` is aligned and inside `ancillary`, which is ours alone and outlives the call.
        let head = unsafe { &mut *first.as_ptr() };
        head.cmsg_level = libc::SOL_SOCKET;
        head.cmsg_type = libc::SCM_RIGHTS;
        head.cmsg_len = len as _;
        // SAFETY: the header is valid; its data begin behind it, inside the room of `ancillary`.
        let data = unsafe { libc::CMSG_DATA(first.as_ptr()) };
        // SAFETY: 4 bytes from `data` on are inside `ancillary`; unaligned writes need no alignment.
        unsafe {
            data.cast::<RawFd>().write_unaligned(descriptor.as_raw_fd());
        };
    }
    loop {
        // SAFETY: the message names one live slice, which the call only reads, and `ancillary` or nothing.
        let res = unsafe {
            libc::sendmsg(
                fd.as_raw_fd(),
                &raw const message,
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

/// Bytes of a descriptor in a packet.
const DESCRIPTOR: libc::c_uint = 4;

/// A message of one part, without an address and without descriptors.
fn header(part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: null pointers and lengths of 0.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = part;
    message.msg_iovlen = 1;
    message
}

/// Takes one packet without waiting, and the descriptor that came with it. Returns its true length, which is larger than
/// `buf` when the packet was cut, and 0 at the end of the stream.
///
/// # Errors
/// EAGAIN when there is none.
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut ancillary = Ancillary([0; ANCILLARY]);
    let mut part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    loop {
        let mut message = header(&mut part);
        message.msg_control = ancillary.0.as_mut_ptr().cast();
        message.msg_controllen = ANCILLARY as _;
        // SAFETY: the message names one live slice and `ancillary`, both ours alone to write for the call.
        let res = unsafe {
            libc::recvmsg(
                fd.as_raw_fd(),
                &raw mut message,
                libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC,
            )
        };
        match check_len(res) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // The other end left with words of ours unread. The kernel says so once, and before it
            // gives what the other end had said: its last words are still to come.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => return other.map(|len| (len, carried(&message))),
        }
    }
}

/// The descriptor that a received message carries.
fn carried(message: &libc::msghdr) -> Option<OwnedFd> {
    // SAFETY: the kernel filled in the message: its control data are inside the room that it was given.
    let first = unsafe { libc::CMSG_FIRSTHDR(message) };
    let first = NonNull::new(first)?;
    // SAFETY: a first header that is not null is whole, inside the control data and aligned as they are.
    let head = unsafe { first.as_ref() };
    if head.cmsg_level != libc::SOL_SOCKET || head.cmsg_type != libc::SCM_RIGHTS {
        return None;
    }
    // SAFETY: the header is valid, see above.
    let data = unsafe { libc::CMSG_DATA(first.as_ptr()) };
    // SAFETY: the kernel writes whole descriptors behind such a header, and there is room for one only.
    let descriptor = unsafe { data.cast::<RawFd>().read_unaligned() };
    // SAFETY: it was made for this process by the call a moment ago, and nobody else knows it.
    Some(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Ends both directions of a connection, for every process that holds it.
///
/// # Errors
/// ENOTCONN when it is over already.
pub fn shut_down(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: shutdown takes two integers and touches no memory; the descriptor is open.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) }).map(drop)
}
