//! The engine's kernel interface.
#![expect(unsafe_code, reason = "the port's contract")]

use std::time::Duration;

use ublk_core::{Errno, IoDesc, QueueId, Tag};
use uring_lite::Sqe64;

use crate::batch::BatchCommand;
use crate::memref::MemRef;

/// A completion copied out of the completion queue (L57).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The `user_data` of the command.
    pub user_data: u64,
    /// Result: `UBLK_IO_RES_*`, or a negative errno.
    pub res: i32,
    /// `IORING_CQE_F_*`: for a multishot fetch, whether it stays armed and which buffer it filled.
    pub flags: u32,
}

impl Completion {
    /// Whether more completions of the command follow (`IORING_CQE_F_MORE`).
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
    /// The hw queue.
    pub qid: QueueId,
    /// Tag.
    pub tag: Tag,
    /// Result of the request being committed; 0 for a fetch.
    pub result: i32,
    /// Address of the tag's buffer, in the modes that have one; on a zoned device the sector of an append.
    pub addr: u64,
    /// The word of an automatic buffer registration (`struct ublk_auto_buf_reg`), or 0.
    pub buf_reg: u64,
}

impl IoCommand {
    /// A command for a tag, with result, address and registration 0.
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

/// The submission queue is full; nothing was changed (L54).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the submission queue is full")]
pub struct Full;

/// A ring in which the char devices of the worker's lanes are registered.
///
/// # Safety
/// The port must only deliver completions of pushed entries, as the driver or the ring made them. A completion with the
/// word of a tag's command means that the driver has handed that tag over, which it does once from one commit to the
/// next, on one of the queue's lanes. A completion with an operation's word means that nobody uses the operation's
/// memory any more, unless its flags say otherwise, and carries the operation's own result.
/// [`take_tags`](Port::take_tags) returns tags that were handed over in the same sense.
///
/// The arguments of a method are used in that call only, and once: an entry or command is pushed where the kernel can
/// take it, or not at all, and no copy of it or of an address in it is used later.
pub unsafe trait Port {
    /// Wakes the worker from another thread.
    type Wake: Wake;

    /// A tag's command in this port's own form, without result and address: made once, pushed often.
    type Command: Copy + 'static;

    /// Prepares a command for the char device of a lane.
    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Self::Command;

    /// Pushes a command with this result and address of the tag's buffer.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full>;

    /// Pushes an operation. Optional for ports that serve no handler with operations.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        let _ = operation;
        Err(Full)
    }

    /// Free entries of the submission queue: linked entries are pushed only if all of them fit (L52).
    fn space(&mut self) -> u32;

    /// Number of pushed entries that the kernel has not taken: a thread with any must not sleep.
    fn pending(&mut self) -> u32;

    /// Pushes a batch command. A fetch takes its buffers from the lane's group, which the port has made. Optional for
    /// ports that serve no batch lane.
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

    /// Copies the tags of a fetch completion to `tags`, replacing its content, and provides the buffer to the kernel
    /// again.
    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        let _ = (lane, completion);
        tags.clear();
    }

    /// Submits all pushed entries and sleeps until `want` completions have arrived (0: does not sleep), the port is
    /// woken, or the timeout expires. At most one system call. Signals and partial submission are not errors: the
    /// caller checks what has arrived and retries.
    ///
    /// # Errors
    /// An errno that makes the ring unusable.
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno>;

    /// [`enter`](Port::enter) for `want` > 0: what a worker does between two batches.
    ///
    /// # Errors
    /// As [`enter`](Port::enter).
    fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.enter(want, timeout)
    }

    /// The next completion, if there is one. Wake-ups are not shown.
    fn next(&mut self) -> Option<Completion>;

    /// [`next`](Port::next) for a caller that mostly expects tags of one `owner` (lane and generation in the word): the
    /// port may skip its other checks for those.
    #[inline(always)]
    fn next_of(&mut self, owner: u64) -> Option<Completion> {
        let _ = owner;
        self.next()
    }

    /// A handle that wakes this port from any thread.
    fn wake_handle(&self) -> Self::Wake;

    /// For a worker whose thread sleeps in another call: announces that sleep, so that a wake-up makes the ring
    /// readable. False if there is work already, including entries to be submitted. [`unpark`](Port::unpark) ends it.
    ///
    /// # Errors
    /// As [`enter`](Port::enter).
    fn park(&mut self) -> Result<bool, Errno> {
        Ok(self.pending() == 0)
    }

    /// Ends that sleep.
    fn unpark(&mut self) {}

    /// Polls so far that found work, and those that ended in a sleep.
    fn polls(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Describes what the ring was granted, for the health report.
    fn describe(&self) -> String;
}

/// A port that can be polled before its thread sleeps ([`Polling`](crate::Polling)).
pub trait PollPort: Port {
    /// Whether an enter would now return without sleeping, or the port has been woken. No system call.
    fn has_work(&mut self) -> bool;

    /// Takes the notice of a wake-up, which otherwise only a sleep does (L60).
    fn take_notice(&mut self);

    /// Submits and sleeps at once, like [`submit_and_wait`](Port::submit_and_wait) without polling.
    ///
    /// # Errors
    /// As [`enter`](Port::enter).
    fn sleep(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno>;
}

/// Wakes a worker. A wake-up between two sleeps is not lost: the next sleep ends at once (L55).
pub trait Wake: Send + Sync + 'static {
    /// Wakes the worker if it sleeps, or makes its next sleep end at once.
    fn wake(&self);
}

/// The I/O descriptors of one queue.
pub trait Descriptors {
    /// Copies the descriptor of a tag from the driver's table. It is valid from the CQE of the tag's command until its
    /// commit.
    fn load(&self, tag: Tag) -> IoDesc;
}

/// What of a request is transferred through the character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Its data.
    Data,
    /// Its metadata (Linux 7.0): EINVAL if it has none.
    Metadata,
}

/// Transfers a request's data through the character device (user copy), on any thread that holds the request.
pub trait UserCopyPort: Send + Sync + 'static {
    /// Copies the data or the metadata of a WRITE to our memory.
    ///
    /// # Errors
    /// The driver's errno; EIO for a short transfer.
    fn pull(&self, qid: QueueId, tag: Tag, from: Content, to: MemRef<'_>) -> Result<(), Errno>;

    /// Copies our memory into the data or the metadata of a READ.
    ///
    /// # Errors
    /// As for [`UserCopyPort::pull`].
    fn push(&self, qid: QueueId, tag: Tag, to: Content, from: MemRef<'_>) -> Result<(), Errno>;

    /// Copies the metadata of a WRITE, all of it, to our memory (Linux 7.0).
    ///
    /// # Errors
    /// As for [`UserCopyPort::pull`]; EOPNOTSUPP for a port without metadata.
    fn pull_metadata(&self, qid: QueueId, tag: Tag, to: &mut [u8]) -> Result<(), Errno> {
        let _ = (qid, tag, to);
        Err(Errno::EOPNOTSUPP)
    }

    /// Copies our memory into the metadata of a READ, all of it (Linux 7.0).
    ///
    /// # Errors
    /// As for [`UserCopyPort::pull_metadata`].
    fn push_metadata(&self, qid: QueueId, tag: Tag, from: &[u8]) -> Result<(), Errno> {
        let _ = (qid, tag, from);
        Err(Errno::EOPNOTSUPP)
    }

    /// Releases the device for good: the lane has ended, and a request or handle that still exists must not keep the
    /// device from being deleted (L63). Transfers fail from now on.
    fn retire(&self) {}
}

/// No character device, for the modes that do not need one.
#[derive(Debug, Clone, Copy)]
pub struct NoDevice;

impl UserCopyPort for NoDevice {
    fn pull(&self, _: QueueId, _: Tag, _: Content, _: MemRef<'_>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn push(&self, _: QueueId, _: Tag, _: Content, _: MemRef<'_>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
}
