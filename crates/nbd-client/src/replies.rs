//! Parses replies: simple or structured, in any order, in chunks of any size.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::bytes::Reader;
use crate::error::{ErrorCode, ProtocolError};
use crate::request::Command;
use crate::wire::{
    CHUNK_BLOCK_STATUS, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_NONE, CHUNK_OFFSET_DATA,
    CHUNK_OFFSET_HOLE, REPLY_DONE, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC,
};

/// Most disjoint pieces of one READ's data. Servers use few, and data that arrives in order counts as one piece.
const MAX_PIECES: usize = 1024;

/// Longest text accepted with an error, in bytes.
const MAX_TEXT: usize = 4096;

/// Most extents accepted in one BLOCK_STATUS chunk.
const MAX_EXTENTS: usize = 1 << 16;

/// Pairs of length in bytes and flags.
type Extents = Vec<(u32, u32)>;

/// Bytes of one extent on the wire: length and flags.
const EXTENT: usize = 8;

/// What the caller must do or know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The next `len` bytes of the connection are data of this READ and belong at offset `at` of its buffer. The caller
    /// receives them there and then calls [`Replies::received`].
    Data {
        /// The request's cookie.
        cookie: u64,
        /// Offset within the request's range, in bytes.
        at: u32,
        /// Length in bytes.
        len: u32,
    },
    /// These bytes of a READ are zeroes.
    Hole {
        /// The request's cookie.
        cookie: u64,
        /// Offset within the request's range, in bytes.
        at: u32,
        /// Length in bytes.
        len: u32,
    },
    /// Extents of a BLOCK_STATUS reply, starting where the previous ones ended.
    Extents {
        /// The request's cookie.
        cookie: u64,
        /// The id of the meta context.
        context: u32,
        /// Pairs of length in bytes and flags.
        extents: Vec<(u32, u32)>,
    },
    /// A request is answered and its cookie is free. A successful READ has received every byte exactly once.
    Answered {
        /// The request's cookie.
        cookie: u64,
        /// Success, or the first error that the server sent.
        result: Result<(), ErrorCode>,
    },
}

/// A request in flight.
#[derive(Debug)]
struct Pending {
    command: Command,
    offset: u64,
    len: u32,
    /// Disjoint ranges of a READ that have arrived, sorted.
    have: Vec<(u32, u32)>,
    error: Option<ErrorCode>,
    /// A chunk has arrived, so a simple reply is no longer valid.
    chunked: bool,
}

/// A cheap hash for cookies. The map holds only cookies that the caller chose, so a server cannot force collisions.
#[derive(Debug, Default)]
struct CookieHasher(u64);

impl Hasher for CookieHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, cookie: u64) {
        // 2^64 divided by the golden ratio spreads neighbours in the high bits. The rotation spreads them in the low
        // bits too, because the map uses both.
        self.0 = (self.0 ^ cookie)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(32);
    }
}

/// Data that the caller is receiving.
#[derive(Debug, Clone, Copy)]
struct Payload {
    cookie: u64,
    left: u32,
    /// The reply ends with this data.
    last: bool,
}

/// Parses replies and tracks the requests in flight.
#[derive(Debug)]
pub struct Replies {
    structured: bool,
    pending: HashMap<u64, Pending, BuildHasherDefault<CookieHasher>>,
    payload: Option<Payload>,
    /// Spare range lists. Memory reclaim may wait for a request, so serving one allocates no list.
    spare: Vec<Vec<(u32, u32)>>,
}

/// Initial capacity of a range list.
const RANGES: usize = 4;

impl Replies {
    /// Longest header in bytes, including the fields before a chunk's data. A receive window of this size makes
    /// progress on everything except error texts and extents, which are at most 512 KiB.
    pub const HEADER: usize = 32;

    /// A parser for a connection with or without structured replies. Up to `depth` requests in flight are tracked
    /// without allocation, except for extents and for data in many pieces.
    #[must_use]
    pub fn new(structured: bool, depth: usize) -> Self {
        Self {
            structured,
            // Twice the depth: a map that is at most half full rehashes in place, a fuller one grows.
            pending: HashMap::with_capacity_and_hasher(2 * depth, BuildHasherDefault::default()),
            payload: None,
            spare: (0..depth).map(|_| Vec::with_capacity(RANGES)).collect(),
        }
    }

    /// Registers a request before it is sent. Returns false, and registers nothing, if its cookie is in use. Disconnect
    /// has no reply and is not registered.
    pub fn expect(&mut self, request: &crate::Request) -> bool {
        if request.command == Command::Disconnect {
            return true;
        }
        if self.pending.contains_key(&request.cookie) {
            return false;
        }
        let pending = Pending {
            command: request.command,
            offset: request.offset,
            len: request.len,
            have: self.spare.pop().unwrap_or_default(),
            error: None,
            chunked: false,
        };
        self.pending.insert(request.cookie, pending);
        true
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of data that the caller must receive before anything else.
    #[must_use]
    pub fn payload(&self) -> u32 {
        self.payload.map_or(0, |payload| payload.left)
    }

    /// Notes that the caller has received this many bytes of announced data, at most what was left. Returns the answer
    /// that they completed, if any.
    ///
    /// # Errors
    /// A READ was answered without all of its bytes.
    pub fn received(&mut self, bytes: u32) -> Result<Option<Event>, ProtocolError> {
        let Some(mut payload) = self.payload.take() else {
            return Ok(None);
        };
        payload.left = payload.left.saturating_sub(bytes);
        if payload.left > 0 {
            self.payload = Some(payload);
            return Ok(None);
        }
        match payload.last {
            true => self.finish(payload.cookie).map(Some),
            false => Ok(None),
        }
    }

    /// Parses the next header from received bytes. Returns how many bytes were used, 0 if the header is incomplete, and
    /// its event. While [`payload`](Self::payload) is not 0 the bytes are data, and nothing is consumed.
    ///
    /// # Errors
    /// The server violated the protocol: close the connection.
    pub fn next(&mut self, bytes: &[u8]) -> Result<(usize, Option<Event>), ProtocolError> {
        match self.payload {
            // The previous event was the last of its reply.
            Some(Payload {
                cookie, left: 0, ..
            }) => {
                self.payload = None;
                return self.finish(cookie).map(|event| (0, Some(event)));
            }
            Some(_) => return Ok((0, None)),
            None => {}
        }
        let mut reader = Reader(bytes);
        let Some(magic) = reader.u32() else {
            return Ok((0, None));
        };
        match magic {
            SIMPLE_REPLY_MAGIC => self.simple(reader, bytes.len()),
            STRUCTURED_REPLY_MAGIC if self.structured => self.chunk(reader, bytes.len()),
            _ => Err(ProtocolError::Broken("a reply without its magic")),
        }
    }

    fn simple(
        &mut self,
        mut reader: Reader<'_>,
        given: usize,
    ) -> Result<(usize, Option<Event>), ProtocolError> {
        let (Some(code), Some(cookie)) = (reader.u32(), reader.u64()) else {
            return Ok((0, None));
        };
        let used = given - reader.0.len();
        let structured = self.structured;
        let pending = self.of(cookie)?;
        if pending.chunked || (structured && pending.command == Command::Read) {
            let what = "a simple reply where a structured one is due";
            return Err(ProtocolError::BrokenReply { cookie, what });
        }
        if code != 0 {
            pending.error = Some(ErrorCode(code));
        } else if pending.command == Command::Read && pending.len > 0 {
            let len = pending.len;
            pending.have.push((0, len));
            return Ok((used, Some(self.data(cookie, 0, len, true))));
        }
        self.finish(cookie).map(|event| (used, Some(event)))
    }

    fn chunk(
        &mut self,
        mut reader: Reader<'_>,
        given: usize,
    ) -> Result<(usize, Option<Event>), ProtocolError> {
        let head = (reader.u16(), reader.u16(), reader.u64(), reader.u32());
        let (Some(flags), Some(kind), Some(cookie), Some(len)) = head else {
            return Ok((0, None));
        };
        let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
        let last = flags & REPLY_DONE != 0;
        let pending = self.of(cookie)?;
        pending.chunked = true;
        let event = match kind {
            CHUNK_NONE if len == 0 && last => return self.ended(cookie, reader, given),
            CHUNK_NONE => return broken("an empty chunk that is not the last"),
            CHUNK_OFFSET_DATA if pending.command == Command::Read && len > 8 => {
                let Some(offset) = reader.u64() else {
                    return Ok((0, None));
                };
                let at = pending.take(offset, len - 8, cookie)?;
                self.data(cookie, at, len - 8, last)
            }
            CHUNK_OFFSET_HOLE if pending.command == Command::Read && len == 12 => {
                let (Some(offset), Some(size)) = (reader.u64(), reader.u32()) else {
                    return Ok((0, None));
                };
                let at = pending.take(offset, size, cookie)?;
                let len = size;
                return self.told(cookie, Event::Hole { cookie, at, len }, last, reader, given);
            }
            CHUNK_BLOCK_STATUS if pending.command == Command::BlockStatus => {
                let Some(extents) = extents(&mut reader, len, cookie)? else {
                    return Ok((0, None));
                };
                let (context, extents) = extents;
                let event = Event::Extents {
                    cookie,
                    context,
                    extents,
                };
                return self.told(cookie, event, last, reader, given);
            }
            kind if kind & CHUNK_ERROR != 0 => {
                let Some(code) = error(&mut reader, kind, len, cookie)? else {
                    return Ok((0, None));
                };
                pending.error.get_or_insert(code);
                if !last {
                    return Ok((given - reader.0.len(), None));
                }
                return self.ended(cookie, reader, given);
            }
            _ => return broken("a chunk of a kind that answers no such request"),
        };
        Ok((given - reader.0.len(), Some(event)))
    }

    /// Returns an event of a reply; if it is the last, the next call returns the answer.
    fn told(
        &mut self,
        cookie: u64,
        event: Event,
        last: bool,
        reader: Reader<'_>,
        given: usize,
    ) -> Result<(usize, Option<Event>), ProtocolError> {
        if last {
            self.payload = Some(Payload {
                cookie,
                left: 0,
                last,
            });
        }
        Ok((given - reader.0.len(), Some(event)))
    }

    fn ended(
        &mut self,
        cookie: u64,
        reader: Reader<'_>,
        given: usize,
    ) -> Result<(usize, Option<Event>), ProtocolError> {
        let event = self.finish(cookie)?;
        Ok((given - reader.0.len(), Some(event)))
    }

    fn data(&mut self, cookie: u64, at: u32, len: u32, last: bool) -> Event {
        self.payload = Some(Payload {
            cookie,
            left: len,
            last,
        });
        Event::Data { cookie, at, len }
    }

    fn of(&mut self, cookie: u64) -> Result<&mut Pending, ProtocolError> {
        let what = "there is no such request";
        let unknown = ProtocolError::BrokenReply { cookie, what };
        self.pending.get_mut(&cookie).ok_or(unknown)
    }

    fn finish(&mut self, cookie: u64) -> Result<Event, ProtocolError> {
        let what = "bytes of it are missing";
        let broken = ProtocolError::BrokenReply { cookie, what };
        let Some(mut pending) = self.pending.remove(&cookie) else {
            return Err(broken);
        };
        let result = match pending.error {
            Some(code) => Err(code),
            None if pending.command == Command::Read && !pending.is_whole() => return Err(broken),
            None => Ok(()),
        };
        if self.spare.len() < self.spare.capacity() {
            pending.have.clear();
            self.spare.push(pending.have);
        }
        Ok(Event::Answered { cookie, result })
    }
}

impl Pending {
    /// Records a piece of a READ and returns its offset in the range.
    fn take(&mut self, offset: u64, len: u32, cookie: u64) -> Result<u32, ProtocolError> {
        let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
        let at = offset.checked_sub(self.offset).map(u32::try_from);
        let end = |at: u32| at.checked_add(len).filter(|end| *end <= self.len);
        let (at, end) = match at {
            Some(Ok(at)) if len > 0 => match end(at) {
                Some(end) => (at, end),
                None => return broken("data beyond the request"),
            },
            _ => return broken("data before or beyond the request, or none"),
        };
        let next = self.have.partition_point(|(from, _)| *from < at);
        let before = next.checked_sub(1).map(|n| self.have[n].1);
        let after = self.have.get(next).map(|(from, _)| *from);
        if before.is_some_and(|to| to > at) || after.is_some_and(|from| from < end) {
            return broken("the same bytes twice");
        }
        match (before == Some(at), after == Some(end)) {
            (true, true) => {
                self.have[next - 1].1 = self.have[next].1;
                self.have.remove(next);
            }
            (true, false) => self.have[next - 1].1 = end,
            (false, true) => self.have[next].0 = at,
            (false, false) if self.have.len() == MAX_PIECES => return broken("too many pieces"),
            (false, false) => self.have.insert(next, (at, end)),
        }
        Ok(at)
    }

    fn is_whole(&self) -> bool {
        self.len == 0 || self.have == [(0, self.len)]
    }
}

/// Parses a chunk's context id and extents; `None` while incomplete.
fn extents(
    reader: &mut Reader<'_>,
    len: u32,
    cookie: u64,
) -> Result<Option<(u32, Extents)>, ProtocolError> {
    let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len < 4 + EXTENT || !(len - 4).is_multiple_of(EXTENT) {
        return broken("extents of a length that none have");
    }
    if len > 4 + MAX_EXTENTS * EXTENT {
        return broken("too many extents");
    }
    let Some(body) = reader.take(len) else {
        return Ok(None);
    };
    let mut body = Reader(body);
    let context = body.u32().unwrap_or(0);
    let mut extents = Vec::with_capacity(body.0.len() / EXTENT);
    while let (Some(length), Some(flags)) = (body.u32(), body.u32()) {
        extents.push((length, flags));
    }
    Ok(Some((context, extents)))
}

/// Parses a chunk's error; `None` while incomplete.
fn error(
    reader: &mut Reader<'_>,
    kind: u16,
    len: u32,
    cookie: u64,
) -> Result<Option<ErrorCode>, ProtocolError> {
    let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let least = if kind == CHUNK_ERROR_OFFSET { 14 } else { 6 };
    if len < least || len > least + MAX_TEXT {
        return broken("an error of a length that none has");
    }
    let Some(body) = reader.take(len) else {
        return Ok(None);
    };
    let mut body = Reader(body);
    let (Some(code), Some(text)) = (body.u32(), body.u16()) else {
        return broken("an error without its code");
    };
    if usize::from(text) > len - least {
        return broken("an error whose text is longer than its chunk");
    }
    match code {
        0 => broken("an error that is none"),
        code => Ok(Some(ErrorCode(code))),
    }
}

#[cfg(test)]
mod tests;
