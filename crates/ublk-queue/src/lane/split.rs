//! Forwarded requests whose data is in several files: their parts, and syncs of all files.
//!
//! # Why there is `unsafe` here
//! As in `forward.rs`: parts name disjoint ranges of the tag's buffer to the kernel, and the request is in hand until
//! the last of them has completed.
#![expect(unsafe_code, reason = "operations on parts of the tags' buffers")]

use ublk_core::iod::Io;
use ublk_core::{Errno, Op, Tag};
use ublk_sys::UBLK_U_IO_REGISTER_IO_BUF;
use uring_lite::Sqe64;
use uring_lite::op;

use super::forward::{MAX_AGAIN, REGISTER, len_of, make_room};
use super::{Lane, LaneError};
use crate::data_path::DataPath;
use crate::forward::{Forward, Part};
use crate::handler::Handler;
use crate::panics::caught;
use crate::port::{Descriptors, Port};
use crate::user_data::{Kind, UserData};

/// Parts of one request that are in flight at once, at most; more than one per file gains nothing.
const WIDTH: u16 = 8;

/// The `turn` of the first part; the others follow.
pub(super) const FIRST: u16 = REGISTER + 1;

/// The number of operations that a request may have in flight on this many files.
pub(crate) fn width(files: u16) -> u16 {
    files.clamp(1, WIDTH)
}

/// No file is to blame: the handler named no part.
const NO_FILE: u16 = u16::MAX;

/// State of a part's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Free,
    /// To be pushed, for the first time or again.
    Due,
    /// With the kernel.
    Pushed,
}

/// A part of a request, in one file.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    step: Step,
    file: u16,
    again: u8,
    /// Where it begins in the request, its length, and how much of it is transferred; in bytes.
    from: u32,
    len: u32,
    done: u32,
    /// Where it begins in the file.
    offset: u64,
}

/// A tag's request.
#[derive(Debug, Clone, Copy)]
struct Split {
    /// Bytes for which parts have been made.
    given: u64,
    /// Parts or syncs without a result.
    pending: u16,
    /// The tag waits for room in the submission queue.
    stalled: bool,
    /// The first failure, and its file.
    result: Result<(), (u16, Errno)>,
}

impl Split {
    const NONE: Self = Self {
        given: 0,
        pending: 0,
        stalled: false,
        result: Ok(()),
    };
}

/// A lane's split requests; empty for handlers that never split.
#[derive(Debug, Default)]
pub(super) struct Splits {
    tags: Box<[Split]>,
    /// `width` for each tag.
    places: Box<[Place]>,
    width: u16,
    files: u16,
}

impl Splits {
    pub(super) fn new(depth: u16, files: u16) -> Self {
        let (depth, width) = (usize::from(depth), width(files));
        Self {
            tags: vec![Split::NONE; depth].into_boxed_slice(),
            places: vec![Place::default(); depth * usize::from(width)].into_boxed_slice(),
            width,
            files,
        }
    }

    fn index(&self, tag: Tag, place: u16) -> usize {
        tag.index() * usize::from(self.width) + usize::from(place)
    }

    /// Starts a request over.
    pub(super) fn begin(&mut self, tag: Tag) {
        if let Some(split) = self.tags.get_mut(tag.index()) {
            (split.given, split.pending, split.result) = (0, 0, Ok(()));
        }
    }

    /// Records that a tag waits for room. True if it did not before.
    pub(super) fn stall(&mut self, tag: Tag, stalled: bool) -> bool {
        let split = self.tags.get_mut(tag.index());
        split.is_none_or(|split| std::mem::replace(&mut split.stalled, stalled) != stalled)
    }

    fn failed(&mut self, tag: Tag, file: u16, errno: Errno) {
        let split = &mut self.tags[tag.index()];
        split.result = split.result.and(Err((file, errno)));
    }

    /// Parts that have not been pushed are not needed after a failure.
    fn drop_due(&mut self, tag: Tag) {
        for place in 0..self.width {
            let index = self.index(tag, place);
            if self.places[index].step == Step::Due {
                self.places[index].step = Step::Free;
                self.tags[tag.index()].pending -= 1;
            }
        }
    }
}

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Pushes as many parts of a request as may be in flight; answers it once there are none left.
    pub(super) fn push_parts(&mut self, port: &mut P, tag: Tag, io: &Io) {
        let here = self.client_place(tag, io).is_some();
        let registered = !here && matches!(self.shared.path.below(), DataPath::Registered);
        if registered && self.needs_registration(tag, io) {
            return self.push_register_of_parts(port, tag);
        }
        for place in 0..self.forwards.splits.width {
            let index = self.forwards.splits.index(tag, place);
            match self.forwards.splits.places[index].step {
                Step::Pushed => continue,
                Step::Free => match self.next_part(tag, io) {
                    Some(part) => self.forwards.splits.places[index] = part,
                    None => continue,
                },
                Step::Due => {}
            }
            let sqe = self.part_operation(tag, io, index, place);
            if make_room(port, 1) && port.push_operation(&sqe).is_ok() {
                self.forwards.splits.places[index].step = Step::Pushed;
            } else {
                self.stall(tag);
                break;
            }
        }
        let split = self.forwards.splits.tags[tag.index()];
        match split.result {
            _ if split.pending != 0 => {}
            Ok(()) => self.data_moved(port, tag),
            Err(failed) => self.split_failed(port, tag, failed),
        }
    }

    fn split_failed(&mut self, port: &mut P, tag: Tag, (file, errno): (u16, Errno)) {
        if file != NO_FILE {
            self.shared.blame(file);
        }
        self.forward_done(port, tag, Err(errno));
    }

    fn stall(&mut self, tag: Tag) {
        if self.forwards.splits.stall(tag, true) {
            self.forwards.stalled.push_back(tag);
        }
    }

    /// REGISTER of a request that is split: the parts follow its completion.
    fn push_register_of_parts(&mut self, port: &mut P, tag: Tag) {
        let mut word = UserData::batch(self.index, self.generation, Kind::Forward, tag.get());
        word.turn = REGISTER;
        let register = self.buffer_command(UBLK_U_IO_REGISTER_IO_BUF, word, tag);
        if !(make_room(port, 1) && port.push_operation(&register).is_ok()) {
            self.stall(tag);
        }
    }

    /// Asks the handler for the next part of a request. `None` if all are made, or none is to be made any more.
    fn next_part(&mut self, tag: Tag, io: &Io) -> Option<Place> {
        let split = self.forwards.splits.tags[tag.index()];
        if split.given >= io.len || split.result.is_err() {
            return None;
        }
        let handler = &mut self.handler;
        let part = caught(|| handler.part(io, split.given));
        if part.is_none() {
            self.shared.meters.panics.add_shared(1);
        }
        let fits = |part: &Part| {
            part.file < self.forwards.splits.files
                && part.len != 0
                && part.len <= io.len - split.given
        };
        let place = part.filter(fits).and_then(|part| {
            Some(Place {
                step: Step::Due,
                file: part.file,
                again: 0,
                from: u32::try_from(split.given).ok()?,
                len: u32::try_from(part.len).ok()?,
                done: 0,
                offset: part.offset,
            })
        });
        let splits = &mut self.forwards.splits;
        match place {
            Some(place) => {
                splits.tags[tag.index()].given += u64::from(place.len);
                splits.tags[tag.index()].pending += 1;
            }
            None => splits.failed(tag, NO_FILE, Errno::EIO),
        }
        place
    }

    /// Builds the operation for the rest of a part.
    fn part_operation(&self, tag: Tag, io: &Io, index: usize, place: u16) -> Sqe64 {
        let part = &self.forwards.splits.places[index];
        let (fd, len) = (self.file(part.file), part.len - part.done);
        let skip = part.from + part.done;
        // Beyond 64 bits: an offset that no file has, so that the kernel refuses it (L13).
        let at = part.offset.checked_add(u64::from(part.done));
        let at = at.unwrap_or(i64::MAX.cast_unsigned());
        let mut word = UserData::batch(self.index, self.generation, Kind::Forward, tag.get());
        word.turn = FIRST + place;
        let here = self.client_place(tag, io);
        let sqe = if here.is_none() && matches!(self.shared.path.below(), DataPath::Registered) {
            let rw = match io.op {
                Op::Read => op::read_fixed,
                _ => op::write_fixed,
            };
            // SAFETY: the registered buffer is the request's own pages, which the driver keeps until the tag is
            // committed, and the commit waits for this operation.
            unsafe { rw(fd, self.buf_base + tag.get(), skip.into(), len, at) }
        } else {
            let mem = here.unwrap_or_else(|| self.shared.arena.mem(tag, len_of(io)));
            let ptr = mem.ptr().as_ptr();
            let ptr = ptr.wrapping_add(usize::try_from(skip).unwrap_or(0));
            if io.op == Op::Read {
                // SAFETY: the part lies inside the request, whose `io.len` bytes of the tag's buffer belong to the
                // request's operations until their CQEs (head of this file), or of the client's memory, which is no
                // Rust object and stays mapped with the lane's shared part.
                unsafe { op::read(fd, ptr, len, at) }
            } else {
                // SAFETY: as above.
                unsafe { op::write(fd, ptr, len, at) }
            }
        };
        sqe.user_data(word.pack())
    }

    /// Handles the completion of a part.
    pub(super) fn part_completed(
        &mut self,
        port: &mut P,
        tag: Tag,
        io: &Io,
        place: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let index = self.forwards.splits.index(tag, place);
        let splits = &mut self.forwards.splits;
        let known = place < splits.width && splits.places[index].step == Step::Pushed;
        if !known {
            self.stale();
            return Ok(());
        }
        let part = &mut splits.places[index];
        let result = match Errno::from_result(res) {
            Ok(moved) if moved == part.len - part.done => Ok(true),
            // The file ends inside the device: it was truncated, and there is nothing to read (L05).
            Ok(moved) if moved == 0 || moved > part.len - part.done => Err(Errno::EIO),
            Ok(moved) => {
                part.done += moved;
                Ok(false)
            }
            Err(Errno::EINTR | Errno::EAGAIN) if part.again < MAX_AGAIN => {
                part.again += 1;
                Ok(false)
            }
            Err(Errno::EINVAL) if part.done > 0 => Err(Errno::EIO),
            Err(errno) => Err(errno),
        };
        part.step = match result {
            Ok(false) => Step::Due,
            _ => Step::Free,
        };
        let file = part.file;
        if result != Ok(false) {
            splits.tags[tag.index()].pending -= 1;
        }
        if let Err(errno) = result {
            splits.failed(tag, file, errno);
        }
        if splits.tags[tag.index()].result.is_err() {
            splits.drop_due(tag);
        }
        self.push_parts(port, tag, io);
        Ok(())
    }

    /// Adds a request to the next sync of every file.
    pub(super) fn sync_all(&mut self, port: &mut P, tag: Tag) {
        let files = self.forwards.splits.files;
        self.forwards.splits.begin(tag);
        self.forwards.splits.tags[tag.index()].pending = files;
        for file in 0..files {
            self.sync(port, file, tag);
        }
    }

    /// Handles the end of one of these syncs.
    pub(super) fn one_of_all_synced(
        &mut self,
        port: &mut P,
        file: u16,
        tag: Tag,
        result: Result<(), Errno>,
    ) {
        let split = &mut self.forwards.splits.tags[tag.index()];
        split.pending -= 1;
        let failed = result.map_err(|errno| (file, errno));
        split.result = split.result.and(failed);
        match split.result {
            _ if split.pending != 0 => {}
            Ok(()) => self.forward_done(port, tag, Ok(())),
            Err(failed) => self.split_failed(port, tag, failed),
        }
    }

    /// True for a request with several operations.
    pub(super) const fn is_split(to: Forward) -> bool {
        H::SPLITS && matches!(to, Forward::Parts { .. } | Forward::SyncAll)
    }
}
