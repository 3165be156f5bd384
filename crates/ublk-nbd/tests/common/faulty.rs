//! A server that answers in any framing, and that breaks at any place or in any way of a list.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nbd_client::Framing;

use super::server::FLAGS;

/// NBD_OPT_GO, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_EXTENDED_HEADERS.
const GO: u32 = 7;
const STRUCTURED: u32 = 8;
const LIST_CONTEXTS: u32 = 9;
const SET_CONTEXTS: u32 = 10;
const EXTENDED: u32 = 11;

/// The export is data and hole in turn, so many bytes each.
pub const EXTENT: u64 = 1 << 20;

/// What a connection consists of, by the words of qemu's test of disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The greeting.
    Negotiation,
    /// The reply to the option that opens the export.
    Export,
    /// A request.
    Request,
    /// The header of its reply.
    Reply,
    /// The data of its reply; of a reply without data, its end.
    Data,
}

/// Where in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    Inside,
    After,
}

/// What a connection does there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Close,
    /// Nothing more comes, and nothing is closed.
    Stall,
}

/// A reply that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    Magic,
    /// The magic of another framing.
    OtherMagic,
    /// The cookie of no request.
    Cookie,
    /// A reply that comes once more, when its tag has another request.
    Again,
    /// A length that no reply has.
    Giant,
    /// Data of which a byte comes twice.
    Overlap,
    /// Data behind the request's range.
    Beyond,
    /// Data before it.
    Before,
    /// Fewer bytes than were asked for.
    Missing,
    /// Data behind a simple error.
    DataAfterError,
    /// Data of a request that has none.
    DataOfAWrite,
    /// A type of chunk that there is none of.
    Type,
    /// An error without a number.
    NoError,
}

/// How one connection ends, counted in its own requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    At(Stage, When, How, u64),
    Wrong(Wrong, u64),
    /// Each n-th reply is an error, of chunks an error after data.
    Errors(u64),
    /// From the n-th request on, everything is answered with ESHUTDOWN, until the client leaves.
    ShutsDown(u64),
    /// Replies to an option without end.
    EndlessOptions,
    /// A reply to an option of 4 GiB.
    GiantOption,
}

/// What the server offers.
#[derive(Debug, Clone)]
pub struct Offer {
    pub framing: Framing,
    pub size: u64,
    pub flags: u16,
    /// Minimum and maximum block size.
    pub blocks: [u32; 2],
    /// Everything is sent in pieces of so many bytes, 0 for all at once.
    pub drip: usize,
    /// Of each connection in turn; the last one is for all that follow.
    pub faults: Vec<Fault>,
}

/// A request as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub command: u16,
    pub flags: u16,
    pub offset: u64,
    pub len: u64,
}

struct Shared {
    data: Mutex<Vec<u8>>,
    offer: Mutex<Offer>,
    connections: AtomicU64,
    seen: Mutex<Vec<Seen>>,
    /// What stalls is kept open.
    stalled: Mutex<Vec<UnixStream>>,
}

/// The server; it listens until the test program ends.
pub struct Faulty {
    shared: Arc<Shared>,
    directory: tempfile::TempDir,
}

impl Faulty {
    pub fn start(framing: Framing, faults: &[Fault]) -> Self {
        let offer = Offer {
            framing,
            size: 1 << 20,
            flags: FLAGS,
            blocks: [1, 32 << 20],
            drip: 0,
            faults: faults.to_vec(),
        };
        Self::with(offer)
    }

    pub fn with(offer: Offer) -> Self {
        let shared = Arc::new(Shared {
            data: Mutex::new(vec![
                0;
                usize::try_from(offer.size.min(1 << 20)).expect("small")
            ]),
            offer: Mutex::new(offer),
            connections: AtomicU64::new(0),
            seen: Mutex::default(),
            stalled: Mutex::default(),
        });
        let directory = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(directory.path().join("nbd")).expect("a socket");
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&own);
                thread::spawn(move || shared.serve(stream));
            }
        });
        Self { shared, directory }
    }

    pub fn uri(&self) -> String {
        let socket = self.directory.path().join("nbd");
        format!("nbd+unix:///disk?socket={}", socket.display())
    }

    pub fn change(&self, change: impl FnOnce(&mut Offer)) {
        change(&mut self.shared.offer.lock().expect("no panic"));
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("no panic").clone()
    }
}

/// A connection of the server.
struct Connection<'a> {
    stream: UnixStream,
    shared: &'a Shared,
    offer: Offer,
    fault: Fault,
    framing: Framing,
}

/// The end of a connection.
type End = io::Result<()>;

impl Shared {
    fn serve(&self, stream: UnixStream) {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let offer = self.offer.lock().expect("no panic").clone();
        let last = offer.faults.len().saturating_sub(1);
        let at = usize::try_from(number).expect("few").min(last);
        let fault = offer.faults.get(at).copied().unwrap_or(Fault::None);
        let mut connection = Connection {
            stream,
            shared: self,
            offer,
            fault,
            framing: Framing::Simple,
        };
        // However it ends: the client sees it by the stream.
        let _ = connection.negotiate();
    }
}

impl Connection<'_> {
    /// True if the connection's fault is here.
    fn breaks(&self, stage: Stage, when: When, number: u64) -> bool {
        matches!(self.fault, Fault::At(s, w, _, n) if (s, w, n) == (stage, when, number))
    }

    /// Ends the connection, or has it stall.
    fn end(&self) -> End {
        if matches!(self.fault, Fault::At(_, _, How::Stall, _)) {
            let mut stalled = self.shared.stalled.lock().expect("no panic");
            stalled.push(self.stream.try_clone()?);
        }
        Err(io::ErrorKind::ConnectionAborted.into())
    }

    fn put(&mut self, bytes: &[u8]) -> End {
        match self.offer.drip {
            0 => self.stream.write_all(bytes),
            drip => bytes
                .chunks(drip)
                .try_for_each(|part| self.stream.write_all(part)),
        }
    }

    /// Sends what belongs to a stage, or as much of it as the fault allows.
    fn staged(&mut self, stage: Stage, number: u64, bytes: &[u8]) -> End {
        let len = match () {
            () if self.breaks(stage, When::Before, number) => 0,
            () if self.breaks(stage, When::Inside, number) => bytes.len() / 2,
            () if self.breaks(stage, When::After, number) => bytes.len(),
            () => return self.put(bytes),
        };
        self.put(&bytes[..len])?;
        self.end()
    }

    fn negotiate(&mut self) -> End {
        self.staged(Stage::Negotiation, 0, b"NBDMAGICIHAVEOPT\0\x03")?;
        self.read::<4>()?;
        loop {
            let head = self.read::<16>()?;
            let option = u32::from_be_bytes(head[8..12].try_into().expect("four"));
            let len = u32::from_be_bytes(head[12..].try_into().expect("four"));
            let mut body = vec![0; len as usize];
            self.stream.read_exact(&mut body)?;
            let offered = self.offer.framing;
            match option {
                EXTENDED if offered == Framing::Extended => self.framing = offered,
                STRUCTURED if offered == Framing::Structured => self.framing = offered,
                LIST_CONTEXTS | SET_CONTEXTS if self.framing.has_chunks() => {
                    let body = [&[0, 0, 0, 1], &b"base:allocation"[..]].concat();
                    self.put(&option_reply(option, 4, &body))?;
                }
                GO => {
                    self.export()?;
                    return self.transmission();
                }
                // NBD_REP_ERR_UNSUP.
                _ => {
                    self.put(&option_reply(option, 1 << 31 | 1, &[]))?;
                    continue;
                }
            }
            self.put(&option_reply(option, 1, &[]))?;
        }
    }

    fn export(&mut self) -> End {
        let mut export = vec![0, 0];
        export.extend(self.offer.size.to_be_bytes());
        export.extend(self.offer.flags.to_be_bytes());
        let [minimum, maximum] = self.offer.blocks;
        let mut sizes = vec![0, 3];
        for size in [minimum, 4096.max(minimum), maximum] {
            sizes.extend(size.to_be_bytes());
        }
        match self.fault {
            Fault::EndlessOptions => loop {
                self.put(&option_reply(GO, 3, &sizes))?;
            },
            Fault::GiantOption => {
                let mut giant = option_reply(GO, 3, &[]);
                giant[16..20].fill(0xff);
                return self.put(&giant);
            }
            _ => {}
        }
        let replies = [
            option_reply(GO, 3, &export),
            option_reply(GO, 3, &sizes),
            option_reply(GO, 1, &[]),
        ];
        self.staged(Stage::Export, 0, &replies.concat())
    }

    fn transmission(&mut self) -> End {
        let mut repeated = Vec::new();
        for n in 0.. {
            if self.breaks(Stage::Request, When::Before, n) {
                return self.end();
            }
            let Some((seen, cookie)) = self.request(n)? else {
                return Ok(());
            };
            if self.breaks(Stage::Request, When::After, n) {
                return self.end();
            }
            let at = usize::try_from(seen.offset).expect("small");
            let len = usize::try_from(seen.len).expect("small");
            let data = match seen.command {
                0 => self.shared.data.lock().expect("no panic")[at..at + len].to_vec(),
                _ => Vec::new(),
            };
            let error = self.error(n);
            let reply = Reply {
                framing: self.framing,
                cookie,
                seen,
                error,
                number: n,
                wrong: match self.fault {
                    Fault::Wrong(wrong, m) if m == n => Some(wrong),
                    _ => None,
                },
            };
            let mut bytes = reply.bytes(&data);
            match self.fault {
                Fault::Wrong(Wrong::Again, m) if m == n => repeated.clone_from(&bytes),
                Fault::Wrong(Wrong::Again, m) if m + 20 == n => {
                    bytes.splice(0..0, repeated.iter().copied());
                }
                _ => {}
            }
            let head = bytes.len().min(self.header());
            self.staged(Stage::Reply, n, &bytes[..head])?;
            self.staged(Stage::Data, n, &bytes[head..])?;
        }
        Ok(())
    }

    /// The error of the n-th reply.
    fn error(&self, n: u64) -> u32 {
        match self.fault {
            Fault::Errors(m) if n % m == m - 1 => 5,
            Fault::ShutsDown(m) if n >= m => 108,
            _ => 0,
        }
    }

    fn header(&self) -> usize {
        match self.framing {
            Framing::Simple => 16,
            Framing::Structured => 28,
            Framing::Extended => 40,
        }
    }

    /// Receives a request and carries it out; `None` for the end.
    fn request(&mut self, number: u64) -> io::Result<Option<(Seen, [u8; 8])>> {
        let extended = self.framing == Framing::Extended;
        let mut head = vec![0; if extended { 32 } else { 28 }];
        if self.breaks(Stage::Request, When::Inside, number) {
            self.stream.read_exact(&mut head[..14])?;
            self.end()?;
        }
        self.stream.read_exact(&mut head)?;
        let magic: u32 = if extended { 0x21e4_1c71 } else { 0x2560_9513 };
        assert_eq!(head[..4], magic.to_be_bytes());
        let short = |at: usize| u16::from_be_bytes(head[at..at + 2].try_into().expect("two"));
        let long = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight"));
        let compact = u32::from_be_bytes(head[24..28].try_into().expect("four"));
        let seen = Seen {
            flags: short(4),
            command: short(6),
            offset: long(16),
            len: if extended { long(24) } else { compact.into() },
        };
        let cookie = head[8..16].try_into().expect("eight");
        let write = seen.command == 1;
        assert_eq!(seen.flags & 1 << 5 != 0, extended && write, "{seen:?}");
        self.shared.seen.lock().expect("no panic").push(seen);
        let (at, len) = (seen.offset, seen.len);
        let (at, len) = (
            usize::try_from(at).expect("small"),
            usize::try_from(len).expect("small"),
        );
        let mut body = vec![0; if write { len } else { 0 }];
        self.stream.read_exact(&mut body)?;
        let fails = self.error(number) != 0;
        let mut data = self.shared.data.lock().expect("no panic");
        match seen.command {
            2 => return Ok(None),
            _ if fails => {}
            1 => data[at..at + len].copy_from_slice(&body),
            // What is trimmed reads as zeroes, as the simulated client expects it.
            4 | 6 if at < data.len() => {
                let end = (at + len).min(data.len());
                data[at..end].fill(0);
            }
            0 | 3 | 4 | 6 | 7 => {}
            other => panic!("command {other}"),
        }
        drop(data);
        Ok(Some((seen, cookie)))
    }

    fn read<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn option_reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    let len = u32::try_from(body.len()).expect("short");
    bytes.extend(len.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A reply, as right or wrong as it is to be.
struct Reply {
    framing: Framing,
    cookie: [u8; 8],
    seen: Seen,
    /// Of the protocol; 0 for success.
    error: u32,
    number: u64,
    wrong: Option<Wrong>,
}

impl Reply {
    fn bytes(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = match self.framing {
            Framing::Simple => self.simple(data),
            // Both are allowed for commands without data.
            Framing::Structured
                if ![0, 7].contains(&self.seen.command) && self.number.is_multiple_of(2) =>
            {
                self.simple(data)
            }
            _ => self.chunks(data),
        };
        match self.wrong {
            Some(Wrong::Magic) => bytes[0] ^= 0x55,
            Some(Wrong::OtherMagic) => {
                let other: u32 = match self.framing {
                    Framing::Extended => 0x668e_33ef,
                    _ => 0x6e8a_278c,
                };
                bytes[..4].copy_from_slice(&other.to_be_bytes());
            }
            Some(Wrong::Cookie) => bytes[8] ^= 0x55,
            _ => {}
        }
        bytes
    }

    fn simple(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = 0x6744_6698_u32.to_be_bytes().to_vec();
        let after_error = self.wrong == Some(Wrong::DataAfterError);
        let error = if after_error { 5 } else { self.error };
        bytes.extend(error.to_be_bytes());
        bytes.extend(self.cookie);
        if error == 0 || after_error {
            bytes.extend(data);
        }
        bytes
    }

    /// The data of a READ in up to three chunks, the last one first, zeroes as holes; others in one without data.
    fn chunks(&self, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let offset = self.seen.offset;
        match self.wrong {
            Some(Wrong::Overlap) => bytes.extend(self.data(offset, &data[..data.len().min(1)])),
            Some(Wrong::Beyond) => {
                let end = offset + self.seen.len;
                bytes.extend(self.data(end - 1, &[1, 2]));
            }
            Some(Wrong::Before) => bytes.extend(self.data(offset.wrapping_sub(1), &[1])),
            Some(Wrong::Giant) => {
                let mut giant = self.data(offset, &[1]);
                let end = if self.framing == Framing::Extended {
                    32
                } else {
                    20
                };
                giant[16..end].fill(0xff);
                bytes.extend(giant);
            }
            Some(Wrong::DataOfAWrite) => bytes.extend(self.data(offset, &[1])),
            Some(Wrong::Type) => bytes.extend(self.chunk(0, 0x77, &[])),
            Some(Wrong::NoError) => bytes.extend(self.chunk(1, 1 << 15 | 1, &[0; 6])),
            _ => {}
        }
        let step = (data.len() / 3).next_multiple_of(512).max(512);
        let mut pieces: Vec<_> = data.chunks(step).zip((offset..).step_by(step)).collect();
        if self.wrong == Some(Wrong::Missing) {
            pieces.pop();
        }
        for (piece, at) in pieces.into_iter().rev() {
            match piece.iter().all(|byte| *byte == 0) {
                true => {
                    let mut body = at.to_be_bytes().to_vec();
                    body.extend(u32::try_from(piece.len()).expect("small").to_be_bytes());
                    bytes.extend(self.chunk(0, 2, &body));
                }
                false => bytes.extend(self.data(at, piece)),
            }
        }
        if self.seen.command == 7 && self.error == 0 {
            bytes.extend(self.extents());
        }
        match self.error {
            0 => bytes.extend(self.chunk(1, 0, &[])),
            error => {
                let body = [&error.to_be_bytes()[..], &[0, 2, b'n', b'o']].concat();
                bytes.extend(self.chunk(1, 1 << 15 | 1, &body));
            }
        }
        bytes
    }

    /// At most three extents, of 64 bits with extended headers.
    fn extents(&self) -> Vec<u8> {
        let Seen { offset, len, .. } = self.seen;
        let wide = self.framing == Framing::Extended;
        let (mut body, mut at) = (vec![0, 0, 0, 1], offset);
        body.extend(&[0; 4][..if wide { 4 } else { 0 }]);
        for _ in 0..3 {
            let end = (at / EXTENT + 1) * EXTENT;
            let (now, flags) = (end.min(offset + len) - at, 3 * (at / EXTENT % 2));
            match wide {
                true => body.extend([now.to_be_bytes(), flags.to_be_bytes()].concat()),
                false => {
                    let narrow = [now, flags].map(|n| u32::try_from(n).expect("small"));
                    body.extend(narrow.map(u32::to_be_bytes).concat());
                }
            }
            at += now;
            if at == offset + len {
                break;
            }
        }
        self.chunk(0, if wide { 6 } else { 5 }, &body)
    }

    fn data(&self, offset: u64, data: &[u8]) -> Vec<u8> {
        self.chunk(0, 1, &[&offset.to_be_bytes(), data].concat())
    }

    fn chunk(&self, flags: u16, kind: u16, body: &[u8]) -> Vec<u8> {
        let extended = self.framing == Framing::Extended;
        let magic: u32 = if extended { 0x6e8a_278c } else { 0x668e_33ef };
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(self.cookie);
        if extended {
            bytes.extend(self.seen.offset.to_be_bytes());
            bytes.extend([0; 4]);
        }
        bytes.extend(u32::try_from(body.len()).expect("small").to_be_bytes());
        bytes.extend(body);
        bytes
    }
}

/// Time that an attempt to connect may take where one stalls.
pub const SHORT: Duration = Duration::from_millis(300);
