//! Who encrypts a connection between the ring and the server.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "tls")]
use crate::ktls::{self, Control};

/// Encryption of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TlsInfo {
    /// `TLSv1_2` or `TLSv1_3`.
    pub version: String,
    /// Name of the cipher suite, such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// Who encrypts and decrypts.
    pub carrier: Carrier,
}

/// Who encrypts and decrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Carrier {
    /// The kernel, in the ring's operations (module `tls`, Linux 4.17; TCP only).
    Kernel,
    /// One thread of this process per connection.
    Thread,
}

impl fmt::Display for TlsInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.carrier {
            Carrier::Kernel => "the kernel",
            Carrier::Thread => "a thread",
        };
        write!(f, "{}, {}, carried by {by}", self.version, self.cipher)
    }
}

/// The TLS session of a connection in use.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) info: TlsInfo,
    /// Why its thread ended; the ring sees only the end of the socket. If the ring's side sets it, the thread ends.
    pub(crate) end: Arc<OnceLock<String>>,
}

impl Tls {
    /// Why an operation failed; `None` if a meaningless record was the cause, so the connection goes on.
    #[cfg_attr(
        not(feature = "tls"),
        expect(unused_variables, reason = "only TLS uses it")
    )]
    pub(crate) fn end_of(&self, socket: BorrowedFd<'_>, seen: &io::Error) -> Option<String> {
        if let Some(why) = self.end.get() {
            return Some(why.clone());
        }
        #[cfg(feature = "tls")]
        if self.info.carrier == Carrier::Kernel && seen.raw_os_error() == Some(libc::EIO) {
            match ktls::control(socket) {
                Some(Control::Ticket) => return None,
                Some(Control::End(why)) => return Some(why),
                None => {}
            }
        }
        Some(seen.to_string())
    }

    /// Tells the server that the session ends; a thread does this by itself.
    #[cfg_attr(
        not(feature = "tls"),
        expect(unused_variables, reason = "only TLS uses it")
    )]
    pub(crate) fn close(&self, socket: BorrowedFd<'_>) {
        #[cfg(feature = "tls")]
        if self.info.carrier == Carrier::Kernel {
            ktls::close_notify(socket);
        }
    }
}

/// The thread of a connection, not started yet.
pub(crate) struct Work(pub(crate) Box<dyn FnOnce() + Send>);

impl Work {
    /// Starts the thread, which ends with the connection.
    pub(crate) fn start(self) -> io::Result<()> {
        let thread = std::thread::Builder::new().name("nbd-tls".to_owned());
        thread.spawn(self.0).map(drop)
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}
