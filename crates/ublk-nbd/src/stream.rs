//! The byte stream of an NBD handshake: a socket, with TLS after STARTTLS.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Instant;

use nbd_client::Address;
use socket2::Socket;

pub(crate) use crate::failed::Failed;
use crate::security::{Security, TlsSetupError};
use crate::timed::Timed;
#[cfg(feature = "tls")]
use crate::tls::{self, Session};
use crate::transport::{Tls, Work};

/// A connection before the ring takes over.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(Socket),
    #[cfg(feature = "tls")]
    Tls(Box<Session>),
}

/// The ring's socket, its TLS session, and the thread to start for it.
type Carried = (OwnedFd, Option<Tls>, Option<Work>);

impl Stream {
    /// Sends bytes before the deadline.
    pub(crate) fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Failed> {
        match self {
            Self::Plain(socket) => Ok(Timed { socket, deadline }.write_all(bytes)?),
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.send(bytes, deadline),
        }
    }

    /// Waits for bytes until the deadline and appends them. The end is an error.
    pub(crate) fn receive(&mut self, to: &mut Vec<u8>, deadline: Instant) -> Result<(), Failed> {
        match self {
            Self::Plain(socket) => {
                let mut more = [0; 4096];
                match (Timed { socket, deadline }).read(&mut more)? {
                    0 => return Err(Failed::Io(io::ErrorKind::UnexpectedEof.into())),
                    len => to.extend(more.iter().take(len)),
                }
                Ok(())
            }
            #[cfg(feature = "tls")]
            Self::Tls(session) => session.receive(to, deadline),
        }
    }

    /// Sets up TLS and verifies the server before the deadline.
    #[cfg(feature = "tls")]
    pub(crate) fn start_tls(self, security: &Security, deadline: Instant) -> Result<Self, Failed> {
        match self {
            Self::Plain(socket) => {
                let session = Session::start(socket, security, deadline)?;
                Ok(Self::Tls(Box::new(session)))
            }
            Self::Tls(_) => Err(Failed::Io(io::Error::other("TLS in TLS"))),
        }
    }

    #[cfg(not(feature = "tls"))]
    pub(crate) fn start_tls(self, _: &Security, _: Instant) -> Result<Self, Failed> {
        Err(TlsSetupError::NotBuilt.into())
    }

    /// Closes a TLS session before the deadline; plain text needs no such notice.
    #[cfg_attr(
        not(feature = "tls"),
        expect(unused_variables, reason = "only TLS uses it")
    )]
    pub(crate) fn close(&mut self, deadline: Instant) {
        #[cfg(feature = "tls")]
        if let Self::Tls(session) = self {
            session.close(deadline);
        }
    }

    /// Hands the connection over to the ring. The kernel carries TLS over TCP if it can.
    pub(crate) fn carried(self, address: &Address) -> Result<Carried, Failed> {
        self.handed_over(matches!(address, Address::Tcp { .. }))
    }

    /// The same, but a thread carries TLS.
    pub(crate) fn carried_by_thread(self) -> Result<Carried, Failed> {
        self.handed_over(false)
    }

    #[cfg_attr(
        not(feature = "tls"),
        expect(unused_variables, reason = "only TLS uses it")
    )]
    fn handed_over(self, to_kernel: bool) -> Result<Carried, Failed> {
        match self {
            Self::Plain(socket) => {
                socket.set_read_timeout(None)?;
                socket.set_write_timeout(None)?;
                Ok((socket.into(), None, None))
            }
            #[cfg(feature = "tls")]
            Self::Tls(session) => {
                let (socket, tls, work) = session.carried(to_kernel)?;
                Ok((socket, Some(tls), work))
            }
        }
    }
}

/// Checks that the files can be read and used.
#[cfg(feature = "tls")]
pub(crate) fn check_files(security: &Security) -> Result<(), TlsSetupError> {
    tls::config(security).map(drop)
}

#[cfg(not(feature = "tls"))]
pub(crate) fn check_files(_: &Security) -> Result<(), TlsSetupError> {
    Err(TlsSetupError::NotBuilt)
}
