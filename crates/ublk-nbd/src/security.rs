//! Decides by URI and options whether a connection uses TLS, and with which files.

use std::io;
use std::path::{Path, PathBuf};

use nbd_client::{Address, Uri};

use crate::options::TlsOptions;

/// Why TLS cannot be set up as requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    /// TLS options or parameters for a URI without TLS.
    #[error("TLS is requested, but the URI is one without: use nbds:// or nbds+unix://")]
    PlainText,
    /// No trusted authority.
    #[error(
        "TLS needs the certificate of the server's authority: use --tls-ca FILE, or ?tls-certificates=DIR in the URI; \
         for the authorities that the system trusts use its file, such as /etc/ssl/certs/ca-certificates.crt"
    )]
    NoAuthority,
    /// A client certificate without its key, or the key without the certificate.
    #[error("a client certificate and its key belong together: {missing} is missing")]
    Half {
        /// The option or file that is missing.
        missing: String,
    },
    /// TLS with a pre-shared key.
    #[error(
        "TLS with pre-shared keys ({0}) is not supported: use certificates, or a proxy with the key, such as stunnel, on a \
         unix socket"
    )]
    PreSharedKey(String),
    /// A request not to verify the server.
    #[error(
        "{0} is refused, because servers are always verified: use --tls-ca, and --tls-hostname if the name differs"
    )]
    NotVerified(String),
    /// An unknown TLS parameter, which might weaken the connection.
    #[error("unknown parameter {0} in the URI: use tls-certificates and tls-hostname")]
    Parameter(String),
    /// A relative path, which means another directory to the processes of a device.
    #[error("tls-certificates={}: use an absolute path", .0.display())]
    Relative(PathBuf),
    /// A name that no certificate can contain.
    #[error("{0:?} is not a valid server name: set one by --tls-hostname")]
    Name(String),
    /// A file that cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The feature `tls` is missing.
    #[error(
        "this program is built without TLS: put a TLS proxy such as stunnel in front, or use a unix socket"
    )]
    NotBuilt,
}

impl TlsSetupError {
    /// True for missing or contradictory options, false for errors of files and of the build.
    #[must_use]
    pub const fn is_usage(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::NotBuilt)
    }

    pub(crate) fn file(path: &Path, reason: impl ToString) -> Self {
        Self::File {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }
}

impl TlsOptions {
    /// Checks that the options and those of the URI belong together.
    ///
    /// # Errors
    /// What is missing or contradictory.
    pub fn suit(&self, uri: &Uri) -> Result<(), TlsSetupError> {
        wanted(uri, self).map(drop)
    }
}

/// The files of a connection, and the name to verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Security {
    /// Certificates of the authorities.
    pub(crate) ca: PathBuf,
    /// Their lists of revoked certificates.
    pub(crate) revoked: Option<PathBuf>,
    /// The client's certificate and key.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must contain.
    pub(crate) name: String,
}

/// What a connection to `uri` must use; `None` for plain text.
pub(crate) fn wanted(uri: &Uri, options: &TlsOptions) -> Result<Option<Security>, TlsSetupError> {
    let asked = Asked::of(uri, options)?;
    if !uri.tls {
        return match asked == Asked::default() {
            true => Ok(None),
            false => Err(TlsSetupError::PlainText),
        };
    }
    if cfg!(not(feature = "tls")) {
        return Err(TlsSetupError::NotBuilt);
    }
    let host = match &uri.address {
        Address::Tcp { host, .. } => host.clone(),
        _ => "localhost".to_owned(),
    };
    let name = asked.hostname.clone().unwrap_or(host);
    let (identity, revoked) = match &asked.directory {
        Some(directory) => (pair_in(directory)?, present(directory.join("ca-crl.pem"))?),
        None => (None, None),
    };
    let identity = match (asked.certificate, asked.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => identity,
        (Some(_), None) => return Err(half("--tls-key")),
        (None, Some(_)) => return Err(half("--tls-cert")),
    };
    let ca = asked
        .directory
        .map(|directory| directory.join("ca-cert.pem"));
    let ca = ca.or(asked.ca).ok_or(TlsSetupError::NoAuthority)?;
    Ok(Some(Security {
        ca,
        revoked,
        identity,
        name,
    }))
}

/// What the URI or else the options request.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    directory: Option<PathBuf>,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    hostname: Option<String>,
    /// Something that says nothing new, but that only TLS has.
    mentioned: bool,
}

impl Asked {
    fn of(uri: &Uri, options: &TlsOptions) -> Result<Self, TlsSetupError> {
        let mut asked = Self {
            directory: None,
            ca: options.ca.clone(),
            certificate: options.certificate.clone(),
            key: options.key.clone(),
            hostname: options.hostname.clone(),
            mentioned: false,
        };
        for (name, value) in &uri.parameters {
            match name.as_str() {
                "tls-certificates" if value.starts_with('/') => {
                    asked.directory = Some(value.into());
                    // The client certificate is that of the directory, or none.
                    (asked.certificate, asked.key) = (None, None);
                }
                "tls-certificates" => return Err(TlsSetupError::Relative(value.into())),
                "tls-hostname" => asked.hostname = Some(value.clone()),
                "tls-psk-file" => {
                    return Err(TlsSetupError::PreSharedKey(format!("{name}={value}")));
                }
                "tls-verify-peer" if matches!(value.as_str(), "true" | "1") => {
                    asked.mentioned = true;
                }
                "tls-verify-peer" => {
                    return Err(TlsSetupError::NotVerified(format!("{name}={value}")));
                }
                // Only used with pre-shared keys.
                "tls-username" => asked.mentioned = true,
                name => return Err(TlsSetupError::Parameter(name.to_owned())),
            }
        }
        Ok(asked)
    }
}

fn half(missing: &str) -> TlsSetupError {
    TlsSetupError::Half {
        missing: missing.to_owned(),
    }
}

/// The client's certificate and key in a directory laid out as for libnbd and qemu.
fn pair_in(directory: &Path) -> Result<Option<(PathBuf, PathBuf)>, TlsSetupError> {
    let (certificate, key) = ("client-cert.pem", "client-key.pem");
    let certificate = directory.join(certificate);
    let key = directory.join(key);
    match (present(certificate.clone())?, present(key.clone())?) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        (None, _) => Err(half(&certificate.display().to_string())),
        (_, None) => Err(half(&key.display().to_string())),
    }
}

/// The path, if it exists.
fn present(path: PathBuf) -> Result<Option<PathBuf>, TlsSetupError> {
    match path.symlink_metadata() {
        Ok(_) => Ok(Some(path)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(TlsSetupError::file(&path, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, options: &TlsOptions) -> Result<Option<Security>, TlsSetupError> {
        wanted(&uri.parse().expect("a URI"), options)
    }

    fn with_ca() -> TlsOptions {
        TlsOptions {
            ca: Some("/ca".into()),
            ..TlsOptions::default()
        }
    }

    /// L75 Whoever requests TLS in any way never gets a connection in plain text.
    #[test]
    fn l75_tls_is_never_left_out() {
        let none = TlsOptions::default();
        assert_eq!(of("nbd://h/", &none), Ok(None));
        let plain = Err(TlsSetupError::PlainText);
        assert_eq!(of("nbd://h/", &with_ca()), plain);
        for parameter in [
            "tls-certificates=/d",
            "tls-hostname=h",
            "tls-verify-peer=true",
            "tls-username=x",
        ] {
            assert_eq!(of(&format!("nbd://h/?{parameter}"), &none), plain);
        }
        for wrong in [
            "tls-psk-file=/k",
            "tls-verify-peer=false",
            "tls-verify-peer=0",
            "tls-priority=NONE",
            "tls-certificates=d",
        ] {
            for scheme in ["nbd", "nbds"] {
                let uri = format!("{scheme}://h/?{wrong}");
                let error = of(&uri, &with_ca()).expect_err(wrong);
                assert!(error.is_usage(), "{uri}: {error}");
            }
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn the_uri_takes_precedence() {
        let none = TlsOptions::default();
        assert_eq!(of("nbds://h/", &none), Err(TlsSetupError::NoAuthority));
        let name = |uri: &str| of(uri, &with_ca()).map(|s| s.map(|s| s.name));
        assert_eq!(name("nbds://[::1]:9/x"), Ok(Some("::1".to_owned())));
        let unix = "nbds+unix:///x?socket=/s";
        assert_eq!(name(unix), Ok(Some("localhost".to_owned())));
        let named = format!("{unix}&tls-hostname=other&tls-verify-peer=1");
        assert_eq!(name(&named), Ok(Some("other".to_owned())));
        let mut options = TlsOptions {
            certificate: Some("/c".into()),
            hostname: Some("one".to_owned()),
            ..with_ca()
        };
        assert_eq!(of("nbds://h/", &options), Err(half("--tls-key")));
        options.key = Some("/k".into());
        let both = of("nbds://h/", &options).expect("both").expect("TLS");
        assert_eq!(both.identity, Some(("/c".into(), "/k".into())));
        assert_eq!((both.name.as_str(), both.ca), ("one", "/ca".into()));
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let uri = format!("nbds://h/?tls-certificates={}", directory.path().display());
        let found = of(&uri, &options).expect("a directory").expect("TLS");
        assert_eq!((found.ca, found.identity), (at("ca-cert.pem"), None));
        std::fs::write(at("client-cert.pem"), "").expect("a file");
        let missing = half(&at("client-key.pem").display().to_string());
        assert_eq!(of(&uri, &options), Err(missing));
        std::fs::write(at("client-key.pem"), "").expect("a file");
        std::fs::write(at("ca-crl.pem"), "").expect("a file");
        let found = of(&uri, &none).expect("a directory").expect("TLS");
        assert_eq!(found.revoked, Some(at("ca-crl.pem")));
        assert_eq!(
            found.identity,
            Some((at("client-cert.pem"), at("client-key.pem")))
        );
    }
}
