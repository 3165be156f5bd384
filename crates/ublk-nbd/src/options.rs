//! Options of an NBD device.

use std::fmt;
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

/// Configuration of a client of one export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdOptions {
    /// Where the export is.
    pub uri: Uri,
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

impl NbdOptions {
    /// The defaults for this export: requests wait for 60 seconds, a connection attempt takes at most 10 and a request
    /// at most 30.
    #[must_use]
    pub fn new(uri: Uri) -> Self {
        Self {
            uri,
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
