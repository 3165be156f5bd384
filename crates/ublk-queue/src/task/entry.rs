//! The kinds of operations, and the submission queue entries for them.
//!
//! # Why there is `unsafe` here
//! An entry gives pointers to the kernel. [`entry`] is unsafe, and states what its one caller, the pool, ensures: the
//! buffer stays with the operation until the last CQE, and so does the slot with its [`Scratch`].
#![expect(unsafe_code, reason = "makes entries that name memory")]

use std::net::SocketAddr;
use std::ptr::NonNull;
use std::time::Duration;

use ublk_core::Errno;
use uring_lite::op::{self, Timespec};
use uring_lite::{Fd, Sqe64};

use super::buf::BufferLocation;

/// Maximum number of pieces of a vectored operation.
pub const MAX_PIECES: usize = 8;

/// An operation without its descriptor and its buffer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Does nothing.
    Nop,
    /// At this offset.
    Read(u64),
    /// At this offset.
    Write(u64),
    ReadPieces(u64),
    WritePieces(u64),
    Fsync {
        data_only: bool,
    },
    Fallocate {
        mode: u32,
        offset: u64,
        len: u64,
    },
    /// With `MSG_*` flags.
    Recv(u32),
    Send(u32),
    SendZeroCopy(u32),
    RecvPieces(u32),
    SendPieces(u32),
    SendPiecesZeroCopy(u32),
    /// With the arguments of `socket(2)`.
    Socket(i32, i32),
    Connect(SocketAddr),
    Accept,
    Shutdown(u32),
    Poll(u32),
    Timeout(Duration),
    CancelAll,
}

/// Memory that an entry points to besides its buffer. It lives in the operation's slot of the pool.
pub(super) struct Scratch {
    message: libc::msghdr,
    pieces: [libc::iovec; MAX_PIECES],
    count: usize,
    /// Large enough for any address.
    address: libc::sockaddr_storage,
    time: Timespec,
}

impl Scratch {
    pub(super) const fn new() -> Self {
        const NO_PIECE: libc::iovec = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            // SAFETY: integers and pointers; all zero is a valid value, "none".
            message: unsafe { std::mem::zeroed() },
            pieces: [NO_PIECE; MAX_PIECES],
            count: 0,
            // SAFETY: bytes and integers.
            address: unsafe { std::mem::zeroed() },
            time: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
        }
    }

    /// Records the pieces of a vectored operation.
    pub(super) fn set_pieces(
        &mut self,
        places: impl Iterator<Item = BufferLocation>,
    ) -> Result<(), Errno> {
        self.count = 0;
        for place in places {
            let BufferLocation::Memory { ptr, len } = place else {
                // A registered buffer cannot be one of several pieces.
                return Err(Errno::EOPNOTSUPP);
            };
            let piece = self.pieces.get_mut(self.count).ok_or(Errno::EINVAL)?;
            piece.iov_base = ptr.cast();
            piece.iov_len = len as usize;
            self.count += 1;
        }
        Ok(())
    }

    fn set_message(&mut self) -> *mut libc::msghdr {
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = self.count;
        &raw mut self.message
    }

    /// Records an address in the kernel's format; returns its size.
    fn set_address(&mut self, address: &SocketAddr) -> u32 {
        let place = NonNull::from(&mut self.address);
        match address {
            SocketAddr::V4(at) => {
                let at = libc::sockaddr_in {
                    sin_family: family(libc::AF_INET),
                    sin_port: at.port().to_be(),
                    sin_addr: libc::in_addr {
                        s_addr: u32::from(*at.ip()).to_be(),
                    },
                    sin_zero: [0; 8],
                };
                // SAFETY: the storage holds and aligns every kind of address.
                unsafe { place.cast().write(at) };
                size_of_u32::<libc::sockaddr_in>()
            }
            SocketAddr::V6(at) => {
                let at = libc::sockaddr_in6 {
                    sin6_family: family(libc::AF_INET6),
                    sin6_port: at.port().to_be(),
                    sin6_flowinfo: at.flowinfo(),
                    sin6_addr: libc::in6_addr {
                        s6_addr: at.ip().octets(),
                    },
                    sin6_scope_id: at.scope_id(),
                };
                // SAFETY: as above.
                unsafe { place.cast().write(at) };
                size_of_u32::<libc::sockaddr_in6>()
            }
        }
    }
}

fn family(family: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(family).unwrap_or(0)
}

fn size_of_u32<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0)
}

impl Kind {
    /// Whether the CQE carries a new descriptor.
    pub(super) const fn gives_descriptor(&self) -> bool {
        matches!(self, Self::Accept | Self::Socket(..))
    }

    /// The flags of a send, 0 for anything else.
    const fn send_flags(&self) -> u32 {
        match *self {
            Self::Send(flags)
            | Self::SendZeroCopy(flags)
            | Self::SendPieces(flags)
            | Self::SendPiecesZeroCopy(flags) => flags,
            _ => 0,
        }
    }
}

/// Builds the entry for an operation, without `user_data`.
///
/// # Safety
/// From submission to the last CQE, `scratch` must stay where it is and not be accessed, and `place` and the pieces in
/// `scratch` must be valid for what `kind` does.
///
/// # Errors
/// EOPNOTSUPP for a registered buffer that the operation does not support; EINVAL without a required buffer, and for
/// MSG_ZEROCOPY.
#[expect(clippy::too_many_lines, reason = "one arm per kind of operation")]
pub(super) unsafe fn entry(
    kind: &Kind,
    fd: Fd,
    place: Option<BufferLocation>,
    scratch: &mut Scratch,
) -> Result<Sqe64, Errno> {
    if kind.send_flags() & op::MSG_ZEROCOPY != 0 {
        // The network would read the buffer after it has been given back.
        return Err(Errno::EINVAL);
    }
    // SAFETY (of every entry below): the caller's contract, for buffer, pieces, message, address and time.
    let sqe = match (*kind, place) {
        (Kind::Nop, _) => op::nop(),
        // Sockets ignore the offset.
        (Kind::Read(at), Some(BufferLocation::Memory { ptr, len })) => {
            // SAFETY: as said above.
            unsafe { op::read(fd, ptr, len, at) }
        }
        (Kind::Write(at), Some(BufferLocation::Memory { ptr, len })) => {
            // SAFETY: as said above.
            unsafe { op::write(fd, ptr, len, at) }
        }
        (
            Kind::Read(at),
            Some(BufferLocation::Registered {
                index, offset, len, ..
            }),
        ) => {
            // SAFETY: as said above.
            unsafe { op::read_fixed(fd, index, u64::from(offset), len, at) }
        }
        (
            Kind::Write(at),
            Some(BufferLocation::Registered {
                index, offset, len, ..
            }),
        ) => {
            // SAFETY: as said above.
            unsafe { op::write_fixed(fd, index, u64::from(offset), len, at) }
        }
        (Kind::Recv(flags), Some(BufferLocation::Memory { ptr, len })) => {
            // SAFETY: as said above.
            unsafe { op::recv(fd, ptr, len, flags) }
        }
        // Receiving into a registered buffer is a read, which has no flags: they must not be dropped silently.
        (
            Kind::Recv(0),
            Some(BufferLocation::Registered {
                index, offset, len, ..
            }),
        ) => {
            // SAFETY: as said above.
            unsafe { op::read_fixed(fd, index, u64::from(offset), len, 0) }
        }
        (Kind::Recv(_), Some(BufferLocation::Registered { .. })) => return Err(Errno::EOPNOTSUPP),
        (Kind::Send(flags), Some(BufferLocation::Memory { ptr, len })) => {
            // SAFETY: as said above.
            unsafe { op::send(fd, ptr, len, flags | op::MSG_NOSIGNAL) }
        }
        // Without flags, sending from a registered buffer is a write, which any socket supports; the threads of
        // zero-copy queues block its SIGPIPE. Only the zero-copy send has flags.
        (
            Kind::Send(0 | op::MSG_NOSIGNAL),
            Some(BufferLocation::Registered {
                index, offset, len, ..
            }),
        ) => {
            // SAFETY: as said above.
            unsafe { op::write_fixed(fd, index, u64::from(offset), len, 0) }
        }
        (
            Kind::Send(flags),
            Some(BufferLocation::Registered {
                index, offset, len, ..
            }),
        ) => {
            let (at, flags) = (u64::from(offset), flags | op::MSG_NOSIGNAL);
            // SAFETY: as said above.
            unsafe { op::send_zc_fixed(fd, index, at, len, flags) }
        }
        (Kind::SendZeroCopy(flags), Some(BufferLocation::Memory { ptr, len })) => {
            // SAFETY: as said above.
            unsafe { op::send_zc(fd, ptr, len, flags | op::MSG_NOSIGNAL) }
        }
        (
            Kind::SendZeroCopy(flags),
            Some(BufferLocation::Registered {
                index, offset, len, ..
            }),
        ) => {
            let (at, flags) = (u64::from(offset), flags | op::MSG_NOSIGNAL);
            // SAFETY: as said above.
            unsafe { op::send_zc_fixed(fd, index, at, len, flags) }
        }
        (Kind::ReadPieces(at), _) => {
            // SAFETY: as said above.
            unsafe { op::readv(fd, scratch.pieces.as_ptr(), pieces(scratch), at) }
        }
        (Kind::WritePieces(at), _) => {
            // SAFETY: as said above.
            unsafe { op::writev(fd, scratch.pieces.as_ptr(), pieces(scratch), at) }
        }
        (Kind::RecvPieces(flags), _) => {
            // SAFETY: as said above.
            unsafe { op::recvmsg(fd, scratch.set_message(), flags) }
        }
        (Kind::SendPieces(flags), _) => {
            // SAFETY: as said above.
            unsafe { op::sendmsg(fd, scratch.set_message(), flags | op::MSG_NOSIGNAL) }
        }
        (Kind::SendPiecesZeroCopy(flags), _) => {
            // SAFETY: as said above.
            unsafe { op::sendmsg_zc(fd, scratch.set_message(), flags | op::MSG_NOSIGNAL) }
        }
        (Kind::Fsync { data_only }, _) => op::fsync(fd, data_only),
        (Kind::Fallocate { mode, offset, len }, _) => op::fallocate(fd, mode, offset, len),
        (Kind::Socket(domain, kind), _) => op::socket(domain, kind.cast_unsigned(), 0),
        (Kind::Connect(to), _) => {
            let len = scratch.set_address(&to);
            let address = (&raw const scratch.address).cast();
            // SAFETY: as said above.
            unsafe { op::connect(fd, address, len) }
        }
        (Kind::Accept, _) => {
            let flags = libc::SOCK_CLOEXEC.cast_unsigned();
            // SAFETY: no address is requested.
            unsafe { op::accept(fd, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
        }
        (Kind::Shutdown(how), _) => op::shutdown(fd, how),
        (Kind::Poll(events), _) => op::poll_add(fd, events, false),
        (Kind::Timeout(after), _) => {
            scratch.time = Timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(after.subsec_nanos()),
            };
            // SAFETY: as said above.
            unsafe { op::timeout(&raw const scratch.time, 0) }
        }
        (Kind::CancelAll, _) => op::async_cancel_file(fd),
        (
            Kind::Read(_) | Kind::Write(_) | Kind::Recv(_) | Kind::Send(_) | Kind::SendZeroCopy(_),
            None,
        ) => return Err(Errno::EINVAL),
    };
    Ok(sqe)
}

fn pieces(scratch: &Scratch) -> u32 {
    u32::try_from(scratch.count).unwrap_or(0)
}

#[cfg(test)]
mod tests;
