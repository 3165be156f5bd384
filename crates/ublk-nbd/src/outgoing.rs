//! The requests of a queue, from arrival to answer.

use std::collections::VecDeque;

use nbd_client::{Command, CommandFlags, Request};
use ublk_core::{Errno, Op};
use ublk_queue::KeptRequest;

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) kept: KeptRequest,
    pub(crate) command: Command,
    flags: CommandFlags,
    offset: u64,
    len: u32,
    /// Sequence number of the request. Requests are replayed in this order. It is part of the cookie, so that a
    /// repeated answer to an earlier request of the same tag matches nothing.
    arrival: u64,
    /// The second by which the server must answer; later the connection counts as lost.
    pub(crate) due: u64,
    /// The request is sent, or is part of the current send.
    pub(crate) sent: bool,
    /// It was sent on a connection that was lost, and has not been sent again.
    replayed: bool,
    /// The kernel may still read the request's header or data.
    pub(crate) sending: bool,
    /// The server's answer, if it came before the send was complete.
    pub(crate) early: Option<Result<(), Errno>>,
}

/// The NBD command for a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) command: Command,
    pub(crate) flags: CommandFlags,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Asked {
    /// Translates a request; `None` for operations that NBD does not have.
    pub(crate) fn of(request: &ublk_queue::Request<'_>) -> Option<Self> {
        let io_flags = request.flags();
        let when = |yes, flag| if yes { flag } else { CommandFlags::default() };
        let fua = when(io_flags.fua(), CommandFlags::FUA);
        let (command, flags) = match request.op() {
            Op::Read => (Command::Read, CommandFlags::default()),
            Op::Write => (Command::Write, fua),
            Op::Flush => (Command::Flush, CommandFlags::default()),
            Op::Discard => (Command::Trim, CommandFlags::default()),
            Op::WriteZeroes => {
                let no_hole = when(io_flags.no_unmap(), CommandFlags::NO_HOLE);
                (Command::WriteZeroes, fua | no_hole)
            }
            _ => return None,
        };
        Some(Self {
            command,
            flags,
            offset: request.offset(),
            len: u32::try_from(request.len()).ok()?,
        })
    }
}

/// All requests in flight, by tag, and the queue of those that wait to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    slots: Box<[Option<Slot>]>,
    waiting: VecDeque<u16>,
    in_flight: usize,
    arrivals: u64,
    /// Tags whose headers or data the kernel may still read.
    sending: Vec<u16>,
    /// Number of sent READs of at least [`LARGE`] bytes.
    large: usize,
    /// Number of answers from the server.
    answers: u64,
}

/// Number of bits of a cookie that hold the tag.
const TAG_BITS: u32 = 16;

/// A READ of at least this length is received straight into its buffer.
pub(crate) const LARGE: u32 = 32 << 10;

impl Outgoing {
    pub(crate) fn new(depth: u16) -> Self {
        Self {
            slots: (0..depth).map(|_| None).collect(),
            waiting: VecDeque::with_capacity(usize::from(depth)),
            in_flight: 0,
            arrivals: 0,
            sending: Vec::with_capacity(usize::from(depth)),
            large: 0,
            answers: 0,
        }
    }

    /// Number of requests in flight, including those that wait to be sent.
    pub(crate) const fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Number of answers from the server, including those held back until a send is complete.
    pub(crate) const fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether a large READ is in flight.
    pub(crate) const fn has_large(&self) -> bool {
        self.large > 0
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Adds a request to the send queue.
    pub(crate) fn add(&mut self, kept: KeptRequest, asked: Asked) {
        let tag = kept.tag();
        let Some(place) = self.slots.get_mut(tag.index()) else {
            return kept.complete(Err(Errno::EIO));
        };
        let Asked {
            command,
            flags,
            offset,
            len,
        } = asked;
        self.arrivals += 1;
        *place = Some(Slot {
            kept,
            command,
            flags,
            offset,
            len,
            arrival: self.arrivals,
            due: u64::MAX,
            sent: false,
            replayed: false,
            sending: false,
            early: None,
        });
        self.in_flight += 1;
        self.waiting.push_back(tag.get());
    }

    /// Takes the next request to send.
    pub(crate) fn next(&mut self) -> Option<(Request, &mut Slot)> {
        let tag = self.waiting.pop_front()?;
        let slot = self.slots.get_mut(usize::from(tag))?.as_mut()?;
        slot.sent = true;
        slot.sending = true;
        self.sending.push(tag);
        self.large += usize::from(slot.is_large());
        let request = Request {
            command: slot.command,
            flags: slot.flags,
            cookie: slot.arrival << TAG_BITS | u64::from(tag),
            offset: slot.offset,
            len: slot.len.into(),
        };
        Some((request, slot))
    }

    /// The slot with this cookie.
    pub(crate) fn of(&mut self, cookie: u64) -> Option<&mut Slot> {
        let tag = usize::try_from(cookie & ((1 << TAG_BITS) - 1)).ok()?;
        let slot = self.slots.get_mut(tag)?.as_mut();
        slot.filter(|slot| slot.arrival == cookie >> TAG_BITS)
    }

    /// Answers a request with the server's reply, once the kernel no longer reads its data. A FLUSH on any connection covers
    /// what was complete before it, so no request is complete without its reply (L77).
    pub(crate) fn answer(&mut self, cookie: u64, result: Result<(), Errno>) {
        let Some(slot) = self.of(cookie) else {
            return;
        };
        let tag = slot.kept.tag().index();
        let waits = slot.sending;
        if waits {
            slot.early = Some(result);
        }
        self.answers += 1;
        if waits {
            return;
        }
        self.complete(tag, result);
    }

    /// Keeps a request that the server has answered, for the next connection.
    pub(crate) fn hold(&mut self, cookie: u64) {
        if let Some(slot) = self.of(cookie) {
            slot.due = u64::MAX;
        }
    }

    /// Answers a READ with all of its data.
    pub(crate) fn answer_read(&mut self, cookie: u64, data: &[u8]) {
        let Some(slot) = self.of(cookie) else {
            return;
        };
        let result = match slot.kept.data_mut() {
            Ok(to) if to.len() == data.len() => {
                to.copy_from_slice(data);
                Ok(())
            }
            _ => Err(Errno::EIO),
        };
        self.answer(cookie, result);
    }

    fn complete(&mut self, tag: usize, result: Result<(), Errno>) {
        let Some(slot) = self.slots.get_mut(tag).and_then(Option::take) else {
            return;
        };
        if slot.sent {
            self.large -= usize::from(slot.is_large());
        }
        self.in_flight -= 1;
        slot.kept.complete(result);
    }

    /// The send is complete: delivers the answers that were held back.
    pub(crate) fn sent(&mut self) {
        while let Some(tag) = self.sending.pop() {
            let tag = usize::from(tag);
            let Some(Some(slot)) = self.slots.get_mut(tag) else {
                continue;
            };
            slot.sending = false;
            if let Some(result) = slot.early.take() {
                self.complete(tag, result);
            }
        }
    }

    /// Requeues all unanswered requests (L71), in arrival order, after the kernel has released the lost connection.
    ///
    /// So are those that the server answered before it had all of them: it may not have taken the rest.
    pub(crate) fn replay(&mut self) {
        self.sending.clear();
        self.large = 0;
        self.waiting.clear();
        for slot in self.slots.iter_mut().flatten() {
            slot.replayed |= slot.sent;
            slot.sent = false;
            slot.sending = false;
            slot.early = None;
            slot.due = u64::MAX;
            self.waiting.push_back(slot.kept.tag().get());
        }
        let slots = &self.slots;
        let arrival = |tag: &u16| {
            let slot = slots.get(usize::from(*tag)).and_then(Option::as_ref);
            slot.map_or(0, |slot| slot.arrival)
        };
        self.waiting.make_contiguous().sort_unstable_by_key(arrival);
    }

    /// Number of waiting requests that had been sent on a lost connection. Counted once: those of a connection that is lost
    /// before it sends them count with the next.
    pub(crate) fn replayed(&mut self) -> u64 {
        let again = self.slots.iter_mut().flatten();
        again
            .map(|slot| u64::from(std::mem::take(&mut slot.replayed)))
            .sum()
    }

    /// Fails the waiting requests that match; none of them has been sent.
    pub(crate) fn fail(&mut self, errno: Errno, mut is: impl FnMut(&Slot) -> bool) {
        for _ in 0..self.waiting.len() {
            let Some(tag) = self.waiting.pop_front() else {
                return;
            };
            let place = usize::from(tag);
            let slot = self.slots.get(place).and_then(Option::as_ref);
            match slot.is_some_and(&mut is) {
                true => self.complete(place, Err(errno)),
                false => self.waiting.push_back(tag),
            }
        }
    }

    /// The earliest deadline of the sent requests, in the timer's seconds. One that the server answered before it has all of the
    /// request is among them: a server that then takes no more must not keep the connection for ever.
    pub(crate) fn due(&self) -> Option<u64> {
        let sent = self.slots.iter().flatten().filter(|slot| slot.sent);
        sent.map(|slot| slot.due).min()
    }
}

impl Slot {
    const fn is_large(&self) -> bool {
        matches!(self.command, Command::Read) && self.len >= LARGE
    }

    /// Length of the range in bytes.
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// End of the range (exclusive).
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.into())
    }
}
