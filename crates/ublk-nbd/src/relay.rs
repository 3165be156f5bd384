//! TLS where the kernel does not carry it: a thread between the server's socket and a pair of sockets, of which the ring
//! uses one as if it were the connection.
//!
//! At most [`CHUNK`] bytes wait in each direction: the side that sends is read again once the other has taken them. The
//! thread sleeps until a socket has something to say, for as long as the connection lasts: that one is ended by the ring's
//! side, which has the deadlines. From the end of either side on it has [`LAST`] to deliver what is left. A connection that
//! is given up delivers nothing any more: its requests are sent again on another one, and would come twice.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConnection;
use socket2::Socket;

/// Most bytes that wait for a side.
const CHUNK: usize = 256 << 10;

/// How long the last bytes may take.
const LAST: Duration = Duration::from_secs(2);

/// The work of the thread.
#[derive(Debug)]
pub(crate) struct Relay {
    server: Socket,
    session: ClientConnection,
    ring: UnixStream,
    /// Bytes for the ring, of which the first `sent` have gone.
    inward: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
    /// Set when it ends.
    end: Arc<OnceLock<String>>,
    /// Why nothing more comes from the server.
    server_ended: Option<String>,
    /// The ring's side has ended: what it sent is delivered, and nothing to it.
    ring_ended: bool,
    /// It is about to: the last bytes may still be in the pair.
    ring_hung_up: bool,
    until: Option<Instant>,
    started: bool,
}

impl Relay {
    /// With the socket for the ring.
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
        // What waits is bounded here, by what is read.
        self.session.set_buffer_limit(None);
        let why = self.relay();
        tracing::debug!("a relay of TLS ends: {why}");
        // Before the ring sees the end.
        let _ = self.end.set(why);
    }

    /// Gives why it ended.
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

    /// Sleeps until a side is ready, and gives for what.
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
        // A side that nothing is wanted of would wake the thread again and again by its hang-up; the ring's is news once.
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

    /// Records of the server's, and to it.
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
                    // The server is told why, if it listens.
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

    /// Data of the server's for the ring.
    fn feed_ring(&mut self) {
        loop {
            if self.sent == self.inward.len() {
                self.sent = 0;
                self.inward.clear();
                let mut reader = self.session.reader();
                let mut limited = (&mut reader).take(CHUNK as u64);
                // Its end, and that there is no more, are told by what it leaves.
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
                    // Nobody is there to take it.
                    self.inward.clear();
                    self.sent = 0;
                    self.ring_hung_up = true;
                    return;
                }
            }
        }
    }

    /// Data of the ring's for the server.
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
