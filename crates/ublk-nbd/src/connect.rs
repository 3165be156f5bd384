//! One attempt to connect: resolve, connect, handshake. Blocks up to a deadline; never called on a queue's thread.

use std::io;
use std::net::ToSocketAddrs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::{Duration, Instant};

use nbd_client::{Address, Export, Handshake, Listed, Options, ProtocolError, Step, Uri};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use crate::allocation::{self, Allocation};
use crate::options::TlsOptions;
use crate::security::{self, TlsSetupError};
use crate::stream::{self, Failed, Stream};
use crate::timed::left;
use crate::transport::{Tls, TlsInfo, Work};

/// Why a connection attempt failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host name did not resolve.
    #[error("cannot resolve {host}: {source}")]
    Resolve {
        /// The host name.
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The server did not accept the connection.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The address or path.
        to: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The path is that of another kind of file.
    #[error("{0} is not a socket")]
    NotSocket(String),
    /// The connection closed or the deadline passed before the export was open.
    #[error("the handshake with {to} failed: {source}")]
    Handshake {
        /// The address or path.
        to: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The server refused, or violated the protocol.
    #[error("{to}: {source}")]
    Protocol {
        /// The address or path.
        to: String,
        /// The cause.
        source: ProtocolError,
    },
    /// TLS cannot be set up as requested.
    #[error(transparent)]
    TlsSetup(#[from] TlsSetupError),
    /// The TLS session failed: the server could not be verified, or rejects the client.
    #[error("no TLS with {to}: {reason}")]
    Tls {
        /// The address or path.
        to: String,
        /// The cause.
        reason: String,
        /// What to do next.
        hint: Option<&'static str>,
    },
}

impl ConnectError {
    /// What to do next, if that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect { source, .. } => Some(match source.kind() {
                io::ErrorKind::InvalidInput => {
                    "the path of a unix socket has at most 107 bytes: use a shorter one"
                }
                io::ErrorKind::PermissionDenied => {
                    "run as the user who owns the socket, or as root"
                }
                io::ErrorKind::TimedOut
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable => {
                    "nothing answers at this address: check it, and the firewalls between"
                }
                _ => "start the server first",
            }),
            Self::Resolve { .. } => {
                Some("check the name: `getent hosts NAME` asks the same resolver")
            }
            Self::NotSocket(_) => Some("?socket= names the socket that the server listens on"),
            Self::Tls { hint, .. } => *hint,
            Self::Protocol { source, .. } => match source {
                ProtocolError::NoTls(_) => Some(
                    "start the server with TLS (nbdkit --tls=require, qemu-nbd --tls-creds), or use a URI without",
                ),
                ProtocolError::Refused { reason, .. }
                    if reason.starts_with("NBD_REP_ERR_TLS_REQD") =>
                {
                    Some("the server demands TLS: use nbds:// or nbds+unix:// with --tls-ca FILE")
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the server only has to be started.
    #[must_use]
    pub fn not_started(&self) -> bool {
        let refused = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        matches!(self, Self::Connect { source, .. } if refused.contains(&source.kind()))
    }

    /// Whether the deadline ended the attempt, or nothing answered at all.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        match self {
            Self::Resolve { source, .. }
            | Self::Connect { source, .. }
            | Self::Handshake { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            _ => false,
        }
    }

    /// Whether another attempt may succeed with the same options, because the server may still be starting.
    pub(crate) const fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Resolve { .. } | Self::Connect { .. } | Self::Handshake { .. }
        )
    }
}

/// A connection with an open export.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    /// Where it leads.
    pub(crate) uri: Uri,
    pub(crate) export: Export,
    /// The peer's address, for messages.
    pub(crate) peer: String,
    pub(crate) tls: Option<Tls>,
    /// The thread to start for it.
    pub(crate) work: Option<Work>,
}

impl Connected {
    /// Tells the server that an unused TLS session ends.
    pub(crate) fn close(&self) {
        if let Some(tls) = &self.tls {
            tls.close(self.socket.as_fd());
        }
    }

    /// Whether a receive that failed may be tried again.
    pub(crate) fn goes_on(&self, error: &io::Error) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.end_of(self.socket.as_fd(), error).is_none())
    }

    /// Starts its thread, if it needs one.
    pub(crate) fn started(mut self) -> Result<Self, ConnectError> {
        let started = self.work.take().map_or(Ok(()), Work::start);
        match started {
            Ok(()) => Ok(self),
            Err(source) => Err(ConnectError::Handshake {
                to: self.peer,
                source,
            }),
        }
    }
}

/// TCP keepalive: idle time, interval, probes. A dead peer is detected within 30 seconds.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Connects and opens the export before the deadline.
pub(crate) fn connect(
    uri: &Uri,
    tls: &TlsOptions,
    chunks: Option<bool>,
    deadline: Instant,
) -> Result<Connected, ConnectError> {
    let has_chunks = chunks.unwrap_or_else(|| chunks_pay(&uri.address));
    let options = Options {
        export: uri.export.clone(),
        structured: has_chunks,
        extended: has_chunks,
        ..Options::default()
    };
    connect_with(uri, tls, options, deadline)
}

fn connect_with(
    uri: &Uri,
    tls: &TlsOptions,
    options: Options,
    deadline: Instant,
) -> Result<Connected, ConnectError> {
    let (stream, step, to) = shaken(uri, tls, options.clone(), deadline)?;
    let carried = match stream.carried(&uri.address) {
        Err(Failed::Kernel(e)) => {
            tracing::warn!("{to}: the kernel cannot carry this TLS session, so a thread does: {e}");
            let (stream, _, _) = shaken(uri, tls, options, deadline)?;
            stream.carried_by_thread()
        }
        carried => carried,
    };
    let (socket, tls, work) = carried.map_err(|e| failed(&to, e))?;
    match step {
        Step::Done(export) => Ok(Connected {
            socket,
            uri: uri.clone(),
            export,
            peer: to,
            tls,
            work,
        }),
        other => Err(unexpected(to, &other)),
    }
}

/// Whether replies in chunks pay, structured or with extended headers: they spare the transfer of holes. Over a unix socket
/// that is only a copy, and their headers cost the server a system call more for each read.
const fn chunks_pay(address: &Address) -> bool {
    !matches!(address, Address::Unix(_))
}

fn open(address: &Address, deadline: Instant) -> Result<(Socket, String), ConnectError> {
    match address {
        Address::Unix(path) => {
            let to = path.display().to_string();
            let other = |found: &std::fs::Metadata| !found.file_type().is_socket();
            if std::fs::metadata(path).is_ok_and(|found| other(&found)) {
                return Err(ConnectError::NotSocket(to));
            }
            let connect = || {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                let address = SockAddr::unix(path)?;
                // `connect` on a unix socket would block without a deadline while the backlog is full.
                socket.connect_timeout(&address, left(deadline))?;
                Ok(socket)
            };
            let failed = |source| ConnectError::Connect {
                to: to.clone(),
                source,
            };
            connect().map_err(failed).map(|socket| (socket, to.clone()))
        }
        Address::Tcp { host, port } => {
            let unresolved = |source| ConnectError::Resolve {
                host: host.clone(),
                source,
            };
            let addresses = (host.as_str(), *port).to_socket_addrs();
            let addresses: Vec<_> = addresses.map_err(unresolved)?.collect();
            let none = io::Error::new(io::ErrorKind::NotFound, "it has no address");
            let mut failed = unresolved(none);
            for (tried, address) in addresses.iter().enumerate() {
                // Each address gets its share of the remaining time, so that a dead one leaves time for the others.
                let rest = u32::try_from(addresses.len() - tried).unwrap_or(1).max(1);
                match tcp(&SockAddr::from(*address), left(deadline) / rest) {
                    Ok(socket) => return Ok((socket, address.to_string())),
                    Err(source) => {
                        let to = address.to_string();
                        failed = ConnectError::Connect { to, source };
                    }
                }
            }
            Err(failed)
        }
        _ => Err(ConnectError::Connect {
            to: format!("{address:?}"),
            source: io::ErrorKind::Unsupported.into(),
        }),
    }
}

fn tcp(address: &SockAddr, within: Duration) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    socket.connect_timeout(address, within.max(Duration::from_millis(1)))?;
    socket.set_tcp_nodelay(true)?;
    let (after, every, times) = KEEP_ALIVE;
    let keep_alive = TcpKeepalive::new()
        .with_time(after)
        .with_interval(every)
        .with_retries(times);
    socket.set_tcp_keepalive(&keep_alive)?;
    Ok(socket)
}

/// What a server offers for an export.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Offer {
    /// Size, flags, block sizes, meta contexts.
    pub export: Export,
    /// How much of it is data, if the server says so.
    pub allocation: Option<Allocation>,
    /// Encryption of the connection; `None` for plain text.
    pub tls: Option<TlsInfo>,
}

/// Queries an export's size and features, and how much of it is data, before the deadline: opens the export and closes it
/// again.
///
/// # Errors
/// The connection failed. That the extents are not all known is no error.
pub fn info(uri: &Uri, tls: &TlsOptions, deadline: Instant) -> Result<Offer, ConnectError> {
    let options = Options {
        export: uri.export.clone(),
        structured: true,
        extended: true,
        allocation: true,
        contexts: true,
        ..Options::default()
    };
    let connected = connect_with(uri, tls, options, deadline)?.started()?;
    let allocation = allocation::measure(&connected, deadline);
    connected.close();
    Ok(Offer {
        export: connected.export,
        allocation,
        tls: connected.tls.map(|tls| tls.info),
    })
}

/// Lists a server's exports before the deadline.
///
/// # Errors
/// The connection failed, or the server does not list its exports.
pub fn list(uri: &Uri, tls: &TlsOptions, deadline: Instant) -> Result<Vec<Listed>, ConnectError> {
    let options = Options {
        list: true,
        ..Options::default()
    };
    let (mut stream, step, to) = shaken(uri, tls, options, deadline)?;
    stream.close(deadline);
    match step {
        Step::Listed(exports) => Ok(exports),
        other => Err(unexpected(to, &other)),
    }
}

/// Checks that this process can read the TLS files.
pub(crate) fn check_files(uri: &Uri, tls: &TlsOptions) -> Result<(), TlsSetupError> {
    match security::wanted(uri, tls)? {
        Some(security) => stream::check_files(&security),
        None => Ok(()),
    }
}

fn unexpected(to: String, step: &Step) -> ConnectError {
    let source = io::Error::other(format!("unexpected step {step:?}"));
    ConnectError::Handshake { to, source }
}

/// Converts a failure of the stream.
fn failed(to: &str, failure: Failed) -> ConnectError {
    let to = to.to_owned();
    match failure {
        Failed::Setup(error) => error.into(),
        Failed::Io(source) | Failed::Kernel(source) => ConnectError::Handshake { to, source },
        Failed::Tls { reason, hint } => ConnectError::Tls { to, reason, hint },
    }
}

/// Connects and runs the handshake to its end.
fn shaken(
    uri: &Uri,
    tls: &TlsOptions,
    mut options: Options,
    deadline: Instant,
) -> Result<(Stream, Step, String), ConnectError> {
    let security = security::wanted(uri, tls)?;
    options.tls = security.is_some();
    let (socket, to) = open(&uri.address, deadline)?;
    let mut stream = Stream::Plain(socket);
    let protocol = |source| ConnectError::Protocol {
        to: to.clone(),
        source,
    };
    let broken = |what| Err(protocol(ProtocolError::Broken(what)));
    let mut handshake = Handshake::new(options).map_err(protocol)?;
    let mut held = Vec::new();
    loop {
        let result = handshake.receive(&held);
        if result.is_err() {
            handshake.abort();
        }
        let sent = stream.send(&handshake.output(), deadline);
        let (used, step) = result.map_err(protocol)?;
        sent.map_err(|e| failed(&to, e))?;
        held.drain(..used);
        match (step, &security) {
            // Plain text behind the reply may come from an attacker.
            (Step::StartTls, _) if !held.is_empty() => {
                return broken("data behind its reply to STARTTLS, before TLS is up");
            }
            (Step::StartTls, Some(security)) => {
                let up = stream.start_tls(security, deadline);
                stream = up.map_err(|e| failed(&to, e))?;
                handshake.tls_started();
            }
            (step @ (Step::Done(_) | Step::Listed(_)), _) if held.is_empty() => {
                return Ok((stream, step, to));
            }
            (Step::Done(_) | Step::Listed(_), _) => {
                return broken("data before the first request");
            }
            (Step::Receive, _) if used > 0 => {}
            (Step::Receive, _) => {
                let received = stream.receive(&mut held, deadline);
                received.map_err(|e| failed(&to, e))?;
            }
            (step, _) => return Err(unexpected(to, &step)),
        }
    }
}
