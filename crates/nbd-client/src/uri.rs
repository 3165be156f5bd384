//! NBD URIs (doc/uri.md of the NBD project).

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The default port.
const PORT: u16 = 10809;

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Address {
    /// TCP.
    Tcp {
        /// Host name or address, without the brackets of IPv6.
        host: String,
        /// Port.
        port: u16,
    },
    /// A unix socket's path.
    Unix(PathBuf),
}

/// An export of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    /// Whether TLS is required (`nbds`, `nbds+unix`).
    pub tls: bool,
    /// The server.
    pub address: Address,
    /// The export's name; empty for the server's default.
    pub export: String,
    /// Other query parameters, decoded: `tls-certificates` and the like.
    pub parameters: Vec<(String, String)>,
}

/// Why a string is not a valid URI.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// Unknown scheme.
    #[error(
        "{0:?} is not an NBD URI: one begins with nbd://, nbds://, nbd+unix:// or nbds+unix://"
    )]
    Scheme(String),
    /// A scheme of the protocol that this client does not support.
    #[error("{0} is not served by this client; use TCP or a unix socket")]
    Transport(&'static str),
    /// Missing or invalid host.
    #[error("{0:?} names no host")]
    Host(String),
    /// Invalid port.
    #[error("{0:?} is no port: 1 to 65535")]
    Port(String),
    /// A unix socket URI without a path.
    #[error(
        "a unix socket is named by ?socket=PATH behind the export: nbd+unix:///export?socket=/run/nbd.sock"
    )]
    Socket,
    /// A percent sign without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("{0:?} is not encoded as a URI is")]
    Encoding(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let scheme = || UriError::Scheme(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(scheme)?;
        let (tls, unix) = match scheme.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            "nbd+vsock" | "nbds+vsock" => return Err(UriError::Transport("nbd+vsock")),
            "nbd+ssh" | "nbds+ssh" => return Err(UriError::Transport("nbd+ssh")),
            _ => return Err(UriError::Scheme(text.to_owned())),
        };
        // Fragments have no meaning here.
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parameters = Vec::new();
        for pair in query.split(['&', ';']).filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            parameters.push((decoded(name)?, decoded(value)?));
        }
        let address = match unix {
            true => {
                let socket = parameters.iter().position(|(name, _)| name == "socket");
                let (_, path) = parameters.remove(socket.ok_or(UriError::Socket)?);
                if path.is_empty() || !authority.is_empty() {
                    return Err(UriError::Socket);
                }
                Address::Unix(path.into())
            }
            false => host(authority)?,
        };
        Ok(Self {
            tls,
            address,
            export: decoded(export)?,
            parameters,
        })
    }
}

/// Parses `[user@]host[:port]`.
fn host(authority: &str) -> Result<Address, UriError> {
    let place = authority
        .rsplit_once('@')
        .map_or(authority, |(_, place)| place);
    let none = || UriError::Host(authority.to_owned());
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(none)?;
            match port {
                "" => (host, ""),
                port => (host, port.strip_prefix(':').ok_or_else(none)?),
            }
        }
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let host = decoded(host)?;
    if host.is_empty() {
        return Err(none());
    }
    let port = match port {
        "" => PORT,
        port => match port.parse() {
            Ok(0) | Err(_) => return Err(UriError::Port(port.to_owned())),
            Ok(port) => port,
        },
    };
    Ok(Address::Tcp { host, port })
}

/// Decodes percent escapes.
fn decoded(text: &str) -> Result<String, UriError> {
    let wrong = || UriError::Encoding(text.to_owned());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or_else(wrong)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (Some(high), Some(low)) = (digit(digits[0]), digit(digits[1])) else {
            return Err(wrong());
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| wrong())?);
        rest = tail;
    }
    match String::from_utf8(bytes) {
        // No name, host or path may contain NUL, which would truncate it in C.
        Ok(text) if !text.contains('\0') => Ok(text),
        _ => Err(wrong()),
    }
}

/// Escapes characters that have a meaning in a URI, except those in `kept`.
fn encoded(text: &str, kept: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte);
    text.bytes()
        .map(|byte| match plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PLAIN: &str = "-._~/";
        let scheme = if self.tls { "nbds" } else { "nbd" };
        let export = encoded(&self.export, PLAIN);
        let mut parameters = self.parameters.clone();
        match &self.address {
            Address::Tcp { host, port } => {
                match host.contains(':') {
                    true => write!(f, "{scheme}://[{host}]")?,
                    false => write!(f, "{scheme}://{}", encoded(host, PLAIN))?,
                }
                if *port != PORT {
                    write!(f, ":{port}")?;
                }
            }
            Address::Unix(path) => {
                write!(f, "{scheme}+unix://")?;
                parameters.insert(0, ("socket".to_owned(), path.display().to_string()));
            }
        }
        write!(f, "/{export}")?;
        for (n, (name, value)) in parameters.iter().enumerate() {
            let mark = if n == 0 { '?' } else { '&' };
            write!(
                f,
                "{mark}{}={}",
                encoded(name, PLAIN),
                encoded(value, PLAIN)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().unwrap()
    }

    #[test]
    fn places_are_read_and_written() {
        let plain = uri("nbd://localhost");
        let tcp = |host: &str, port| Address::Tcp {
            host: host.to_owned(),
            port,
        };
        assert_eq!(plain.address, tcp("localhost", 10809));
        assert_eq!((plain.tls, plain.export.as_str()), (false, ""));
        let full = uri("nbds://me@[::1]:99/a%20b/c?tls-certificates=/etc/pki%2Fnbd&x#part");
        assert_eq!(full.address, tcp("::1", 99));
        assert!(full.tls);
        assert_eq!(full.export, "a b/c");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let parameters = [pair("tls-certificates", "/etc/pki/nbd"), pair("x", "")];
        assert_eq!(full.parameters, parameters);
        let unix = uri("nbd+unix:///disk?socket=/run/nbd.sock");
        assert_eq!(unix.address, Address::Unix("/run/nbd.sock".into()));
        assert_eq!(unix.export, "disk");
        for text in [
            "nbd://localhost/",
            "nbd://localhost:1/x",
            "nbds://[fe80::1]/a%20b?x=%25",
            "nbds+unix:///disk?socket=/run/n%20bd.sock&tls-hostname=h",
        ] {
            assert_eq!(uri(text).to_string(), text);
            assert_eq!(uri(&uri(text).to_string()), uri(text));
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in [
            "",
            "localhost",
            "http://localhost/",
            "nbd+vsock://2/",
            "nbd:///export",
            "nbd://host:0/",
            "nbd://host:65536/",
            "nbd://host:x/",
            "nbd://[::1",
            "nbd://[::1]x/",
            "nbd+unix:///export",
            "nbd+unix:///export?socket=",
            "nbd+unix://host/export?socket=/s",
            "nbd://h/%",
            "nbd://h/%4",
            "nbd://h/%zz",
            "nbd://h/%00",
            "nbd://h/%ff",
        ] {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
    }
}
