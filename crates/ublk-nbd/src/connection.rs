//! The byte streams of one connection: requests are gathered into sends, replies parsed from receives.
#![expect(unsafe_code, reason = "lends buffers of requests to the socket")]

use std::io;
use std::os::fd::OwnedFd;

use nbd_client::{
    Command, CommandFlags, ErrorCode, Event, Export, Framing, Replies, Request, Simple,
    TransmissionFlags,
};
use ublk_core::Errno;
use ublk_queue::KeptRequest;
use uring_lite::Sqe64;

use crate::outgoing::{LARGE, Outgoing};
use crate::registered::Pages;
use crate::socket::{Data, Socket};
use crate::transport::{Carrier, Tls};

/// Data of at least this length is received straight into its buffer, by one operation: that of a large READ, whose header was
/// received with its first bytes.
const WHOLE: usize = LARGE as usize - 64;

/// Most receives without an operation in a row: other requests of the queue wait meanwhile.
const AT_ONCE: usize = 16;

/// The cookie of the FLUSH that ends a connection; no request uses it.
const LAST_FLUSH: u64 = u64::MAX;

/// Largest payload of a TLS record.
const RECORD: usize = 16 << 10;

/// TRIM and WRITE_ZEROES get one more second for each multiple of this.
const BYTES_A_SECOND: u32 = 64 << 20;

/// A connection with an open export.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: Socket,
    pub(crate) replies: Replies,
    framing: Framing,
    /// The destination of the data that comes next in the stream: the request's cookie and the offset in its buffer.
    payload: (u64, usize),
    /// Index of tag 0's pages in the ring's buffer table, in zero copy: no code here sees the data then, so nothing but headers
    /// is received into the staging buffer.
    registered: Option<u16>,
    /// Writes must fail, because the export changed in a way that the device cannot tolerate.
    pub(crate) reads_only: bool,
    /// Size of the export in bytes.
    pub(crate) size: u64,
    /// The server offers FLUSH.
    has_flush: bool,
    pub(crate) peer: String,
    /// Deadline, in the timer's seconds, of the FLUSH that is sent before the device moves to another connection.
    pub(crate) flushing: Option<u64>,
    /// The error with which the server answered that FLUSH.
    pub(crate) flush_failed: Option<ErrorCode>,
    tls: Option<Tls>,
    /// Upper bound of the TLS records that were sent.
    pub(crate) records: u64,
    /// From this number on, no further request is sent.
    pub(crate) most_records: u64,
    /// The server said that it shuts down: it answers nothing that it does not have yet.
    shuts_down: bool,
}

/// Seconds that a request has in addition to the usual time.
fn more_time(command: Command, len: u32) -> u64 {
    match command {
        Command::Trim | Command::WriteZeroes => (len / BYTES_A_SECOND).into(),
        _ => 0,
    }
}

/// A request without a range.
const fn bare(command: Command, cookie: u64) -> Request {
    Request {
        command,
        flags: CommandFlags(0),
        cookie,
        offset: 0,
        len: 0,
    }
}

impl Connection {
    pub(crate) fn new(
        socket: OwnedFd,
        export: &Export,
        depth: u16,
        peer: String,
        reads_only: bool,
        tls: Option<Tls>,
        registered: Option<u16>,
    ) -> Self {
        let mut socket = Socket::new(socket);
        if tls.as_ref().map(|tls| tls.info.carrier) == Some(Carrier::Kernel) {
            socket.sends_short();
        }
        if tls.is_none() {
            socket.sends_in_place();
        }
        Self {
            socket,
            replies: Replies::new(export.framing, depth.into()),
            framing: export.framing,
            payload: (0, 0),
            registered,
            reads_only,
            size: export.size,
            has_flush: export.flags.contains(TransmissionFlags::SEND_FLUSH),
            peer,
            flushing: None,
            flush_failed: None,
            tls,
            records: 0,
            most_records: u64::MAX,
            shuts_down: false,
        }
    }

    /// Whether the TLS keys are used up, or the server shuts down. Requests in flight are still answered.
    pub(crate) const fn is_worn_out(&self) -> bool {
        self.shuts_down || self.records >= self.most_records
    }

    /// Whether the server shuts down.
    pub(crate) const fn shuts_down(&self) -> bool {
        self.shuts_down
    }

    /// Discards what a TLS thread has not sent yet: requests are sent again on another connection and must not arrive late.
    pub(crate) fn abandon(&self) {
        if let Some(tls) = &self.tls {
            let _ = tls.end.set("it was given up".to_owned());
        }
    }

    /// Processes the completion of a send. Returns true if everything is sent.
    pub(crate) fn sent(&mut self, bytes: usize) -> bool {
        if self.tls.is_some() {
            self.records += (bytes / RECORD + 1) as u64;
        }
        self.socket.sent(bytes)
    }

    /// Why an operation failed; `None` if the connection goes on.
    pub(crate) fn end_of(&self, error: &io::Error) -> Option<String> {
        match &self.tls {
            Some(tls) => tls.end_of(self.socket.as_fd(), error),
            None => Some(error.to_string()),
        }
    }

    /// Gathers waiting requests into one send; an unfinished send comes first. `due` is the second by which the server
    /// must answer. Returns true if there is something to send.
    pub(crate) fn gather(&mut self, outgoing: &mut Outgoing, due: u64) -> bool {
        if self.socket.is_sending() {
            return false;
        }
        if self.socket.has_unsent() {
            return true;
        }
        if !outgoing.is_waiting() || self.is_worn_out() {
            return false;
        }
        self.socket.begin();
        let registered = self.registered;
        while self.socket.has_room()
            && let Some((request, slot)) = outgoing.next()
        {
            self.replies.expect(&request);
            slot.due = due + more_time(request.command, slot.len());
            let data = match request.command {
                Command::Write => data_of(&mut slot.kept, registered, 0, usize::MAX),
                _ => Data::NONE,
            };
            // SAFETY: the request is kept in its slot and not answered while `sending` is set, so its buffer stays the
            // server's. Only this queue has it, and nobody forms a reference to a WRITE's data.
            unsafe { self.socket.add(&request, self.framing, data) };
        }
        true
    }

    /// Pushes the send. Returns false if the ring is full.
    pub(crate) fn push_send(&mut self, push: impl FnOnce(Sqe64) -> bool) -> bool {
        let pushed = push(self.socket.send());
        if pushed {
            self.socket.send_pushed();
        }
        pushed
    }

    /// Pushes a receive, unless one is in flight. Returns false if the ring is full.
    pub(crate) fn push_receive(
        &mut self,
        outgoing: &mut Outgoing,
        push: impl FnOnce(Sqe64) -> bool,
    ) -> bool {
        if self.socket.is_receiving() {
            return true;
        }
        let (direct, window) = self.destination(outgoing);
        let window = match direct.len() {
            WHOLE.. => 0,
            _ => window,
        };
        // SAFETY: the request is kept in its slot and answered only after the receive has completed, so its buffer
        // stays the server's; until then nobody forms a reference to it.
        let sqe = unsafe { self.socket.receive(direct, window) };
        let pushed = push(sqe);
        if pushed {
            self.socket.receive_pushed();
        }
        pushed
    }

    /// Where the next bytes of the stream belong: data of a READ, and so many bytes after it.
    fn destination<'a>(&self, outgoing: &'a mut Outgoing) -> (Data<'a>, usize) {
        let left = usize::try_from(self.replies.payload()).unwrap_or(usize::MAX);
        let (cookie, at) = self.payload;
        let large = outgoing.has_large();
        let registered = self.registered;
        let slot = outgoing.of(cookie).filter(|_| left > 0);
        let direct = slot.map_or(Data::NONE, |slot| {
            data_of(&mut slot.kept, registered, at, left)
        });
        let held = self.socket.staged().len();
        let window = match large {
            _ if registered.is_some() => Replies::SIMPLE.saturating_sub(held),
            // One header, so that little of its data must be copied.
            true => self.replies.header(),
            false => usize::MAX,
        };
        (direct, window)
    }

    /// Processes received bytes, and replies of large READs that are already there: each would take an operation for its
    /// header and one for its data, and their requests would be answered one by one. An error ends the connection.
    pub(crate) fn read(
        &mut self,
        outgoing: &mut Outgoing,
        bytes: usize,
        flags: u32,
    ) -> Result<(), String> {
        self.parse(outgoing, bytes, flags)?;
        for _ in 0..AT_ONCE {
            if self.registered.is_some() || self.socket.is_drained() || !outgoing.has_large() {
                break;
            }
            let (direct, window) = self.destination(outgoing);
            // SAFETY: nobody else forms a reference to the request's buffer, which is the server's until it is answered.
            match unsafe { self.socket.receive_now(direct, window) } {
                // The end of the stream is found again by the next operation.
                Ok(0) => break,
                Ok(bytes) => self.parse(outgoing, bytes, 0)?,
                Err(error) => return self.end_of(&error).map_or(Ok(()), Err),
            }
        }
        Ok(())
    }

    /// Parses received bytes and answers requests. An error ends the connection.
    fn parse(&mut self, outgoing: &mut Outgoing, bytes: usize, flags: u32) -> Result<(), String> {
        let broken = |e: nbd_client::ProtocolError| e.to_string();
        let direct = self.socket.received(bytes, flags);
        if direct > 0 {
            self.payload.1 += direct;
            let event = self
                .replies
                .received(u32::try_from(direct).unwrap_or(u32::MAX));
            self.shuts_down |= answer(outgoing, event.map_err(broken)?);
        }
        let mut used = 0;
        let staged = self.socket.staged();
        loop {
            let rest = staged.get(used..).unwrap_or_default();
            let left = usize::try_from(self.replies.payload()).unwrap_or(usize::MAX);
            if left > 0 {
                let some = left.min(rest.len());
                if some == 0 {
                    break;
                }
                let (cookie, at) = self.payload;
                fill(outgoing, cookie, at, some, |to| {
                    to.copy_from_slice(rest.get(..some).unwrap_or_default());
                })?;
                used += some;
                self.payload.1 += some;
                let event = self
                    .replies
                    .received(u32::try_from(some).unwrap_or(u32::MAX));
                self.shuts_down |= answer(outgoing, event.map_err(broken)?);
                continue;
            }
            if let Some((cookie, reply)) = self.replies.simple(rest) {
                used += Replies::SIMPLE;
                match reply {
                    Simple::Read(data) => {
                        used += data.len();
                        outgoing.answer_read(cookie, data);
                    }
                    Simple::Done => outgoing.answer(cookie, Ok(())),
                }
                continue;
            }
            let (some, event) = self.replies.next(rest).map_err(broken)?;
            used += some;
            match event {
                None if some == 0 => break,
                Some(Event::Data { cookie, at, .. }) => {
                    self.payload = (cookie, usize::try_from(at).unwrap_or(usize::MAX));
                }
                Some(Event::Hole { cookie, at, len }) => {
                    let size = |n| usize::try_from(n).unwrap_or(usize::MAX);
                    fill(outgoing, cookie, size(at), size(len), |to| to.fill(0))?;
                }
                Some(Event::Answered {
                    cookie: LAST_FLUSH,
                    result: Err(code),
                }) => (self.flushing, self.flush_failed) = (None, Some(code)),
                event => self.shuts_down |= answer(outgoing, event),
            }
        }
        self.socket.used(used);
        Ok(())
    }

    /// Starts the FLUSH that ends a drained connection, because writes answered on it must be as durable as the client
    /// was told. An unfinished send comes first. Returns true if there is something to send.
    pub(crate) fn flush(&mut self, due: u64) -> bool {
        if self.socket.is_sending() {
            return false;
        }
        if self.socket.has_unsent() {
            return true;
        }
        if self.flushing.is_some() || self.replies.in_flight() > 0 {
            return false;
        }
        self.flushing = Some(due);
        if !self.has_flush {
            return false;
        }
        let request = bare(Command::Flush, LAST_FLUSH);
        self.replies.expect(&request);
        self.socket.begin();
        // SAFETY: there is no data.
        unsafe { self.socket.add(&request, self.framing, Data::NONE) };
        true
    }

    /// Sends Disconnect, unless a send is in flight.
    pub(crate) fn say_goodbye(&self) {
        if self.socket.is_sending() || self.socket.has_unsent() {
            return;
        }
        let mut header = [0; Request::LONGEST];
        let len = bare(Command::Disconnect, 0).encode(self.framing, &mut header);
        self.socket
            .say_goodbye(header.get(..len).unwrap_or_default());
        if let Some(tls) = &self.tls {
            tls.close(self.socket.as_fd());
        }
    }
}

/// A part of a request's data: in its buffer, or in its registered pages.
fn data_of(kept: &mut KeptRequest, registered: Option<u16>, at: usize, len: usize) -> Data<'_> {
    match registered {
        Some(first) => pages_of(kept, first, at, len),
        None => {
            let buffer = kept.buffer();
            buffer.map_or(Data::NONE, |buffer| Data::Memory(buffer.part(at, len)))
        }
    }
}

/// The same on a device in zero copy, which may also share memory with its clients.
#[inline(never)]
fn pages_of(kept: &mut KeptRequest, first: u16, at: usize, len: usize) -> Data<'_> {
    let (index, all) = (first + kept.tag().get(), kept.len());
    if let Some(buffer) = kept.buffer() {
        return Data::Memory(buffer.part(at, len));
    }
    let at = at as u64;
    let rest = all.saturating_sub(at).min(len as u64);
    Data::Registered(Pages {
        index,
        at,
        len: u32::try_from(rest).unwrap_or(u32::MAX),
    })
}

/// Writes a part of a READ's buffer; an error if it has no such part.
fn fill(
    outgoing: &mut Outgoing,
    cookie: u64,
    at: usize,
    len: usize,
    write: impl FnOnce(&mut [u8]),
) -> Result<(), String> {
    let slot = outgoing.of(cookie);
    let buffer = slot.and_then(|slot| slot.kept.data_mut().ok());
    let part = buffer.and_then(|buffer| buffer.get_mut(at..at.checked_add(len)?));
    let part = part.ok_or("data came that has no place")?;
    write(part);
    Ok(())
}

/// The errno of a failed request. EINVAL, which also stands for a code that the protocol does not define, would say of a
/// request that the kernel has checked that its caller is at fault, and make programs try others.
const fn errno_of(code: ErrorCode) -> Errno {
    match Errno::new(code.errno()) {
        Errno::EINVAL => Errno::EIO,
        errno => errno,
    }
}

/// Answers a request whose reply is complete. True if the server shuts down: then it goes to the next connection.
fn answer(outgoing: &mut Outgoing, event: Option<Event>) -> bool {
    match event {
        Some(Event::Answered {
            cookie,
            result: Err(ErrorCode::ESHUTDOWN),
        }) => {
            outgoing.hold(cookie);
            true
        }
        Some(Event::Answered { cookie, result }) => {
            outgoing.answer(cookie, result.map_err(errno_of));
            false
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L70 A server's EINVAL, or a code of its own, is no word about the caller.
    #[test]
    fn l70_no_server_says_that_a_request_is_invalid() {
        let errno = |code| errno_of(ErrorCode(code));
        assert_eq!(errno(28), Errno::ENOSPC);
        for code in [5, 22, 9999, u32::MAX] {
            assert_eq!(errno(code), Errno::EIO, "{code}");
        }
    }

    /// L78 What has no data may take longer, by its length; nothing else may.
    #[test]
    fn l78_long_ranges_have_more_time() {
        for command in [Command::Trim, Command::WriteZeroes] {
            assert_eq!(more_time(command, 1 << 20), 0);
            assert_eq!(more_time(command, 1 << 30), 16);
        }
        for command in [Command::Read, Command::Write, Command::Flush] {
            assert_eq!(more_time(command, 1 << 30), 0);
        }
    }
}
