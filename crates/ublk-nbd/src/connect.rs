//! One attempt to connect: resolve, connect, handshake. Blocks up to a deadline; never called on a queue's thread.

use std::io::{self, Read, Write};
use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nbd_client::{Address, Export, Handshake, Listed, Options, ProtocolError, Step, Uri};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

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
    /// TLS was asked for.
    #[error(
        "TLS is not supported yet: put a TLS proxy such as stunnel in front, or use a unix socket"
    )]
    Tls,
}

/// A connection with an open export.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) socket: OwnedFd,
    pub(crate) export: Export,
    /// The peer's address, for messages.
    pub(crate) peer: String,
}

/// TCP keepalive: idle time, interval, probes. A dead peer is detected within 30 seconds.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Connects and opens the export before the deadline.
pub(crate) fn connect(uri: &Uri, deadline: Instant) -> Result<Connected, ConnectError> {
    if uri.tls {
        return Err(ConnectError::Tls);
    }
    let (mut socket, to) = open(&uri.address, deadline)?;
    let options = Options {
        export: uri.export.clone(),
        structured: is_structured(&uri.address),
        ..Options::default()
    };
    let export = match shake(&mut socket, options, deadline, &to)? {
        Step::Done(export) => export,
        other => return Err(unexpected(to, &other)),
    };
    let blocking = socket
        .set_read_timeout(None)
        .and_then(|()| socket.set_write_timeout(None));
    blocking.map_err(|source| ConnectError::Handshake {
        to: to.clone(),
        source,
    })?;
    Ok(Connected {
        socket: socket.into(),
        export,
        peer: to,
    })
}

/// Whether structured replies pay: they spare the transfer of holes. Over a unix socket that is only a copy, and their
/// headers cost the server a system call more for each read.
const fn is_structured(address: &Address) -> bool {
    !matches!(address, Address::Unix(_))
}

fn open(address: &Address, deadline: Instant) -> Result<(Socket, String), ConnectError> {
    match address {
        Address::Unix(path) => {
            let to = path.display().to_string();
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

/// Never zero, because socket timeouts treat zero as none.
fn left(deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    left.max(Duration::from_millis(1))
}

/// Queries an export's size and features before the deadline: opens the export and closes it again.
///
/// # Errors
/// The connection failed.
pub fn info(uri: &Uri, deadline: Instant) -> Result<Export, ConnectError> {
    connect(uri, deadline).map(|connected| connected.export)
}

/// Lists a server's exports before the deadline.
///
/// # Errors
/// The connection failed, or the server does not list its exports.
pub fn list(uri: &Uri, deadline: Instant) -> Result<Vec<Listed>, ConnectError> {
    if uri.tls {
        return Err(ConnectError::Tls);
    }
    let (mut socket, to) = open(&uri.address, deadline)?;
    let options = Options {
        list: true,
        ..Options::default()
    };
    match shake(&mut socket, options, deadline, &to)? {
        Step::Listed(exports) => Ok(exports),
        other => Err(unexpected(to, &other)),
    }
}

fn unexpected(to: String, step: &Step) -> ConnectError {
    let source = io::Error::other(format!("unexpected step {step:?}"));
    ConnectError::Handshake { to, source }
}

/// Runs the handshake to its end.
fn shake(
    socket: &mut Socket,
    options: Options,
    deadline: Instant,
    to: &str,
) -> Result<Step, ConnectError> {
    let protocol = |source| ConnectError::Protocol {
        to: to.to_owned(),
        source,
    };
    let io = |source: io::Error| ConnectError::Handshake {
        to: to.to_owned(),
        source: match source.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => source,
        },
    };
    let mut handshake = Handshake::new(options).map_err(protocol)?;
    let (mut held, mut more) = (Vec::new(), [0; 4096]);
    loop {
        let result = handshake.receive(&held);
        if result.is_err() {
            handshake.abort();
        }
        let output = handshake.output();
        socket.set_write_timeout(Some(left(deadline))).map_err(io)?;
        let sent = socket.write_all(&output);
        let (used, step) = result.map_err(protocol)?;
        sent.map_err(io)?;
        held.drain(..used);
        match step {
            Step::Done(_) | Step::Listed(_) if held.is_empty() => return Ok(step),
            Step::Done(_) | Step::Listed(_) => {
                let what = "data before the first request";
                return Err(protocol(ProtocolError::Broken(what)));
            }
            Step::Receive if used > 0 => {}
            Step::Receive => {
                if Instant::now() >= deadline {
                    return Err(io(io::ErrorKind::TimedOut.into()));
                }
                socket.set_read_timeout(Some(left(deadline))).map_err(io)?;
                match socket.read(&mut more).map_err(io)? {
                    0 => return Err(io(io::ErrorKind::UnexpectedEof.into())),
                    len => held.extend(more.iter().take(len)),
                }
            }
            _ => return Err(ConnectError::Tls),
        }
    }
}
