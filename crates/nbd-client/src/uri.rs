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
    /// No host.
    #[error("the URI names no host: nbd://HOST/EXPORT")]
    NoHost,
    /// An invalid host.
    #[error(
        "{0:?} is no host and port: an IPv6 address stands in brackets, as in nbd://[::1]:10809/EXPORT"
    )]
    Host(String),
    /// The protocol has no passwords.
    #[error(
        "the URI has a password, and the protocol has none: authenticate by TLS (nbds://, --tls-cert)"
    )]
    Password,
    /// Invalid port.
    #[error("{0:?} is no port: 1 to 65535")]
    Port(String),
    /// A unix socket URI without a path.
    #[error(
        "a unix socket is named by ?socket=PATH behind the export: nbd+unix:///export?socket=/run/nbd.sock"
    )]
    Socket,
    /// A unix socket URI with a host.
    #[error(
        "a unix socket has no host, and the URI has {0:?}: nbd+unix:///export?socket=/run/nbd.sock, with three slashes"
    )]
    SocketWithHost(String),
    /// A socket in a URI of TCP.
    #[error("?socket=PATH belongs to nbd+unix:// and nbds+unix://, and this URI is one of TCP")]
    SocketOfTcp,
    /// Several sockets.
    #[error("the URI names several sockets")]
    Sockets,
    /// A percent sign without two hexadecimal digits.
    #[error(
        "{0:?} is not encoded as a URI is: a percent sign is followed by two hexadecimal digits, and itself is %25"
    )]
    Encoding(String),
    /// Bytes that no name here may have.
    #[error("{0:?} decodes to bytes that are not UTF-8, or to a NUL, which is not supported")]
    Bytes(String),
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
        let mut sockets: Vec<String> = parameters
            .extract_if(.., |(name, _)| name == "socket")
            .map(|(_, path)| path)
            .collect();
        let address = match (unix, sockets.pop()) {
            (_, Some(_)) if !sockets.is_empty() => return Err(UriError::Sockets),
            (false, Some(_)) => return Err(UriError::SocketOfTcp),
            (false, None) => host(authority)?,
            (true, _) if !authority.is_empty() && !authority.ends_with('@') => {
                return Err(UriError::SocketWithHost(authority.to_owned()));
            }
            (true, None) => return Err(UriError::Socket),
            (true, Some(path)) if path.is_empty() => return Err(UriError::Socket),
            (true, Some(path)) => Address::Unix(path.into()),
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
    let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
    if user.contains(':') {
        return Err(UriError::Password);
    }
    let none = || UriError::Host(place.to_owned());
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(none)?;
            match port {
                "" => (host, ""),
                port => (host, port.strip_prefix(':').ok_or_else(none)?),
            }
        }
        None if place.matches(':').count() > 1 => return Err(none()),
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let host = decoded(host)?;
    if host.is_empty() {
        return Err(UriError::NoHost);
    }
    let port = match port {
        "" => PORT,
        port => match port.parse() {
            Ok(number @ 1..) if port.starts_with(|c: char| c.is_ascii_digit()) => number,
            _ => return Err(UriError::Port(port.to_owned())),
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
        _ => Err(UriError::Bytes(text.to_owned())),
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

    /// Each refusal names the fault that the URI has.
    #[test]
    fn refusals_name_the_fault() {
        for (text, part) in [
            ("nbd:///export", "no host"),
            ("nbd://::1/", "brackets"),
            ("nbd://[::1/", "brackets"),
            ("nbd+unix://host/?socket=/s", "has no host"),
            ("nbd+unix:///x", "?socket=PATH"),
            ("nbd://h/?socket=/s", "nbd+unix"),
            ("nbd+unix:///?socket=/s&socket=/t", "several"),
            ("nbd://h/%zz", "%25"),
            ("nbd://h/%ff", "UTF-8"),
            ("nbd://me:secret@h/", "password"),
        ] {
            let error = text.parse::<Uri>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        // libnbd's form with a user, whose certificate is meant.
        assert!("nbds+unix://alice@/?socket=/s".parse::<Uri>().is_ok());
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
            "nbd://host:+10809/",
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
            "nbd://::1/",
            "nbd://me:secret@h/",
            "nbd://h/?socket=/s",
            "nbd+unix:///?socket=/s&socket=/t",
        ] {
            assert!(text.parse::<Uri>().is_err(), "{text}");
        }
    }
}
