//! Error codes that a server may send, and errors for what it must not send.

use std::fmt;

/// The error code of a request or an option, as the server sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorCode(pub u32);

impl ErrorCode {
    /// `NBD_EPERM`.
    pub const EPERM: Self = Self(1);
    /// `NBD_EIO`.
    pub const EIO: Self = Self(5);
    /// `NBD_ENOMEM`.
    pub const ENOMEM: Self = Self(12);
    /// `NBD_EINVAL`.
    pub const EINVAL: Self = Self(22);
    /// `NBD_ENOSPC`.
    pub const ENOSPC: Self = Self(28);
    /// `NBD_EOVERFLOW`.
    pub const EOVERFLOW: Self = Self(75);
    /// `NBD_ENOTSUP`.
    pub const ENOTSUP: Self = Self(95);
    /// `NBD_ESHUTDOWN`: the server is shutting down and answers no later request.
    pub const ESHUTDOWN: Self = Self(108);

    /// The matching Linux errno. A code that the protocol does not define becomes EINVAL, as the protocol requires.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::EPERM => 1,
            Self::EIO => 5,
            Self::ENOMEM => 12,
            Self::ENOSPC => 28,
            Self::EOVERFLOW => 75,
            Self::ENOTSUP => 95,
            Self::ESHUTDOWN => 108,
            _ => 22,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::EPERM => "NBD_EPERM",
            Self::EIO => "NBD_EIO",
            Self::ENOMEM => "NBD_ENOMEM",
            Self::EINVAL => "NBD_EINVAL",
            Self::ENOSPC => "NBD_ENOSPC",
            Self::EOVERFLOW => "NBD_EOVERFLOW",
            Self::ENOTSUP => "NBD_ENOTSUP",
            Self::ESHUTDOWN => "NBD_ESHUTDOWN",
            Self(number) => return write!(f, "error {number}"),
        };
        f.write_str(name)
    }
}

/// Why a connection cannot be used or could not be set up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// The peer does not speak NBD, or only an unsupported old version.
    #[error("not a server of this protocol: {0}")]
    NoServer(&'static str),
    /// TLS was requested, but the server does not offer it.
    #[error("the server does not offer TLS, and plain text was not allowed: {0}")]
    NoTls(String),
    /// The server refused a required option.
    #[error("the server refuses {option}: {reason}")]
    Refused {
        /// The option's name in the protocol.
        option: &'static str,
        /// The name of the error and the server's own text.
        reason: String,
    },
    /// The server violated the protocol.
    #[error("the server breaks the protocol: {0}")]
    Broken(&'static str),
    /// Block sizes that contradict each other or the protocol.
    #[error(
        "the server breaks the protocol: block sizes of at least {0}, preferably {1}, at most {2} bytes cannot be"
    )]
    BlockSizes(u32, u32, u32),
    /// The server violated the protocol in its reply to a request in flight.
    #[error("the server breaks the protocol in its reply to request {cookie:#x}: {what}")]
    BrokenReply {
        /// The request's cookie, as the server sent it.
        cookie: u64,
        /// What is wrong.
        what: &'static str,
    },
}
