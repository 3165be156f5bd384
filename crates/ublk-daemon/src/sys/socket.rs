//! Sequenced-packet sockets: they keep message borders and tell when the other end is gone.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// Room for the one descriptor that a packet may carry.
const ANCILLARY: usize = rustix::cmsg_space!(ScmRights(1));

/// Two connected `SOCK_SEQPACKET` sockets, closed on exec.
///
/// # Errors
/// The error of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// Is `fd` a Unix socket of sequenced packets?
#[must_use]
pub fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
}

/// Sends one packet whole, and a descriptor with it if there is one, without waiting and without SIGPIPE.
///
/// # Errors
/// EAGAIN when the other end does not read, EPIPE when it is gone.
pub fn send(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); ANCILLARY];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
    let descriptors = descriptor.as_slice();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match net::sendmsg(fd, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(n) if n == bytes.len() => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes one packet without waiting, and the descriptor that came with it. Returns its true length, which is larger than
/// `buf` when the packet was cut, and 0 at the end of the stream.
///
/// # Errors
/// EAGAIN when there is none.
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC | RecvFlags::CMSG_CLOEXEC;
    loop {
        let mut room = [MaybeUninit::uninit(); ANCILLARY];
        let mut ancillary = RecvAncillaryBuffer::new(&mut room);
        let parts = &mut [IoSliceMut::new(buf)];
        match net::recvmsg(fd, parts, &mut ancillary, flags) {
            Ok(packet) => {
                let descriptors = ancillary.drain().filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                });
                return Ok((packet.bytes, descriptors.flatten().next()));
            }
            // The other end left with words of ours unread. The kernel says so once, and before it
            // gives what the other end had said: its last words are still to come.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Ends both directions of a connection, for every process that holds it.
///
/// # Errors
/// ENOTCONN when it is over already.
pub fn shut_down(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(net::shutdown(fd, Shutdown::Both)?)
}
