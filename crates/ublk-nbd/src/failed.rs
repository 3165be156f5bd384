//! Errors of a stream.

use std::io;

use crate::security::TlsSetupError;

/// Why a stream could not be set up, or ended.
#[derive(Debug)]
pub(crate) enum Failed {
    /// TLS cannot be set up.
    Setup(TlsSetupError),
    /// The socket failed.
    Io(io::Error),
    /// The TLS session failed.
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "only TLS constructs it")
    )]
    Tls {
        reason: String,
        hint: Option<&'static str>,
    },
    /// Kernel TLS failed after it had the keys. The connection is unusable; a thread must carry the next one.
    #[cfg_attr(
        not(feature = "tls"),
        expect(dead_code, reason = "only TLS constructs it")
    )]
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
