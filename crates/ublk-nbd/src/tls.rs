//! TLS by rustls: reads the files, sets up the session, and carries the NBD handshake.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, CertificateError, ClientConfig, ClientConnection, RootCertStore};
use socket2::Socket;
use zeroize::Zeroizing;

use crate::failed::Failed;
use crate::ktls;
use crate::relay::Relay;
use crate::security::{Security, TlsSetupError};
use crate::timed::Timed;
use crate::transport::{Carrier, Tls, TlsInfo, Work};

/// Largest file that is read. The authorities of a whole system take about 256 KiB.
const LONGEST: u64 = 4 << 20;

impl From<rustls::Error> for Failed {
    fn from(error: rustls::Error) -> Self {
        Self::Tls {
            reason: error.to_string(),
            hint: hint(&error),
        }
    }
}

/// Advice if a server rejects the client.
const CLIENT: &str = "the server's log says why: it may require a client certificate of an authority that it trusts \
     (--tls-cert FILE and --tls-key FILE), or a pre-shared key, which is not supported";

/// Advice for a TLS error.
const fn hint(error: &rustls::Error) -> Option<&'static str> {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, PeerIncompatible};
    match error {
        InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("use a name in the certificate: --tls-hostname NAME"),
        InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            Some("use the certificate of the authority that signed the server's: --tls-ca FILE")
        }
        InvalidCertificate(
            CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. },
        ) => Some("ca-crl.pem is past its nextUpdate: fetch the authority's present list"),
        InvalidCertificate(_) => Some(
            "the server needs another certificate: see what is wrong with this one by `openssl x509 -text`",
        ),
        AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::HandshakeFailure
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied,
        ) => Some(CLIENT),
        InvalidMessage(_) => {
            Some("the server sends something else than TLS: check that the address is right")
        }
        PeerIncompatible(_) => Some("the server must offer TLS 1.2 or 1.3 with a certificate"),
        _ => None,
    }
}

/// Reads a regular file of at most [`LONGEST`] bytes; opening a FIFO does not block.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsSetupError> {
    let failed = |e: io::Error| TlsSetupError::file(path, e);
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(TlsSetupError::file(path, "not a regular file"));
    }
    // Reserve all of it: a vector that grows leaves copies of a key behind.
    let room = metadata.len().min(LONGEST) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(room).unwrap_or(0)));
    file.take(room).read_to_end(&mut bytes).map_err(failed)?;
    match metadata.len() > LONGEST {
        true => Err(TlsSetupError::file(path, "too large for certificates")),
        false => Ok(bytes),
    }
}

/// Reads all items of one kind in a PEM file, at least one.
fn parts<T: PemObject>(path: &Path, what: &str) -> Result<Vec<T>, TlsSetupError> {
    let bytes = read(path)?;
    let parts: Result<Vec<T>, _> = T::pem_slice_iter(&bytes).collect();
    let parts = parts.map_err(|e| TlsSetupError::file(path, e))?;
    match parts.is_empty() {
        true => {
            let reason = format!("no {what} in PEM form in it");
            Err(TlsSetupError::file(path, reason))
        }
        false => Ok(parts),
    }
}

/// Reads the client's private key.
fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsSetupError> {
    let bytes = read(path)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            TlsSetupError::file(path, "no key in PEM form in it, or an encrypted one")
        }
        pem::Error::Base64Decode(_) if bytes.windows(9).any(|it| it == b"ENCRYPTED") => {
            TlsSetupError::file(path, "an encrypted key: decrypt it (openssl pkey -in FILE), and keep it readable to root only")
        }
        e => TlsSetupError::file(path, e),
    })
}

/// Reads the files and builds the configuration.
pub(crate) fn config(security: &Security) -> Result<ClientConfig, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in parts::<CertificateDer<'_>>(&security.ca, "certificate")? {
        let added = roots.add(certificate);
        added.map_err(|e| TlsSetupError::file(&security.ca, e))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let refused = |e: &dyn ToString| TlsSetupError::file(&security.ca, e.to_string());
    let unread = |path: &Path, e: VerifierBuilderError| match e {
        VerifierBuilderError::InvalidCrl(e) => {
            let reason = format!("not a revocation list of version 2: {e:?}");
            TlsSetupError::file(path, reason)
        }
        e => refused(&e),
    };
    let mut verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if let Some(path) = &security.revoked {
        let lists = parts::<CertificateRevocationListDer<'_>>(path, "revocation list")?;
        // A certificate of an authority without a list counts as not revoked, as for GnuTLS; a list that has expired tells
        // nothing, and nobody is trusted by it.
        verifier = verifier
            .with_crls(lists)
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration();
    }
    let crl = security.revoked.as_deref().unwrap_or(&security.ca);
    let verifier = verifier.build().map_err(|e| unread(crl, e))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| refused(&e))?
        // L75: the chain and the name are verified, whatever else the options say.
        .with_webpki_verifier(verifier);
    let mut config = match &security.identity {
        None => builder.with_no_client_auth(),
        Some((certificate, path)) => {
            let chain = parts::<CertificateDer<'_>>(certificate, "certificate")?;
            let unfit = |e| {
                TlsSetupError::file(
                    path,
                    format!("not the key of {}: {e}", certificate.display()),
                )
            };
            builder
                .with_client_auth_cert(chain, key(path)?)
                .map_err(unfit)?
        }
    };
    // Every connection verifies the server anew.
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    Ok(config)
}

/// A session with a verified server.
///
/// # Invariants
/// Only whole records are read from the socket, so that kernel TLS can take over at a record boundary.
#[derive(Debug)]
pub(crate) struct Session {
    socket: Socket,
    connection: ClientConnection,
    /// The server has sent data in this session.
    heard: bool,
}

impl Session {
    /// Sets up TLS and verifies the server before the deadline.
    pub(crate) fn start(
        socket: Socket,
        security: &Security,
        deadline: Instant,
    ) -> Result<Self, Failed> {
        let config = Arc::new(config(security)?);
        let name = ServerName::try_from(security.name.clone())
            .map_err(|_| TlsSetupError::Name(security.name.clone()))?;
        let connection = ClientConnection::new(config, name)?;
        let mut session = Self {
            socket,
            connection,
            heard: false,
        };
        let shaken = session.shake(deadline);
        shaken.map_err(|e| session.last_word(e, deadline))?;
        Ok(session)
    }

    fn shake(&mut self, deadline: Instant) -> Result<(), Failed> {
        self.flush(deadline)?;
        while self.connection.is_handshaking() {
            self.record(deadline)?;
        }
        Ok(())
    }

    /// Sends bytes before the deadline.
    pub(crate) fn send(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), Failed> {
        self.connection.writer().write_all(bytes)?;
        let sent = self.flush(deadline);
        sent.map_err(|e| self.last_word(e, deadline))
    }

    /// Waits for data until the deadline and appends it. The end of the session is an error.
    pub(crate) fn receive(&mut self, to: &mut Vec<u8>, deadline: Instant) -> Result<(), Failed> {
        let before = to.len();
        while to.len() == before {
            match self.connection.reader().read_to_end(to) {
                Ok(_) => {
                    let end = Failed::Io(io::ErrorKind::UnexpectedEof.into());
                    return Err(self.last_word(end, deadline));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && to.len() == before => {
                    let record = self.record(deadline);
                    record.map_err(|e| self.last_word(e, deadline))?;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.heard = true;
        Ok(())
    }

    /// Finds out why the server closed the connection: an alert may be left to read. A server that closes it before it has
    /// sent any data probably does not trust the client.
    fn last_word(&mut self, failure: Failed, deadline: Instant) -> Failed {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        match failure {
            Failed::Io(e) if matches!(e.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                match self.record(deadline) {
                    Err(said @ Failed::Tls { .. }) => said,
                    _ if self.heard => Failed::Io(e),
                    _ => Failed::Tls {
                        reason: format!("the server closed the connection in the handshake: {e}"),
                        hint: Some(CLIENT),
                    },
                }
            }
            other => other,
        }
    }

    fn flush(&mut self, deadline: Instant) -> Result<(), Failed> {
        let mut socket = Timed {
            socket: &self.socket,
            deadline,
        };
        while self.connection.wants_write() {
            self.connection.write_tls(&mut socket)?;
        }
        Ok(())
    }

    /// Receives and processes one record.
    fn record(&mut self, deadline: Instant) -> Result<(), Failed> {
        let mut head = [0; 5];
        self.piece(&mut head, deadline)?;
        let [.., high, low] = head;
        let mut body = vec![0; u16::from_be_bytes([high, low]).into()];
        self.piece(&mut body, deadline)?;
        // The client's next handshake message, or the answer to a key update.
        self.flush(deadline)
    }

    fn piece(&mut self, bytes: &mut [u8], deadline: Instant) -> Result<(), Failed> {
        let mut socket = Timed {
            socket: &self.socket,
            deadline,
        };
        socket.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => io::ErrorKind::UnexpectedEof.into(),
            _ => e,
        })?;
        let mut rest = &*bytes;
        while !rest.is_empty() {
            self.connection.read_tls(&mut rest)?;
            if let Err(error) = self.connection.process_new_packets() {
                // An alert tells the server why, if it still listens.
                let _ = self.flush(deadline);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Tells the server that the session ends, before the deadline.
    pub(crate) fn close(&mut self, deadline: Instant) {
        self.connection.send_close_notify();
        let _ = self.flush(deadline);
    }

    /// Hands the session over to the kernel, if it has TLS and `to_kernel` is set, or to a thread, which the caller must
    /// start. Returns the socket for the ring.
    pub(crate) fn carried(
        mut self,
        to_kernel: bool,
    ) -> Result<(OwnedFd, Tls, Option<Work>), Failed> {
        if self.connection.reader().read(&mut [0]).is_ok() {
            let what = "the server sends data before the first request";
            return Err(Failed::Io(io::Error::new(io::ErrorKind::InvalidData, what)));
        }
        self.socket.set_read_timeout(None)?;
        self.socket.set_write_timeout(None)?;
        let by_kernel = to_kernel && ktls::attach(&self.socket);
        let tls = Tls {
            info: TlsInfo {
                version: name(self.connection.protocol_version()),
                cipher: name(self.connection.negotiated_cipher_suite().map(|s| s.suite())),
                carrier: match by_kernel {
                    true => Carrier::Kernel,
                    false => Carrier::Thread,
                },
            },
            end: Arc::default(),
        };
        if !by_kernel {
            let (relay, socket) = Relay::new(self.socket, self.connection, Arc::clone(&tls.end))?;
            let work = Work(Box::new(|| relay.run()));
            return Ok((socket, tls, Some(work)));
        }
        let version = self.connection.protocol_version();
        let secrets = self.connection.dangerous_extract_secrets()?;
        ktls::start(&self.socket, version, &secrets).map_err(Failed::Kernel)?;
        Ok((self.socket.into(), tls, None))
    }
}

/// Name of a version or cipher suite.
fn name(value: Option<impl std::fmt::Debug>) -> String {
    value.map_or_else(String::new, |value| format!("{value:?}"))
}
