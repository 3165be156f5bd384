//! Logs requests that a backend failed: the first of each kind, then the 10th, the 100th and so on.
//!
//! The queue's thread only counts, and passes failures to be logged to the server's main thread through a non-blocking
//! socket: writing a message may wait for a disk, which may be the device itself.
#![forbid(unsafe_code)]

use crate::backend::Opened;
use crate::report::FirstFailure;
use crate::spec::AddSpec;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::UNIX_EPOCH;
use ublk_backends::Composed;
use ublk_core::{Errno, Op};
use ublk_queue::OnFailure;

/// Number of distinguished operations; the last is for invalid descriptors.
const OPS: usize = 6;

/// Number of distinguished errnos; larger ones are counted with the last.
const ERRNOS: usize = 134;

/// Words of a failure on its way: operation, errno, offset, length, count, number of the file or [`NO_FILE`].
const WORDS: usize = 6;

/// No particular file.
const NO_FILE: u64 = u64::MAX;

/// The files of a device over several, to name the one that failed.
#[derive(Debug)]
pub(crate) struct Members {
    composed: Arc<Composed>,
    paths: Vec<PathBuf>,
}

impl Members {
    pub(crate) fn of(opened: &Opened, spec: &AddSpec) -> Option<Self> {
        let Opened::Composed(composed) = opened else {
            return None;
        };
        let members = spec.backend.members().into_iter();
        Some(Self {
            composed: Arc::clone(composed),
            paths: members.map(|member| member.path).collect(),
        })
    }

    /// The name of the file that failed, or of those that have the range.
    fn name(&self, file: u64, offset: u64, len: u64) -> String {
        let name = |n: usize| {
            let path = self.paths.get(n);
            path.map_or_else(String::new, |path| path.display().to_string())
        };
        match usize::try_from(file).ok().filter(|n| *n < self.paths.len()) {
            Some(file) => name(file),
            None => {
                let members = self.composed.members_of(offset, len).into_iter();
                members.map(name).collect::<Vec<_>>().join(" or ")
            }
        }
    }
}

/// The receiving end: the failures to be logged.
#[derive(Debug)]
pub(crate) struct Failures {
    said: UnixDatagram,
    members: Option<Members>,
    first: OnceLock<FirstFailure>,
}

/// Counts of each kind, and the socket to the main thread.
struct Counts {
    counts: Vec<AtomicU64>,
    say: UnixDatagram,
}

impl Failures {
    /// Creates both ends.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(crate) fn new(members: Option<Members>) -> io::Result<(Self, OnFailure)> {
        let (said, say) = UnixDatagram::pair()?;
        said.set_nonblocking(true)?;
        say.set_nonblocking(true)?;
        let counts = (0..OPS * ERRNOS).map(|_| AtomicU64::new(0)).collect();
        let counts = Counts { counts, say };
        let hook = OnFailure::new(move |f| counts.count(f.op, f.errno, (f.offset, f.len), f.file));
        Ok((Self::on(said, members), hook))
    }

    const fn on(said: UnixDatagram, members: Option<Members>) -> Self {
        Self {
            said,
            members,
            first: OnceLock::new(),
        }
    }

    /// Readable when there is something to log.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.said.as_fd()
    }

    /// Logs pending failures.
    pub(crate) fn say(&self, say: impl Fn(String)) {
        let mut words = [0; WORDS * 8];
        while self
            .said
            .recv(&mut words)
            .is_ok_and(|len| len == words.len())
        {
            let text = text(&words, self.members.as_ref());
            self.first.get_or_init(|| FirstFailure {
                at: UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs()),
                text: text.clone(),
            });
            say(text);
        }
    }

    /// The first failure that was logged.
    pub(crate) fn first(&self) -> Option<FirstFailure> {
        self.first.get().cloned()
    }
}

impl Counts {
    /// Counts a failure, and hands it over where it is the first of its kind, the tenth, the hundredth …
    fn count(&self, op: Option<Op>, errno: Errno, (offset, len): (u64, u64), file: Option<u16>) {
        let errno = usize::try_from(errno.get()).unwrap_or(0);
        let kind = index(op) * ERRNOS + errno.min(ERRNOS - 1);
        let Some(count) = self.counts.get(kind) else {
            return;
        };
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        if 10_u64.pow(count.ilog10()) != count {
            return;
        }
        let file = file.map_or(NO_FILE, u64::from);
        let numbers = [index(op) as u64, errno as u64, offset, len, count, file];
        let mut words = [0; WORDS * 8];
        for (word, number) in words.as_chunks_mut::<8>().0.iter_mut().zip(numbers) {
            *word = number.to_ne_bytes();
        }
        // If the socket is full it is not logged; health counts it anyway.
        let _ = self.say.send(&words);
    }
}

fn index(op: Option<Op>) -> usize {
    match op {
        Some(Op::Read) => 0,
        Some(Op::Write) => 1,
        Some(Op::Flush) => 2,
        Some(Op::Discard) => 3,
        Some(Op::WriteZeroes) => 4,
        // Operations of zones.
        _ => OPS - 1,
    }
}

fn text(words: &[u8; WORDS * 8], members: Option<&Members>) -> String {
    let mut numbers = [0; WORDS];
    for (number, word) in numbers.iter_mut().zip(words.as_chunks::<8>().0) {
        *number = u64::from_ne_bytes(*word);
    }
    let [op, errno, offset, len, count, file] = numbers;
    let op = [
        "read",
        "write",
        "flush",
        "discard",
        "write of zeroes",
        "request",
    ]
    .get(usize::try_from(op).unwrap_or(OPS))
    .unwrap_or(&"request");
    let errno = Errno::new(i32::try_from(errno).unwrap_or(0));
    let place = match (*op, len) {
        ("flush", _) | (_, 0) => String::new(),
        _ => format!(" of {len} bytes at {offset}"),
    };
    let often = match count {
        1 => String::new(),
        _ => format!("; {count} times so far"),
    };
    let on = members.map(|members| format!(" on {}", members.name(file, offset, len)));
    let on = on.unwrap_or_default();
    format!("{op}{place} failed{on}: {errno}{often}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn pair() -> (Failures, Counts) {
        let (said, say) = UnixDatagram::pair().unwrap();
        said.set_nonblocking(true).unwrap();
        say.set_nonblocking(true).unwrap();
        let counts = (0..OPS * ERRNOS).map(|_| AtomicU64::new(0)).collect();
        (Failures::on(said, None), Counts { counts, say })
    }

    fn said(failures: &Failures) -> Vec<String> {
        let found = RefCell::new(Vec::new());
        failures.say(|text| found.borrow_mut().push(text));
        found.into_inner()
    }

    /// The first failure of each kind is logged with its position, later ones by number. A storm of failures yields a
    /// few lines, and nothing waits for a reader.
    #[test]
    fn failures_are_said_by_kind_and_not_one_by_one() {
        let (failures, counts) = pair();
        counts.count(Some(Op::Write), Errno::ENOSPC, (8192, 4096), None);
        counts.count(Some(Op::Write), Errno::EIO, (512, 512), Some(0));
        counts.count(Some(Op::Flush), Errno::EIO, (0, 0), None);
        counts.count(None, Errno::EINVAL, (0, 0), None);
        let texts = said(&failures);
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(texts[0].starts_with("write of 4096 bytes at 8192 failed: "));
        assert!(texts[0].contains("ENOSPC"));
        assert_eq!(failures.first().unwrap().text, texts[0]);
        assert!(texts[1].starts_with("write of 512 bytes at 512 failed: "));
        assert!(texts[2].starts_with("flush failed: "));
        assert!(texts[3].starts_with("request failed: "));
        for block in 1..=100_000 {
            counts.count(Some(Op::Write), Errno::ENOSPC, (block * 4096, 4096), None);
        }
        let texts = said(&failures);
        assert_eq!(texts.len(), 5, "{texts:?}");
        assert!(texts[0].ends_with("; 10 times so far"), "{texts:?}");
        assert!(texts[4].ends_with("; 100000 times so far"), "{texts:?}");
        // Without a reader, failures are still counted and nothing blocks.
        for errno in 1..1000 {
            for op in [Op::Read, Op::Discard, Op::WriteZeroes] {
                counts.count(Some(op), Errno::new(errno), (0, 4096), None);
            }
        }
        assert!(!said(&failures).is_empty());
    }

    /// The member that failed is named; without one, those that have the range.
    #[test]
    fn the_failed_member_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let paths = ["a.img", "b.img", "c.img"].map(|name| directory.path().join(name));
        let open = |path: &PathBuf| {
            ublk_backends::Created::new(path, 1 << 20).unwrap().keep();
            ublk_backends::File::options(path).open().unwrap()
        };
        let files = paths.iter().map(open).collect();
        let composed = Arc::new(Composed::stripe(files, 65_536).unwrap());
        let (mut failures, counts) = pair();
        let paths = paths.to_vec();
        failures.members = Some(Members { composed, paths });
        counts.count(Some(Op::Write), Errno::EIO, (0, 1 << 20), Some(1));
        counts.count(Some(Op::Discard), Errno::EIO, (65_536, 131_072), None);
        counts.count(Some(Op::Flush), Errno::EIO, (0, 0), Some(2));
        let texts = said(&failures);
        let named = |text: &str, name: &str| text.contains(name);
        let found = texts
            .iter()
            .map(|t| ["a.img", "b.img", "c.img"].map(|name| named(t, name)));
        let found: Vec<_> = found.collect();
        let wanted = [
            [false, true, false],
            [false, true, true],
            [false, false, true],
        ];
        assert_eq!(found, wanted, "{texts:?}");
    }
}
