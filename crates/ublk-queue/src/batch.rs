//! The commands of batch mode (BATCH_IO, 7.0): many tags in one.
//!
//! One PREP gives the driver all tags; one multishot FETCH hands requests out, many tags a completion,
//! in buffers that the ring provides; one COMMIT answers all requests of a batch. The tags' machines are
//! those of the other plane: a tag that PREP gave, or COMMIT gave back, is with the driver until a FETCH
//! names it.

use ublk_core::{DataMode, Errno, Tag};
use ublk_sys::batch::ElemShape;
use ublk_sys::{
    UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK, UBLK_U_IO_COMMIT_IO_CMDS, UBLK_U_IO_FETCH_IO_CMDS,
    UBLK_U_IO_PREP_IO_CMDS, ublk_elem_header,
};

/// Commits that may be on their way at once: one is filled while those of a few enters before it, if
/// the kernel took them late, still need their elements.
const COMMITS: usize = 8;

/// A batch command (`struct ublk_batch_io`, linux/ublk_cmd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchCommand {
    /// Encoded opcode, `UBLK_U_IO_*_IO_CMDS`.
    pub cmd_op: u32,
    /// Hw queue.
    pub qid: u16,
    /// `UBLK_BATCH_F_*`.
    pub flags: u16,
    /// Elements at `addr`; 0 for a fetch.
    pub nr_elem: u16,
    /// Bytes of an element.
    pub elem_bytes: u8,
    /// Address of the elements, which stay there until the command completes; 0 for a fetch.
    pub addr: u64,
}

/// Elements of a PREP or COMMIT, a header of 8 bytes each and, with a buffer address, 8 more.
struct Elems {
    words: Box<[u64]>,
    /// Words that are filled.
    filled: usize,
    in_flight: bool,
}

/// The batch commands of one lane.
pub(crate) struct Batch {
    qid: u16,
    shape: ElemShape,
    /// Words of an element.
    size: usize,
    flags: u16,
    buf_base: u16,
    commits: Vec<Elems>,
    /// The commit being filled.
    open: Option<u16>,
    /// A FETCH is, or is to be, with the driver.
    pub(crate) fetch: Fetch,
}

/// Where the multishot fetch is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// To be pushed.
    Due,
    /// With the driver.
    Armed,
    /// Not to be pushed again: the queue ends.
    Ended,
}

impl Batch {
    pub(crate) fn new(qid: u16, depth: u16, data: DataMode, buf_base: u16) -> Self {
        let shape = ElemShape {
            buf_addr: data == DataMode::Copy,
            zone_lba: false,
        };
        let fallback = if data == DataMode::ZeroCopy {
            UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK
        } else {
            0
        };
        let size = usize::from(shape.bytes()) / 8;
        let elems = |_| Elems {
            words: vec![0; usize::from(depth) * size].into_boxed_slice(),
            filled: 0,
            in_flight: false,
        };
        Self {
            qid,
            shape,
            size,
            flags: shape.flags() | fallback,
            buf_base,
            commits: (0..COMMITS).map(elems).collect(),
            open: None,
            fetch: Fetch::Due,
        }
    }

    /// Adds the answer of a tag (or, for PREP, a tag) to the commit being filled. False if all commits
    /// are on their way: nothing was changed.
    #[inline(always)]
    pub(crate) fn add(&mut self, tag: Tag, result: i32, addr: u64) -> bool {
        let Some(open) = self.open.or_else(|| self.begin()) else {
            return false;
        };
        let Some(elems) = self.commits.get_mut(usize::from(open)) else {
            return false;
        };
        let header = ublk_elem_header {
            tag: tag.get(),
            buf_index: self.buf_base + tag.get(),
            result,
        };
        let at = elems.filled;
        let Some(out) = elems.words.get_mut(at..at + self.size) else {
            return false;
        };
        out[0] = u64::from_ne_bytes(header.to_bytes());
        if let Some(second) = out.get_mut(1) {
            *second = addr;
        }
        elems.filled += self.size;
        true
    }

    #[cold]
    fn begin(&mut self) -> Option<u16> {
        let free = self.commits.iter().position(|elems| !elems.in_flight)?;
        self.open = u16::try_from(free).ok();
        self.open
    }

    /// The command for what was added, and the number to complete it by.
    #[inline]
    pub(crate) fn close(&mut self, prep: bool) -> Option<(u16, BatchCommand)> {
        let open = self.open.take()?;
        let elems = &mut self.commits[usize::from(open)];
        elems.in_flight = true;
        let cmd_op = if prep {
            UBLK_U_IO_PREP_IO_CMDS
        } else {
            UBLK_U_IO_COMMIT_IO_CMDS
        };
        let command = BatchCommand {
            cmd_op,
            qid: self.qid,
            flags: self.flags,
            nr_elem: u16::try_from(elems.filled / self.size).unwrap_or(u16::MAX),
            elem_bytes: self.shape.bytes(),
            addr: elems.words.as_ptr() as u64,
        };
        Some((open, command))
    }

    /// The multishot fetch.
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

    /// Takes the completion of a PREP or COMMIT: gives each tag that the driver did not take to `refused`,
    /// with the errno where the driver said it, in the order they were added.
    pub(crate) fn completed(
        &mut self,
        number: u16,
        res: i32,
        prep: bool,
        mut refused: impl FnMut(Tag, Option<Errno>),
    ) -> bool {
        let Some(elems) = self
            .commits
            .get_mut(usize::from(number))
            .filter(|e| e.in_flight)
        else {
            return false;
        };
        elems.in_flight = false;
        let count = std::mem::take(&mut elems.filled) / self.size;
        let (taken, mut errno) = match Errno::from_result(res) {
            // A PREP is all or nothing; a COMMIT says how many bytes of elements it took.
            Ok(_) if prep => return true,
            Ok(bytes) => (usize::try_from(bytes).unwrap_or(0) / (8 * self.size), None),
            Err(errno) => (0, Some(errno)),
        };
        for n in taken..count {
            let Some(word) = elems.words.get(n * self.size) else {
                break;
            };
            // A failed PREP is everybody's; a failed COMMIT names the errno of its first element only.
            let why = if prep {
                errno
            } else {
                errno.take().filter(|_| n == 0)
            };
            if let Ok(tag) = Tag::new(ublk_elem_header::from_bytes(&word.to_ne_bytes()).tag) {
                refused(tag, why);
            }
        }
        true
    }

    /// Takes a command back that could not be pushed: its elements stay for the next.
    pub(crate) fn reopen(&mut self, number: u16) {
        if let Some(elems) = self.commits.get_mut(usize::from(number)) {
            elems.in_flight = false;
            self.open = Some(number);
        }
    }

    /// True if a command could not be pushed and is still to go.
    pub(crate) fn is_due(&self, prepared: bool) -> bool {
        self.open.is_some() || (prepared && self.fetch == Fetch::Due)
    }

    /// True while elements wait for the next command.
    pub(crate) const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// True while the driver may read elements.
    pub(crate) fn in_flight(&self) -> bool {
        self.commits.iter().any(|elems| elems.in_flight)
    }
}
