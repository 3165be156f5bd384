//! The commands of batch mode (BATCH_IO, 7.0): many tags in one command.
//!
//! One PREP gives the driver all tags. One multishot FETCH delivers requests, many tags per completion, in buffers that
//! the ring provides. One COMMIT answers all requests of a batch. The state machines of the tags are the same as with a
//! command per tag: after PREP or COMMIT a tag is with the driver, until a FETCH names it.

use ublk_core::{DataMode, Errno, Tag};
use ublk_sys::batch::ElemShape;
use ublk_sys::{
    UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK, UBLK_U_IO_COMMIT_IO_CMDS, UBLK_U_IO_FETCH_IO_CMDS,
    UBLK_U_IO_PREP_IO_CMDS, ublk_elem_header,
};

/// Commits that may be in flight at once: one is being filled while those of a few earlier enters, if the kernel took
/// them late, still need their elements.
const COMMITS: u16 = 8;

/// A batch command (`struct ublk_batch_io`, linux/ublk_cmd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchCommand {
    /// Encoded opcode, `UBLK_U_IO_*_IO_CMDS`.
    pub cmd_op: u32,
    /// Hw queue.
    pub qid: u16,
    /// `UBLK_BATCH_F_*`.
    pub flags: u16,
    /// Number of elements at `addr`; 0 for a fetch.
    pub nr_elem: u16,
    /// Size of an element in bytes.
    pub elem_bytes: u8,
    /// Address of the elements, which must stay valid until the command completes; 0 for a fetch.
    pub addr: u64,
}

/// Elements of a PREP or COMMIT that may be in flight: 8 bytes of header each, and 8 more for a buffer address or the
/// sector of an append.
#[derive(Default)]
struct Elems {
    /// Room for an element per tag; empty unless in flight.
    words: Vec<u64>,
    in_flight: bool,
}

/// The batch commands of one lane.
#[derive(Default)]
pub(crate) struct Batch {
    qid: u16,
    shape: ElemShape,
    /// Words per element.
    size: usize,
    flags: u16,
    commits: Vec<Elems>,
    /// The elements being filled, with the same capacity.
    open: Vec<u64>,
    /// The number of the commit that they will become.
    number: u16,
    /// State of the multishot fetch.
    pub(crate) fetch: Fetch,
}

/// State of the multishot fetch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// To be pushed.
    #[default]
    Due,
    /// With the driver.
    InFlight,
    /// Not to be pushed again: the queue ends.
    Ended,
}

/// The header of an answer to `tag`, without its result.
pub(crate) fn header(tag: Tag, buf_base: u16) -> u64 {
    let header = ublk_elem_header {
        tag: tag.get(),
        buf_index: buf_base + tag.get(),
        result: 0,
    };
    u64::from_ne_bytes(header.to_bytes())
}

impl Batch {
    pub(crate) fn new(qid: u16, depth: u16, data: DataMode, zoned: bool) -> Self {
        // Only one of the two: no zoned device uses copy mode.
        let shape = ElemShape {
            buf_addr: data == DataMode::Copy,
            zone_lba: zoned,
        };
        let fallback = if data == DataMode::ZeroCopy {
            UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK
        } else {
            0
        };
        let size = usize::from(shape.bytes()) / 8;
        let words = || Vec::with_capacity(usize::from(depth) * size);
        let elems = |_| Elems {
            words: words(),
            in_flight: false,
        };
        Self {
            qid,
            shape,
            size,
            flags: shape.flags() | fallback,
            commits: (0..COMMITS).map(elems).collect(),
            open: words(),
            ..Self::default()
        }
    }

    /// Adds the answer for a tag (for PREP: a tag) to the commit being filled: its [`header`], the result and, if
    /// elements have one, the address of the buffer or the sector of an append. False, with nothing changed, if there
    /// is no room; that would take two answers for one tag.
    #[inline(always)]
    pub(crate) fn add(&mut self, header: u64, result: i32, addr: u64) -> bool {
        let word = header | result_word(result);
        if self.size == 2 {
            self.append([word, addr])
        } else {
            self.append([word])
        }
    }

    #[inline(always)]
    fn append<const WORDS: usize>(&mut self, elem: [u64; WORDS]) -> bool {
        if self.open.capacity() - self.open.len() < WORDS {
            return false;
        }
        self.open.extend_from_slice(&elem);
        true
    }

    /// Closes the command being filled: returns it and the number of its completion. `None` while all commits are in
    /// flight; the elements then wait.
    #[inline]
    pub(crate) fn close(&mut self, prep: bool) -> Option<(u16, BatchCommand)> {
        if self.open.is_empty() {
            return None;
        }
        let number = self.number;
        let elems = self.commits.get_mut(usize::from(number))?;
        if elems.in_flight {
            return None;
        }
        std::mem::swap(&mut elems.words, &mut self.open);
        elems.in_flight = true;
        self.number = (number + 1) % COMMITS;
        let cmd_op = if prep {
            UBLK_U_IO_PREP_IO_CMDS
        } else {
            UBLK_U_IO_COMMIT_IO_CMDS
        };
        let count = match self.size {
            2 => elems.words.len() / 2,
            _ => elems.words.len(),
        };
        let command = BatchCommand {
            cmd_op,
            qid: self.qid,
            flags: self.flags,
            nr_elem: u16::try_from(count).unwrap_or(u16::MAX),
            elem_bytes: self.shape.bytes(),
            addr: elems.words.as_ptr() as u64,
        };
        Some((number, command))
    }

    /// The multishot fetch command.
    pub(crate) fn fetch_command(&self) -> BatchCommand {
        BatchCommand {
            cmd_op: UBLK_U_IO_FETCH_IO_CMDS,
            qid: self.qid,
            flags: 0,
            nr_elem: 0,
            elem_bytes: 2,
            addr: 0,
        }
    }

    /// Handles the completion of a PREP or COMMIT if the driver took every element. False otherwise.
    #[inline]
    pub(crate) fn all_taken(&mut self, number: u16, res: i32, prep: bool) -> bool {
        let Some(elems) = self.commits.get_mut(usize::from(number)) else {
            return false;
        };
        // A PREP is all or nothing; the result of a COMMIT is the number of bytes of elements taken.
        let bytes = elems.words.len() * 8;
        let all = res >= 0 && (prep || usize::try_from(res) == Ok(bytes));
        if all && elems.in_flight {
            elems.in_flight = false;
            elems.words.clear();
            return true;
        }
        false
    }

    /// Handles any other completion: passes each tag that the driver did not take to `refused`, with the errno if the
    /// driver gave one, in the order of addition. False if no such command is in flight.
    #[cold]
    pub(crate) fn completed(
        &mut self,
        number: u16,
        res: i32,
        prep: bool,
        mut refused: impl FnMut(Tag, Option<Errno>),
    ) -> bool {
        let elems = self.commits.get_mut(usize::from(number));
        let Some(elems) = elems.filter(|elems| elems.in_flight) else {
            return false;
        };
        elems.in_flight = false;
        let (taken, mut errno) = match Errno::from_result(res) {
            Ok(bytes) => (usize::try_from(bytes).unwrap_or(0) / (8 * self.size), None),
            Err(errno) => (0, Some(errno)),
        };
        for (n, elem) in elems.words.chunks(self.size).enumerate().skip(taken) {
            // The errno of a failed PREP is that of all elements, the errno of a failed COMMIT only that of its first.
            let why = if prep {
                errno
            } else {
                errno.take().filter(|_| n == 0)
            };
            let header = elem.first().copied().unwrap_or_default().to_ne_bytes();
            if let Ok(tag) = Tag::new(ublk_elem_header::from_bytes(&header).tag) {
                refused(tag, why);
            }
        }
        elems.words.clear();
        true
    }

    /// Takes back a command that could not be pushed; its elements stay for the next one.
    pub(crate) fn reopen(&mut self, number: u16) {
        if let Some(elems) = self.commits.get_mut(usize::from(number)) {
            elems.in_flight = false;
            std::mem::swap(&mut elems.words, &mut self.open);
            self.number = number;
        }
    }

    /// True if a command could not be pushed and is still due.
    #[inline]
    pub(crate) fn is_due(&self, prepared: bool) -> bool {
        self.is_open() || (prepared && self.fetch == Fetch::Due)
    }

    /// True while elements wait for the next command.
    #[inline]
    pub(crate) const fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// True while the driver may read elements.
    pub(crate) fn in_flight(&self) -> bool {
        self.commits.iter().any(|elems| elems.in_flight)
    }
}

/// The result of a command or an element in its place in the struct: bytes 4 to 7.
#[inline(always)]
pub(crate) const fn result_word(result: i32) -> u64 {
    let [a, b, c, d] = result.to_ne_bytes();
    u64::from_ne_bytes([0, 0, 0, 0, a, b, c, d])
}
