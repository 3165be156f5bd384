//! Where the exporter listens: at a TCP address, at a path, or at a socket that the service manager passes.

use crate::failure::{Failure, FailureKind};
use crate::sys::poll;
use listenfd::ListenFd;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address; port 0 for any free one.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(PathBuf::from(path))),
                false => Err(format!(
                    "`{path}` is not an absolute path; write unix:/PATH"
                )),
            };
        }
        // `:9618` is this port of all addresses, as other exporters have it.
        let whole = match text.strip_prefix(':') {
            Some(port) => format!("[::]:{port}"),
            None => text.to_owned(),
        };
        let mut found = whole.to_socket_addrs().map_err(|e| {
            format!("`{text}` is no address ({e}); write HOST:PORT, :PORT or unix:/PATH")
        })?;
        let first = found.next();
        first
            .map(Self::Tcp)
            .ok_or_else(|| format!("`{text}` has no address"))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A socket that listens.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    /// With its path, if it is ours to remove, and the device and inode that it had there.
    Unix(UnixListener, Option<(PathBuf, (u64, u64))>),
}

/// A client.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// Listens there, or at the socket that the service manager passed.
    pub(super) fn open(listen: Option<&Listen>) -> Result<Self, Failure> {
        let listener = match listen {
            Some(Listen::Tcp(address)) => TcpListener::bind(address)
                .map(Self::Tcp)
                .map_err(|e| refused(&address.to_string(), &e))?,
            Some(Listen::Unix(path)) => at_path(path)?,
            None => passed()?,
        };
        let nonblocking = match &listener {
            Self::Tcp(tcp) => tcp.set_nonblocking(true),
            Self::Unix(unix, _) => unix.set_nonblocking(true),
        };
        nonblocking.map_err(|e| refused(&listener.name(), &e))?;
        Ok(listener)
    }

    /// Its address.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tcp(tcp) => tcp
                .local_addr()
                .map_or_else(|_| "tcp".to_owned(), |address| address.to_string()),
            Self::Unix(unix, _) => {
                let address = unix.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or_else(
                    || "unix".to_owned(),
                    |path| format!("unix:{}", path.display()),
                )
            }
        }
    }

    /// Takes a connection; `None` if the client has gone again.
    pub(super) fn accept(&self) -> io::Result<Option<Stream>> {
        let stream = match self {
            Self::Tcp(tcp) => tcp.accept().map(|(stream, _)| Stream::Tcp(stream)),
            Self::Unix(unix, _) => unix.accept().map(|(stream, _)| Stream::Unix(stream)),
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) => {
                return match e.kind() {
                    io::ErrorKind::WouldBlock
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::ConnectionAborted => Ok(None),
                    _ => Err(e),
                };
            }
        };
        match &stream {
            Stream::Tcp(tcp) => tcp.set_nonblocking(true)?,
            Stream::Unix(unix) => unix.set_nonblocking(true)?,
        }
        Ok(Some(stream))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix, _) => unix.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Something else may have been put there.
        if let Self::Unix(_, Some((path, ours))) = self
            && place(path) == Some(*ours)
        {
            let _ = fs::remove_file(path);
        }
    }
}

impl Stream {
    /// Reads something by the deadline; 0 if nothing comes.
    pub(super) fn read(&self, buf: &mut [u8], until: Instant) -> usize {
        loop {
            let read = match self {
                Self::Tcp(tcp) => (&*tcp).read(buf),
                Self::Unix(unix) => (&*unix).read(buf),
            };
            match read {
                Ok(len) => return len,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let ready = poll::readable(&[self.as_fd()], Some(until));
                    if !ready.is_ok_and(|ready| ready.contains(&true)) {
                        return 0;
                    }
                }
                Err(_) => return 0,
            }
        }
    }

    /// Ends the answer, and reads what the client still sends until it closes, or until the deadline.
    pub(super) fn end(&self, until: Instant) {
        let ended = match self {
            Self::Tcp(tcp) => tcp.shutdown(Shutdown::Write),
            Self::Unix(unix) => unix.shutdown(Shutdown::Write),
        };
        let mut rest = [0; 4096];
        while ended.is_ok() && self.read(&mut rest, until) > 0 && Instant::now() <= until {}
    }

    /// Writes all of it by the deadline.
    ///
    /// # Errors
    /// A client that went, or does not read.
    pub(super) fn write_all(&self, mut bytes: &[u8], until: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match self {
                Self::Tcp(tcp) => (&*tcp).write(bytes),
                Self::Unix(unix) => (&*unix).write(bytes),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !poll::writable(self.as_fd(), Some(until))? {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(tcp) => tcp.as_fd(),
            Self::Unix(unix) => unix.as_fd(),
        }
    }
}

/// Listens at a path. A socket that nobody listens at any more is replaced; anything else that is there stays.
fn at_path(path: &Path) -> Result<Listener, Failure> {
    let name = format!("unix:{}", path.display());
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            let text = format!("cannot listen at {name}: something else than a socket is there");
            return Err(Failure::failed(text).hint("choose another path"));
        }
        match UnixStream::connect(path) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(|e| refused(&name, &e))?;
            }
            _ => return Err(refused(&name, &io::ErrorKind::AddrInUse.into())),
        }
    }
    let listener = UnixListener::bind(path).map_err(|e| refused(&name, &e))?;
    let ours = place(path).map(|place| (path.to_owned(), place));
    Ok(Listener::Unix(listener, ours))
}

/// Device and inode of what is at a path.
fn place(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

/// The socket of socket activation.
fn passed() -> Result<Listener, Failure> {
    let mut passed = ListenFd::from_env();
    if let Ok(Some(tcp)) = passed.take_tcp_listener(0) {
        return Ok(Listener::Tcp(tcp));
    }
    if let Ok(Some(unix)) = passed.take_unix_listener(0) {
        return Ok(Listener::Unix(unix, None));
    }
    let text = "no address to listen at, and no listening socket was passed";
    Err(Failure::new(FailureKind::Usage, text)
        .hint("give --listen ADDRESS:PORT or --listen unix:/PATH, or start ublk-exporter.socket"))
}

fn refused(name: &str, error: &io::Error) -> Failure {
    let mut failure = Failure::failed(format!("cannot listen at {name}: {error}"));
    failure.errno = error
        .raw_os_error()
        .map(|_| ublk_core::Errno::from_io(error));
    match error.kind() {
        io::ErrorKind::InvalidInput => {
            failure.hint("the path of a Unix socket has at most 107 bytes")
        }
        io::ErrorKind::AddrInUse => {
            failure.hint("another exporter may run already; choose another address")
        }
        io::ErrorKind::AddrNotAvailable => failure.hint("this machine does not have the address"),
        io::ErrorKind::PermissionDenied => {
            failure.hint("choose a port above 1023, or a path where this user may create files")
        }
        io::ErrorKind::NotFound => failure.hint("create the directory first"),
        _ => failure,
    }
}
