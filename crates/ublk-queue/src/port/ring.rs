//! The port on a real ring.
#![expect(unsafe_code, reason = "lends buffers to the kernel by command")]

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::time::Duration;

use ublk_core::Errno;
use ublk_sys::{ublk_batch_io, ublksrv_io_cmd};
use uring_lite::{
    BufRing, Cqe16, EnterError, Fd, RegisterError, Ring, SetupError, Sqe64, SqeFlags, Waker, op,
};

use super::traits::{Completion, Full, IoCommand, PollPort, Port, Wake};
use crate::batch::{BatchCommand, result_word};
use crate::polling::{Polling, Spin};
use crate::user_data::{NO_OWNER, UserData};

/// A ring of 64-byte SQEs and 16-byte CQEs with the lanes' char devices in its file table.
pub struct RingPort {
    ring: Ring<Sqe64, Cqe16>,
    waker: Waker,
    /// Batch mode: the provided buffers that each lane's fetch fills with tags.
    groups: Vec<TagBuffers>,
    /// Polling before sleep, if enabled.
    spin: Option<Spin>,
}

/// A group of provided buffers for the tags of a multishot fetch.
///
/// # Invariants
/// `bytes` is a live allocation of [`TAG_BUFFERS`] times [`TAG_BUFFER`] bytes, to which no reference exists: the kernel
/// may write to any buffer that it has, at any time.
struct TagBuffers {
    ring: BufRing,
    bytes: NonNull<[u8]>,
}

/// `IORING_URING_CMD_MULTISHOT` (linux/io_uring.h, 6.18).
const URING_CMD_MULTISHOT: u32 = 1 << 1;
/// Size of a tag buffer in bytes: the driver fills no more at once.
const TAG_BUFFER: usize = 256;
/// Buffers per group, that is completions that may wait for us. When they run out, the fetch ends and is pushed again.
const TAG_BUFFERS: u16 = 32;

impl TagBuffers {
    fn new(ring: &mut Ring<Sqe64, Cqe16>, lane: u16) -> Result<Self, RegisterError> {
        let bytes = vec![0; TAG_BUFFER * usize::from(TAG_BUFFERS)];
        let mut buffers = Self {
            ring: ring.register_buf_ring(lane, TAG_BUFFERS, false)?,
            bytes: NonNull::from(Box::leak(bytes.into_boxed_slice())),
        };
        for bid in 0..TAG_BUFFERS {
            buffers.give(bid);
        }
        Ok(buffers)
    }

    /// The first byte of a buffer.
    fn place(&self, bid: u16) -> Option<NonNull<u8>> {
        let first = self.bytes.cast::<u8>();
        // SAFETY: below the number of buffers, so inside the allocation (invariant).
        (bid < TAG_BUFFERS).then(|| unsafe { first.add(usize::from(bid) * TAG_BUFFER) })
    }

    /// Provides a buffer to the kernel, initially or again.
    fn give(&mut self, bid: u16) {
        let Some(first) = self.place(bid) else {
            return;
        };
        // SAFETY: 256 bytes of `bytes`, which the port frees only after it has unregistered the group; we read them
        // only between the CQE that names `bid` and the next `give`. There is room: the group has as many entries as
        // buffers, and this one is not in it.
        let given = unsafe { self.ring.add(first, 256, bid) };
        if given.is_ok() {
            self.ring.advance();
        }
    }

    /// Copies the tags out of a buffer that the kernel has filled with `len` bytes, and provides it again.
    fn take(&mut self, bid: u16, len: usize, tags: &mut Vec<u16>) {
        if let Some(first) = self.place(bid) {
            // An iterator of known length, so that room is reserved once instead of being checked for each tag.
            tags.extend((0..len.min(TAG_BUFFER) / 2).map(|n| {
                // SAFETY: the byte and the next one are inside the buffer.
                let place = unsafe { first.add(2 * n) }.cast::<[u8; 2]>();
                // SAFETY: ours from the CQE that named it until it is provided again, and any bytes are valid.
                u16::from_ne_bytes(unsafe { place.read() })
            }));
        }
        self.ring.taken();
        self.give(bid);
    }
}

impl Drop for RingPort {
    fn drop(&mut self) {
        for TagBuffers { ring, bytes } in self.groups.drain(..) {
            // Otherwise the kernel may still fill them, and they are leaked.
            if self.ring.unregister_buf_ring(ring).is_ok() {
                // SAFETY: made by `Box::leak`, freed here only; no group has its buffers and no fetch is left that
                // could fill one: a fetch selects a buffer when it has tags for it, and then needs the group.
                drop(unsafe { Box::from_raw(bytes.as_ptr()) });
            }
        }
    }
}

/// Required capacity of a worker's ring.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingNeeds {
    /// Commands in flight: the sum of the lanes' depths.
    pub commands: u32,
    /// Operations in flight.
    pub operations: u32,
    /// Number of lanes.
    pub lanes: u16,
    /// Slots of the buffer table, for the zero-copy modes.
    pub buffers: u32,
    /// Whether the lanes' commands carry many tags.
    pub batch: bool,
    /// What the worker does before it sleeps.
    pub polling: Polling,
}

/// Maximum size of a submission queue (`IORING_MAX_ENTRIES`, io_uring/io_uring.c). With more tags than that, the engine
/// submits in between.
const MAX_SQ_ENTRIES: u32 = 32_768;

/// Maximum number of the ring's kernel workers, which are created on demand.
const MAX_WORKERS: u32 = 256;

/// A ring for a worker could not be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The ring could not be created.
    #[error(transparent)]
    SetUp(#[from] SetupError),
    /// The char devices or the waker could not be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl fmt::Debug for RingPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingPort").finish_non_exhaustive()
    }
}

impl RingPort {
    /// Creates a ring whose file table begins with the char devices of the lanes, in the order of the lanes. Call it on
    /// the thread that will serve.
    ///
    /// # Safety
    /// Whoever pushes a command or an operation must keep the memory it names, as the driver or the operation uses it,
    /// until its last completion. A [`Worker`](crate::Worker) does, if each of its lanes is a queue of the device
    /// behind the lane's file, with the driver's own depth, buffer size, data mode and descriptors, and the lanes of
    /// one queue were dealt their shares together.
    ///
    /// # Errors
    /// The error of set-up or registration.
    pub unsafe fn new(needs: &RingNeeds, files: &[BorrowedFd<'_>]) -> Result<Self, RingError> {
        let spin = Spin::new(needs.polling);
        // One entry more than tags in each queue: the waker's. Every tag has at most one command in flight and every
        // slot at most one operation, so neither queue can overflow.
        let entries = (needs.commands + needs.operations + 1).min(MAX_SQ_ENTRIES);
        let mut ring = Ring::<Sqe64, Cqe16>::builder(entries)
            .cq_entries(entries * 2)
            .taskrun_flag(spin.is_some())
            .build()?;
        ring.register_files(files)?;
        if needs.operations != 0 {
            // An operation that has to block, on a file without non-blocking I/O, runs on a kernel worker, of which
            // there are four per CPU by default: allow one for each operation. Older kernels keep their own limit.
            let _ = ring.allow_workers(needs.operations.min(MAX_WORKERS));
        }
        if needs.buffers != 0 {
            ring.register_buffers_sparse(needs.buffers)?;
        }
        let waker = ring.waker()?;
        let lanes = if needs.batch { needs.lanes } else { 0 };
        let mut groups = Vec::new();
        for lane in 0..lanes {
            groups.push(TagBuffers::new(&mut ring, lane)?);
        }
        Ok(Self {
            ring,
            waker,
            groups,
            spin,
        })
    }
}

/// Decides what a failed enter means for the worker.
#[cold]
fn after_failed_enter(error: EnterError) -> Result<(), Errno> {
    match error {
        // Out of requests or memory, or the CQ is full: the caller reaps completions and retries.
        error if error.is_transient() => Ok(()),
        EnterError::Unusable { errno } => Err(Errno::new(errno.get())),
        EnterError::WrongThread => Err(Errno::EEXIST),
        _ => Err(Errno::EIO),
    }
}

/// The SQE of a command, without result and address.
#[derive(Debug, Clone, Copy)]
pub struct Prepared(Sqe64);

impl AsFd for RingPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

// SAFETY: completions are those of the kernel's own ring, on which only the port pushes, and to which no other ring can
// send (`msg_ring` is unsafe, and forbids it). Entries go to that ring once, and nowhere else.
unsafe impl Port for RingPort {
    type Wake = Waker;

    type Command = Prepared;

    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Prepared {
        let payload = ublksrv_io_cmd {
            q_id: command.qid.get(),
            tag: command.tag.get(),
            result: 0,
            addr: command.addr,
        };
        let fd = Fd::registered(u32::from(lane));
        let payload = payload.to_bytes();
        // SAFETY: `addr` is the tag's place in the lane's arena, or with `push` one that its caller vouches for. The
        // driver uses it from there to the CQE of this command, and the arena outlives that: the lane's shared part
        // owns it, and a lane that leaves tags with the driver leaks it (`Lane::drop`).
        let sqe = unsafe { op::uring_cmd(fd, command.cmd_op, &payload) };
        // SAFETY: the field is not an address here but the word of an automatic buffer registration, or 0.
        Prepared(unsafe { sqe.addr(command.buf_reg) }.user_data(user_data))
    }

    #[inline(always)]
    fn push(&mut self, command: &Prepared, result: i32, addr: u64) -> Result<(), Full> {
        // `ublksrv_io_cmd` as two words, in memory order.
        let head = command.0.payload_head() | result_word(result);
        // SAFETY: as in `prepare`.
        let sqe = || unsafe { command.0.with_payload([head, addr]) };
        self.ring.push_with(sqe).map_err(|_| Full)
    }

    #[inline]
    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        self.ring.push(operation).map_err(|_| Full)
    }

    fn space(&mut self) -> u32 {
        self.ring.sq_space()
    }

    fn pending(&mut self) -> u32 {
        self.ring.sq_pending()
    }

    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        let payload = ublk_batch_io {
            q_id: command.qid,
            flags: command.flags,
            nr_elem: command.nr_elem,
            elem_bytes: command.elem_bytes,
            ..ublk_batch_io::ZERO
        };
        let fd = Fd::registered(u32::from(lane));
        // SAFETY: the elements belong to the lane, which keeps them until this command's CQE; their buffers are places
        // of the lane's arena, as in `push`. A fetch fills buffers of the lane's group.
        let sqe = unsafe { op::uring_cmd(fd, command.cmd_op, &payload.to_bytes()) };
        // SAFETY: the address of the elements; 0 for a fetch.
        let mut sqe = unsafe { sqe.addr(command.addr) }.user_data(user_data);
        if command.addr == 0 {
            // SAFETY: the lane's own group, whose buffers stay until it is unregistered.
            sqe = unsafe { sqe.flags(SqeFlags::BUFFER_SELECT).buf_index(lane) };
            // SAFETY: a fetch names no other memory, however often it completes.
            sqe = unsafe { sqe.cmd_flags(URING_CMD_MULTISHOT) };
        }
        self.ring.push(&sqe).map_err(|_| Full)
    }

    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        tags.clear();
        let cqe = Cqe16 {
            user_data: completion.user_data,
            res: completion.res,
            flags: completion.flags,
        };
        let (Some(bid), Some(group)) = (cqe.buffer_id(), self.groups.get_mut(usize::from(lane)))
        else {
            return;
        };
        group.take(bid, usize::try_from(completion.res).unwrap_or(0), tags);
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.ring
            .enter(want, timeout)
            .map_or_else(after_failed_enter, |_| Ok(()))
    }

    #[inline(always)]
    fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        match self.spin {
            None => self
                .ring
                .submit_and_wait(want, timeout)
                .or_else(after_failed_enter),
            Some(spin) => {
                self.spin = Some(spin.wait(self, want, timeout)?);
                Ok(())
            }
        }
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        self.next_of(NO_OWNER)
    }

    #[inline(always)]
    fn next_of(&mut self, owner: u64) -> Option<Completion> {
        let of_owner = |word| UserData::tag_of(word, owner).is_some();
        self.ring.next_cqe_with(of_owner).map(|cqe| Completion {
            user_data: cqe.user_data,
            res: cqe.res,
            flags: cqe.flags,
        })
    }

    fn wake_handle(&self) -> Waker {
        self.waker.clone()
    }

    fn park(&mut self) -> Result<bool, Errno> {
        match self.ring.park() {
            Ok(parked) => Ok(parked),
            Err(error) => after_failed_enter(error).map(|()| false),
        }
    }

    fn unpark(&mut self) {
        self.ring.unpark();
    }

    fn polls(&self) -> (u64, u64) {
        self.spin.map_or((0, 0), |spin| spin.counts())
    }

    fn describe(&self) -> String {
        let setup = self.ring.setup();
        let registered = if setup.ring_fd_registered {
            ", registered ring fd"
        } else {
            ""
        };
        format!(
            "{:?}, SQ {}, CQ {}{registered}{}",
            setup.ladder,
            setup.sq_entries,
            setup.cq_entries,
            if self.spin.is_some() { ", polls" } else { "" }
        )
    }
}

impl PollPort for RingPort {
    fn has_work(&mut self) -> bool {
        self.ring.has_work()
    }

    fn take_notice(&mut self) {
        self.ring.unpark();
    }

    fn sleep(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.ring
            .submit_and_wait(want, timeout)
            .or_else(after_failed_enter)
    }
}

impl Wake for Waker {
    fn wake(&self) {
        Waker::wake(self);
    }
}
