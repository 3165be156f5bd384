//! The requests of a queue from their arrival to their answer.

use std::collections::VecDeque;

use nbd_client::{Command, CommandFlags, Request, TransmissionFlags};
use ublk_core::{Errno, Op};
use ublk_queue::KeptRequest;

/// A request in hand.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) kept: KeptRequest,
    pub(crate) command: Command,
    flags: CommandFlags,
    offset: u64,
    len: u32,
    /// The number of the request: requests are replayed in the order in which they came, and its cookie is its own, so
    /// that a repeated answer to an earlier request of the tag fits none.
    arrival: u64,
    /// It fails the connection if it is not answered in this second.
    pub(crate) due: u64,
    /// It is sent, or is part of the send under way.
    pub(crate) sent: bool,
    /// The kernel may still read its header or data.
    pub(crate) sending: bool,
    /// The server answered before the send was complete.
    pub(crate) early: Option<Result<(), Errno>>,
}

/// What a request asks of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) command: Command,
    pub(crate) flags: CommandFlags,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Asked {
    /// What a request asks of the server; `None` for operations that no export has.
    pub(crate) fn of(request: &ublk_queue::Request<'_>, flags: TransmissionFlags) -> Option<Self> {
        let io_flags = request.flags();
        if io_flags.fua() && !flags.contains(TransmissionFlags::SEND_FUA) {
            // Promised by an earlier server of the device, and not to be had from this one.
            return None;
        }
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

/// All requests in hand, by tag, and those that wait to be sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    slots: Box<[Option<Slot>]>,
    waiting: VecDeque<u16>,
    in_hand: usize,
    arrivals: u64,
    /// Those whose headers or data the kernel may still read.
    sending: Vec<u16>,
    /// READs of at least [`LARGE`] bytes that are sent.
    large: usize,
    /// Answers of the server so far.
    answers: u64,
}

/// Bits of a cookie that are the tag's.
const TAG_BITS: u32 = 16;

/// A READ of this length has its data received straight into its buffer.
pub(crate) const LARGE: u32 = 32 << 10;

impl Outgoing {
    pub(crate) fn new(depth: u16) -> Self {
        Self {
            slots: (0..depth).map(|_| None).collect(),
            waiting: VecDeque::with_capacity(usize::from(depth)),
            in_hand: 0,
            arrivals: 0,
            sending: Vec::with_capacity(usize::from(depth)),
            large: 0,
            answers: 0,
        }
    }

    /// Requests in hand.
    pub(crate) const fn in_hand(&self) -> usize {
        self.in_hand
    }

    /// Answers of the server so far, those that have to wait for the end of a send included.
    pub(crate) const fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether a large READ is under way.
    pub(crate) const fn has_large(&self) -> bool {
        self.large > 0
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes a request that came.
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
            sending: false,
            early: None,
        });
        self.in_hand += 1;
        self.waiting.push_back(tag.get());
    }

    /// The next request to send, as it goes to the server.
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
            len: slot.len,
        };
        Some((request, slot))
    }

    /// The request of a cookie.
    pub(crate) fn of(&mut self, cookie: u64) -> Option<&mut Slot> {
        let tag = usize::try_from(cookie & ((1 << TAG_BITS) - 1)).ok()?;
        let slot = self.slots.get_mut(tag)?.as_mut();
        slot.filter(|slot| slot.arrival == cookie >> TAG_BITS)
    }

    /// The server has answered a request: its client is told, or will be once the kernel does not read its data any more.
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

    fn complete(&mut self, tag: usize, result: Result<(), Errno>) {
        let Some(slot) = self.slots.get_mut(tag).and_then(Option::take) else {
            return;
        };
        if slot.sent {
            self.large -= usize::from(slot.is_large());
        }
        self.in_hand -= 1;
        slot.kept.complete(result);
    }

    /// The kernel has all of the send: answers that came early are due.
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

    /// The connection is gone and the kernel uses nothing any more: what is not answered waits for the next one, in the
    /// order in which it came. Gives how many requests had been sent.
    pub(crate) fn replay(&mut self) -> u64 {
        self.sent();
        self.large = 0;
        self.waiting.clear();
        let mut replayed = 0;
        for slot in self.slots.iter_mut().flatten() {
            replayed += u64::from(slot.sent);
            slot.sent = false;
            slot.due = u64::MAX;
            self.waiting.push_back(slot.kept.tag().get());
        }
        let slots = &self.slots;
        let arrival = |tag: &u16| {
            let slot = slots.get(usize::from(*tag)).and_then(Option::as_ref);
            slot.map_or(0, |slot| slot.arrival)
        };
        self.waiting.make_contiguous().sort_unstable_by_key(arrival);
        replayed
    }

    /// Fails those of the waiting requests for which `is` says so. None of them has been sent.
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

    /// The earliest second in which a request that was sent is due.
    pub(crate) fn due(&self) -> Option<u64> {
        let sent = self
            .slots
            .iter()
            .flatten()
            .filter(|slot| slot.sent && slot.early.is_none());
        sent.map(|slot| slot.due).min()
    }
}

impl Slot {
    const fn is_large(&self) -> bool {
        matches!(self.command, Command::Read) && self.len >= LARGE
    }

    /// Bytes of the range.
    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// One past the last byte of the range.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.into())
    }
}
