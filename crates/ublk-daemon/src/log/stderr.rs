//! Messages to standard error that can neither end nor block the process (L46).
//!
//! Standard error may be a file on a full disk, a closed pipe, a pipe whose reader sleeps, or a terminal. A message
//! that cannot be written within a moment is dropped, and the error is not reported, because there is nowhere to report
//! it. Control characters, which names and paths may contain, are escaped, so that no message controls a terminal.
#![forbid(unsafe_code)]

use crate::sys::poll;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long to wait for a sleeping reader, once: afterwards messages are written without waiting until it reads again.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bytes that a pipe accepts at once if poll reports it writable (PIPE_BUF).
const PIECE: usize = 4096;

/// Standard error for messages. A write never fails and never blocks for long.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        put(io::stderr().as_fd(), lines(buf).as_bytes());
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Escapes text for a terminal: control characters, and those that change the writing direction.
#[must_use]
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if c.is_ascii_control() => {
                let _ = write!(plain, "\\x{:02x}", u32::from(c));
            }
            c if c.is_control() || is_directional(c) => plain.extend(c.escape_unicode()),
            c => plain.push(c),
        }
    }
    plain
}

/// Characters that change where the following text is displayed.
const fn is_directional(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// As `plain`, line by line.
fn lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    lines.join("\n")
}

/// Whether the last message was dropped.
static STUCK: AtomicBool = AtomicBool::new(false);

fn put(to: BorrowedFd<'_>, bytes: &[u8]) {
    let patience = if STUCK.load(Ordering::Relaxed) {
        Duration::ZERO
    } else {
        PATIENCE
    };
    let done = write_all(to, bytes, Instant::now() + patience);
    STUCK.store(!done, Ordering::Relaxed);
}

/// Whether everything was written, or could not be for a reason that waiting does not fix.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8], deadline: Instant) -> bool {
    while !bytes.is_empty() {
        if !matches!(poll::writable(to, Some(deadline)), Ok(true)) {
            return false;
        }
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        match crate::sys::file::write(to, piece) {
            Ok(0) => return true,
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // A full FIFO of ours: poll only promised room for a byte.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, OpenOptions};
    use std::io::Read;

    /// Names and paths are untrusted: none of their bytes reaches a terminal as a control sequence.
    #[test]
    fn l46_control_characters_are_shown() {
        assert_eq!(plain("a\x1b[2Jb\n\t\u{7f}"), "a\\x1b[2Jb\\x0a\\x09\\x7f");
        assert_eq!(plain("\u{9b}31m \u{202e}gpj"), "\\u{9b}31m \\u{202e}gpj");
        assert_eq!(plain("/srv/Dätä 1.img"), "/srv/Dätä 1.img");
        assert_eq!(lines(b"a\xff\x07b\nc\n"), "a\u{fffd}\\x07b\nc\n");
    }

    /// L46 A full disk, a closed pipe and a sleeping reader cost the message and at most a moment.
    #[test]
    fn l46_messages_that_cannot_be_written_are_dropped() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let soon = || Instant::now() + PATIENCE;
        assert!(write_all(full.as_fd(), b"lost\n", soon()));
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert!(write_all(writer.as_fd(), b"lost\n", soon()));
        let (mut reader, writer) = io::pipe().unwrap();
        let begun = Instant::now();
        let line = [b'x'; 1000];
        let written = (0..1000).take_while(|_| write_all(writer.as_fd(), &line, soon()));
        let written = written.count();
        assert!((60..1000).contains(&written), "{written}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        // Lines that were accepted are complete.
        drop(writer);
        let mut found = Vec::new();
        assert_eq!(
            reader.read_to_end(&mut found).unwrap(),
            written * line.len()
        );
        let read_only = File::open("/dev/null").unwrap();
        assert!(write_all(read_only.as_fd(), b"lost\n", soon()));
    }
}
