//! A socket with at most one send and one receive on the ring, and the memory that these use.
#![expect(
    unsafe_code,
    reason = "names headers, buffers of requests and a staging buffer to the kernel"
)]

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nbd_client::{Framing, Request};
use socket2::{Domain, SockRef};
use ublk_queue::MemRef;
use uring_lite::Sqe64;
use uring_lite::op::{self, CQE_F_SOCK_NONEMPTY, Fd};

use crate::registered::{self, Pages};

/// Most requests in one send. Each has a header, a WRITE also data, and the kernel accepts 1024 iovecs.
pub(crate) const BATCH: usize = 256;

/// A send with this much data takes no more requests, so that it completes before its answers are due even on a slow
/// link.
const BATCH_BYTES: usize = 4 << 20;

/// Data of at least this length is sent in place. Through a network card it saves a seventh of a WRITE's instructions;
/// shorter data gains nothing, and is copied by the kernel for the most part.
const IN_PLACE: usize = 64 << 10;

/// After so many sends in a row that the kernel copied, none is made in place.
const COPIED: u8 = 8;

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
}

struct Send {
    /// One behind the other.
    headers: [u8; Request::LONGEST * BATCH],
    /// Bytes of them.
    filled: usize,
    count: usize,
    /// Bytes of WRITE data.
    bytes: usize,
    pieces: Vec<libc::iovec>,
    /// Which pieces are in registered buffers, and in which, in this order. The address of such a piece is its offset there.
    registered: VecDeque<(usize, u16)>,
    /// The last piece consists of headers.
    ends_in_header: bool,
    /// Index of the first iovec that is not completely sent.
    first: usize,
    message: libc::msghdr,
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

impl std::fmt::Debug for Send {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Send").finish_non_exhaustive()
    }
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
        let send = Send {
            headers: [0; Request::LONGEST * BATCH],
            filled: 0,
            count: 0,
            bytes: 0,
            pieces: Vec::with_capacity(2 * BATCH),
            registered: VecDeque::new(),
            ends_in_header: false,
            first: 0,
            message: message(),
        };
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
                send: Box::new(send),
                recv: Box::new(recv),
                flags: (libc::MSG_NOSIGNAL | libc::MSG_WAITALL).cast_unsigned(),
                in_place: false,
                copied: 0,
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

    /// Omits MSG_WAITALL in sends, which kernel TLS rejects with EOPNOTSUPP. Sends may then be short.
    pub(crate) fn sends_short(&mut self) {
        self.parts.flags &= !libc::MSG_WAITALL.cast_unsigned();
    }

    /// Sends large data of registered pages in place, until the kernel copies it all the same. A unix socket always copies.
    pub(crate) fn sends_in_place(&mut self) {
        let domain = SockRef::from(&self.as_fd()).domain();
        self.parts.in_place = domain.is_ok_and(|domain| domain != Domain::UNIX);
    }

    /// Processes the result of a notification. Where the kernel always copies (loopback, some cards), sends in place only cost.
    pub(crate) fn notified(&mut self, res: i32) {
        self.parts.copied = match op::was_copied(res) {
            true => self.parts.copied.saturating_add(1),
            false => 0,
        };
        self.parts.in_place &= self.parts.copied < COPIED;
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

    /// Whether a completed send left bytes that the kernel has not accepted.
    pub(crate) fn has_unsent(&self) -> bool {
        self.parts.send.first < self.parts.send.pieces.len()
    }

    /// Starts a new send.
    ///
    /// # Panics
    /// While a send is in flight.
    pub(crate) fn begin(&mut self) {
        assert!(!self.sending, "the kernel reads it");
        self.parts.send.count = 0;
        self.parts.send.filled = 0;
        self.parts.send.bytes = 0;
        self.parts.send.first = 0;
        self.parts.send.pieces.clear();
        self.parts.send.registered.clear();
        self.parts.send.ends_in_header = false;
    }

    /// Whether one more request fits.
    pub(crate) fn has_room(&self) -> bool {
        self.parts.send.count < BATCH && self.parts.send.bytes < BATCH_BYTES
    }

    /// Adds a request's header, and the data of a WRITE.
    ///
    /// # Safety
    /// Until the send is complete ([`sent`](Self::sent) says so) or the socket is dropped, `data` in memory stays valid for
    /// reads, and nobody forms a mutable reference to it.
    ///
    /// # Panics
    /// While a send is in flight, and when there is no room.
    pub(crate) unsafe fn add(&mut self, request: &Request, framing: Framing, data: Data<'_>) {
        assert!(
            !self.sending && self.has_room(),
            "no room, or the kernel reads it"
        );
        let send = &mut *self.parts.send;
        let to = send.headers.get_mut(send.filled..);
        let to = to.and_then(<[u8]>::first_chunk_mut);
        let len = request.encode(framing, to.expect("room for one more request"));
        let header = (&raw mut send.headers).cast::<u8>();
        let header = header.wrapping_add(send.filled);
        send.filled += len;
        send.count += 1;
        send.bytes += data.len();
        match send.pieces.last_mut() {
            // Headers follow each other in memory: those without data between them are one piece.
            Some(last) if send.ends_in_header => last.iov_len += len,
            _ => send.pieces.push(libc::iovec {
                iov_base: header.cast(),
                iov_len: len,
            }),
        }
        send.ends_in_header = data.len() == 0;
        if send.ends_in_header {
            return;
        }
        let iov_base = match data {
            Data::Memory(mem) => mem.ptr().as_ptr().cast(),
            Data::Registered(Pages { index, at, .. }) => {
                send.registered.push_back((send.pieces.len(), index));
                std::ptr::without_provenance_mut(usize::try_from(at).unwrap_or(usize::MAX))
            }
        };
        send.pieces.push(libc::iovec {
            iov_base,
            iov_len: data.len(),
        });
    }

    /// The operation that sends what was added, or the rest of it.
    pub(crate) fn send(&mut self) -> Sqe64 {
        let (fd, mut flags, in_place) = (self.fd(), self.parts.flags, self.parts.in_place);
        let send = &mut *self.parts.send;
        let mut rest = &mut send.pieces[send.first..];
        while send
            .registered
            .pop_front_if(|(at, _)| *at < send.first)
            .is_some()
        {}
        if let Some((piece, index)) = send.registered.front().copied() {
            match rest.split_at_mut(piece - send.first) {
                ([], [data, ..]) => {
                    let at = data.iov_base.addr() as u64;
                    let len = u32::try_from(data.iov_len).unwrap_or(u32::MAX);
                    let in_place = in_place && data.iov_len >= IN_PLACE;
                    return registered::send(fd, Pages { index, at, len }, flags, in_place);
                }
                // An operation has memory of one kind.
                (headers, _data) => rest = headers,
            }
            flags |= op::MSG_MORE;
        }
        if let [piece] = rest {
            let len = u32::try_from(piece.iov_len).unwrap_or(u32::MAX);
            // SAFETY: as below. Without a message the kernel has less to copy.
            return unsafe { op::send(fd, piece.iov_base.cast(), len, flags) };
        }
        send.message.msg_iov = rest.as_mut_ptr();
        send.message.msg_iovlen = rest.len();
        // SAFETY: message and pieces are in a box of ours and stay as they are while `sending` is set; the descriptor is
        // closed after that, or never.
        unsafe { op::sendmsg(fd, &raw const send.message, flags) }
    }

    /// Sends what was added as far as the socket takes it at once. Returns the number of bytes, for [`sent`](Self::sent); `None` if
    /// it takes none, which is left to the operation to say.
    ///
    /// # Panics
    /// While a send is in flight.
    pub(crate) fn send_now(&mut self) -> Option<usize> {
        assert!(!self.sending, "the kernel reads it");
        let fd = self.parts.fd.as_raw_fd();
        let send = &mut *self.parts.send;
        if !send.registered.is_empty() {
            return None;
        }
        let rest = &mut send.pieces[send.first..];
        send.message.msg_iov = rest.as_mut_ptr();
        send.message.msg_iovlen = rest.len();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        // SAFETY: message, pieces and headers are ours; those who added data keep it until it is sent.
        let bytes = unsafe { libc::sendmsg(fd, &raw const send.message, flags) };
        usize::try_from(bytes).ok().filter(|bytes| *bytes > 0)
    }

    /// Notes that the operation from [`send`](Self::send) was pushed.
    pub(crate) const fn send_pushed(&mut self) {
        self.sending = true;
    }

    /// Processes its completion. Returns true if everything is sent; otherwise [`send`](Self::send) sends the rest.
    pub(crate) fn sent(&mut self, bytes: usize) -> bool {
        self.sending = false;
        let send = &mut *self.parts.send;
        let mut bytes = bytes;
        for piece in send.pieces.iter_mut().skip(send.first) {
            let used = bytes.min(piece.iov_len);
            piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(used).cast();
            piece.iov_len -= used;
            bytes -= used;
            if piece.iov_len > 0 {
                return false;
            }
            send.first += 1;
        }
        true
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
        let (unix, _theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut unix = Socket::new(unix.into());
        unix.sends_in_place();
        assert!(!unix.parts.in_place);
    }
}
