//! Messages for the systemd journal in its own protocol, with the device as fields:
//! `journalctl UBLK_DEVICE=ublkb0`. <https://systemd.io/JOURNAL_NATIVE_PROTOCOL>
//!
//! The crate `tracing-journald` has no fields that become known later, and its socket blocks while the journal does not
//! read: a message must not block the process (L46).

use super::stderr::{Stderr, plain};
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where the journal takes messages.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Tells a role that the messages of its front go to the journal.
pub(crate) const VARIABLE: &str = "UBLKCTL_JOURNAL";

/// Whether messages go to the journal.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// The connection, once a role has made it.
static CONNECTION: OnceLock<UnixDatagram> = OnceLock::new();

/// Fields of every message.
static FIELDS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Whether messages go to the journal, and not to standard error.
pub(super) fn is_active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// Messages go to standard error from now on.
pub(super) fn leave() {
    ACTIVE.store(false, Ordering::Relaxed);
}

/// Adds the device to every further message.
pub(crate) fn device(id: u32, name: Option<&str>) {
    let mut fields = Vec::new();
    put(&mut fields, "UBLK_DEVICE", &format!("ublkb{id}"));
    if let Some(name) = name {
        put(&mut fields, "UBLK_NAME", name);
    }
    *FIELDS.lock().unwrap_or_else(PoisonError::into_inner) = fields;
}

/// Whether standard error of this process is a stream to the journal, or its caller's is.
pub(crate) fn is_behind_stderr() -> bool {
    if std::env::var_os(VARIABLE).is_some() {
        return true;
    }
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = io::stderr().as_fd().try_clone_to_owned();
    let found = stderr.and_then(|fd| std::fs::File::from(fd).metadata());
    found.is_ok_and(|it| stream == format!("{}:{}", it.dev(), it.ino()))
}

/// Sends messages to the journal from now on, where those of this process's caller go there. Call it after the role has
/// closed all descriptors that it inherited.
pub(crate) fn connect() {
    if is_behind_stderr()
        && let Err(e) = connect_to(SOCKET)
    {
        tracing::debug!("messages go to the journal as text: {e}");
    }
}

fn connect_to(path: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    ACTIVE.store(CONNECTION.set(socket).is_ok(), Ordering::Relaxed);
    Ok(())
}

/// Sends a message. A full journal loses it; one that is gone sends this one and further ones to standard error.
fn send(message: &[u8], text: &str) {
    let Some(socket) = CONNECTION.get() else {
        return;
    };
    match socket.send(message) {
        Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
            leave();
            let _ = Stderr.write_all(text.as_bytes());
        }
        _ => {}
    }
}

/// The layer that writes messages to the journal while [`is_active`].
#[derive(Debug)]
pub(super) struct Journal;

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !is_active() {
            return;
        }
        let mut found = Found::default();
        event.record(&mut found);
        let fields = FIELDS.lock().unwrap_or_else(PoisonError::into_inner);
        let message = found.message(*event.metadata().level(), &fields);
        drop(fields);
        send(&message, &format!("{}\n", found.text));
    }
}

/// An event's message and fields.
#[derive(Debug, Default)]
struct Found {
    text: String,
    fields: Vec<u8>,
}

impl Found {
    fn message(&self, level: Level, fields: &[u8]) -> Vec<u8> {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let mut message = Vec::with_capacity(256);
        put(&mut message, "MESSAGE", &plain(&self.text));
        put(&mut message, "PRIORITY", priority);
        put(&mut message, "SYSLOG_IDENTIFIER", "ublkctl");
        message.extend_from_slice(&self.fields);
        message.extend_from_slice(fields);
        message
    }
}

impl Visit for Found {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.text, "{value:?}");
            return;
        }
        let name = field.name().to_ascii_uppercase().replace('.', "_");
        put(
            &mut self.fields,
            &format!("UBLK_{name}"),
            &format!("{value:?}"),
        );
    }
}

/// Appends a field. One with a line break has its length before it.
fn put(to: &mut Vec<u8>, name: &str, value: &str) {
    to.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        to.push(b'\n');
        to.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        to.push(b'=');
    }
    to.extend_from_slice(value.as_bytes());
    to.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    /// Messages arrive with their priority and the fields of the device; a journal that does not read costs the messages
    /// that do not fit, and no time; one that is gone is left.
    #[test]
    fn l46_the_journal_gets_fields_and_cannot_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let there = UnixDatagram::bind(&path).unwrap();
        there.set_nonblocking(true).unwrap();
        device(7, Some("two\nlines"));
        assert!(connect_to("/no/such/socket").is_err() && !is_active());
        connect_to(path.to_str().unwrap()).unwrap();
        assert!(is_active());
        let all = tracing_subscriber::registry().with(Journal);
        tracing::subscriber::with_default(all, || {
            tracing::warn!(errno = 5, "it \x1b[2J failed");
            let mut buffer = [0; 4096];
            let length = there.recv(&mut buffer).unwrap();
            let mut expected = b"MESSAGE=it \\x1b[2J failed\nPRIORITY=4\nSYSLOG_IDENTIFIER=ublkctl\nUBLK_ERRNO=5\n\
                UBLK_DEVICE=ublkb7\nUBLK_NAME\n\x09\0\0\0\0\0\0\0two\nlines\n"
                .to_vec();
            assert_eq!(&buffer[..length], &expected[..]);
            expected.clear();
            let begun = std::time::Instant::now();
            (0..10_000).for_each(|n| tracing::info!("message {n}"));
            assert!(begun.elapsed() < std::time::Duration::from_secs(5));
            assert!(is_active());
            drop(there);
            tracing::info!("nobody reads");
            assert!(!is_active());
        });
    }
}
