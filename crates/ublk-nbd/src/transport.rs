//! What carries the bytes of a connection between the ring and the server.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

#[cfg(feature = "tls")]
use crate::ktls::{self, Control};

/// TLS of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TlsInfo {
    /// `TLSv1_2` or `TLSv1_3`.
    pub version: String,
    /// The cipher suite, by its name in the registry of TLS.
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
    /// The kernel, in the calls of the ring (module `tls`, Linux 4.17; TCP only).
    Kernel,
    /// A thread of this process for each connection, by way of a pair of sockets.
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

/// TLS of a connection in use.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) info: TlsInfo,
    /// What ended it, as its thread saw it: the ring sees the end only. Where the ring's side sets it, the thread ends.
    pub(crate) end: Arc<OnceLock<String>>,
}

impl Tls {
    /// Why a receive failed, `None` if it did not: a record was in the way that means nothing.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "of TLS only"))]
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

    /// Says so where the session ends on purpose; a thread does by itself.
    #[cfg_attr(not(feature = "tls"), expect(unused_variables, reason = "of TLS only"))]
    pub(crate) fn close(&self, socket: BorrowedFd<'_>) {
        #[cfg(feature = "tls")]
        if self.info.carrier == Carrier::Kernel {
            ktls::close_notify(socket);
        }
    }
}

/// Work that a connection takes and that begins when it is started, on a thread of its own.
pub(crate) struct Work(pub(crate) Box<dyn FnOnce() + Send>);

impl Work {
    /// Starts it. The thread ends with the connection.
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
