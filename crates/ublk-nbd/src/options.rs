//! Options of an NBD device.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use nbd_client::Uri;

/// What happens to requests while the server is unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "String", try_from = "String")
)]
pub enum Retry {
    /// Requests wait this long after the connection was lost. Then they, and all further ones, fail with EIO until the
    /// server is back. Whole seconds.
    For(Duration),
    /// Requests wait until the server is back.
    Forever,
    /// Requests fail with EIO at once.
    Never,
}

impl Default for Retry {
    fn default() -> Self {
        Self::For(Duration::from_secs(60))
    }
}

impl fmt::Display for Retry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(time) => write!(f, "{}", time.as_secs()),
            Self::Forever => f.write_str("forever"),
            Self::Never => f.write_str("never"),
        }
    }
}

impl From<Retry> for String {
    fn from(retry: Retry) -> Self {
        retry.to_string()
    }
}

impl TryFrom<String> for Retry {
    type Error = ParseRetryError;

    fn try_from(text: String) -> Result<Self, ParseRetryError> {
        text.parse()
    }
}

/// Not a retry policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a retry policy: use a number of seconds, `forever` or `never`")]
pub struct ParseRetryError(String);

impl FromStr for Retry {
    type Err = ParseRetryError;

    fn from_str(text: &str) -> Result<Self, ParseRetryError> {
        match text {
            "forever" => Ok(Self::Forever),
            "never" | "0" => Ok(Self::Never),
            _ => {
                let seconds: u32 = text.parse().map_err(|_| ParseRetryError(text.to_owned()))?;
                Ok(Self::For(Duration::from_secs(seconds.into())))
            }
        }
    }
}

/// Files and server name for TLS. Parameters of the URI (`tls-certificates`, `tls-hostname`) take precedence. The files are
/// read anew for each connection, so renewed certificates take effect with the next one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct TlsOptions {
    /// PEM file with the certificates of the authorities that may sign the server's certificate.
    pub ca: Option<PathBuf>,
    /// PEM file with the client's certificate, followed by those of intermediate authorities.
    pub certificate: Option<PathBuf>,
    /// PEM file with its private key, not encrypted.
    pub key: Option<PathBuf>,
    /// The name or address that the server's certificate must contain. `None` means the host of the URI, and `localhost`
    /// for a unix socket.
    pub hostname: Option<String>,
}

/// Configuration of a client of one export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdOptions {
    /// Where the export is.
    pub uri: Uri,
    /// Files and server name for TLS, if the URI demands TLS.
    pub tls: TlsOptions,
    /// TLS records after which a new connection with new keys replaces the current one; without an interruption if the
    /// server allows two clients.
    pub tls_records: u64,
    /// Request replies in chunks: extended headers, else structured replies. They spare the transfer of holes. `None`
    /// requests them unless the server is at a unix socket, where a transfer is only a copy.
    pub chunks: Option<bool>,
    /// What happens to requests while the server is unreachable.
    pub retry: Retry,
    /// Deadline of one connection attempt, handshake included.
    pub connect_timeout: Duration,
    /// How long the server may take to answer a request before the connection counts as lost. A TRIM or WRITE_ZEROES gets
    /// one second more for each 64 MiB.
    pub request_timeout: Duration,
    /// The device refuses writes even if the server accepts them.
    pub read_only: bool,
    /// Size of the device in bytes; `None` for the whole export.
    pub size: Option<u64>,
    /// Logical block size in bytes; `None` for the smallest that the server accepts, at least 512.
    pub block_size: Option<u32>,
}

/// What AES-GCM allows with one key, with a margin (RFC 8446, 5.5).
const TLS_RECORDS: u64 = 1 << 24;

impl NbdOptions {
    /// The defaults for this export: requests wait for 60 seconds, a connection attempt takes at most 10 and a request
    /// at most 30.
    #[must_use]
    pub fn new(uri: Uri) -> Self {
        Self {
            uri,
            tls: TlsOptions::default(),
            tls_records: TLS_RECORDS,
            chunks: None,
            retry: Retry::default(),
            connect_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            read_only: false,
            size: None,
            block_size: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_read_as_it_is_shown() {
        for policy in [
            Retry::For(Duration::from_secs(5)),
            Retry::Forever,
            Retry::Never,
        ] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        for bad in ["", "-1", "1.5", "always", "99999999999"] {
            assert!(bad.parse::<Retry>().is_err(), "{bad}");
        }
    }
}
