//! User copy by the ring: an operation on the character device and, linked behind it, the commit of its tag, so that the
//! enter of a batch carries both.
//!
//! # Why there is `unsafe` here
//! The operation names memory to the kernel: memory that is there for good, or the handler's, of which the lane has the
//! keeper ([`Handler::BACKING`]) and leaks it where it ends before the driver. The tag is committed behind the operation,
//! and its next completion comes after the commit.
#![expect(
    unsafe_code,
    reason = "operations on memory that a handler names, and their ends"
)]

use ublk_core::iod::Io;
use ublk_core::{Answer, DataMode, Errno, Tag, TagState};
use ublk_sys::offset::UserCopy;
use uring_lite::op::{self, Fd, SqeFlags};

use super::ending::OnUnwind;
use super::{Lane, LaneError, Panicked};
use crate::handler::Handler;
use crate::memref::MemRef;
use crate::operations::Operation;
use crate::seam::{Descriptors, Port};
use crate::shared::DataPath;
use crate::user_data::{Kind, UserData};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Get-data: where the handler wants a WRITE's data, if that has room for it.
    pub(super) fn place_of(&mut self, tag: Tag, io: &Io) -> Option<MemRef<'static>> {
        let guard = OnUnwind::new(&self.panicked, Panicked::Place(tag));
        // SAFETY: the lane keeps the handler's backing (head of this file).
        let place = unsafe { self.handler.place(io) };
        guard.disarm();
        place.filter(|place| u64::try_from(place.len()).is_ok_and(|len| len >= io.len))
    }

    /// Tells the handler that an operation of its own is over.
    pub(crate) fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        let guard = OnUnwind::new(&self.panicked, Panicked::Operation);
        // SAFETY: by the word of the completion the handler's own: it has lane, life and kind, which `Operations::push`
        // gave it, and the port shows completions of what was pushed only.
        unsafe { self.handler.operation_completed(operation, res, flags) };
        guard.disarm();
    }

    /// Has the driver copy all data of a request that is in hand from or to `mem`, and answers it.
    #[inline]
    pub(super) fn answered_by_copy(
        &mut self,
        port: &mut P,
        tag: Tag,
        io: &Io,
        mem: MemRef<'static>,
    ) {
        // Data is at most 32 MiB.
        let len = u32::try_from(io.len).unwrap_or(0);
        let place = UserCopy {
            qid: self.qid.get(),
            tag: tag.get(),
            byte: 0,
            integrity: false,
        };
        let at = place.encode().unwrap_or(0);
        // Both or neither: a chain is never split (L52).
        if self.batched || at == 0 || port.space() < 2 {
            return self.answered_by_call(port, tag, io, mem);
        }
        let (fd, ptr) = (Fd::registered(u32::from(self.index)), mem.ptr().as_ptr());
        let sqe = if io.op.wants_data() {
            // SAFETY: `len` readable bytes, by the promise of `MemRef::new`, until the completion (head of this file).
            unsafe { op::write(fd, ptr, len, at) }
        } else {
            // SAFETY: as above, writable.
            unsafe { op::read(fd, ptr, len, at) }
        };
        // Success is silent. A failed or short copy completes in the commit's stead, which is then cancelled silently
        // (`req_set_fail`, io_uring/io_uring.h).
        let word = UserData::batch(self.index, self.generation, Kind::Link, tag.get()).pack();
        let sqe = sqe
            .flags(SqeFlags::LINK)
            .flags(SqeFlags::CQE_SKIP_SUCCESS)
            .user_data(word);
        if port.push_operation(&sqe).is_err() {
            return self.answered_by_call(port, tag, io, mem);
        }
        self.answered(port, tag, Answer::full(len));
    }

    /// The same by a system call.
    #[cold]
    fn answered_by_call(&mut self, port: &mut P, tag: Tag, io: &Io, mem: MemRef<'static>) {
        let moved = match (&self.shared.path, io.op.wants_data()) {
            (DataPath::Device(device), true) => device.push(self.qid, tag, 0, mem),
            (DataPath::Device(device), false) => device.pull(self.qid, tag, 0, mem),
            _ => Err(Errno::EOPNOTSUPP),
        };
        let len = u32::try_from(io.len).unwrap_or(0);
        let answer = moved.map_or_else(Answer::failed, |()| Answer::full(len));
        self.answered(port, tag, answer);
    }

    /// An operation that was linked before another has failed.
    #[cold]
    pub(super) fn link_failed(
        &mut self,
        port: &mut P,
        number: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let place = self.tags.get_mut(usize::from(number));
        let (Some(place), Ok(tag)) = (place, Tag::new(number)) else {
            self.stale();
            return Ok(());
        };
        if self.data != DataMode::UserCopy {
            // What it was linked to has been cancelled, and tells.
            return Ok(());
        }
        if !matches!(place.state, TagState::Committed(_)) {
            self.stale();
            return Ok(());
        }
        // The commit was cancelled, so the request is in hand as it was. Less than all of it is none (L11).
        place.state = TagState::InHand;
        let errno = Errno::from_result(res).err().unwrap_or(Errno::EIO);
        self.answered(port, tag, Answer::failed(errno));
        Ok(())
    }
}
