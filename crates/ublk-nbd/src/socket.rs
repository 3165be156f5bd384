//! A socket with at most one send and one receive on the ring, and the memory that these use.
#![expect(
    unsafe_code,
    reason = "names buffers of requests and a staging buffer to the kernel"
)]

mod sending;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use socket2::SockRef;
use ublk_queue::MemRef;
use uring_lite::Sqe64;
use uring_lite::op::{self, CQE_F_SOCK_NONEMPTY, Fd};

use crate::registered::{self, Pages};
use sending::Send;

/// Size of the staging buffer.
const STAGING: usize = 256 << 10;

/// Where the data of a request is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Data<'a> {
    /// In memory of this process.
    Memory(MemRef<'a>),
    /// In the pages of the client's request, registered with the ring (zero copy). The kernel keeps them until the request
    /// is answered and no operation uses them.
    Registered(Pages),
}

impl Data<'_> {
    /// No data.
    pub(crate) const NONE: Self = Self::Memory(MemRef::EMPTY);

    pub(crate) const fn len(&self) -> usize {
        match self {
            Self::Memory(mem) => mem.len(),
            Self::Registered(pages) => pages.len as usize,
        }
    }
}

/// A socket and the memory that the kernel may use for it.
///
/// # Invariants
/// While `sending` (`receiving`) is set, an operation that names memory of `send` (`recv`), or of the requests that
/// were added to it, may be in flight: none of this memory is moved, changed or freed. The caller keeps the memory of
/// the requests alive, see [`Socket::add`] and [`Socket::receive`].
#[derive(Debug)]
pub(crate) struct Socket {
    parts: ManuallyDrop<Parts>,
    sending: bool,
    receiving: bool,
}

#[derive(Debug)]
struct Parts {
    fd: OwnedFd,
    send: Box<Send>,
    recv: Box<Recv>,
    /// Flags of a send.
    flags: u32,
    /// Large data in registered pages is sent in place.
    in_place: bool,
    /// Sends in a row that were meant so and were copied.
    copied: u8,
    /// The send in flight is one in place.
    tries: bool,
}

struct Recv {
    /// The socket is likely empty: everything that it had was received.
    drained: bool,
    /// Bytes asked for by the receive in flight.
    asked: usize,
    staging: Box<[u8]>,
    /// Received bytes at the start of the buffer that are not consumed yet.
    held: usize,
    /// Bytes that the receive in flight may put into a request's buffer, ahead of the staging buffer.
    direct: usize,
    pieces: [libc::iovec; 2],
    message: libc::msghdr,
}

impl std::fmt::Debug for Recv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recv").finish_non_exhaustive()
    }
}

/// From now on, what TCP has not delivered when the socket is closed, also by the death of this process, is discarded. Its
/// requests are sent again on another connection, and later ones may follow them there: if the network comes back, the old
/// WRITE must not arrive after the new one (L71). A unix socket has delivered everything.
pub(crate) fn discard_unsent(socket: SockRef<'_>) {
    // It fails only for what is no socket.
    let _ = socket.set_linger(Some(Duration::ZERO));
}

/// Takes [`discard_unsent`] back, for a connection that ends well.
pub(crate) fn keep_unsent(socket: SockRef<'_>) {
    let _ = socket.set_linger(None);
}

/// An empty message header.
const fn message() -> libc::msghdr {
    // SAFETY: a C struct of integers and pointers, all of which may be zero.
    unsafe { std::mem::zeroed() }
}

const NO_PIECE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        discard_unsent(SockRef::from(&fd));
        let recv = Recv {
            drained: true,
            asked: 0,
            staging: vec![0; STAGING].into_boxed_slice(),
            held: 0,
            direct: 0,
            pieces: [NO_PIECE; 2],
            message: message(),
        };
        Self {
            parts: ManuallyDrop::new(Parts {
                fd,
                send: Box::new(Send::new()),
                recv: Box::new(recv),
                flags: (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned(),
                in_place: false,
                copied: 0,
                tries: false,
            }),
            sending: false,
            receiving: false,
        }
    }

    /// The descriptor, for an operation.
    fn fd(&self) -> Fd {
        // SAFETY: the descriptor stays open while an operation uses it: this value closes it only afterwards, or leaks
        // it.
        unsafe { Fd::raw(self.parts.fd.as_fd()) }
    }

    pub(crate) const fn is_sending(&self) -> bool {
        self.sending
    }

    pub(crate) const fn is_receiving(&self) -> bool {
        self.receiving
    }

    /// Number of operations in flight.
    pub(crate) fn in_flight(&self) -> usize {
        usize::from(self.sending) + usize::from(self.receiving)
    }

    /// Shuts down both directions, so that operations in flight complete soon.
    pub(crate) fn shut_down(&self) {
        // SAFETY: the descriptor is open; the call uses no memory.
        let _ = unsafe { libc::shutdown(self.parts.fd.as_raw_fd(), libc::SHUT_RDWR) };
    }

    /// The descriptor, for calls that involve no request.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.parts.fd.as_fd()
    }

    /// Sends a final header if the socket accepts it at once, and leaves it to the kernel to deliver what was sent. No send may
    /// be in flight.
    pub(crate) fn say_goodbye(&self, header: &[u8]) {
        keep_unsent(SockRef::from(&self.as_fd()));
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the descriptor is open, the header lives for the length of the call.
        let _ = unsafe {
            libc::send(
                self.parts.fd.as_raw_fd(),
                header.as_ptr().cast(),
                header.len(),
                flags,
            )
        };
    }

    /// The operation that receives: into `direct` first, then up to `window` bytes into the staging buffer; into registered
    /// pages alone.
    ///
    /// # Safety
    /// Until it has completed ([`received`](Self::received)) or the socket is dropped, `direct` in memory stays valid for
    /// writes and nobody forms a reference to it.
    ///
    /// # Panics
    /// While one is in flight.
    pub(crate) unsafe fn receive(&mut self, direct: Data<'_>, window: usize) -> Sqe64 {
        let fd = self.fd();
        let direct = match direct {
            Data::Memory(mem) => mem,
            Data::Registered(pages) => {
                assert!(!self.receiving, "the kernel writes there");
                let recv = &mut *self.parts.recv;
                recv.direct = pages.len as usize;
                recv.asked = recv.direct;
                return registered::receive(fd, pages, recv.drained);
            }
        };
        self.name(direct, window);
        let recv = &mut *self.parts.recv;
        let nosignal = libc::MSG_NOSIGNAL.cast_unsigned();
        let [data, staging] = recv.pieces;
        let length = |piece: libc::iovec| u32::try_from(piece.iov_len).unwrap_or(u32::MAX);
        let sqe = if direct.is_empty() {
            // Without a message the kernel has less to copy.
            // SAFETY: the staging buffer is ours and untouched while `receiving` is set.
            unsafe { op::recv(fd, staging.iov_base.cast(), length(staging), nosignal) }
        } else if staging.iov_len == 0 {
            let flags = nosignal | libc::MSG_WAITALL.cast_unsigned();
            // SAFETY: the caller's contract.
            unsafe { op::recv(fd, data.iov_base.cast(), length(data), flags) }
        } else {
            // SAFETY: as above; message and pieces are in a box of ours.
            unsafe { op::recvmsg(fd, &raw mut recv.message, nosignal) }
        };
        match recv.drained {
            true => op::poll_first(sqe),
            false => sqe,
        }
    }

    /// Names the memory for the next bytes: first `direct`, then up to `window` bytes of the staging buffer.
    ///
    /// # Panics
    /// While an operation receives.
    fn name(&mut self, direct: MemRef<'_>, window: usize) {
        assert!(!self.receiving, "the kernel writes there");
        let recv = &mut *self.parts.recv;
        let window = window.min(recv.staging.len() - recv.held);
        recv.direct = direct.len();
        recv.asked = direct.len() + window;
        recv.pieces = [
            libc::iovec {
                iov_base: direct.ptr().as_ptr().cast(),
                iov_len: direct.len(),
            },
            libc::iovec {
                iov_base: recv.staging[recv.held..].as_mut_ptr().cast(),
                iov_len: window,
            },
        ];
        recv.message.msg_iov = recv.pieces.as_mut_ptr();
        recv.message.msg_iovlen = recv.pieces.len();
    }

    /// Receives what is there, as [`receive`](Self::receive) does, without waiting. Returns the number of bytes, for
    /// [`received`](Self::received); 0 at the end of the stream, and if nothing is there.
    ///
    /// # Errors
    /// The connection is broken.
    ///
    /// # Safety
    /// `direct` in memory is valid for writes, and nobody has a reference to it.
    ///
    /// # Panics
    /// While an operation receives, and if `direct` is in registered pages.
    pub(crate) unsafe fn receive_now(
        &mut self,
        direct: Data<'_>,
        window: usize,
    ) -> io::Result<usize> {
        let fd = self.parts.fd.as_raw_fd();
        let Data::Memory(direct) = direct else {
            unreachable!("only operations reach registered pages");
        };
        self.name(direct, window);
        let recv = &mut *self.parts.recv;
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: the message and its pieces are ours, and no operation uses them; the pieces are the staging buffer and what
        // the caller vouches for.
        let bytes = unsafe { libc::recvmsg(fd, &raw mut recv.message, flags) };
        if let Ok(bytes) = usize::try_from(bytes) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                recv.drained = true;
                Ok(0)
            }
            _ => Err(error),
        }
    }

    /// The socket is likely empty.
    pub(crate) fn is_drained(&self) -> bool {
        self.parts.recv.drained
    }

    /// Notes that the operation from [`receive`](Self::receive) was pushed.
    pub(crate) const fn receive_pushed(&mut self) {
        self.receiving = true;
    }

    /// Processes its completion, with its flags. Returns how many bytes went into the request's buffer.
    pub(crate) fn received(&mut self, bytes: usize, flags: u32) -> usize {
        self.receiving = false;
        let recv = &mut *self.parts.recv;
        recv.drained = bytes < recv.asked && flags & CQE_F_SOCK_NONEMPTY == 0;
        let direct = bytes.min(recv.direct);
        recv.held = (recv.held + bytes - direct).min(recv.staging.len());
        direct
    }

    /// Received bytes that are not consumed yet.
    ///
    /// # Panics
    /// While a receive is in flight.
    pub(crate) fn staged(&self) -> &[u8] {
        assert!(!self.receiving, "the kernel writes there");
        &self.parts.recv.staging[..self.parts.recv.held]
    }

    /// Consumes the first staged bytes.
    ///
    /// # Panics
    /// While a receive is in flight.
    pub(crate) fn used(&mut self, bytes: usize) {
        assert!(!self.receiving, "the kernel writes there");
        let recv = &mut *self.parts.recv;
        let bytes = bytes.min(recv.held);
        if bytes < recv.held {
            recv.staging.copy_within(bytes..recv.held, 0);
        }
        recv.held -= bytes;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.in_flight() > 0 {
            // The kernel may still use the memory: leak it together with the descriptor, so that the socket stays open.
            self.shut_down();
            return;
        }
        // SAFETY: they are dropped once, here, and nothing uses them afterwards.
        unsafe { ManuallyDrop::drop(&mut self.parts) };
    }
}

// SAFETY: the pointers are into boxes of its own, or to memory whose owner keeps it wherever the socket is.
unsafe impl std::marker::Send for Socket {}

/// Converts a negative result into an error.
pub(crate) fn error_of(result: i32) -> io::Error {
    io::Error::from_raw_os_error(result.saturating_neg())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::sending::COPIED;
    use super::*;

    /// A socket of ours, which has sent as much as TCP takes if it is `full`, and the server's end.
    fn pair(full: bool) -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut ours = TcpStream::connect(address).expect("a connection");
        let (theirs, _) = listener.accept().expect("a connection");
        let time = Some(Duration::from_secs(10));
        theirs.set_read_timeout(time).expect("a socket");
        ours.set_nonblocking(true).expect("a socket");
        while full && ours.write(&[0; 1 << 16]).is_ok() {}
        (Socket::new(ours.into()), theirs)
    }

    /// L71 A connection that is lost, or whose process dies, delivers nothing more: its requests go to another one.
    #[test]
    fn l71_what_a_lost_connection_did_not_send_is_discarded() {
        let (ours, mut theirs) = pair(true);
        ours.shut_down();
        drop(ours);
        let mut told = Vec::new();
        let end = theirs.read_to_end(&mut told);
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_goodbye_is_delivered() {
        let (ours, mut theirs) = pair(false);
        ours.say_goodbye(b"bye");
        ours.shut_down();
        drop(ours);
        let mut told = Vec::new();
        theirs.read_to_end(&mut told).expect("an orderly end");
        assert_eq!(told, b"bye");
    }

    #[test]
    fn sends_in_place_end_where_the_kernel_copies() {
        let (mut tcp, _theirs) = pair(false);
        tcp.sends_in_place();
        for _ in 0..3 {
            (0..COPIED - 1).for_each(|_| tcp.notified(i32::MIN));
            tcp.notified(0);
        }
        assert!(tcp.parts.in_place, "now and then");
        (0..COPIED).for_each(|_| tcp.notified(i32::MIN));
        assert!(!tcp.parts.in_place);
        tcp.sends_in_place();
        assert!(!tcp.cannot_send_in_place() && tcp.parts.in_place, "no send");
        tcp.parts.tries = true;
        tcp.send_pushed();
        assert!(tcp.cannot_send_in_place() && !tcp.parts.in_place && !tcp.is_sending());
        let (unix, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut unix = Socket::new(unix.into());
        unix.sends_in_place();
        assert!(!unix.parts.in_place);
    }
}
