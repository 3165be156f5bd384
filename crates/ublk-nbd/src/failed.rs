//! Why bytes of a handshake do not come or go.

use std::io;

use crate::security::TlsSetupError;

/// Why a stream did not come about, or ended.
#[derive(Debug)]
pub(crate) enum Failed {
    /// TLS cannot be set up.
    Setup(TlsSetupError),
    /// The socket.
    Io(io::Error),
    /// The peer of a TLS session, or what it was found to be.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "made by TLS"))]
    Tls {
        reason: String,
        hint: Option<&'static str>,
    },
    /// Kernel TLS, once the session was no other's any more: the next one must be carried by a thread.
    #[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "made by TLS"))]
    Kernel(io::Error),
}

impl From<TlsSetupError> for Failed {
    fn from(error: TlsSetupError) -> Self {
        Self::Setup(error)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
