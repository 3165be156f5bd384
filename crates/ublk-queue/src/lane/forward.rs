//! Requests that the engine forwards to files: operations on the ring, their completions, shared syncs.
//!
//! # Why there is `unsafe` here
//! Operations name the tag's buffer to the kernel. A tag has at most one operation in flight (`split.rs` has the
//! exception), and the request is in hand until that completes: the driver does not access the tag's buffer, no token of
//! the request exists, and the lane's drop leaks the buffers while an operation is in flight.
#![expect(unsafe_code, reason = "operations on the tags' buffers")]

use std::collections::VecDeque;

use ublk_core::iod::Io;
use ublk_core::{Answer, DataMode, Errno, IoFlags, Op, Tag};
use ublk_sys::UBLK_U_IO_REGISTER_IO_BUF;
use uring_lite::Sqe64;
use uring_lite::op::{self, Fd, SqeFlags};

use super::split::{self, Splits};
use super::{Lane, LaneError};
use crate::data_path::DataPath;
use crate::forward::Forward;
use crate::handler::Handler;
use crate::memref::MemRef;
use crate::port::{Content, Descriptors, Port};
use crate::user_data::{Kind, UserData};

/// How often an operation that was interrupted, or found the kernel busy, is pushed again.
pub(super) const MAX_AGAIN: u8 = 16;

/// The `turn` of a REGISTER, which completes instead of its operation if it fails.
pub(super) const REGISTER: u16 = 1;

/// State of a tag's forwarded request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forwarded {
    io: Io,
    to: Forward,
    /// Bytes of data transferred.
    done: u32,
    again: u8,
    /// An operation of this tag is to be pushed, or with the kernel.
    active: bool,
    /// An operation on the short path is with the kernel: the result after which only the answer remains, else 0. Its
    /// purpose is only recorded in `made`.
    enough: i32,
    /// The tag's last operation on data, from the first byte of the request, and its purpose.
    made: Option<(u16, Op, Sqe64)>,
}

impl Forwarded {
    const NONE: Self = Self {
        io: Io::new(Op::Flush, IoFlags(0), 0, 0),
        to: Forward::Sync { file: 0 },
        done: 0,
        again: 0,
        active: false,
        enough: 0,
        made: None,
    };
}

/// Requests that wait for syncs of one file.
#[derive(Debug, Default)]
struct Syncs {
    running: bool,
    again: u8,
    /// Answered by the running sync.
    served: Vec<Tag>,
    /// Arrived while it ran, or before it could be pushed.
    waiting: Vec<Tag>,
}

/// A lane's forwarded requests.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    tags: Box<[Forwarded]>,
    syncs: Box<[Syncs]>,
    /// Tags whose operation could not be pushed.
    pub(super) stalled: VecDeque<Tag>,
    /// Requests with several operations.
    pub(super) splits: Splits,
    /// Number of requests forwarded and not answered.
    pub(super) count: u32,
}

impl Forwards {
    pub(super) fn new(depth: u16, files: u16, splits: bool) -> Self {
        let splits = match splits {
            true => Splits::new(depth, files),
            false => Splits::default(),
        };
        let depth = usize::from(depth);
        let syncs = |_| Syncs {
            running: false,
            again: 0,
            served: Vec::with_capacity(depth),
            waiting: Vec::with_capacity(depth),
        };
        Self {
            tags: vec![Forwarded::NONE; depth].into_boxed_slice(),
            syncs: (0..files).map(syncs).collect(),
            stalled: VecDeque::with_capacity(depth),
            splits,
            count: 0,
        }
    }

    /// True if an operation could not be pushed.
    pub(super) fn is_stalled(&self) -> bool {
        self.count > 0
            && (!self.stalled.is_empty()
                || self
                    .syncs
                    .iter()
                    .any(|s| !s.running && !s.waiting.is_empty()))
    }
}

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Forwards a request to a file. Simple transfers take the short path, with an operation like the tag's last one.
    #[inline(always)]
    pub(super) fn forward(&mut self, port: &mut P, tag: Tag, io: Io, to: Forward) {
        if !H::FORWARDS {
            return self.answered_from(port, tag, Answer::failed(Errno::EOPNOTSUPP), 0);
        }
        if let Forward::Data {
            file,
            offset,
            durable: false,
        } = to
            && let Some(forwarded) = self.forwards.tags.get_mut(tag.index())
            && let Some((made_file, made_op, sqe)) = &mut forwarded.made
            && (*made_file, *made_op) == (file, io.op)
            && !io.flags.needs_registration()
            && !(H::CLIENT_MEMORY && io.flags.in_shared_memory())
            && !(H::ZONES && self.zoned)
            // Data fits into a tag's buffer, that is 32 MiB at most.
            && let Ok(enough @ 1..) = i32::try_from(io.len)
        {
            // SAFETY: the memory is the tag's buffer, or its registered pages, as when the operation was built; the
            // decoder has checked that `len` bytes are inside.
            unsafe { sqe.set_range(offset, enough.cast_unsigned()) };
            if port.push_operation(sqe).is_ok() {
                forwarded.enough = enough;
                self.forwards.count += 1;
                return;
            }
        }
        self.forward_seldom(port, tag, io, to);
    }

    /// Handles the usual completion: all of the data was transferred, and only the answer remains. False, with nothing
    /// done, for any other.
    #[inline(always)]
    pub(crate) fn forward_answered(&mut self, port: &mut P, tag: u16, res: i32) -> bool {
        let Some(forwarded) = self.forwards.tags.get_mut(usize::from(tag)) else {
            return false;
        };
        if forwarded.enough != res || res <= 0 {
            return false;
        }
        forwarded.enough = 0;
        self.forwards.count -= 1;
        // The tag has a fixed buffer, and the server has not registered its pages: otherwise its operations do not take
        // the short path.
        let answer = Answer::full(res.unsigned_abs());
        self.answered_plainly(port, tag, answer);
        true
    }

    /// Restores the state of an operation on the short path, since there is more to do.
    #[cold]
    fn recall(&mut self, tag: usize) {
        let forwarded = &mut self.forwards.tags[tag];
        let len = std::mem::take(&mut forwarded.enough).unsigned_abs();
        if let Some((file, op, sqe)) = &forwarded.made {
            let (file, op, offset) = (*file, *op, sqe.offset());
            forwarded.io = Io::new(op, Forwarded::NONE.io.flags, 0, u64::from(len));
            forwarded.to = Forward::Data {
                file,
                offset,
                durable: false,
            };
            (forwarded.done, forwarded.again, forwarded.active) = (0, 0, true);
        }
    }

    /// The owner in the words of this lane's operations on data, without the tag; nobody while latencies are measured.
    #[inline(always)]
    pub(crate) const fn forward_owner(&self) -> u64 {
        self.forward_word
    }

    #[inline(never)]
    fn forward_seldom(&mut self, port: &mut P, tag: Tag, io: Io, to: Forward) {
        let (file, fits) = match to {
            // A file reports neither the position of an append nor zones.
            Forward::Data { file, .. } => (file, matches!(io.op, Op::Read | Op::Write)),
            Forward::Sync { file } | Forward::Allocate { file, .. } => (file, true),
            Forward::Parts { .. } => (0, H::SPLITS && matches!(io.op, Op::Read | Op::Write)),
            Forward::SyncAll => (0, H::SPLITS),
        };
        let known = usize::from(file) < self.forwards.syncs.len();
        if !fits || !known {
            return self.answered(port, tag, Answer::failed(Errno::EINVAL));
        }
        let forwarded = &mut self.forwards.tags[tag.index()];
        (forwarded.io, forwarded.to) = (io, to);
        (forwarded.done, forwarded.again, forwarded.active) = (0, 0, true);
        (forwarded.enough, forwarded.made) = (0, None);
        self.forwards.count += 1;
        if Self::is_split(to) {
            self.forwards.splits.begin(tag);
        }
        let here = self.client_place(tag, &io).is_some();
        match (to, self.shared.path.below()) {
            (Forward::Sync { file }, _) => self.sync(port, file, tag),
            (Forward::SyncAll, _) => self.sync_all(port, tag),
            (Forward::Data { .. } | Forward::Parts { .. }, DataPath::Device(device))
                if io.op == Op::Write && !here =>
            {
                // User copy: the data has to be fetched first.
                let mem = self.shared.arena.mem(tag, len_of(&io));
                match device.pull(self.qid, tag, Content::Data, mem) {
                    Ok(()) => self.push_forward(port, tag),
                    Err(errno) => self.forward_done(port, tag, Err(errno)),
                }
            }
            _ => self.push_forward(port, tag),
        }
    }

    /// Pushes the next operation of a tag.
    fn push_forward(&mut self, port: &mut P, tag: Tag) {
        let forwarded = self.forwards.tags[tag.index()];
        let word = UserData::batch(self.index, self.generation, Kind::Forward, tag.get()).pack();
        let pushed = match forwarded.to {
            Forward::Data { file, offset, .. } => {
                let sqe = self
                    .data_operation(tag, &forwarded, file, offset)
                    .user_data(word);
                let here = self.client_place(tag, &forwarded.io).is_some();
                let registered = !here && matches!(self.shared.path.below(), DataPath::Registered);
                if registered && self.needs_registration(tag, &forwarded.io) {
                    self.push_registered(port, tag, sqe)
                } else {
                    // In get-data mode the answer names the buffer, in user copy it carries the data.
                    let plain = matches!(self.data, DataMode::Copy | DataMode::ZeroCopy);
                    if plain && !here && forwarded.done == 0 {
                        self.forwards.tags[tag.index()].made = Some((file, forwarded.io.op, sqe));
                    }
                    make_room(port, 1) && port.push_operation(&sqe).is_ok()
                }
            }
            Forward::Allocate {
                file,
                mode,
                offset,
                len,
            } => {
                let sqe = op::fallocate(self.file(file), mode, offset, len).user_data(word);
                make_room(port, 1) && port.push_operation(&sqe).is_ok()
            }
            Forward::Parts { .. } => return self.push_parts(port, tag, &forwarded.io),
            Forward::Sync { .. } | Forward::SyncAll => true,
        };
        if !pushed {
            self.forwards.stalled.push_back(tag);
        }
    }

    /// The request's data, if it is in memory shared with the client.
    pub(super) fn client_place(&self, tag: Tag, io: &Io) -> Option<MemRef<'_>> {
        match H::CLIENT_MEMORY && io.op.has_data() {
            true => self.shared.path.client_place(tag, len_of(io)),
            false => None,
        }
    }

    pub(super) fn file(&self, number: u16) -> Fd {
        Fd::registered(self.files + u32::from(number))
    }

    /// Builds the operation for the rest of a request's data.
    fn data_operation(&self, tag: Tag, forwarded: &Forwarded, file: u16, offset: u64) -> Sqe64 {
        let (fd, io, done) = (self.file(file), &forwarded.io, forwarded.done);
        let len = u32::try_from(io.len).unwrap_or(0) - done;
        // Beyond 64 bits: an offset that no file has, so that the kernel refuses it (L13). A stream ignores the offset.
        let at = offset.checked_add(u64::from(done));
        let at = at.unwrap_or(i64::MAX.cast_unsigned());
        let here = self.client_place(tag, io);
        if here.is_none() && matches!(self.shared.path.below(), DataPath::Registered) {
            let rw = match io.op {
                Op::Read => op::read_fixed,
                _ => op::write_fixed,
            };
            // SAFETY: the registered buffer is the request's own pages, which the driver keeps until the tag is
            // committed, and the commit waits for this operation.
            return unsafe { rw(fd, self.buf_base + tag.get(), u64::from(done), len, at) };
        }
        let mem = here.unwrap_or_else(|| self.shared.arena.mem(tag, len_of(io)));
        let skip = usize::try_from(done).unwrap_or(0);
        let ptr = mem.ptr().as_ptr().wrapping_add(skip);
        if io.op == Op::Read {
            // SAFETY: `len` bytes of the tag's buffer, which belongs to the operation until its CQE (head of this
            // file), or of the client's memory, which is no Rust object and stays mapped with the lane's shared part.
            unsafe { op::read(fd, ptr, len, at) }
        } else {
            // SAFETY: as above.
            unsafe { op::write(fd, ptr, len, at) }
        }
    }

    /// Whether the request's pages still have to be registered.
    pub(super) fn needs_registration(&self, tag: Tag, io: &Io) -> bool {
        let by_hand = self.data == DataMode::ZeroCopyManual || io.flags.needs_registration();
        by_hand && !self.registrations.is_done(tag)
    }

    /// Pushes REGISTER and the operation as a chain in which only the operation completes. A REGISTER that fails
    /// completes instead of the operation: entries after one with CQE_SKIP_SUCCESS are cancelled silently
    /// (`req_set_fail`, io_uring/io_uring.h).
    fn push_registered(&mut self, port: &mut P, tag: Tag, sqe: Sqe64) -> bool {
        if self.data == DataMode::ZeroCopy {
            self.shared.meters.zero_copy_fallbacks.add(1);
        }
        let mut word = UserData::batch(self.index, self.generation, Kind::Forward, tag.get());
        word.turn = REGISTER;
        let register = self
            .buffer_command(UBLK_U_IO_REGISTER_IO_BUF, word, tag)
            .flags(SqeFlags::LINK)
            .flags(SqeFlags::CQE_SKIP_SUCCESS);
        make_room(port, 2)
            && [register, sqe]
                .iter()
                .all(|sqe| port.push_operation(sqe).is_ok())
    }

    /// Handles the completion of a tag's operation, or of its REGISTER, according to `turn`.
    #[inline]
    pub(super) fn forward_completed(
        &mut self,
        port: &mut P,
        tag: u16,
        turn: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let short = self.forwards.tags.get(usize::from(tag));
        if short.is_some_and(|forwarded| forwarded.enough != 0) {
            // A recorder looks at the descriptor before the commit is pushed.
            if self.watched
                && self.recorder.is_none()
                && let Ok(known) = Tag::new(tag)
                && self.forward_answered(port, tag, res)
            {
                self.take_stamp(known, Answer::full(0));
                return Ok(());
            }
            self.recall(usize::from(tag));
        }
        let (Ok(tag), Some(forwarded)) = (
            Tag::new(tag),
            self.forwards
                .tags
                .get_mut(usize::from(tag))
                .filter(|forwarded| forwarded.active),
        ) else {
            self.stale();
            return Ok(());
        };
        let is_data = matches!(forwarded.to, Forward::Data { .. });
        let (io, splits) = (forwarded.io, Self::is_split(forwarded.to));
        if splits && turn >= split::FIRST {
            return self.part_completed(port, tag, &io, turn - split::FIRST, res);
        }
        if is_data
            && turn != REGISTER
            && matches!(self.shared.path.below(), DataPath::Registered)
            && self.client_place(tag, &io).is_none()
            && self.needs_registration(tag, &io)
        {
            // The REGISTER before it was silent.
            self.registrations.done(tag);
        }
        let forwarded = &mut self.forwards.tags[tag.index()];
        match Errno::from_result(res) {
            Ok(moved) if is_data => {
                forwarded.done += moved;
                let (done, len) = (u64::from(forwarded.done), forwarded.io.len);
                if done == len {
                    self.data_moved(port, tag);
                } else if moved == 0 || done > len {
                    // The file ends inside the device: it was truncated, and there is nothing to read (L05).
                    self.forward_done(port, tag, Err(Errno::EIO));
                } else {
                    self.push_forward(port, tag);
                }
            }
            Ok(_) if splits && turn == REGISTER => {
                self.registrations.done(tag);
                self.push_parts(port, tag, &io);
            }
            Ok(_) => self.forward_done(port, tag, Ok(())),
            Err(Errno::EINTR | Errno::EAGAIN) if forwarded.again < MAX_AGAIN => {
                forwarded.again += 1;
                self.push_forward(port, tag);
            }
            // The rest of a transfer that stopped inside a direct I/O block: the file ends there (L05).
            Err(Errno::EINVAL) if forwarded.done > 0 => {
                self.forward_done(port, tag, Err(Errno::EIO));
            }
            Err(errno) => self.forward_done(port, tag, Err(errno)),
        }
        Ok(())
    }

    /// Finishes a request whose data has been transferred; in user copy a READ's data still has to be pushed.
    pub(super) fn data_moved(&mut self, port: &mut P, tag: Tag) {
        let Forwarded { io, to, .. } = self.forwards.tags[tag.index()];
        let here = self.client_place(tag, &io).is_some();
        match (to, self.shared.path.below()) {
            (Forward::Data { file, durable, .. }, _) if durable && io.op == Op::Write => {
                self.sync(port, file, tag);
            }
            (Forward::Parts { durable: true }, _) if H::SPLITS && io.op == Op::Write => {
                self.sync_all(port, tag);
            }
            (_, DataPath::Device(device)) if io.op == Op::Read && !here => {
                let from = self.shared.arena.mem(tag, len_of(&io));
                let pushed = device.push(self.qid, tag, Content::Data, from);
                self.forward_done(port, tag, pushed);
            }
            _ => self.forward_done(port, tag, Ok(())),
        }
    }

    pub(super) fn forward_done(&mut self, port: &mut P, tag: Tag, result: Result<(), Errno>) {
        let forwarded = &mut self.forwards.tags[tag.index()];
        forwarded.active = false;
        let io = forwarded.io;
        self.forwards.count -= 1;
        let answer = match result {
            Ok(()) if io.op.has_data() => Answer::full(u32::try_from(io.len).unwrap_or(0)),
            Ok(()) => Answer::full(0),
            Err(errno) => {
                self.blame_file_of(tag);
                Answer::failed(errno)
            }
        };
        self.answered_from(port, tag, answer, 0);
    }

    /// Names the file of a request that fails. `split.rs` does so for one over several files.
    #[cold]
    fn blame_file_of(&self, tag: Tag) {
        match self.forwards.tags[tag.index()].to {
            Forward::Data { file, .. }
            | Forward::Sync { file }
            | Forward::Allocate { file, .. } => {
                self.shared.blame(file);
            }
            Forward::Parts { .. } | Forward::SyncAll => {}
        }
    }

    /// Adds a request to the next sync, and starts the sync if none runs.
    pub(super) fn sync(&mut self, port: &mut P, file: u16, tag: Tag) {
        self.forwards.syncs[usize::from(file)].waiting.push(tag);
        self.start_sync(port, file);
    }

    fn start_sync(&mut self, port: &mut P, file: u16) {
        let fd = self.file(file);
        let word = UserData::batch(self.index, self.generation, Kind::Sync, file).pack();
        let syncs = &mut self.forwards.syncs[usize::from(file)];
        if syncs.running || syncs.waiting.is_empty() {
            return;
        }
        if make_room(port, 1)
            && port
                .push_operation(&op::fsync(fd, true).user_data(word))
                .is_ok()
        {
            syncs.running = true;
            std::mem::swap(&mut syncs.served, &mut syncs.waiting);
            self.shared.meters.syncs.add(1);
        }
    }

    /// Handles the completion of a sync: answers its requests, and starts the next one.
    pub(super) fn sync_completed(&mut self, port: &mut P, file: u16, res: i32) {
        let Some(syncs) = self
            .forwards
            .syncs
            .get_mut(usize::from(file))
            .filter(|syncs| syncs.running)
        else {
            return self.stale();
        };
        syncs.running = false;
        let result = Errno::from_result(res).map(|_| ());
        if matches!(result, Err(Errno::EINTR | Errno::EAGAIN)) && syncs.again < MAX_AGAIN {
            syncs.again += 1;
            syncs.waiting.append(&mut syncs.served);
            return self.start_sync(port, file);
        }
        syncs.again = 0;
        // One by one, since answering borrows the lane. None is added meanwhile.
        while let Some(tag) = self.forwards.syncs[usize::from(file)].served.pop() {
            if Self::is_split(self.forwards.tags[tag.index()].to) {
                self.one_of_all_synced(port, file, tag, result);
            } else {
                self.forward_done(port, tag, result);
            }
        }
        self.start_sync(port, file);
    }

    /// Pushes operations that could not be pushed before.
    #[cold]
    pub(super) fn push_stalled(&mut self, port: &mut P) {
        for _ in 0..self.forwards.stalled.len() {
            if let Some(tag) = self.forwards.stalled.pop_front() {
                self.forwards.splits.stall(tag, false);
                self.push_forward(port, tag);
            }
        }
        for file in 0..self.forwards.syncs.len() {
            self.start_sync(port, u16::try_from(file).unwrap_or(u16::MAX));
        }
    }
}

/// Makes room in the submission queue by submitting its entries.
pub(super) fn make_room(port: &mut impl Port, entries: u32) -> bool {
    port.space() >= entries || (port.enter(0, None).is_ok() && port.space() >= entries)
}

pub(super) fn len_of(io: &Io) -> usize {
    usize::try_from(io.len).unwrap_or(usize::MAX)
}
