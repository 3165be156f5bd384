//! Sends of a [`Socket`]: headers and data of several requests in one.
#![expect(
    unsafe_code,
    reason = "names headers and buffers of requests to the kernel"
)]

use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use nbd_client::{Framing, Request};
use socket2::{Domain, SockRef};
use uring_lite::Sqe64;
use uring_lite::op;

use super::{Data, Socket, message};
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
pub(super) const COPIED: u8 = 8;

pub(super) struct Send {
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

impl std::fmt::Debug for Send {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Send").finish_non_exhaustive()
    }
}

impl Send {
    pub(super) fn new() -> Self {
        Self {
            headers: [0; Request::LONGEST * BATCH],
            filled: 0,
            count: 0,
            bytes: 0,
            pieces: Vec::with_capacity(2 * BATCH),
            registered: VecDeque::new(),
            ends_in_header: false,
            first: 0,
            message: message(),
        }
    }
}

impl Socket {
    /// Omits MSG_WAITALL in sends, which kernel TLS rejects with EOPNOTSUPP. Sends may then be short.
    pub(crate) fn sends_short(&mut self) {
        self.parts.flags &= !libc::MSG_WAITALL.cast_unsigned();
    }

    /// Sends large data of registered pages in place, until the kernel copies it all the same. A unix socket always copies.
    pub(crate) fn sends_in_place(&mut self) {
        let domain = SockRef::from(&self.as_fd()).domain();
        self.parts.in_place = domain.is_ok_and(|domain| domain != Domain::UNIX);
    }

    /// Processes the failure of a send. True if it was one in place: there are none from now on, and what it was to send is sent
    /// otherwise, or fails for a reason of its own.
    pub(crate) fn cannot_send_in_place(&mut self) -> bool {
        let tried = std::mem::take(&mut self.parts.tries);
        if tried {
            self.parts.in_place = false;
            self.sending = false;
        }
        tried
    }

    /// Processes the result of a notification. Where the kernel always copies (loopback, some cards), sends in place only cost.
    pub(crate) fn notified(&mut self, res: i32) {
        self.parts.copied = match op::was_copied(res) {
            true => self.parts.copied.saturating_add(1),
            false => 0,
        };
        self.parts.in_place &= self.parts.copied < COPIED;
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
        self.parts.tries = false;
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
                    self.parts.tries = in_place;
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
}
