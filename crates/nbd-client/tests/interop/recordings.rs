//! The requests that the integrity test of the NBD project recorded, out of its source package. `cargo xtask
//! nbd-interop` fetches it; nothing of it is kept here.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

use nbd_client::{BlockSizes, Command, CommandFlags, Framing};

use crate::common::client::{Client, DEPTH, index};
use crate::common::program::{Server, Stop};
use crate::{Pair, open};

/// The variable with the directory of the recordings.
const FILES: &str = "INTEROP_RECORDINGS";

/// Size of the export in bytes, as the test makes it.
const SIZE: u64 = 50 << 20;

/// Bytes that are filled and compared as one.
const SECTOR: usize = 512;

/// Bytes of a batch at most, so that neither side waits for room in its socket.
const BATCH: u64 = 64 << 10;

/// Length of a recorded request and of a recorded reply.
const REQUEST: usize = 28;
const REPLY: usize = 16;

pub fn pairs() -> Vec<Pair> {
    let pair = |server, export, run| Pair {
        server,
        export,
        run,
    };
    vec![
        pair("nbdkit", "memory, recorded requests", nbdkit),
        pair("qemu-nbd", "raw, recorded requests", qemu_nbd),
        pair("nbd-server", "file, recorded requests", nbd_server),
    ]
}

/// The recordings, sorted, with their names.
fn files() -> Result<Vec<(String, PathBuf)>, Stop> {
    let Some(directory) = std::env::var_os(FILES) else {
        return Err(Stop::Skip(format!(
            "no recordings: {FILES} is not set (cargo xtask nbd-interop)"
        )));
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default();
        files.push((name.to_string_lossy().into_owned(), path));
    }
    files.sort();
    match files.is_empty() {
        true => Err(Stop::Fail(format!("no file in {}", directory.display()))),
        false => Ok(files),
    }
}

fn nbdkit() -> Result<String, Stop> {
    let mut server = Server::new()?;
    server.nbdkit(&[], "memory", &[format!("size={SIZE}")])?;
    replay_all(&server)
}

fn qemu_nbd() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    server.qemu_nbd(&["--format=raw"], Path::new(&disk))?;
    replay_all(&server)
}

fn nbd_server() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    server.nbd_server(&format!("exportname = {disk}\nflush = true\nfua = true"))?;
    replay_all(&server)
}

/// Replays each recording on a connection with chunks, if the server has them, and on one without.
fn replay_all(server: &Server) -> Result<String, Stop> {
    let mut told = Vec::new();
    let mut disk = Disk::default();
    for (name, path) in files()? {
        let requests = recorded(&fs::read(path)?)?;
        for framing in [Framing::Extended, Framing::Simple] {
            let (mut client, export) = open(server, framing)?;
            let sizes = export.block_sizes.unwrap_or(BlockSizes::DEFAULT);
            let requests: Vec<_> = requests
                .iter()
                .flat_map(|request| request.parts(sizes.maximum))
                .collect();
            for batch in batches(&requests) {
                disk.send(&mut client, batch)?;
            }
            client.disconnect();
        }
        told.push(format!("{} of {name}", requests.len()));
    }
    let (mut client, _) = open(server, Framing::Extended)?;
    let whole = (0..SIZE).step_by(1 << 20).map(|at| Recorded {
        command: Command::Read,
        flags: CommandFlags::default(),
        offset: at,
        len: 1 << 20,
    });
    for read in whole {
        disk.send(&mut client, &[read])?;
    }
    client.disconnect();
    Ok(told.join(", "))
}

/// A request as recorded: of its data only the length.
#[derive(Debug, Clone, Copy)]
struct Recorded {
    command: Command,
    flags: CommandFlags,
    offset: u64,
    len: u32,
}

impl Recorded {
    /// The request, in parts that the server takes.
    fn parts(self, longest: u32) -> impl Iterator<Item = Self> {
        let starts = (0..self.len.max(1)).step_by(index(longest));
        starts.map(move |at| Self {
            offset: self.offset + u64::from(at),
            len: longest.min(self.len - at),
            ..self
        })
    }

    /// May not be in flight together with `other`: the outcome would depend on their order.
    fn conflicts(&self, other: &Self) -> bool {
        let both_read = self.command == Command::Read && other.command == Command::Read;
        let (end, other_end) = (
            self.offset + u64::from(self.len),
            other.offset + u64::from(other.len),
        );
        !both_read && self.offset < other_end && other.offset < end
    }
}

/// The requests of a recording, in which headers of requests and of replies follow each other.
fn recorded(mut bytes: &[u8]) -> Result<Vec<Recorded>, Stop> {
    let mut requests = Vec::new();
    let odd = |what: String| Stop::Fail(format!("not a recording: {what}"));
    while let Some((magic, _)) = bytes.split_first_chunk() {
        let len = match u32::from_be_bytes(*magic) {
            0x2560_9513 => REQUEST,
            0x6744_6698 => REPLY,
            magic => return Err(odd(format!("{magic:#x}"))),
        };
        let (header, rest) = bytes
            .split_at_checked(len)
            .ok_or_else(|| odd("cut".into()))?;
        bytes = rest;
        if len == REPLY {
            continue;
        }
        let number = |at: usize, len: usize| {
            let bytes = &header[at..at + len];
            bytes
                .iter()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let command = match number(6, 2) {
            0 => Command::Read,
            1 => Command::Write,
            2 => continue,
            3 => Command::Flush,
            4 => Command::Trim,
            other => return Err(odd(format!("command {other}"))),
        };
        requests.push(Recorded {
            command,
            flags: CommandFlags(u16::try_from(number(4, 2))?),
            offset: number(16, 8),
            len: u32::try_from(number(24, 4))?,
        });
    }
    match requests.is_empty() {
        true => Err(odd("empty".into())),
        false => Ok(requests),
    }
}

/// Cuts requests into batches that may be in flight together. A FLUSH is alone, since it covers what is before it.
fn batches(mut requests: &[Recorded]) -> impl Iterator<Item = &[Recorded]> {
    std::iter::from_fn(move || {
        let first = requests.first()?;
        let mut bytes = u64::from(first.len);
        let mut count = 1;
        while let Some(next) = requests.get(count)
            && count < DEPTH
            && first.command != Command::Flush
            && next.command != Command::Flush
            && bytes + u64::from(next.len) <= BATCH
            && !requests[..count].iter().any(|one| one.conflicts(next))
        {
            bytes += u64::from(next.len);
            count += 1;
        }
        let (batch, rest) = requests.split_at(count);
        requests = rest;
        Some(batch)
    })
}

/// What the export must hold: by sector, the number of the last write, or 0.
#[derive(Default)]
struct Disk {
    writers: BTreeMap<usize, u64>,
    writes: u64,
}

impl Disk {
    /// Sends requests at once, receives their answers, and compares what was read.
    fn send(&mut self, client: &mut Client, batch: &[Recorded]) -> Result<(), Stop> {
        let mut data = VecDeque::new();
        for request in batch {
            data.push_back(self.data(request));
        }
        let mut buffers = BTreeMap::new();
        for (request, data) in batch.iter().zip(&mut data) {
            let Recorded {
                command,
                flags,
                offset,
                len,
            } = *request;
            let cookie = client.send(command, flags, offset, data, len);
            buffers.insert(cookie, &mut data[..]);
        }
        for _ in batch {
            let (cookie, (result, _)) = client.next_answer(&mut buffers);
            result.map_err(|code| Stop::Fail(format!("{code} for {cookie} of {batch:?}")))?;
        }
        drop(buffers);
        let reads = |(request, _): &(&Recorded, _)| request.command == Command::Read;
        for (request, data) in batch.iter().zip(&data).filter(reads) {
            self.compare(request, data)?;
        }
        Ok(())
    }

    /// The data of a WRITE, which is remembered, or room for that of a READ.
    fn data(&mut self, request: &Recorded) -> Vec<u8> {
        let mut data = match request.command {
            Command::Read | Command::Write => vec![0xaa; index(request.len)],
            _ => Vec::new(),
        };
        if request.command == Command::Write {
            self.writes += 1;
            for (sector, bytes) in sectors(request).zip(data.chunks_mut(SECTOR)) {
                fill(bytes, sector, self.writes);
                self.writers.insert(sector, self.writes);
            }
        }
        data
    }

    fn compare(&self, request: &Recorded, data: &[u8]) -> Result<(), Stop> {
        let mut wanted = [0; SECTOR];
        for (sector, bytes) in sectors(request).zip(data.chunks(SECTOR)) {
            let writer = self.writers.get(&sector).copied().unwrap_or(0);
            fill(&mut wanted, sector, writer);
            if bytes != wanted {
                let why = format!("sector {sector} is not that of write {writer}, {request:?}");
                return Err(Stop::Fail(why));
            }
        }
        Ok(())
    }
}

/// The sectors of a request's range.
fn sectors(request: &Recorded) -> std::ops::Range<usize> {
    let first = usize::try_from(request.offset).expect("small") / SECTOR;
    first..first + index(request.len) / SECTOR
}

/// Fills a sector with what a write leaves there: zeroes for none.
fn fill(bytes: &mut [u8], sector: usize, writer: u64) {
    let sector = u64::try_from(sector).expect("small");
    let word = match writer {
        0 => 0,
        writer => writer << 32 | sector,
    };
    for chunk in bytes.chunks_exact_mut(8) {
        chunk.copy_from_slice(&word.to_be_bytes());
    }
}
