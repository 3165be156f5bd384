//! Parses replies: simple or structured, in any order, in chunks of any size.

mod pending;

use crate::bytes::Reader;
use crate::error::{ErrorCode, ProtocolError};
use crate::extents::{self, Extents};
use crate::framing::Framing;
use crate::request::Command;
use crate::wire::{
    CHUNK_BLOCK_STATUS, CHUNK_BLOCK_STATUS_EXT, CHUNK_ERROR, CHUNK_ERROR_OFFSET, CHUNK_NONE,
    CHUNK_OFFSET_DATA, CHUNK_OFFSET_HOLE, EXTENDED_REPLY_MAGIC, REPLY_DONE, SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
};
use pending::{Pending, Table, Untouched};

/// Longest text accepted with an error, in bytes.
const MAX_TEXT: usize = 4096;

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
        extents: Extents,
    },
    /// A request is answered and its cookie is free. A successful READ has received every byte exactly once.
    Answered {
        /// The request's cookie.
        cookie: u64,
        /// Success, or the first error that the server sent.
        result: Result<(), ErrorCode>,
    },
}

/// What a simple reply brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Simple<'a> {
    /// All data of a READ.
    Read(&'a [u8]),
    /// Success of another request.
    Done,
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
    framing: Framing,
    pending: Table,
    payload: Option<Payload>,
}

impl Replies {
    /// Length of a simple reply's header in bytes.
    pub const SIMPLE: usize = 16;

    /// Longest header in bytes, including the fields before a chunk's data. A receive window of this size makes
    /// progress on everything except error texts and extents, which are at most 1 MiB.
    #[must_use]
    pub const fn header(&self) -> usize {
        match self.framing {
            Framing::Simple | Framing::Structured => 32,
            Framing::Extended => 44,
        }
    }

    /// A parser for a connection with this framing. Up to `depth` requests in flight are tracked without allocation if
    /// their cookies differ modulo `depth`, rounded up to a power of two; except for extents and for data in many pieces.
    #[must_use]
    pub fn new(framing: Framing, depth: usize) -> Self {
        Self {
            framing,
            pending: Table::new(depth),
            payload: None,
        }
    }

    /// Registers a request before it is sent. Returns false, and registers nothing, if its cookie is in use or its range
    /// is longer than the framing allows. Disconnect has no reply and is not registered.
    pub fn expect(&mut self, request: &crate::Request) -> bool {
        let longest = match request.command {
            Command::Disconnect => return true,
            Command::Read | Command::Write => u32::MAX.into(),
            _ => self.framing.longest(),
        };
        request.len <= longest && self.pending.add(request)
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

    /// Consumes the reply at the start of the bytes if it is a simple one without an error, and all of it is there: the usual
    /// case, without the steps of the others. Returns the request's cookie, which is free, and what it was answered with.
    /// Otherwise nothing is consumed, and [`next`](Self::next) says what is there.
    pub fn simple<'a>(&mut self, bytes: &'a [u8]) -> Option<(u64, Simple<'a>)> {
        if self.payload.is_some() || self.framing == Framing::Extended {
            return None;
        }
        let (head, rest) = bytes.split_first_chunk::<{ Self::SIMPLE }>()?;
        let mut reader = Reader(head);
        if reader.u64()? != u64::from(SIMPLE_REPLY_MAGIC) << 32 {
            return None;
        }
        let cookie = reader.u64()?;
        let answer = match self.pending.untouched(cookie)? {
            Untouched::Read(len) if !self.framing.has_chunks() => Simple::Read(rest.get(..len)?),
            Untouched::Read(_) => return None,
            Untouched::Other => Simple::Done,
        };
        self.pending.remove(cookie);
        Some((cookie, answer))
    }

    /// Parses the next header from received bytes. Returns how many bytes were used, 0 if the header is incomplete, and
    /// its event. While [`payload`](Self::payload) is not 0 the bytes are data, and nothing is consumed.
    ///
    /// # Errors
    /// The server violated the protocol (L76): close the connection.
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
            SIMPLE_REPLY_MAGIC if self.framing != Framing::Extended => {
                self.simple_header(reader, bytes.len())
            }
            STRUCTURED_REPLY_MAGIC if self.framing == Framing::Structured => {
                let head = (reader.u16(), reader.u16(), reader.u64(), reader.u32());
                let (Some(flags), Some(kind), Some(cookie), Some(len)) = head else {
                    return Ok((0, None));
                };
                self.chunk((flags, kind), cookie, len.into(), reader, bytes.len())
            }
            EXTENDED_REPLY_MAGIC if self.framing == Framing::Extended => {
                let head = (reader.u16(), reader.u16(), reader.u64());
                let (Some(flags), Some(kind), Some(cookie)) = head else {
                    return Ok((0, None));
                };
                // The offset is the request's.
                let (Some(_), Some(len)) = (reader.u64(), reader.u64()) else {
                    return Ok((0, None));
                };
                self.chunk((flags, kind), cookie, len, reader, bytes.len())
            }
            _ => Err(ProtocolError::Broken("a reply without its magic")),
        }
    }

    fn simple_header(
        &mut self,
        mut reader: Reader<'_>,
        given: usize,
    ) -> Result<(usize, Option<Event>), ProtocolError> {
        let (Some(code), Some(cookie)) = (reader.u32(), reader.u64()) else {
            return Ok((0, None));
        };
        let used = given - reader.0.len();
        let has_chunks = self.framing.has_chunks();
        let pending = self.of(cookie)?;
        if pending.chunked || (has_chunks && pending.command == Command::Read) {
            let what = "a simple reply where a structured one is due";
            return Err(ProtocolError::BrokenReply { cookie, what });
        }
        // No data follows an error (L70).
        if code != 0 {
            pending.error = Some(ErrorCode(code));
        } else if pending.command == Command::Read && pending.len > 0 {
            let len = pending.size();
            pending.take(pending.offset, len)?;
            return Ok((used, Some(self.data(cookie, 0, len, true))));
        }
        self.finish(cookie).map(|event| (used, Some(event)))
    }

    fn chunk(
        &mut self,
        (flags, kind): (u16, u16),
        cookie: u64,
        len: u64,
        mut reader: Reader<'_>,
        given: usize,
    ) -> Result<(usize, Option<Event>), ProtocolError> {
        let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
        let last = flags & REPLY_DONE != 0;
        let extended = self.framing == Framing::Extended;
        let pending = self.of(cookie)?;
        pending.chunked = true;
        let event = match kind {
            CHUNK_NONE if len == 0 && last => return self.ended(cookie, reader, given),
            CHUNK_NONE => return broken("an empty chunk that is not the last"),
            CHUNK_OFFSET_DATA if pending.command == Command::Read && len > 8 => {
                let Some(offset) = reader.u64() else {
                    return Ok((0, None));
                };
                let Ok(len) = u32::try_from(len - 8) else {
                    return broken("data beyond the request");
                };
                let at = pending.take(offset, len)?;
                self.data(cookie, at, len, last)
            }
            CHUNK_OFFSET_HOLE if pending.command == Command::Read && len == 12 => {
                let (Some(offset), Some(size)) = (reader.u64(), reader.u32()) else {
                    return Ok((0, None));
                };
                let at = pending.take(offset, size)?;
                let len = size;
                return self.told(cookie, Event::Hole { cookie, at, len }, last, reader, given);
            }
            CHUNK_BLOCK_STATUS | CHUNK_BLOCK_STATUS_EXT
                if pending.command == Command::BlockStatus
                    && (extended || kind == CHUNK_BLOCK_STATUS) =>
            {
                let chunk = extents::Chunk {
                    len,
                    wide: kind == CHUNK_BLOCK_STATUS_EXT,
                    cookie,
                    range: pending.len,
                };
                let Some((context, extents)) = extents::extents(&mut reader, chunk)? else {
                    return Ok((0, None));
                };
                if std::mem::replace(&mut pending.extents, true) {
                    return broken("extents twice");
                }
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
        self.pending.get(cookie).ok_or(unknown)
    }

    fn finish(&mut self, cookie: u64) -> Result<Event, ProtocolError> {
        let what = "bytes of it are missing";
        let broken = ProtocolError::BrokenReply { cookie, what };
        let Some(pending) = self.pending.get(cookie) else {
            return Err(broken);
        };
        let result = match pending.error {
            Some(code) => Err(code),
            None if pending.command == Command::Read && !pending.is_whole() => return Err(broken),
            None if pending.command == Command::BlockStatus && !pending.extents => {
                return Err(broken);
            }
            None => Ok(()),
        };
        self.pending.remove(cookie);
        Ok(Event::Answered { cookie, result })
    }
}

/// Parses a chunk's error; `None` while incomplete.
fn error(
    reader: &mut Reader<'_>,
    kind: u16,
    len: u64,
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
