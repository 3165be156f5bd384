//! TLS that the kernel does not carry: a thread relays between the server's socket and one end of a socket pair. The ring
//! uses the other end as if it were the connection.
//!
//! At most [`CHUNK`] bytes wait in each direction; the sender is read again once the receiver has accepted them. The thread
//! sleeps without a deadline while the connection lasts, because the ring's side ends it: that side has the deadlines. Once
//! either side has ended, the thread has [`LAST`] to deliver the rest. A connection that was given up delivers nothing more,
//! because its requests are sent again on another one.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConnection;
use socket2::Socket;

use crate::socket::{discard_unsent, keep_unsent};

/// Maximum number of bytes waiting in one direction.
const CHUNK: usize = 256 << 10;

/// Time to deliver the rest after either side has ended.
const LAST: Duration = Duration::from_secs(2);

/// What the thread needs.
#[derive(Debug)]
pub(crate) struct Relay {
    server: Socket,
    session: ClientConnection,
    ring: UnixStream,
    /// Plain text for the ring; the first `sent` bytes are delivered.
    inward: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
    /// Why it ended. If the ring's side sets it, the thread ends at once.
    end: Arc<OnceLock<String>>,
    /// Why the server's side has ended.
    server_ended: Option<String>,
    /// The ring's side has ended: what it sent before is still delivered.
    ring_ended: bool,
    /// The ring's side hung up; the pair may still hold its last bytes.
    ring_hung_up: bool,
    until: Option<Instant>,
    started: bool,
}

impl Relay {
    /// Returns the relay and the ring's end of the pair.
    pub(crate) fn new(
        server: Socket,
        session: ClientConnection,
        end: Arc<OnceLock<String>>,
    ) -> io::Result<(Self, OwnedFd)> {
        let (ring, other) = UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        server.set_nonblocking(true)?;
        let relay = Self {
            server,
            session,
            ring,
            inward: Vec::with_capacity(CHUNK),
            sent: 0,
            buffer: vec![0; CHUNK],
            end,
            server_ended: None,
            ring_ended: false,
            ring_hung_up: false,
            until: None,
            started: false,
        };
        Ok((relay, other.into()))
    }

    /// Relays until the connection ends.
    pub(crate) fn run(mut self) {
        self.started = true;
        discard_unsent((&self.server).into());
        // The relay bounds it by how much it reads.
        self.session.set_buffer_limit(None);
        let why = self.relay();
        tracing::debug!("a relay of TLS ends: {why}");
        // Before the ring sees the end of the pair.
        let _ = self.end.set(why);
    }

    /// Returns why it ended.
    fn relay(&mut self) -> String {
        loop {
            if let Some(why) = self.end.get() {
                return why.clone();
            }
            self.feed_ring();
            if self.sent == self.inward.len()
                && let Some(why) = self.server_ended.take()
            {
                return why;
            }
            if self.ring_ended && !self.session.wants_write() {
                keep_unsent((&self.server).into());
                return "the client ended it".to_owned();
            }
            let ending = self.server_ended.is_some() || self.ring_ended || self.ring_hung_up;
            if ending && *self.until.get_or_insert_with(|| Instant::now() + LAST) <= Instant::now()
            {
                let late = || "the last bytes were not taken in time".to_owned();
                return self.server_ended.take().unwrap_or_else(late);
            }
            match self.wait() {
                Ok((server, ring)) => {
                    self.ring_hung_up |= ring.intersects(PollFlags::HUP | PollFlags::ERR);
                    self.serve_server(server);
                    if ring.contains(PollFlags::IN) {
                        self.drain_ring();
                    }
                }
                Err(e) => return format!("cannot wait for a socket: {e}"),
            }
        }
    }

    /// Sleeps until a side is ready. Returns the events of the server's and the ring's side.
    fn wait(&self) -> io::Result<(PollFlags, PollFlags)> {
        let when = |wanted: bool, flag| match wanted {
            true => flag,
            false => PollFlags::empty(),
        };
        let delivered = self.sent == self.inward.len();
        let (is_there, writes) = (self.server_ended.is_none(), self.session.wants_write());
        let takes = is_there && !writes;
        let from_server = is_there && delivered && !self.ring_ended;
        let server = when(from_server, PollFlags::IN) | when(is_there && writes, PollFlags::OUT);
        let ring =
            when(!self.ring_ended && takes, PollFlags::IN) | when(!delivered, PollFlags::OUT);
        // A hang-up is reported even if no event is wanted, and would keep waking the thread: the server is left out
        // then, and so is the ring once its hang-up is known.
        let watches_ring = !ring.is_empty() || !self.ring_hung_up;
        let mut fds = Vec::with_capacity(2);
        if !server.is_empty() {
            fds.push(PollFd::from_borrowed_fd(self.server.as_fd(), server));
        }
        if watches_ring {
            fds.push(PollFd::from_borrowed_fd(self.ring.as_fd(), ring));
        }
        let left = self
            .until
            .map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut seen = fds.iter().map(PollFd::revents);
        let mut next = |is_there: bool| match is_there {
            true => seen.next().unwrap_or_else(PollFlags::empty),
            false => PollFlags::empty(),
        };
        Ok((next(!server.is_empty()), next(watches_ring)))
    }

    /// Receives records from the server and sends records to it.
    fn serve_server(&mut self, ready: PollFlags) {
        let ended = PollFlags::HUP | PollFlags::ERR;
        if self.session.wants_write()
            && ready.intersects(PollFlags::OUT | ended)
            && let Err(e) = self.session.write_tls(&mut &self.server)
            && e.kind() != io::ErrorKind::WouldBlock
        {
            self.server_ends(e.to_string());
        }
        let delivered = self.sent == self.inward.len();
        let readable = delivered && ready.intersects(PollFlags::IN | ended);
        if self.server_ended.is_some() || !readable {
            return;
        }
        match self.session.read_tls(&mut &self.server) {
            Ok(0) => self.server_ends("the server closed the connection".to_owned()),
            Ok(_) => match self.session.process_new_packets() {
                Ok(state) if state.peer_has_closed() => {
                    self.server_ends("the server closes the TLS session".to_owned());
                }
                Ok(_) => {}
                Err(e) => {
                    // An alert tells the server why, if it still listens.
                    let _ = self.session.write_tls(&mut &self.server);
                    self.server_ends(format!("TLS: {e}"));
                }
            },
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => self.server_ends(e.to_string()),
        }
    }

    fn server_ends(&mut self, why: String) {
        self.server_ended.get_or_insert(why);
    }

    /// Delivers plain text to the ring.
    fn feed_ring(&mut self) {
        loop {
            if self.sent == self.inward.len() {
                self.sent = 0;
                self.inward.clear();
                let mut reader = self.session.reader();
                let mut limited = (&mut reader).take(CHUNK as u64);
                // Errors mean that there is no more for now; `serve_server` reports the end.
                let _ = limited.read_to_end(&mut self.inward);
            }
            let rest = self.inward.get(self.sent..).unwrap_or_default();
            if rest.is_empty() {
                return;
            }
            match self.ring.write(rest) {
                Ok(some) => self.sent += some,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    // The ring's end is closed.
                    self.inward.clear();
                    self.sent = 0;
                    self.ring_hung_up = true;
                    return;
                }
            }
        }
    }

    /// Encrypts what the ring sent.
    fn drain_ring(&mut self) {
        match self.ring.read(&mut self.buffer) {
            Ok(0) => self.ring_ends(),
            Ok(some) => {
                let bytes = self.buffer.get(..some).unwrap_or_default();
                if let Err(e) = self.session.writer().write_all(bytes) {
                    self.server_ends(e.to_string());
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => self.ring_ends(),
        }
    }

    fn ring_ends(&mut self) {
        self.ring_ended = true;
        self.session.send_close_notify();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Nobody used the connection: tell the server that it is closed on purpose.
        if !self.started {
            self.session.send_close_notify();
            let _ = self.session.write_tls(&mut &self.server);
        }
    }
}
