//! Sequenced-packet sockets, which preserve message boundaries and report when the peer is gone.
#![forbid(unsafe_code)]

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, sockopt,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The number of descriptors that a packet may carry.
const DESCRIPTORS: usize = 64;

/// Room for them.
const ANCILLARY: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS));

/// Creates two connected `SOCK_SEQPACKET` sockets, closed on exec.
///
/// # Errors
/// Errors of `socketpair(2)`.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(net::socketpair(family, kind, SocketFlags::CLOEXEC, None)?)
}

/// Whether `fd` is a Unix sequenced-packet socket.
#[must_use]
pub fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
        && sockopt::socket_domain(fd) == Ok(AddressFamily::UNIX)
}

/// Sends one packet, optionally with descriptors, without blocking and without SIGPIPE.
///
/// # Errors
/// EAGAIN if the peer does not read, EPIPE if it is gone.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut room = [MaybeUninit::uninit(); ANCILLARY];
    let mut ancillary = SendAncillaryBuffer::new(&mut room);
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

/// Receives one packet and its descriptors, without blocking. Returns the packet's true length, which exceeds `buf` if
/// the packet was truncated, and 0 at the end of the stream.
///
/// # Errors
/// EAGAIN if there is none.
pub fn recv(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
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
                return Ok((packet.bytes, descriptors.flatten().collect()));
            }
            // The peer exited without reading all our messages. The kernel reports that once, ahead of the peer's own
            // last messages, which are still queued.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Shuts down both directions of a connection, for every process that holds it.
///
/// # Errors
/// ENOTCONN if it is already closed.
pub fn shut_down(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(net::shutdown(fd, Shutdown::Both)?)
}
