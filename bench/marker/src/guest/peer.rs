//! nbdkit, the peer of the NBD rows: started once per guest, with every block written.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nbd_client::{
    Command as Ask, CommandFlags, Export, Framing, Handshake, Options, Replies, Request, Step,
};

/// How long nbdkit may take to listen, in guest time.
const DEADLINE: Duration = Duration::from_secs(30);

/// How often it is tried whether nbdkit listens.
const OFTEN: Duration = Duration::from_micros(200);

/// What comes before the port of a server behind a network card.
const CARD: &str = "card:";

/// Addresses of the guest's two network cards, which a cable connects. The second one is the server's alone.
const HERE: &str = "10.98.0.1";
const THERE: &str = "10.98.0.2";

/// Bytes of a packet, as many as the cards take in one piece.
const MTU: &str = "9000";

/// A running nbdkit; it ends with the guest.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    /// Where it listens.
    at: String,
    mebibytes: u64,
}

/// A connected socket of either kind.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

impl Socket {
    /// Connects to a unix socket, or to a port of loopback TCP or behind a network card.
    fn connect(at: &str) -> io::Result<Self> {
        let address = match at.strip_prefix(CARD) {
            _ if at.starts_with('/') => return UnixStream::connect(at).map(Self::Unix),
            Some(port) => format!("{THERE}:{port}"),
            None => format!("127.0.0.1:{at}"),
        };
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        Ok(Self::Tcp(socket))
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.read(buf),
            Self::Unix(socket) => socket.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.write(buf),
            Self::Unix(socket) => socket.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Peer {
    /// Starts nbdkit's memory plugin on a unix socket, or on a port of loopback TCP or behind a network card, and writes every
    /// block.
    ///
    /// # Errors
    /// nbdkit cannot be started, does not listen in time, or refuses a write.
    pub fn start(at: &str, mebibytes: u64) -> Result<Self> {
        busybox(&["ifconfig", "lo", "up"])?;
        let mut peer = Self {
            child: nbdkit(at, mebibytes)?,
            at: at.to_owned(),
            mebibytes,
        };
        let socket = peer.wait()?;
        fill(socket, mebibytes).context("filling the export")?;
        Ok(peer)
    }

    /// Kills it, and with it the contents of its export.
    ///
    /// # Errors
    /// It has ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("nbdkit has ended")?;
        self.child.wait()?;
        if self.at.starts_with('/') {
            fs::remove_file(&self.at).with_context(|| self.at.clone())?;
        }
        Ok(())
    }

    /// Starts it again after a kill, and returns a connection as soon as it listens. nbdkit complains, on the console, of
    /// one that is closed before its [`handshake`].
    ///
    /// # Errors
    /// It cannot be started, or does not listen in time.
    pub fn again(&mut self) -> Result<Socket> {
        self.child = nbdkit(&self.at, self.mebibytes)?;
        self.wait()
    }

    /// Waits until it listens.
    fn wait(&mut self) -> Result<Socket> {
        let until = Instant::now() + DEADLINE;
        loop {
            let error = match Socket::connect(&self.at) {
                Ok(socket) => return Ok(socket),
                Err(error) => error,
            };
            if self.child.try_wait()?.is_some() || Instant::now() > until {
                return Err(error).context("nbdkit does not listen");
            }
            thread::sleep(OFTEN);
        }
    }

    /// Processor time of all its threads so far, in nanoseconds: in a counting guest each is an instruction.
    ///
    /// # Errors
    /// It has ended.
    pub fn time(&self) -> Result<u64> {
        let tasks = format!("/proc/{}/task", self.child.id());
        let mut sum = 0;
        for task in fs::read_dir(&tasks).context(tasks)? {
            let path = task?.path().join("schedstat");
            // A thread may have ended meanwhile.
            let text = fs::read_to_string(path).unwrap_or_default();
            let time = text.split(' ').next().unwrap_or_default();
            sum += time.parse().unwrap_or(0);
        }
        Ok(sum)
    }
}

/// Starts nbdkit's memory plugin.
fn nbdkit(at: &str, mebibytes: u64) -> Result<Child> {
    let (listen, card) = match at.strip_prefix(CARD) {
        _ if at.starts_with('/') => (vec!["-U", at], false),
        Some(port) => (vec!["-p", port], true),
        None => (vec!["-i", "127.0.0.1", "-p", at], false),
    };
    let mut command = Command::new(if card { BUSYBOX } else { NBDKIT });
    if card {
        // With a network of its own.
        command.args(["unshare", "-n", NBDKIT]);
    }
    command.arg("-f").args(listen);
    command.args(["memory", &format!("{mebibytes}M")]);
    let child = command.stdin(Stdio::null()).spawn().context("nbdkit")?;
    if card {
        connect_cards(child.id())?;
    }
    Ok(child)
}

/// Gives the second card to the network of a process, once it has one, and brings both up.
fn connect_cards(pid: u32) -> Result<()> {
    let pid = pid.to_string();
    let until = Instant::now() + DEADLINE;
    let own = fs::read_link("/proc/self/ns/net")?;
    while fs::read_link(format!("/proc/{pid}/ns/net"))? == own {
        ensure!(Instant::now() < until, "nbdkit has no network of its own");
        thread::sleep(OFTEN);
    }
    busybox(&["ip", "link", "set", "eth1", "netns", &pid])?;
    busybox(&["ifconfig", "eth0", HERE, "mtu", MTU, "up"])?;
    let there = ["ifconfig", "eth1", THERE, "mtu", MTU, "up"];
    busybox(&[&["nsenter", "-t", &pid, "-n"][..], &there].concat())
}

const BUSYBOX: &str = "/usr/bin/busybox";
const NBDKIT: &str = "/usr/bin/nbdkit";

fn busybox(words: &[&str]) -> Result<()> {
    let status = Command::new(BUSYBOX).args(words).status();
    let status = status.context(BUSYBOX)?;
    ensure!(status.success(), "{words:?}: {status}");
    Ok(())
}

/// Connects and opens the default export, with simple replies.
///
/// # Errors
/// Nobody listens, or the handshake fails.
pub fn open(at: &str) -> Result<(Socket, Export)> {
    handshake(Socket::connect(at).with_context(|| at.to_owned())?)
}

/// Opens the default export, with simple replies.
///
/// # Errors
/// The connection is lost, or the server refuses.
pub fn handshake(mut socket: Socket) -> Result<(Socket, Export)> {
    let mut handshake = Handshake::new(Options::default())?;
    let (mut held, mut more) = (Vec::new(), [0; 4096]);
    loop {
        let (used, step) = handshake.receive(&held)?;
        socket.write_all(&handshake.output())?;
        held.drain(..used);
        match step {
            Step::Receive if used > 0 => {}
            Step::Receive => match socket.read(&mut more)? {
                0 => bail!("closed in the handshake"),
                len => held.extend_from_slice(&more[..len]),
            },
            Step::Done(export) => return Ok((socket, export)),
            other => bail!("unexpected {other:?}"),
        }
    }
}

fn fill(socket: Socket, mebibytes: u64) -> Result<()> {
    let (mut socket, _) = handshake(socket)?;
    let piece = vec![0x5a; 1 << 20];
    let mut replies = Replies::new(Framing::Simple, 1);
    for number in 0..mebibytes {
        let request = Request {
            command: Ask::Write,
            flags: CommandFlags::default(),
            cookie: number,
            offset: number << 20,
            len: 1 << 20,
        };
        replies.expect(&request);
        let mut header = [0; Request::LONGEST];
        let len = request.encode(Framing::Simple, &mut header);
        socket.write_all(header.get(..len).unwrap_or_default())?;
        socket.write_all(&piece)?;
        // A simple reply without data.
        let mut reply = [0; 16];
        socket.read_exact(&mut reply)?;
        replies.next(&reply)?;
        ensure!(replies.in_flight() == 0, "a write was not answered");
    }
    Ok(())
}
