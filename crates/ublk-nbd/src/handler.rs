//! Handles the requests of one queue and the life of its connection.
#![expect(unsafe_code, reason = "takes completions from the lane")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nbd_client::Command;
use ublk_core::Errno;
use ublk_queue::port::{Port, Wake};
use ublk_queue::{Handler, LaneContext, Operation, Operations, Request};
use uring_lite::op;

use crate::connect::Connected;
use crate::connection::Connection;
use crate::device::Device;
use crate::options::Retry;
use crate::outgoing::{Asked, Outgoing};
use crate::registered;
use crate::socket::{Socket, error_of};
use crate::status::LinkState;
use crate::timer::Timer;

/// Slots of the handler's operations.
const SEND: u16 = 0;
const RECEIVE: u16 = 1;
const TIMER: u16 = 2;
const CANCEL: u16 = 3;

/// How long requests wait for the first connection, whatever the policy.
const FIRST: Duration = Duration::from_secs(10);

/// How long a device that is being forced to stop waits for answers, in seconds.
const LAST_SECONDS: u64 = 3;

/// Answers the requests of one queue from an NBD server.
#[derive(Debug)]
pub struct NbdHandler {
    pub(crate) device: Arc<Device>,
    pub(crate) queue: usize,
    pub(crate) outgoing: Outgoing,
    pub(crate) link: Link,
    /// Set by the connector when it has a connection for this queue.
    news: Arc<AtomicBool>,
    wake: Option<Waker>,
    timer: Timer,
    cancelling: bool,
    /// Timer ticks, one a second, counted only while there is something to wait for.
    now: u64,
    /// Generation of each operation slot.
    turns: [u16; 4],
    /// The queue is stopping and makes no more connections.
    ending: bool,
    pub(crate) depth: u16,
    /// Index of tag 0's pages in the ring's buffer table, in zero copy.
    pub(crate) registered: Option<u16>,
    /// Number of moves to another server that this queue has begun.
    moves: u64,
    /// The connection to move to once the old one is drained.
    pub(crate) next: Option<Connected>,
    /// Seconds since the device was forced to stop.
    given_up: u64,
    /// Whether the queue has ever had a connection.
    pub(crate) met: bool,
    /// A replacement for this connection, whose TLS keys are used up, was requested.
    pub(crate) renewing: bool,
    /// When a connection was lost, unless a request has been answered since: a server that accepts connections and
    /// answers nothing counts as unreachable.
    unanswered: Option<Instant>,
}

struct Waker(Arc<dyn Wake>);

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Waker").finish()
    }
}

/// The state of the connection.
#[derive(Debug)]
pub(crate) enum Link {
    /// No connection since then. A new one is being made, unless the queue is stopping.
    Down { since: Instant, failing: bool },
    /// Lost; the kernel may still hold operations on its socket.
    Closing { socket: Socket, since: Instant },
    /// Connected.
    Up(Box<Connection>),
}

impl NbdHandler {
    pub(crate) fn new(device: Arc<Device>, queue: usize) -> Self {
        Self {
            device,
            queue,
            outgoing: Outgoing::new(0),
            link: Link::Down {
                since: Instant::now(),
                failing: false,
            },
            news: Arc::default(),
            wake: None,
            timer: Timer::new(),
            cancelling: false,
            now: 0,
            turns: [0; 4],
            ending: false,
            depth: 0,
            registered: None,
            moves: 0,
            next: None,
            given_up: 0,
            met: false,
            renewing: false,
            unanswered: None,
        }
    }

    fn operation(&self, slot: u16) -> Operation {
        let turn = self.turns.get(usize::from(slot)).copied();
        Operation {
            slot,
            turn: turn.unwrap_or(0),
        }
    }

    pub(crate) fn ask_for_connection(&self) {
        if let Some(Waker(wake)) = &self.wake
            && !self.ending
        {
            let wake = Arc::clone(wake);
            self.device.connector.request(self.queue, wake, &self.news);
        }
    }

    /// Handles a broken connection: reports it and starts to close it.
    fn lost(&mut self, why: &str) {
        let Link::Up(up) = &self.link else {
            return;
        };
        if !self.ending {
            tracing::warn!(
                "queue {}: the connection to {} is lost: {why}; {} requests wait for another one",
                self.queue,
                up.peer,
                self.outgoing.in_flight()
            );
            self.device.board.failed(format!("{}: {why}", up.peer));
            self.device.board.set(self.queue, LinkState::Reconnecting);
        }
        up.abandon();
        self.close();
    }

    /// Starts to close the connection.
    pub(crate) fn close(&mut self) {
        if self.outgoing.in_flight() == 0 {
            self.unanswered = None;
        }
        let since = *self.unanswered.get_or_insert_with(Instant::now);
        let failing = false;
        match std::mem::replace(&mut self.link, Link::Down { since, failing }) {
            Link::Up(up) => {
                up.socket.shut_down();
                let socket = up.socket;
                self.link = Link::Closing { socket, since };
                self.closed();
            }
            other => self.link = other,
        }
    }

    /// Continues once the kernel holds no operation of the closed socket.
    fn closed(&mut self) {
        let Link::Closing { socket, since } = &self.link else {
            return;
        };
        if socket.in_flight() > 0 {
            return;
        }
        let since = *since;
        self.link = Link::Down {
            since,
            failing: false,
        };
        self.outgoing.replay();
        match self.next.take().filter(|_| !self.ending) {
            Some(next) => self.connected(next),
            None => self.ask_for_connection(),
        }
        self.expire();
    }

    /// Fails waiting requests once the retry policy's time is over.
    fn expire(&mut self) {
        let Link::Down { since, failing } = &mut self.link else {
            return;
        };
        let over = match self.device.retry() {
            Retry::Never => self.met || since.elapsed() >= FIRST,
            Retry::For(time) => since.elapsed() >= time,
            Retry::Forever => false,
        };
        // A device that is being forced to stop gets no new connection.
        let over = over || self.device.gives_up();
        if over != *failing && !over {
            self.device.board.set(self.queue, LinkState::Reconnecting);
        }
        if over && !*failing && !self.ending {
            tracing::error!(
                "queue {}: the server has not come back after {} s: requests fail until it does",
                self.queue,
                since.elapsed().as_secs()
            );
            self.device.board.set(self.queue, LinkState::Failing);
        }
        *failing = over;
        if *failing {
            self.outgoing.fail(Errno::EIO, |_| true);
        }
    }

    /// Sends waiting requests while there is room. Returns false if the ring is full.
    fn send<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        let operation = self.operation(SEND);
        let Link::Up(up) = &mut self.link else {
            return true;
        };
        let due = self.now + self.device.request_seconds();
        let ready = match self.next {
            Some(_) => up.flush(due),
            None => up.gather(&mut self.outgoing, due),
        };
        if !ready && self.next.is_none() && up.is_worn_out() && up.replies.in_flight() == 0 {
            if up.shuts_down() {
                let why = format!("{}: the server shuts down", up.peer);
                tracing::warn!("queue {}: {why}", self.queue);
                self.device.board.failed(why);
            }
            self.device.board.set(self.queue, LinkState::Reconnecting);
            self.hang_up();
            return true;
        }
        if !ready {
            return true;
        }
        // With one request in flight there is nothing to submit beside it. The completion of an operation would only end the sleep
        // in which the answer is waited for.
        if self.outgoing.in_flight() == 1
            && let Some(bytes) = up.socket.send_now()
        {
            self.send_completed(i32::try_from(bytes).unwrap_or(i32::MAX));
        }
        match &mut self.link {
            Link::Up(up) if up.socket.has_unsent() => {
                up.push_send(|sqe| ring.push(sqe, operation).is_ok())
            }
            _ => true,
        }
    }

    /// Keeps a receive in flight. Returns false if the ring is full.
    fn receive<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        let operation = self.operation(RECEIVE);
        match &mut self.link {
            Link::Up(up) => {
                up.push_receive(&mut self.outgoing, |sqe| ring.push(sqe, operation).is_ok())
            }
            _ => true,
        }
    }

    /// Processes received bytes; zero bytes end the connection.
    fn read(&mut self, bytes: usize, flags: u32) {
        let Link::Up(up) = &mut self.link else {
            return;
        };
        let before = self.outgoing.answers();
        let read = up.read(&mut self.outgoing, bytes, flags);
        if self.outgoing.answers() > before {
            self.unanswered = None;
            self.given_up = 0;
        }
        if let Some(code) = up.flush_failed.take() {
            // The old server failed its last FLUSH: data that it answered may exist nowhere else, so stay with it.
            self.next = None;
            let why = format!("not moved: the last flush on {} failed: {code}", up.peer);
            self.device.not_moved(self.queue, why);
        }
        if let Err(why) = read {
            self.lost(&why);
        }
    }

    /// Handles a timer tick: a second has passed while there was something to wait for, maybe for ever (L78).
    fn second(&mut self) {
        self.now += 1;
        self.given_up += u64::from(self.device.gives_up());
        let last = match &self.link {
            Link::Up(up) => up.flushing,
            _ => None,
        };
        let due = self.outgoing.due().into_iter().chain(last).min();
        if self.given_up > LAST_SECONDS && due.is_some() {
            self.lost("the device is given up, and the server does not answer");
        }
        if due.is_some_and(|due| due < self.now) {
            let seconds = self.device.request_seconds();
            self.lost(&format!("a request was not answered within {seconds} s"));
        }
        self.expire();
    }

    /// Sends Disconnect and closes the connection, if no request is in flight.
    pub(crate) fn hang_up(&mut self) {
        if let Link::Up(up) = &mut self.link {
            up.say_goodbye();
            self.close();
        }
    }
}

impl Handler for NbdHandler {
    const OPERATIONS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        if self.ending {
            // A request arrived after the stopping queue closed its connection: connect once more.
            self.ending = false;
            self.ask_for_connection();
        }
        let Some(asked) = Asked::of(&request) else {
            return request.complete(Err(Errno::EOPNOTSUPP));
        };
        match &self.link {
            Link::Down { failing: true, .. } => return request.complete(Err(Errno::EIO)),
            Link::Up(up) => {
                if self.outgoing.in_flight() == 0 {
                    self.unanswered = None;
                }
                let end = asked.offset.saturating_add(asked.len.into());
                if end > up.size || (up.reads_only && asked.command != Command::Read) {
                    return request.complete(Err(Errno::EIO));
                }
            }
            _ => {}
        }
        let mut kept = request.keep();
        if asked.command == Command::Write
            && (self.registered.is_none() || kept.buffer().is_some())
            && let Err(errno) = kept.fetch_data()
        {
            return kept.complete(Err(errno));
        }
        self.outgoing.add(kept, asked);
    }

    fn attach(&mut self, context: &LaneContext) {
        self.depth = context.depth();
        if context.data().is_zero_copy() {
            self.registered = Some(context.buf_base());
            self.device.connector.without_chunks();
            registered::prepare();
        }
        self.outgoing = Outgoing::new(self.depth);
        self.wake = Some(Waker(context.wake()));
        self.moves = self.device.moves();
        self.device.watched_by(context.wake());
        self.device.board.set(self.queue, LinkState::Reconnecting);
        self.ask_for_connection();
    }

    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        if self.device.moves() != self.moves {
            self.moves = self.device.moves();
            self.told_to_move();
        }
        if !self.ending
            && self.news.load(Ordering::Relaxed)
            && !matches!(self.link, Link::Closing { .. })
            && self.news.swap(false, Ordering::Acquire)
        {
            match self.device.connector.take(self.queue) {
                Some(connected) => self.offered(connected),
                // The connection was dropped because the device moved.
                None if self.needs_none() => {}
                None => self.ask_for_connection(),
            }
        }
        // The retry policy may have changed.
        self.expire();
        if self.next.is_some() {
            self.moved();
        }
        let mut full = !self.send(ring);
        full |= !self.receive(ring);
        let waits = self.outgoing.in_flight() > 0 || self.next.is_some();
        if waits && !self.timer.is_armed() && !self.ending {
            match ring.push(self.timer.arm(), self.operation(TIMER)).is_ok() {
                true => self.timer.pushed(),
                false => full = true,
            }
        }
        if self.ending && self.timer.is_armed() && !self.cancelling {
            let word = ring.word(self.operation(TIMER));
            let cancel = op::timeout_remove(word);
            match ring.push(cancel, self.operation(CANCEL)).is_ok() {
                true => self.cancelling = true,
                false => full = true,
            }
        }
        full
    }

    unsafe fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        if flags & op::CQE_F_NOTIF != 0 {
            // Of an operation that has completed. Nobody waits for it: the memory is the kernel's.
            if let Link::Up(up) = &mut self.link {
                up.socket.notified(res);
            }
            return;
        }
        if operation != self.operation(operation.slot) {
            return;
        }
        if let Some(turn) = self.turns.get_mut(usize::from(operation.slot)) {
            *turn = (*turn + 1) % 4096;
        }
        match operation.slot {
            TIMER => {
                self.timer.fired();
                self.second();
            }
            CANCEL => self.cancelling = false,
            SEND => self.send_completed(res),
            _ => self.receive_completed(res, flags),
        }
    }

    fn in_flight(&self) -> usize {
        let socket = match &self.link {
            Link::Down { .. } => 0,
            Link::Closing { socket, .. } => socket.in_flight(),
            Link::Up(up) => up.socket.in_flight(),
        };
        socket + usize::from(self.timer.is_armed()) + usize::from(self.cancelling)
    }

    fn drain(&mut self) {
        if !self.ending && self.outgoing.in_flight() == 0 {
            self.ending = true;
            self.next = None;
            self.device.connector.cancel(self.queue);
            self.device.board.ended(self.queue);
            self.hang_up();
        }
    }

    fn leave(&mut self) {
        self.ending = true;
        self.next = None;
        if let Link::Up(_) = self.link {
            self.lost("the server of the device ends");
        }
    }
}

impl Drop for NbdHandler {
    fn drop(&mut self) {
        let socket = match &self.link {
            Link::Down { .. } => 0,
            Link::Closing { socket, .. } => socket.in_flight(),
            Link::Up(up) => up.socket.in_flight(),
        };
        if socket > 0 {
            // The kernel may still access the buffers of these requests: leak them, as the socket is leaked.
            std::mem::forget(std::mem::replace(&mut self.outgoing, Outgoing::new(0)));
        }
    }
}

impl NbdHandler {
    /// Requests another connection if the TLS keys of this one are used up; it takes over as in a move. A server that
    /// accepts only one client lets it in once this one is closed, see [`Connection::is_worn_out`].
    fn renew_keys(&mut self) {
        if !std::mem::replace(&mut self.renewing, true) {
            tracing::debug!("queue {}: a new TLS session is due", self.queue);
            self.ask_for_connection();
        }
    }

    fn send_completed(&mut self, res: i32) {
        let bytes = usize::try_from(res).unwrap_or(0);
        match &mut self.link {
            Link::Up(up) => {
                if res < 0 && up.socket.cannot_send_in_place() {
                    return tracing::debug!("no sends in place: {}", error_of(res));
                }
                if up.sent(bytes) {
                    self.outgoing.sent();
                }
                if res <= 0 {
                    let why = up.end_of(&error_of(res)).unwrap_or_default();
                    self.lost(&format!("cannot send: {why}"));
                } else if up.records >= self.device.tls_records {
                    self.renew_keys();
                }
            }
            Link::Closing { socket, .. } => {
                socket.sent(bytes);
                self.closed();
            }
            Link::Down { .. } => {}
        }
    }

    fn receive_completed(&mut self, res: i32, flags: u32) {
        let bytes = usize::try_from(res).unwrap_or(0);
        match &mut self.link {
            Link::Closing { socket, .. } => {
                socket.received(bytes, flags);
                self.closed();
            }
            Link::Up(up) if bytes == 0 => {
                up.socket.received(0, flags);
                let end = match res {
                    0 => io::ErrorKind::UnexpectedEof.into(),
                    error => error_of(error),
                };
                match error_of(res).kind() {
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        if let Some(why) = up.end_of(&end) {
                            self.lost(&why);
                        }
                    }
                }
            }
            Link::Up(_) => self.read(bytes, flags),
            Link::Down { .. } => {}
        }
    }
}
