//! The protocol against qemu-nbd, if this host has it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

use nbd_client::{
    Command, CommandFlags, ErrorCode, Event, Export, Handshake, Options, ProtocolError, Replies,
    Request, Step, TransmissionFlags,
};

const SIZE: u64 = 1 << 20;

/// Deadline for each of the server's actions.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server and the directory with its file and socket; both are removed on drop.
struct Server {
    child: Child,
    directory: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Server {
    /// `None` if qemu-nbd is not installed.
    fn start(name: &str, args: &[&str]) -> Option<Self> {
        let directory = format!("nbd-client-{name}-{}", std::process::id());
        let directory = std::env::temp_dir().join(directory);
        std::fs::create_dir(&directory).expect("a directory");
        let file = std::fs::File::create(directory.join("disk")).expect("a file");
        file.set_len(SIZE).expect("a size");
        let child = Program::new("qemu-nbd")
            .args([
                "--persistent",
                "--format=raw",
                "--export-name=disk",
                "--discard=unmap",
            ])
            .args(args)
            .arg(format!("--socket={}", directory.join("socket").display()))
            .arg(directory.join("disk"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match child {
            Ok(child) => Some(Self { child, directory }),
            Err(_) => {
                eprintln!("SKIP {name}: no qemu-nbd on this host");
                let _ = std::fs::remove_dir_all(&directory);
                None
            }
        }
    }

    fn connect(&self) -> UnixStream {
        let begun = Instant::now();
        loop {
            match UnixStream::connect(self.directory.join("socket")) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
                    return stream;
                }
                Err(e) if begun.elapsed() > PATIENCE => panic!("{e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Runs the handshake and asserts that no bytes are left over: a server sends nothing on its own afterwards.
fn shake(stream: &mut UnixStream, options: Options) -> Result<Export, ProtocolError> {
    let mut handshake = Handshake::new(options)?;
    let (mut held, mut more) = (Vec::new(), [0; 512]);
    loop {
        let (used, step) = handshake.receive(&held)?;
        held.drain(..used);
        stream.write_all(&handshake.output()).expect("sent");
        match step {
            Step::Done(export) => {
                assert!(held.is_empty());
                return Ok(export);
            }
            Step::Receive if used > 0 => {}
            Step::Receive => {
                let len = stream.read(&mut more).expect("in time");
                assert!(len > 0, "the server hung up");
                held.extend(&more[..len]);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A connection that sends one request at a time.
struct Client {
    stream: UnixStream,
    replies: Replies,
    next: u64,
}

type Answer = (Result<(), ErrorCode>, Vec<(u32, u32)>);

impl Client {
    fn new(server: &Server, options: Options) -> (Self, Export) {
        let mut stream = server.connect();
        let export = shake(&mut stream, options).expect("an export");
        let client = Self {
            stream,
            replies: Replies::new(export.structured, 1),
            next: 0,
        };
        (client, export)
    }

    /// Sends a request; `data` is a WRITE's source or a READ's destination.
    fn ask(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        data: &mut [u8],
        len: u32,
    ) -> Answer {
        self.next += 1;
        let request = Request {
            command,
            flags,
            cookie: self.next,
            offset,
            len,
        };
        assert!(self.replies.expect(&request));
        self.stream.write_all(&request.header()).expect("sent");
        if command == Command::Write {
            self.stream.write_all(data).expect("sent");
        }
        let (mut held, mut told) = (Vec::new(), Vec::new());
        loop {
            let (used, mut event) = self.replies.next(&held).expect("a good server");
            held.drain(..used);
            if let Some(Event::Data { at, len, .. }) = event {
                let at = usize::try_from(at).expect("small");
                let end = at + usize::try_from(len).expect("small");
                let have = held.len().min(end - at);
                data[at..at + have].copy_from_slice(&held[..have]);
                held.drain(..have);
                self.stream
                    .read_exact(&mut data[at + have..end])
                    .expect("in time");
                event = self.replies.received(len).expect("a good server");
            }
            match event {
                Some(Event::Answered { result, .. }) => {
                    assert!(held.is_empty());
                    return (result, told);
                }
                Some(Event::Hole { at, len, .. }) => {
                    let at = usize::try_from(at).expect("small");
                    data[at..at + usize::try_from(len).expect("small")].fill(0);
                }
                Some(Event::Extents { extents, .. }) => told.extend(extents),
                Some(other) => panic!("{other:?}"),
                None if used > 0 => {}
                None => {
                    let mut byte = [0];
                    self.stream.read_exact(&mut byte).expect("in time");
                    held.push(byte[0]);
                }
            }
        }
    }

    fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let mut data = vec![0xaa; usize::try_from(len).expect("small")];
        let none = CommandFlags::default();
        let (result, _) = self.ask(Command::Read, none, offset, &mut data, len);
        result.expect("read");
        data
    }
}

fn options() -> Options {
    Options {
        export: "disk".to_owned(),
        structured: true,
        allocation: true,
        ..Options::default()
    }
}

fn disk(directory: &Path) -> Vec<u8> {
    std::fs::read(directory.join("disk")).expect("the file")
}

/// Every command that the server supports, with and without structured replies: written data is in the file and is read
/// back.
#[test]
fn qemu_nbd_serves_every_command() {
    let Some(server) = Server::start("every-command", &[]) else {
        return;
    };
    for structured in [true, false] {
        let wanted = Options {
            structured,
            ..options()
        };
        let (mut client, export) = Client::new(&server, wanted);
        assert_eq!((export.size, export.structured), (SIZE, structured));
        assert_eq!(export.allocation.is_some(), structured);
        let all = [
            TransmissionFlags::SEND_FLUSH,
            TransmissionFlags::SEND_FUA,
            TransmissionFlags::SEND_TRIM,
            TransmissionFlags::SEND_WRITE_ZEROES,
        ];
        assert!(all.into_iter().all(|flag| export.flags.contains(flag)));
        let sizes = export.block_sizes.expect("GO tells them");
        assert!(sizes.maximum >= 1 << 20, "{sizes:?}");
        let none = CommandFlags::default();
        let mut data: Vec<u8> = (0..65536_u32).map(|n| n.to_le_bytes()[0] | 1).collect();
        let (written, _) = client.ask(Command::Write, CommandFlags::FUA, 4096, &mut data, 65536);
        assert_eq!(written, Ok(()));
        assert_eq!(disk(&server.directory)[4096..4096 + 65536], data);
        assert_eq!(client.ask(Command::Flush, none, 0, &mut [], 0).0, Ok(()));
        let read = client.read(0, 1 << 20);
        assert_eq!(read, disk(&server.directory));
        let zeroed = client.ask(
            Command::WriteZeroes,
            CommandFlags::NO_HOLE,
            8192,
            &mut [],
            4096,
        );
        assert_eq!(zeroed.0, Ok(()));
        assert_eq!(client.read(8192, 4096), vec![0; 4096]);
        assert_eq!(client.read(4096, 4096), data[..4096]);
        let trimmed = client.ask(Command::Trim, none, 16384, &mut [], 32768);
        assert_eq!(trimmed.0, Ok(()));
        if structured {
            let (result, extents) = client.ask(Command::BlockStatus, none, 0, &mut [], 1 << 20);
            assert_eq!(result, Ok(()));
            let sum: u32 = extents.iter().map(|(len, _)| len).sum();
            assert!(!extents.is_empty() && sum <= 1 << 20, "{extents:?}");
        }
        // A request beyond the end fails, and the server continues to serve.
        let (beyond, _) = client.ask(Command::Write, none, SIZE, &mut data[..512], 512);
        assert!(
            beyond.is_err_and(|code| [22, 28].contains(&code.errno())),
            "{beyond:?}"
        );
        assert_eq!(client.read(0, 512), vec![0; 512]);
        let bye = Request {
            command: Command::Disconnect,
            flags: none,
            cookie: 0,
            offset: 0,
            len: 0,
        };
        client.stream.write_all(&bye.header()).expect("sent");
        assert_eq!(client.stream.read(&mut [0]).expect("in time"), 0);
    }
}

/// Refusals quote the server; a read-only export is reported as read-only.
#[test]
fn qemu_nbd_refuses_in_its_own_words() {
    let Some(server) = Server::start("refusals", &["--read-only"]) else {
        return;
    };
    let other = Options {
        export: "another".to_owned(),
        ..options()
    };
    let error = shake(&mut server.connect(), other).unwrap_err().to_string();
    assert!(error.contains("NBD_REP_ERR_UNKNOWN"), "{error}");
    let tls = Options {
        tls: true,
        ..options()
    };
    let error = shake(&mut server.connect(), tls).unwrap_err();
    assert!(matches!(error, ProtocolError::NoTls(_)), "{error}");
    let (mut client, export) = Client::new(&server, options());
    assert!(export.flags.contains(TransmissionFlags::READ_ONLY));
    let none = CommandFlags::default();
    let (refused, _) = client.ask(Command::Write, none, 0, &mut [1; 512], 512);
    // The protocol demands EPERM; this server sends EINVAL.
    let errnos = [ErrorCode::EPERM, ErrorCode::EINVAL];
    assert!(
        refused.is_err_and(|code| errnos.contains(&code)),
        "{refused:?}"
    );
    assert_eq!(client.read(0, 512), vec![0; 512]);
}
