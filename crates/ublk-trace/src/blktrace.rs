//! blktrace's binary stream (`blkparse -d`, or one file of `blktrace`): queue, issue and complete events, matched to
//! requests.
//!
//! A request is what was queued (Q); where its queueing is not in the trace, what was issued (D). It ends with the
//! completions (C) that cover it: one completion may end several merged requests, and a request that was split has
//! several. `struct blk_io_trace`, version 7, in either byte order: include/uapi/linux/blktrace_api.h of Linux 6.12.

use crate::error::Error;
use crate::format::fill;
use crate::record::{MAX_TIME, Op, Record};
use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::num::NonZeroU16;

const MAGIC: u32 = 0x6561_7400;
const VERSION: u32 = 7;
const EVENT: usize = 48;

/// Requests in flight that are remembered; of those beyond, the oldest has no latency.
const MAX_IN_FLIGHT: usize = 65_536;

const QUEUE: u32 = 1;
const ISSUE: u32 = 7;
const COMPLETE: u32 = 8;
const CGROUP: u32 = 1 << 8;

const WRITE: u32 = 1 << 17;
const FLUSH: u32 = 1 << 18;
const PASSTHROUGH: u32 = 1 << 25;
const NOTIFY: u32 = 1 << 26;
const DISCARD: u32 = 1 << 29;

/// Whether bytes begin a stream.
pub(crate) fn is_one(bytes: &[u8]) -> bool {
    bytes.first_chunk().is_some_and(|magic| {
        let either = [u32::from_le_bytes(*magic), u32::from_be_bytes(*magic)];
        either.iter().any(|m| m & 0xffff_ff00 == MAGIC)
    })
}

/// Where a request in flight is: device, kind, first sector.
type Key = (u32, Op, u64);

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct InFlight {
    time: u64,
    bytes: u64,
    left: u64,
    cpu: u16,
    sequence: u64,
}

/// Reads a stream.
#[derive(Debug)]
pub struct Blktrace<R: Read> {
    input: R,
    at: u64,
    /// The time of the first event: the stream's times are those of the machine's clock.
    began: Option<u64>,
    big_endian: bool,
    in_flight: BTreeMap<Key, InFlight>,
    /// The keys by age, with the sequence that says whether they still mean the same request.
    ages: VecDeque<(u64, Key)>,
    sequence: u64,
    done: VecDeque<Record>,
    unmatched: u64,
    ended: bool,
}

/// An event, as far as it is used.
struct Event {
    time: u64,
    sector: u64,
    bytes: u64,
    action: u32,
    device: u32,
    cpu: u16,
    error: u16,
    pdu: usize,
}

impl<R: Read> Blktrace<R> {
    /// Reads nothing yet.
    pub fn new(input: R) -> Self {
        Self {
            input,
            at: 0,
            began: None,
            big_endian: false,
            in_flight: BTreeMap::new(),
            ages: VecDeque::new(),
            sequence: 0,
            done: VecDeque::new(),
            unmatched: 0,
            ended: false,
        }
    }

    /// Number of requests whose begin or end is not in the trace: they have no latency.
    #[must_use]
    pub const fn unmatched(&self) -> u64 {
        self.unmatched
    }

    /// The next request, in the order of completion. Those that were not completed come last.
    ///
    /// # Errors
    /// [`Error::Bytes`] for an event that makes no sense or is cut off, [`Error::Version`]; those of the input.
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            if let Some(record) = self.done.pop_front() {
                return Ok(Some(record));
            }
            if self.ended {
                return Ok(None);
            }
            match self.event()? {
                Some(event) => self.take(&event),
                None => {
                    self.ended = true;
                    while let Some((key, request)) = self.in_flight.pop_first() {
                        self.unmatched += 1;
                        self.emit(key, &request, None, 0);
                    }
                    self.done.make_contiguous().sort_by_key(|r| r.time);
                }
            }
        }
    }

    fn event(&mut self) -> Result<Option<Event>, Error> {
        let mut bytes = [0; EVENT];
        match fill(&mut self.input, &mut bytes)? {
            0 => return Ok(None),
            EVENT => {}
            _ => return Err(self.error("an event is cut off")),
        }
        self.check_magic(&bytes)?;
        let word = |at: usize| self.word(&bytes, at);
        let both = |at: usize| match self.big_endian {
            true => u64::from(word(at)) << 32 | u64::from(word(at + 4)),
            false => u64::from(word(at)) | u64::from(word(at + 4)) << 32,
        };
        let half = |at: usize, high: bool| {
            let word = word(at);
            let high_first = self.big_endian;
            let part = if high == high_first {
                word & 0xffff
            } else {
                word >> 16
            };
            u16::try_from(part).unwrap_or(0)
        };
        let time = both(8);
        let began = self.began.unwrap_or(time);
        let event = Event {
            time: time.saturating_sub(began).min(MAX_TIME),
            sector: both(16),
            bytes: word(24).into(),
            action: word(28),
            device: word(36),
            cpu: u16::try_from(word(40) & 0xffff).unwrap_or(0),
            error: half(44, false),
            pdu: usize::from(half(44, true)),
        };
        self.began = Some(began);
        let mut pdu = [0; 512];
        let mut left = event.pdu;
        while left > 0 {
            let now = left.min(pdu.len());
            let room = pdu.get_mut(..now).unwrap_or_default();
            if fill(&mut self.input, room)? < now {
                return Err(self.error("the data of an event is cut off"));
            }
            left -= now;
        }
        self.at += u64::try_from(EVENT + event.pdu).unwrap_or(0);
        Ok(Some(event))
    }

    fn check_magic(&mut self, bytes: &[u8; EVENT]) -> Result<(), Error> {
        let mut magic = self.word(bytes, 0);
        if self.at == 0 && magic & 0xffff_ff00 != MAGIC {
            self.big_endian = true;
            magic = self.word(bytes, 0);
        }
        if magic & 0xffff_ff00 != MAGIC {
            return Err(self.error("no event begins here"));
        }
        match magic & 0xff {
            VERSION => Ok(()),
            version => Err(Error::Version {
                format: "blktrace",
                version,
                supported: "7",
            }),
        }
    }

    fn word(&self, bytes: &[u8], at: usize) -> u32 {
        let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
        let word = word.unwrap_or_default();
        if self.big_endian {
            u32::from_be_bytes(word)
        } else {
            u32::from_le_bytes(word)
        }
    }

    fn error(&self, what: &str) -> Error {
        Error::Bytes {
            at: self.at,
            what: what.to_owned(),
        }
    }

    /// Takes an event into account.
    fn take(&mut self, event: &Event) {
        if event.action & (NOTIFY | PASSTHROUGH) != 0 {
            return;
        }
        let op = if event.action & DISCARD != 0 {
            Op::Discard
        } else if event.action & FLUSH != 0 && event.bytes == 0 {
            Op::Flush
        } else if event.action & WRITE != 0 {
            Op::Write
        } else {
            Op::Read
        };
        // A flush has no place of its own; some events show that of the request before it.
        let sector = if op == Op::Flush { 0 } else { event.sector };
        let bytes = if op == Op::Flush { 0 } else { event.bytes };
        let fits = sector.checked_mul(512).and_then(|o| o.checked_add(bytes));
        if fits.is_none_or(|end| end > crate::MAX_END) || (bytes == 0 && op != Op::Flush) {
            return;
        }
        let key = (event.device, op, sector);
        match event.action & 0xffff & !CGROUP {
            QUEUE => self.begin(key, event, bytes),
            ISSUE if !self.is_queued(key, bytes) => self.begin(key, event, bytes),
            COMPLETE => self.complete(key, event, bytes),
            _ => {}
        }
    }

    /// Whether a request in flight covers the begin of this one, or is merged into it.
    fn is_queued(&self, key: Key, bytes: u64) -> bool {
        self.covering(key).is_some() || self.first_inside(key, bytes).is_some()
    }

    /// The request in flight whose range the place lies in.
    fn covering(&self, (device, op, sector): Key) -> Option<Key> {
        let before = self.in_flight.range((device, op, 0)..=(device, op, sector));
        let (key, request) = before.last()?;
        let inside = (sector - key.2) * 512 < request.bytes || key.2 == sector;
        inside.then_some(*key)
    }

    /// The first request in flight that begins inside a range.
    fn first_inside(&self, (device, op, sector): Key, bytes: u64) -> Option<Key> {
        let end = sector.saturating_add(bytes.div_ceil(512)).max(sector + 1);
        let mut inside = self
            .in_flight
            .range((device, op, sector)..(device, op, end));
        inside.next().map(|(key, _)| *key)
    }

    fn begin(&mut self, key: Key, event: &Event, bytes: u64) {
        self.sequence += 1;
        let request = InFlight {
            time: event.time,
            bytes,
            left: bytes,
            cpu: event.cpu,
            sequence: self.sequence,
        };
        // Two at the same place: the completion of the first one is ambiguous.
        if let Some(other) = self.in_flight.insert(key, request) {
            self.unmatched += 1;
            self.emit(key, &other, None, 0);
        }
        self.ages.push_back((self.sequence, key));
        while self.ages.len() > MAX_IN_FLIGHT {
            let Some((sequence, key)) = self.ages.pop_front() else {
                break;
            };
            let old = self.in_flight.get(&key).copied();
            if let Some(request) = old.filter(|r| r.sequence == sequence) {
                self.in_flight.remove(&key);
                self.unmatched += 1;
                self.emit(key, &request, None, 0);
            }
        }
    }

    fn complete(&mut self, key: Key, event: &Event, bytes: u64) {
        let end = key.2.saturating_mul(512).saturating_add(bytes);
        let mut matched = false;
        let mut next = self.covering(key).or_else(|| self.first_inside(key, bytes));
        while let Some(found) = next {
            matched = true;
            let Some(request) = self.in_flight.get_mut(&found) else {
                break;
            };
            let begin = found.2.max(key.2) * 512;
            let covered = end.saturating_sub(begin);
            let ended = covered >= request.left;
            request.left = request.left.saturating_sub(covered);
            if ended {
                let request = *request;
                self.in_flight.remove(&found);
                self.emit(found, &request, Some(event.time), event.error);
            }
            // What is not over yet lies at or before the place; go on behind it.
            let behind = (found.0, found.1, found.2.saturating_add(1).max(key.2));
            let left = end.saturating_sub(behind.2.saturating_mul(512));
            next = match left {
                0 => None,
                left => self.first_inside(behind, left),
            };
        }
        if !matched {
            self.unmatched += 1;
            let request = InFlight {
                time: event.time,
                bytes,
                left: 0,
                cpu: event.cpu,
                sequence: 0,
            };
            self.emit(key, &request, None, event.error);
        }
    }

    fn emit(&mut self, key: Key, request: &InFlight, end: Option<u64>, error: u16) {
        self.done.push_back(Record {
            time: request.time,
            op: key.1,
            offset: key.2.saturating_mul(512),
            len: request.bytes,
            queue: request.cpu,
            latency: end.map(|end| end.saturating_sub(request.time)),
            error: NonZeroU16::new(errno(error)),
        });
    }
}

/// An errno as the kernel stores it, negative in 16 bits, or positive.
fn errno(error: u16) -> u16 {
    if error > 0x8000 {
        error.wrapping_neg()
    } else {
        error
    }
}

#[cfg(test)]
#[path = "blktrace_tests.rs"]
mod tests;
