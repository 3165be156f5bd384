//! A small server with an in-memory export and selectable faults.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;

use super::wire::Wire;

/// Flags of an export: HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES.
pub const FLAGS: u16 = 1 | 4 | 8 | 32 | 64;
pub const READ_ONLY: u16 = 2;
pub const MULTI_CONN: u16 = 256;

/// Where a connection breaks, counted in the connection's requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No fault.
    None,
    /// Close before the greeting.
    Greeting,
    /// Close in the middle of the reply to the option that opens the export.
    Negotiation,
    /// Close after reading the n-th request, before executing it.
    Request(u64),
    /// Close after executing the n-th request, before its reply.
    BeforeReply(u64),
    /// Close within the header of the n-th reply.
    InReply(u64),
    /// Close within the data of the n-th reply, or after the reply if it has none.
    InData(u64),
    /// Answer nothing from the n-th request on, and keep the connection open.
    Silence(u64),
    /// Answer a WRITE of more than this many bytes before its data is read, and read nothing more.
    Early(usize),
    /// The n-th reply has an unknown cookie.
    Cookie(u64),
    /// The n-th reply is repeated 20 replies later, when its tag has another request.
    Again(u64),
    /// The n-th reply has a wrong magic.
    Magic(u64),
    /// The n-th reply is an error.
    Error(u64),
    /// Sends another reply in plain text behind the one to STARTTLS.
    Injected,
    /// Refuses STARTTLS and goes on in plain text.
    NoTls,
    /// Stops sending after the reply to STARTTLS, without closing.
    TlsSilence,
    /// Closes in the middle of the TLS record of the n-th reply.
    InRecord(u64),
    /// Corrupts the TLS record of the n-th reply.
    BadRecord(u64),
    /// Sends close_notify instead of the n-th reply, without closing.
    CloseNotify(u64),
    /// Updates its TLS keys before each n-th reply.
    KeyUpdate(u64),
}

/// What the server offers and how it fails; changes apply to later connections.
#[derive(Debug, Clone)]
pub struct Behaviour {
    pub size: u64,
    pub flags: u16,
    pub minimum: u32,
    /// Send a reply in pieces of this many bytes; 0 for all at once.
    pub drip: usize,
    /// Answer FLUSH with EIO.
    pub cannot_flush: bool,
    /// Execute each WRITE this much later than it arrives, on every other connection.
    pub late_writes: Duration,
    /// The server demands TLS.
    pub tls: Option<Arc<ServerConfig>>,
    /// The fault of each connection in turn; the last one applies to all that follow.
    pub faults: Vec<Fault>,
}

#[derive(Debug)]
struct Shared {
    data: Mutex<Arc<Mutex<Vec<u8>>>>,
    behaviour: Mutex<Behaviour>,
    connections: AtomicU64,
    requests: AtomicU64,
    flushes: AtomicU64,
    ended: AtomicBool,
}

pub struct Server {
    shared: Arc<Shared>,
    directory: tempfile::TempDir,
}

impl Server {
    pub fn start(size: usize, faults: &[Fault]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let behaviour = Behaviour {
            size: size as u64,
            flags: FLAGS,
            minimum: 1,
            drip: 0,
            cannot_flush: false,
            late_writes: Duration::ZERO,
            tls: None,
            faults: faults.to_vec(),
        };
        let shared = Arc::new(Shared {
            data: Mutex::new(Arc::new(Mutex::new(vec![0; size]))),
            behaviour: Mutex::new(behaviour),
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let server = Self { shared, directory };
        server.listen();
        server
    }

    /// Listens; also restarts after [`Server::go`].
    pub fn listen(&self) {
        let listener = UnixListener::bind(self.socket()).expect("a socket");
        listener.set_nonblocking(true).expect("non-blocking");
        let shared = Arc::clone(&self.shared);
        shared.ended.store(false, Ordering::SeqCst);
        thread::spawn(move || {
            while !shared.ended.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        let shared = Arc::clone(&shared);
                        thread::spawn(move || shared.serve(stream));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
    }

    /// Stops the server: connections close at their next request.
    pub fn go(&self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = std::fs::remove_file(self.socket());
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("nbd")
    }

    /// The URI with TLS.
    pub fn tls_uri(&self) -> String {
        self.uri().replacen("nbd", "nbds", 1)
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket().display())
    }

    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().expect("no panic"));
    }

    /// Serves the same bytes as another server.
    pub fn share_data_of(&self, other: &Self) {
        let data = Arc::clone(&other.shared.data.lock().expect("no panic"));
        *self.shared.data.lock().expect("no panic") = data;
    }

    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub fn flushes(&self) -> u64 {
        self.shared.flushes.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.go();
    }
}

impl Shared {
    fn serve(&self, stream: UnixStream) {
        let number = self.connections.fetch_add(1, Ordering::SeqCst);
        let mut behaviour = self.behaviour.lock().expect("no panic").clone();
        let last = behaviour.faults.len().saturating_sub(1);
        let at = usize::try_from(number).expect("few").min(last);
        let fault = behaviour.faults.get(at).copied().unwrap_or(Fault::None);
        if number % 2 == 1 {
            behaviour.late_writes = Duration::ZERO;
        }
        // The client notices the end by the closed stream.
        let _ = self.connection(stream, &behaviour, fault);
    }

    fn connection(&self, s: UnixStream, b: &Behaviour, fault: Fault) -> io::Result<()> {
        let mut s = Wire::Plain(s);
        if fault == Fault::Greeting {
            return Ok(());
        }
        s.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
        read::<4>(&mut s)?;
        loop {
            let head = read::<16>(&mut s)?;
            let option = u32::from_be_bytes(head[8..12].try_into().expect("four"));
            let len = u32::from_be_bytes(head[12..].try_into().expect("four"));
            let mut body = vec![0; len as usize];
            s.read_exact(&mut body)?;
            match (&b.tls, option) {
                (Some(config), 5) if !s.is_tls() && fault != Fault::NoTls => {
                    let mut replies = reply_to(5, 1, &[]);
                    if fault == Fault::Injected {
                        replies.extend(reply_to(8, 1, &[]));
                    }
                    s.write_all(&replies)?;
                    if fault == Fault::TlsSilence {
                        // Until the client closes.
                        return s.read_exact(&mut [0; 1 << 16]);
                    }
                    s = s.start_tls(config)?;
                    continue;
                }
                // NBD_REP_ERR_TLS_REQD.
                (Some(_), _) if !s.is_tls() && fault != Fault::NoTls => {
                    s.write_all(&reply_to(option, 1 << 31 | 5, &[]))?;
                    continue;
                }
                _ => {}
            }
            let mut reply = |kind: u32, body: &[u8]| {
                let mut bytes = reply_to(option, kind, body);
                if fault == Fault::Negotiation && option == 7 {
                    bytes.truncate(9);
                }
                s.write_all(&bytes)
            };
            if option != 7 {
                // NBD_REP_ERR_UNSUP.
                reply(1 << 31 | 1, &[])?;
                continue;
            }
            let mut export = vec![0, 0];
            export.extend(b.size.to_be_bytes());
            export.extend(b.flags.to_be_bytes());
            reply(3, &export)?;
            if fault == Fault::Negotiation {
                return Ok(());
            }
            let mut sizes = vec![0, 3];
            for size in [b.minimum, 4096.max(b.minimum), 32 << 20] {
                sizes.extend(size.to_be_bytes());
            }
            reply(3, &sizes)?;
            reply(1, &[])?;
            break;
        }
        self.transmission(s, b, fault)
    }

    fn transmission(&self, mut s: Wire, b: &Behaviour, fault: Fault) -> io::Result<()> {
        let mut repeated = Vec::new();
        for n in 0.. {
            let head = read::<28>(&mut s)?;
            if self.ended.load(Ordering::SeqCst) {
                return Ok(());
            }
            let kind = head[7];
            let cookie = &head[8..16];
            let offset = u64::from_be_bytes(head[16..24].try_into().expect("eight"));
            let len = u32::from_be_bytes(head[24..].try_into().expect("four")) as usize;
            let at = usize::try_from(offset).expect("small");
            if kind == 1 && matches!(fault, Fault::Early(most) if len > most) {
                s.write_all(&answer_to(n, (kind, cookie), &[], b, fault))?;
                while !self.ended.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(10));
                }
                return Ok(());
            }
            let mut body = vec![0; if kind == 1 { len } else { 0 }];
            s.read_exact(&mut body)?;
            self.requests.fetch_add(1, Ordering::SeqCst);
            if fault == Fault::Request(n) {
                return Ok(());
            }
            if matches!(fault, Fault::Silence(from) if n >= from) {
                continue;
            }
            if kind == 1 {
                thread::sleep(b.late_writes);
            }
            let mut out: Vec<u8> = Vec::new();
            let shared = Arc::clone(&self.data.lock().expect("no panic"));
            let mut data = shared.lock().expect("no panic");
            match kind {
                0 => out.extend(&data[at..at + len]),
                1 => data[at..at + len].copy_from_slice(&body),
                2 => return Ok(()),
                3 => {
                    self.flushes.fetch_add(1, Ordering::SeqCst);
                }
                // Trimmed ranges read as zeroes, as the simulated client expects.
                4 | 6 => data[at..at + len].fill(0),
                _ => panic!("command {kind}"),
            }
            drop(data);
            if fault == Fault::BeforeReply(n) {
                return Ok(());
            }
            let mut reply = answer_to(n, (kind, cookie), &out, b, fault);
            match fault {
                Fault::Again(m) if m == n => repeated.clone_from(&reply),
                Fault::Again(m) if m + 20 == n => {
                    reply.splice(0..0, repeated.iter().copied());
                }
                _ => {}
            }
            match fault {
                Fault::InRecord(m) if m == n => return s.write_half(&reply),
                Fault::BadRecord(m) if m == n => {
                    s.write_corrupt(&reply)?;
                    continue;
                }
                Fault::CloseNotify(m) if m == n => {
                    s.close_notify()?;
                    continue;
                }
                Fault::KeyUpdate(m) if n % m == 0 => s.update_keys(),
                _ => {}
            }
            match b.drip {
                0 => s.write_all(&reply)?,
                drip => reply.chunks(drip).try_for_each(|part| s.write_all(part))?,
            }
            if matches!(fault, Fault::InReply(m) | Fault::InData(m) if m == n) {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A reply to an option.
fn reply_to(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    let len = u32::try_from(body.len()).expect("short");
    bytes.extend(len.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn read<const N: usize>(stream: &mut Wire) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The reply to request `n` with this command and cookie, spoiled by its fault.
fn answer_to(
    n: u64,
    (kind, cookie): (u8, &[u8]),
    data: &[u8],
    b: &Behaviour,
    fault: Fault,
) -> Vec<u8> {
    let fails = fault == Fault::Error(n) || (kind == 3 && b.cannot_flush);
    let error = if fails { 5_u32 } else { 0 };
    let mut reply = 0x6744_6698_u32.to_be_bytes().to_vec();
    if fault == Fault::Magic(n) {
        reply[0] = 0;
    }
    reply.extend(error.to_be_bytes());
    reply.extend(cookie);
    if fault == Fault::Cookie(n) {
        reply[8] ^= 0x55;
    }
    if error == 0 {
        reply.extend(data);
    }
    if fault == Fault::InReply(n) {
        reply.truncate(7);
    }
    if fault == Fault::InData(n) {
        reply.truncate(16 + (reply.len() - 16) / 2);
    }
    reply
}
