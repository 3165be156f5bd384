//! The ring for tasks: every operation is a future.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ublk_core::Errno;
use uring_lite::op;

use super::buf::{BufferLocation, IoBuf, IoBufMut};
use super::core::Core;
use super::entry::{Kind, Scratch};
use super::fd::SharedFd;
use super::operation::{Descriptor, Done, Elapsed, Lend, Number, RingOp, Transferred};

/// The worker's ring, for operations of its tasks. Cheap to clone; stays on its thread.
///
/// Operations with a buffer own it until they complete, and return it with the byte count or the errno. Counts may be
/// short. If a request's own buffer is a registered one (zero copy), `read`, `write`, `recv`, `send` and
/// `send_zero_copy` use the fixed variant of the operation. With flags the choice is limited: a `send` becomes a
/// zero-copy send (EOPNOTSUPP from sockets without it, such as UNIX sockets), and a `recv` fails with EOPNOTSUPP, since
/// the kernel's read of a socket has no flags ([`recv_all`](Ring::recv_all) fills such a buffer all the same).
///
/// A header in memory and a payload in a registered buffer need two operations, since the kernel's vectored sends take
/// pieces of one kind: send the header with `MSG_MORE`, then the payload, and the network sends them as one.
///
/// Descriptors are [`SharedFd`]s, which stay open while an operation uses them.
#[derive(Clone)]
pub struct Ring(pub(super) Rc<Core>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("operations", &self.0.pool.busy())
            .finish()
    }
}

const fn from_buffer<B: IoBuf>() -> Lend<B> {
    |buffer, _| Ok(Some(buffer.place()))
}

const fn to_buffer<B: IoBufMut>() -> Lend<B> {
    |buffer, _| Ok(Some(buffer.place_mut()))
}

const fn from_pieces<B: IoBuf>() -> Lend<Vec<B>> {
    |buffers, scratch: &mut Scratch| {
        scratch.set_pieces(buffers.iter().map(IoBuf::place))?;
        Ok(None)
    }
}

const fn to_pieces<B: IoBufMut>() -> Lend<Vec<B>> {
    |buffers, scratch: &mut Scratch| {
        scratch.set_pieces(buffers.iter_mut().map(IoBufMut::place_mut))?;
        Ok(None)
    }
}

const NOTHING: Lend<()> = |(), _| Ok(None);

/// The flags that make an operation transfer as much as it can, if it has any. EINVAL for more bytes than an operation
/// can name.
fn flags_for_all(place: BufferLocation) -> Result<u32, Errno> {
    match place {
        // As long, or longer.
        place if place.len() == u32::MAX => Err(Errno::EINVAL),
        BufferLocation::Memory { .. } => Ok(op::MSG_WAITALL),
        BufferLocation::Registered { .. } => Ok(0),
    }
}

impl Ring {
    fn plain<O>(&self, kind: Kind, fd: Option<&SharedFd>) -> RingOp<(), O> {
        RingOp::new(&self.0, kind, fd, (), NOTHING)
    }

    /// Reads at `offset` of a file (`IORING_OP_READ`, `READ_FIXED`); `u64::MAX` is the file's own position, as for the
    /// kernel.
    pub fn read<B: IoBufMut>(
        &self,
        fd: &SharedFd,
        buffer: B,
        offset: u64,
    ) -> RingOp<B, Transferred> {
        RingOp::new(&self.0, Kind::Read(offset), Some(fd), buffer, to_buffer())
    }

    /// Writes at `offset` of a file (`IORING_OP_WRITE`, `WRITE_FIXED`); `u64::MAX` is the file's own position.
    pub fn write<B: IoBuf>(&self, fd: &SharedFd, buffer: B, offset: u64) -> RingOp<B, Transferred> {
        RingOp::new(
            &self.0,
            Kind::Write(offset),
            Some(fd),
            buffer,
            from_buffer(),
        )
    }

    /// Reads at `offset` of a file into several buffers, at most [`MAX_PIECES`](super::MAX_PIECES)
    /// (`IORING_OP_READV`).
    pub fn read_vectored<B: IoBufMut>(
        &self,
        fd: &SharedFd,
        buffers: Vec<B>,
        offset: u64,
    ) -> RingOp<Vec<B>, Transferred> {
        let kind = Kind::ReadPieces(offset);
        RingOp::new(&self.0, kind, Some(fd), buffers, to_pieces())
    }

    /// Writes several buffers, at most [`MAX_PIECES`](super::MAX_PIECES), at `offset` of a file
    /// (`IORING_OP_WRITEV`).
    pub fn write_vectored<B: IoBuf>(
        &self,
        fd: &SharedFd,
        buffers: Vec<B>,
        offset: u64,
    ) -> RingOp<Vec<B>, Transferred> {
        let kind = Kind::WritePieces(offset);
        RingOp::new(&self.0, kind, Some(fd), buffers, from_pieces())
    }

    /// Makes all writes to a file durable (`IORING_OP_FSYNC`).
    pub fn fsync(&self, fd: &SharedFd) -> RingOp<(), Done> {
        self.plain(Kind::Fsync { data_only: false }, Some(fd))
    }

    /// Makes the data of a file durable, and the metadata that is needed to read it.
    pub fn fdatasync(&self, fd: &SharedFd) -> RingOp<(), Done> {
        self.plain(Kind::Fsync { data_only: true }, Some(fd))
    }

    /// Allocates, zeroes or punches a range of a file, as `mode` says (`fallocate(2)`, `IORING_OP_FALLOCATE`).
    pub fn fallocate(&self, fd: &SharedFd, mode: u32, offset: u64, len: u64) -> RingOp<(), Done> {
        self.plain(Kind::Fallocate { mode, offset, len }, Some(fd))
    }

    /// Receives from a socket, with `MSG_*` flags (`IORING_OP_RECV`); 0 bytes mean the end of the stream.
    pub fn recv<B: IoBufMut>(
        &self,
        fd: &SharedFd,
        buffer: B,
        flags: u32,
    ) -> RingOp<B, Transferred> {
        RingOp::new(&self.0, Kind::Recv(flags), Some(fd), buffer, to_buffer())
    }

    /// Sends to a socket, with `MSG_*` flags (`IORING_OP_SEND`); never raises SIGPIPE. EINVAL for MSG_ZEROCOPY, with
    /// which the network would use the buffer after it was returned: use [`send_zero_copy`](Self::send_zero_copy).
    pub fn send<B: IoBuf>(&self, fd: &SharedFd, buffer: B, flags: u32) -> RingOp<B, Transferred> {
        RingOp::new(&self.0, Kind::Send(flags), Some(fd), buffer, from_buffer())
    }

    /// [`send`](Self::send) without a copy (`IORING_OP_SEND_ZC`, 6.0). It completes and returns the buffer when the
    /// network no longer needs it, which may be when the peer has acknowledged the data.
    pub fn send_zero_copy<B: IoBuf>(
        &self,
        fd: &SharedFd,
        buffer: B,
        flags: u32,
    ) -> RingOp<B, Transferred> {
        let kind = Kind::SendZeroCopy(flags);
        RingOp::new(&self.0, kind, Some(fd), buffer, from_buffer())
    }

    /// Receives into several buffers, at most [`MAX_PIECES`](super::MAX_PIECES) (`IORING_OP_RECVMSG`).
    pub fn recv_vectored<B: IoBufMut>(
        &self,
        fd: &SharedFd,
        buffers: Vec<B>,
        flags: u32,
    ) -> RingOp<Vec<B>, Transferred> {
        let kind = Kind::RecvPieces(flags);
        RingOp::new(&self.0, kind, Some(fd), buffers, to_pieces())
    }

    /// Sends several buffers, at most [`MAX_PIECES`](super::MAX_PIECES), as one message (`IORING_OP_SENDMSG`).
    pub fn send_vectored<B: IoBuf>(
        &self,
        fd: &SharedFd,
        buffers: Vec<B>,
        flags: u32,
    ) -> RingOp<Vec<B>, Transferred> {
        let kind = Kind::SendPieces(flags);
        RingOp::new(&self.0, kind, Some(fd), buffers, from_pieces())
    }

    /// [`send_vectored`](Self::send_vectored) without a copy (`IORING_OP_SENDMSG_ZC`, 6.1).
    pub fn send_vectored_zero_copy<B: IoBuf>(
        &self,
        fd: &SharedFd,
        buffers: Vec<B>,
        flags: u32,
    ) -> RingOp<Vec<B>, Transferred> {
        let kind = Kind::SendPiecesZeroCopy(flags);
        RingOp::new(&self.0, kind, Some(fd), buffers, from_pieces())
    }

    /// Creates a socket, close-on-exec, of a domain and a type of `socket(2)` (`IORING_OP_SOCKET`, 5.19).
    pub fn socket(&self, domain: i32, kind: i32) -> RingOp<(), Descriptor> {
        self.plain(Kind::Socket(domain, kind | libc::SOCK_CLOEXEC), None)
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    /// The errno of creating or connecting the socket.
    pub async fn connect_tcp(&self, to: SocketAddr) -> Result<SharedFd, Errno> {
        let domain = match to {
            SocketAddr::V4(_) => libc::AF_INET,
            SocketAddr::V6(_) => libc::AF_INET6,
        };
        let socket = self.socket(domain, libc::SOCK_STREAM).await?;
        self.connect(&socket, to).await?;
        Ok(socket)
    }

    /// Sends all of a buffer, with as many [`send`](Self::send)s as it takes.
    ///
    /// # Errors
    /// The errno of the failed operation; EINVAL, with nothing sent, for a buffer of 4 GiB or more.
    pub async fn send_all<B: IoBuf>(&self, fd: &SharedFd, buffer: B) -> (Result<(), Errno>, B) {
        let (mut buffer, mut done) = (buffer, 0);
        let Ok(flags) = flags_for_all(buffer.place()) else {
            return (Err(Errno::EINVAL), buffer);
        };
        while done < buffer.place().len() {
            let rest = buffer.slice(done, u32::MAX);
            let (sent, rest) = self.send(fd, rest, flags).await;
            buffer = rest.into_inner();
            match sent {
                Ok(sent) => done += sent,
                Err(errno) => return (Err(errno), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Fills a buffer from a socket, with as many [`recv`](Self::recv)s as it takes.
    ///
    /// # Errors
    /// The errno of the failed operation; ECONNRESET at the end of the stream; EINVAL, with nothing received, for a
    /// buffer of 4 GiB or more.
    pub async fn recv_all<B: IoBufMut>(&self, fd: &SharedFd, buffer: B) -> (Result<(), Errno>, B) {
        let (mut buffer, mut done) = (buffer, 0);
        let Ok(flags) = flags_for_all(buffer.place()) else {
            return (Err(Errno::EINVAL), buffer);
        };
        while done < buffer.place().len() {
            let rest = buffer.slice(done, u32::MAX);
            let (received, rest) = self.recv(fd, rest, flags).await;
            buffer = rest.into_inner();
            match received {
                Ok(0) => return (Err(Errno::new(libc::ECONNRESET)), buffer),
                Ok(received) => done += received,
                Err(errno) => return (Err(errno), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Connects a socket (`IORING_OP_CONNECT`).
    pub fn connect(&self, fd: &SharedFd, to: SocketAddr) -> RingOp<(), Done> {
        self.plain(Kind::Connect(to), Some(fd))
    }

    /// Accepts the next connection of a listening socket (`IORING_OP_ACCEPT`).
    pub fn accept(&self, fd: &SharedFd) -> RingOp<(), Descriptor> {
        self.plain(Kind::Accept, Some(fd))
    }

    /// Shuts down a connection's directions, as `how` of `shutdown(2)` says (`IORING_OP_SHUTDOWN`).
    pub fn shutdown(&self, fd: &SharedFd, how: u32) -> RingOp<(), Done> {
        self.plain(Kind::Shutdown(how), Some(fd))
    }

    /// Waits until a descriptor is ready for one of `events` (`POLLIN` …); returns the events it is ready for
    /// (`IORING_OP_POLL_ADD`).
    pub fn poll(&self, fd: &SharedFd, events: u32) -> RingOp<(), Number> {
        self.plain(Kind::Poll(events), Some(fd))
    }

    /// Waits for a time (`IORING_OP_TIMEOUT`).
    pub fn timeout(&self, after: Duration) -> RingOp<(), Elapsed> {
        self.plain(Kind::Timeout(after), None)
    }

    /// Cancels all operations of the ring on a descriptor, no matter who started them; returns their number
    /// (`IORING_OP_ASYNC_CANCEL`, 5.19). To cancel one operation, use [`RingOp::cancel`] or drop it.
    pub fn cancel_all(&self, fd: &SharedFd) -> RingOp<(), Number> {
        self.plain(Kind::CancelAll, Some(fd))
    }

    /// Completes the next time the worker looks at the ring: yields to others (`IORING_OP_NOP`).
    pub fn nop(&self) -> RingOp<(), Done> {
        self.plain(Kind::Nop, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L11 A buffer longer than an operation can name is refused, not transferred in part.
    #[test]
    fn l11_what_cannot_be_named_is_refused() {
        let memory = |len| BufferLocation::Memory {
            ptr: std::ptr::null_mut(),
            len,
        };
        assert_eq!(flags_for_all(memory(u32::MAX)), Err(Errno::EINVAL));
        assert_eq!(flags_for_all(memory(u32::MAX - 1)), Ok(op::MSG_WAITALL));
    }
}
