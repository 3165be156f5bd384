//! A client of an NBD server without a block device: the least that the requests of a row cost on the socket itself.
//!
//! All requests of a batch leave in one send, and one receive takes all replies that there are; the next batch replaces
//! those that were answered. Data is neither produced nor copied out of the receive buffer.

use std::io::{Read, Write};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nbd_client::{Command, CommandFlags, Event, Framing, Replies, Request, Simple};

use crate::peer::{self, Socket};

/// The part of the export that is used, in bytes: as much as fio uses of a device.
const SPAN: u64 = 200 << 20;

/// The work of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The unix socket of the server, or its port of loopback TCP.
    pub at: String,
    /// Whether it writes.
    write: bool,
    /// Whether its requests are in random order.
    random: bool,
    /// Length of a request in bytes.
    block: usize,
    /// Number of requests in flight.
    depth: usize,
}

impl Job {
    /// Parses `AT MODE BLOCK DEPTH`, where mode and block are those of fio: `/run/nbd.sock randread 4k 64`.
    ///
    /// # Errors
    /// Another number of words, or one that has no meaning.
    pub fn parse(text: &str) -> Result<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [at, mode, block, depth] = words[..] else {
            bail!("not a server, a mode, a block size and a depth: {text:?}");
        };
        let kind = mode.strip_prefix("rand").unwrap_or(mode);
        ensure!(["read", "write"].contains(&kind), "no mode: {mode:?}");
        let job = Self {
            at: at.to_owned(),
            write: kind == "write",
            random: kind != mode,
            block: bytes(block).with_context(|| format!("no block size: {block:?}"))?,
            depth: depth
                .parse()
                .with_context(|| format!("no depth: {depth:?}"))?,
        };
        ensure!(job.block > 0 && job.depth > 0, "nothing to do: {text:?}");
        Ok(job)
    }
}

/// A number of bytes with fio's suffix `k` or `m`.
fn bytes(text: &str) -> Option<usize> {
    let shifts = [('k', 10), ('m', 20)].into_iter();
    let mut scaled = shifts.filter_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?, shift)));
    let (digits, shift) = scaled.next()?;
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// A connected client.
#[derive(Debug)]
pub struct Floor {
    socket: Socket,
    job: Job,
    replies: Replies,
    /// Cookies of requests that are not in flight.
    free: Vec<u64>,
    places: Places,
    /// A batch: headers, each followed by its data if it is a WRITE.
    batch: Vec<u8>,
    /// What was received; bytes before `held` are the beginning of a header.
    window: Vec<u8>,
    held: usize,
}

impl Floor {
    /// Connects to the job's server and opens its default export.
    ///
    /// # Errors
    /// Nobody listens, the handshake fails, or the export is too small.
    pub fn connect(job: &Job) -> Result<Self> {
        let (socket, export) = peer::open(&job.at)?;
        Self::new(socket, job, export.size)
    }

    /// A client on a connection whose export, of this size, is open.
    fn new(socket: Socket, job: &Job, size: u64) -> Result<Self> {
        let block = u64::try_from(job.block)?;
        let places = Places::new(size.min(SPAN), block, job.random)?;
        let data = if job.write { job.block } else { 0 };
        Ok(Self {
            socket,
            job: job.clone(),
            replies: Replies::new(Framing::Simple, job.depth),
            free: (0..u64::try_from(job.depth)?).collect(),
            places,
            batch: vec![0x5a; job.depth * (Request::LONGEST + data)],
            window: vec![0; job.depth * (Replies::SIMPLE + job.block)],
            held: 0,
        })
    }

    /// Does this many requests and returns the number of those that were answered.
    ///
    /// # Errors
    /// The connection is lost, or the server answers with an error or breaks the protocol.
    pub fn run(&mut self, ios: u64) -> Result<u64> {
        let (mut left, mut answered) = (ios, 0);
        while answered < ios {
            let batch = left.min(u64::try_from(self.free.len())?);
            if batch > 0 {
                self.send(usize::try_from(batch)?)?;
                left -= batch;
            }
            let before = self.free.len();
            self.receive()?;
            answered += u64::try_from(self.free.len() - before)?;
        }
        Ok(answered)
    }

    /// Sends this many requests at once.
    fn send(&mut self, count: usize) -> Result<()> {
        let (command, data) = match self.job.write {
            true => (Command::Write, self.job.block),
            false => (Command::Read, 0),
        };
        let len = u64::try_from(self.job.block)?;
        let mut end = 0;
        for cookie in self.free.drain(..count) {
            let request = Request {
                command,
                flags: CommandFlags::default(),
                cookie,
                offset: self.places.next(),
                len,
            };
            ensure!(self.replies.expect(&request), "a cookie is in use");
            let place = self.batch.get_mut(end..).context("a full batch")?;
            let header = place.first_chunk_mut().context("a full batch")?;
            end += request.encode(Framing::Simple, header) + data;
        }
        let batch = self.batch.get(..end).context("a full batch")?;
        Ok(self.socket.write_all(batch)?)
    }

    /// Receives once and takes all replies that are there.
    fn receive(&mut self) -> Result<()> {
        let room = self.window.get_mut(self.held..).context("a full window")?;
        let len = self.socket.read(room)?;
        ensure!(len > 0, "the server closed the connection");
        let end = self.held + len;
        let mut at = 0;
        while let Some(rest) = self.window.get(at..end).filter(|rest| !rest.is_empty()) {
            let used = take(&mut self.replies, rest, &mut self.free)?;
            if used == 0 {
                break;
            }
            at += used;
        }
        self.window.copy_within(at..end, 0);
        self.held = end - at;
        Ok(())
    }
}

/// Takes a reply, or a part of one, from the start of the bytes: returns its length, 0 if a header is incomplete. The
/// cookie of a request that is answered is free.
fn take(replies: &mut Replies, bytes: &[u8], free: &mut Vec<u64>) -> Result<usize> {
    // The usual case: the whole reply is there.
    if let Some((cookie, answer)) = replies.simple(bytes) {
        free.push(cookie);
        return Ok(match answer {
            Simple::Read(data) => Replies::SIMPLE + data.len(),
            Simple::Done => Replies::SIMPLE,
        });
    }
    let (used, event) = match replies.payload() {
        0 => replies.next(bytes)?,
        left => {
            let there = u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(left);
            (usize::try_from(there)?, replies.received(there)?)
        }
    };
    match event {
        Some(Event::Answered { cookie, result }) => {
            result.map_err(|code| anyhow!("the server answers with {code:?}"))?;
            free.push(cookie);
        }
        None | Some(Event::Data { .. }) => {}
        Some(other) => bail!("unexpected {other:?}"),
    }
    Ok(used)
}

/// The offsets of requests.
#[derive(Debug)]
struct Places {
    block: u64,
    blocks: u64,
    /// The next block, or the state of the generator of random ones.
    state: u64,
    random: bool,
}

impl Places {
    fn new(size: u64, block: u64, random: bool) -> Result<Self> {
        let blocks = size / block;
        ensure!(blocks > 0, "an export of {size} bytes is too small");
        Ok(Self {
            block,
            blocks,
            state: u64::from(random),
            random,
        })
    }

    fn next(&mut self) -> u64 {
        let number = match self.random {
            // Knuth's constants; the upper bits are the good ones.
            true => {
                self.state = self
                    .state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (self.state >> 33) % self.blocks
            }
            false => {
                let number = self.state;
                self.state = (number + 1) % self.blocks;
                number
            }
        };
        number * self.block
    }
}

#[cfg(test)]
mod tests;
