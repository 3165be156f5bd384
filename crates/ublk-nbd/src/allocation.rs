//! What an export is made of, by its meta context `base:allocation`.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use nbd_client::{Command, CommandFlags, Event, Framing, Replies, Request};
use socket2::SockRef;

use crate::connect::Connected;

/// Longest range in one question without extended headers: a multiple of every block size.
const STEP: u64 = 2 << 30;

/// Most extents that are counted.
const MOST: u64 = 1 << 20;

/// `NBD_STATE_HOLE`: nothing is allocated.
const HOLE: u64 = 1 << 0;

/// `NBD_STATE_ZERO`: it reads as zeroes.
const ZERO: u64 = 1 << 1;

/// How much of an export is data, by the server's word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Allocation {
    /// Bytes that may hold anything.
    pub data: u64,
    /// Bytes that read as zeroes, allocated or not.
    pub zero: u64,
    /// Bytes that are not allocated.
    pub hole: u64,
    /// Extents that the server told of.
    pub extents: u64,
    /// Whether they cover the whole export.
    pub complete: bool,
    /// Why they do not: there are more than a million, the server failed, or there was no time for all.
    pub stopped: Option<String>,
}

/// Asks for the extents of an export, as far as there is time. `None` if they were not negotiated.
pub(crate) fn measure(connected: &Connected, deadline: Instant) -> Option<Allocation> {
    let export = &connected.export;
    let context = export.allocation?;
    let mut sum = Allocation::default();
    let mut asking = Asking {
        connected,
        socket: SockRef::from(&connected.socket),
        replies: Replies::new(export.framing, 1),
        deadline,
        context,
        held: Vec::new(),
    };
    let mut at = 0;
    while at < export.size && sum.extents < MOST {
        let extents = match asking.ask(at) {
            Ok(extents) => extents,
            Err(e) => {
                sum.stopped = Some(reason(&e));
                break;
            }
        };
        let before = at;
        for (len, flags) in extents {
            let len = len.min(export.size - at);
            sum.add(len, flags);
            at += len;
        }
        if at == before {
            sum.stopped = Some("the server told of no extent".to_owned());
            break;
        }
    }
    sum.complete = at == export.size;
    if !sum.complete && sum.stopped.is_none() {
        sum.stopped = Some(format!("there are more than {MOST} extents"));
    }
    asking.say_goodbye();
    Some(sum)
}

/// Why a question had no answer. Both errors mean that the deadline has passed.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            "there was no time for more".to_owned()
        }
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        io::ErrorKind::InvalidData => "the server sent another answer".to_owned(),
        _ => error.to_string(),
    }
}

impl Allocation {
    fn add(&mut self, len: u64, flags: u64) {
        if len == 0 {
            return;
        }
        self.extents += 1;
        let when = |flag| if flags & flag == 0 { 0 } else { len };
        self.zero += when(ZERO);
        self.hole += when(HOLE);
        self.data += if flags & (HOLE | ZERO) == 0 { len } else { 0 };
    }
}

struct Asking<'a> {
    connected: &'a Connected,
    socket: SockRef<'a>,
    replies: Replies,
    deadline: Instant,
    context: u32,
    held: Vec<u8>,
}

impl Asking<'_> {
    fn send(&mut self, request: &Request) -> io::Result<()> {
        let mut header = [0; Request::LONGEST];
        let len = request.encode(self.connected.export.framing, &mut header);
        self.socket.set_write_timeout(Some(self.left()?))?;
        (&*self.socket).write_all(header.get(..len).unwrap_or_default())
    }

    /// The extents from an offset on.
    fn ask(&mut self, offset: u64) -> io::Result<Vec<(u64, u64)>> {
        let longest = match self.connected.export.framing {
            Framing::Extended => self.connected.export.framing.longest(),
            _ => STEP,
        };
        let request = Request {
            command: Command::BlockStatus,
            flags: CommandFlags::default(),
            cookie: offset,
            offset,
            len: longest.min(self.connected.export.size - offset),
        };
        self.replies.expect(&request);
        self.send(&request)?;
        let mut told = Vec::new();
        loop {
            let (used, event) = self.replies.next(&self.held).map_err(io::Error::other)?;
            self.held.drain(..used);
            match event {
                Some(Event::Extents {
                    context, extents, ..
                }) if context == self.context => told = extents,
                Some(Event::Answered { result, .. }) => {
                    let failed = |code: nbd_client::ErrorCode| io::Error::other(code.to_string());
                    return result.map(|()| told).map_err(failed);
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None if used > 0 => {}
                None => self.receive()?,
            }
        }
    }

    fn left(&self) -> io::Result<Duration> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left.max(Duration::from_millis(1))),
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        let mut more = [0; 16 << 10];
        match (&*self.socket).read(&mut more) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => {
                self.held.extend(more.iter().take(len));
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            // A record of TLS that has no data.
            Err(e) if self.connected.goes_on(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn say_goodbye(&mut self) {
        let bye = Request {
            command: Command::Disconnect,
            flags: CommandFlags::default(),
            cookie: 0,
            offset: 0,
            len: 0,
        };
        // The connection ends either way.
        let _ = self.send(&bye);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_summed_by_their_flags() {
        let mut sum = Allocation::default();
        for (len, flags) in [(10, 0), (20, HOLE | ZERO), (30, ZERO), (40, HOLE), (0, 0)] {
            sum.add(len, flags);
        }
        assert_eq!((sum.data, sum.zero, sum.hole, sum.extents), (10, 50, 60, 4));
    }
}
