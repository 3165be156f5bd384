//! What the engine asks of a kernel.
#![expect(unsafe_code, reason = "the port's promises, and whom they bind")]

use std::time::Duration;

use ublk_core::{Errno, IoDesc, QueueId, Tag};
use uring_lite::Sqe64;

use crate::batch::BatchCommand;
use crate::memref::MemRef;

/// A completion copied out of the completion queue (L57).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The word given with the command.
    pub user_data: u64,
    /// Result: `UBLK_IO_RES_*`, or a negative errno.
    pub res: i32,
    /// `IORING_CQE_F_*`: for a multishot fetch, whether it goes on and which buffer it filled.
    pub flags: u32,
}

impl Completion {
    /// Whether the command goes on (`IORING_CQE_F_MORE`).
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.flags & 2 != 0
    }
}

/// An I/O command for the driver (`struct ublksrv_io_cmd`, linux/ublk_cmd.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoCommand {
    /// Encoded opcode, `UBLK_U_IO_*`.
    pub cmd_op: u32,
    /// Hw queue.
    pub qid: QueueId,
    /// Tag.
    pub tag: Tag,
    /// Result of the request being committed; 0 for a fetch.
    pub result: i32,
    /// Address of the tag's buffer, in the modes that have one; in a zoned device the sector where an append landed.
    pub addr: u64,
    /// The word of an automatic buffer registration (`struct ublk_auto_buf_reg`), or 0.
    pub buf_reg: u64,
}

impl IoCommand {
    /// A command of a tag, without result, address and registration.
    #[must_use]
    pub const fn new(cmd_op: u32, qid: QueueId, tag: Tag) -> Self {
        Self {
            cmd_op,
            qid,
            tag,
            result: 0,
            addr: 0,
            buf_reg: 0,
        }
    }
}

/// The submission queue has no room; nothing was changed (L54).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the submission queue is full")]
pub struct Full;

/// A ring with the char devices of the worker's lanes registered in it.
///
/// # Safety
/// A completion is shown for what was pushed only, as the driver or the ring made it: one with the word of a tag's
/// command says that the driver has handed that tag over, which it does once from one commit to the next, on one of
/// the queue's lanes; one with an operation's word says that nobody uses its memory any more, as far as its flags do not
/// say otherwise, and carries its own result. What [`take_tags`](Port::take_tags) gives are tags handed over in the same
/// sense.
///
/// What a method takes is used in that call only, and once: an entry or command is pushed where it is the kernel's to
/// take, or not at all, and no copy of it or of an address in it is used later.
pub unsafe trait Port {
    /// Wakes the worker from another thread.
    type Wake: Wake;

    /// A command of a tag as this port wants it, all but result and address: made once, pushed often.
    type Command: Copy + 'static;

    /// Makes a command for the char device of a lane.
    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Self::Command;

    /// Puts a command into the submission queue, with this result and address of the tag's buffer.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full>;

    /// Puts an operation into the submission queue. A port that serves no handler with operations need not
    /// have this.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        let _ = operation;
        Err(Full)
    }

    /// Free entries of the submission queue: what is linked is pushed only where all of it fits (L52).
    fn space(&mut self) -> u32;

    /// Entries that were pushed and that the kernel has not taken: a thread with any must not sleep.
    fn pending(&mut self) -> u32;

    /// Puts a batch command into the submission queue. A fetch takes its buffers from the lane's group, which
    /// the port has made. A port that serves no batch lane need not have this.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        let _ = (lane, command, user_data);
        Err(Full)
    }

    /// Copies the tags that a fetch completion brought to `tags`, in place of what is there, and gives its buffer
    /// back to the group.
    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        let _ = (lane, completion);
        tags.clear();
    }

    /// Submits what was pushed and sleeps until `want` completions are there (0: does not sleep), a wake arrives
    /// or the timeout is over. One system call at most. Signals and partial submission are not
    /// errors: the caller looks at what is there and comes back.
    ///
    /// # Errors
    /// An errno after which this ring cannot be used.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno>;

    /// The same with `want` not 0: what a worker does between two batches.
    ///
    /// # Errors
    /// As [`enter`](Port::enter).
    fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.enter(want, timeout)
    }

    /// The next completion, if one is there. Wakes are not shown.
    fn next(&mut self) -> Option<Completion>;

    /// The same for a caller who waits for tags of one `owner` above all (lane and life in the word):
    /// a port need not ask of those what else they might be.
    #[inline(always)]
    fn next_of(&mut self, owner: u64) -> Option<Completion> {
        let _ = owner;
        self.next()
    }

    /// A handle that wakes this port from any thread.
    fn wake_handle(&self) -> Self::Wake;

    /// For a worker whose thread sleeps elsewhere: announces that sleep, so that a wake is heard there. False if
    /// there is something to do already, entries to be submitted among it. Ends with [`unpark`](Port::unpark).
    ///
    /// # Errors
    /// As [`enter`](Port::enter).
    fn park(&mut self) -> Result<bool, Errno> {
        Ok(self.pending() == 0)
    }

    /// The end of that sleep.
    fn unpark(&mut self) {}

    /// In words, what the ring was granted: for the health report.
    fn describe(&self) -> String;
}

/// A port whose thread may look for work for a while before it sleeps ([`Polling`](crate::Polling)).
pub trait PollPort: Port {
    /// Whether an enter now would bring something without sleeping, or a wake has come. No system call.
    fn has_work(&mut self) -> bool;

    /// Takes the notice of a wake, which otherwise only a sleep does (L60).
    fn take_notice(&mut self);

    /// Submits and sleeps at once, as [`submit_and_wait`](Port::submit_and_wait) does without polling.
    ///
    /// # Errors
    /// As [`enter`](Port::enter).
    fn sleep(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno>;
}

/// Wakes a worker. A wake between two sleeps is not lost: the next sleep ends at once (L55).
pub trait Wake: Send + Sync + 'static {
    /// Wakes the worker if it sleeps, or keeps it from falling asleep once.
    fn wake(&self);
}

/// The I/O descriptors of one queue.
pub trait Descriptors {
    /// Copies the descriptor of a tag out of the driver's table. Valid from the CQE of the tag's
    /// command until its commit.
    fn load(&self, tag: Tag) -> IoDesc;
}

/// The way of a request's data by the character device (user copy): any thread may go it while the request
/// is in the server's hands.
pub trait UserCopyPort: Send + Sync + 'static {
    /// Copies the data of a WRITE, from its byte `from` on, to memory of ours.
    ///
    /// # Errors
    /// The driver's errno; EIO for less than was asked.
    fn pull(&self, qid: QueueId, tag: Tag, from: u32, to: MemRef<'_>) -> Result<(), Errno>;

    /// Copies memory of ours into the data of a READ, from its byte `to` on.
    ///
    /// # Errors
    /// As for [`UserCopyPort::pull`].
    fn push(&self, qid: QueueId, tag: Tag, to: u32, from: MemRef<'_>) -> Result<(), Errno>;

    /// Lets go of the device, for good: the lane has ended, and whoever still has a request or a handle of it must not keep
    /// the device from being deleted (L63). Transfers fail from now on.
    fn retire(&self) {}
}

/// No way by a character device: for the modes that have none.
#[derive(Debug, Clone, Copy)]
pub struct NoDevice;

impl UserCopyPort for NoDevice {
    fn pull(&self, _qid: QueueId, _tag: Tag, _from: u32, _to: MemRef<'_>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn push(&self, _qid: QueueId, _tag: Tag, _to: u32, _from: MemRef<'_>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
}
