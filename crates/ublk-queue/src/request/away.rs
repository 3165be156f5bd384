//! Requests that handlers keep, to answer them later.
//!
//! As in the module above: the only token of a tag gives access to the tag's buffer.
#![expect(
    unsafe_code,
    reason = "the only token of a tag gives access to its buffer"
)]

use std::fmt;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ublk_core::iod::Io;
use ublk_core::{Answer, Errno, IoFlags, Op, QueueId, Tag};
use ublk_metrics::Level;

use super::{
    answer_of_others, brings_data, deliver_to_client, device, fetch, is_hidden, land,
    metadata_device, wants_data,
};
use crate::buffers::Arena;
use crate::data_path::DataPath;
use crate::measure::{ThreadFlags, kind_of};
use crate::memref::MemRef;
use crate::port::Content;
use crate::shared::{LaneLocal, LaneShared};

/// Methods that name a request's buffer to the kernel, for tokens that handlers keep.
macro_rules! buffer {
    () => {
        /// The tag's buffer, to be named to the kernel; empty for operations without data, `None` if data does not travel
        /// through it (zero copy).
        #[must_use]
        pub fn buffer(&mut self) -> Option<MemRef<'_>> {
            if !brings_data(self.io.op) && !wants_data(self.io.op) {
                // Its length is that of a range on the device.
                return Some(MemRef::EMPTY);
            }
            match self.shared().path {
                DataPath::Registered => None,
                DataPath::Client(_) if is_hidden(self.shared(), self.tag) => None,
                _ => Some(self.shared().arena.mem(self.tag, self.data_len())),
            }
        }

        /// Ensures that the tag's buffer holds the data of this WRITE, and fetches it if necessary, so that an
        /// operation can read it.
        ///
        /// # Errors
        /// As [`data`](Self::data).
        pub fn fetch_data(&mut self) -> Result<(), Errno> {
            self.data().map(|_| ())
        }
    };
}

/// A request that its worker's thread may hold and answer later.
pub struct KeptRequest {
    pub(super) lane: Rc<LaneLocal>,
    pub(super) tag: Tag,
    pub(super) io: Io,
    /// Nothing (more) is to be copied: a WRITE's data is in the tag's buffer, a READ's has been pushed.
    pub(super) ready: bool,
    /// Get-data: this READ's data may be anywhere; this WRITE's data is where the handler placed it.
    pub(super) any_source: bool,
    pub(super) placed: bool,
}

impl KeptRequest {
    accessors!();

    #[inline]
    fn shared(&self) -> &LaneShared {
        &self.lane.shared
    }

    buffer!();

    /// Lets any thread answer the request.
    #[must_use]
    pub fn detach(self) -> OwnedRequest {
        let (tag, io, ready) = (self.tag, self.io, self.ready);
        let (any_source, placed) = (self.any_source, self.placed);
        let lane = Arc::clone(&self.forget().shared);
        OwnedRequest {
            lane,
            tag,
            io,
            ready,
            any_source,
            placed,
        }
    }

    /// Answers the request; its worker takes the answer before it sleeps.
    pub fn complete(self, result: Result<(), Errno>) {
        let answer = self.answer_of(result);
        self.record(answer, 0);
    }

    /// Answers EIO for a handler that panicked, and counts the panic (L25).
    pub fn panicked(self) {
        self.lane.shared.meters.panics.add_shared(1);
        self.record(Answer::failed(Errno::EIO), 0);
    }

    /// Get-data: answers a READ with all of its data at `from`, as [`Request::complete_from`](crate::Request::complete_from).
    pub fn complete_from(self, from: MemRef<'static>) {
        if !self.any_source || from.len() != self.data_len() {
            return self.complete(Err(Errno::EINVAL));
        }
        let answer = self.answer_of(Ok(()));
        self.record(answer, from.addr());
    }

    /// For a lane that ends before the request is answered: returns the buffers, all that is still needed.
    pub(crate) fn leave_unanswered(self) -> Arena {
        self.forget().shared.arena.clone()
    }

    fn record(self, answer: Answer, source: u64) {
        let tag = self.tag;
        self.forget().answer((tag, answer, source));
    }

    /// Disarms the token, so that its drop answers nothing, and returns the lane.
    fn forget(self) -> Rc<LaneLocal> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used again nor dropped, so the Rc is moved out exactly once.
        unsafe { std::ptr::read(&raw const this.lane) }
    }
}

impl Drop for KeptRequest {
    fn drop(&mut self) {
        self.lane.shared.meters.dropped.add_shared(1);
        self.lane.answer((self.tag, Answer::failed(Errno::EIO), 0));
    }
}

impl fmt::Debug for KeptRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeptRequest")
            .field("tag", &self.tag)
            .field("io", &self.io)
            .finish()
    }
}

/// A request that any thread may hold and answer. It can do all that a [`Request`](crate::Request) can, except being
/// [forwarded](crate::Request::forward), which needs the queue's ring.
pub struct OwnedRequest {
    pub(super) lane: Arc<LaneShared>,
    pub(super) tag: Tag,
    pub(super) io: Io,
    /// Nothing (more) is to be copied: a WRITE's data is in the tag's buffer, a READ's has been pushed.
    pub(super) ready: bool,
    /// Get-data: this READ's data may be anywhere; this WRITE's data is where the handler placed it.
    pub(super) any_source: bool,
    pub(super) placed: bool,
}

impl OwnedRequest {
    accessors!();

    /// Whether it is this one.
    pub(crate) fn is_of(&self, lane: &Arc<LaneShared>, tag: Tag) -> bool {
        self.tag == tag && Arc::ptr_eq(&self.lane, lane)
    }

    /// Whether latencies are measured.
    pub(crate) fn is_timed(&self) -> bool {
        ThreadFlags::level_of(self.lane.flags.wanted()) == Level::Latencies
    }

    /// Records how long a call of the backend took, before the answer.
    pub(crate) fn was_in_backend(&self, time: Duration) {
        if let Some(latencies) = self.lane.latencies.get() {
            let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            latencies.add_in_pool(kind_of(self.io.op), nanos);
        }
    }

    #[inline]
    fn shared(&self) -> &LaneShared {
        &self.lane
    }

    /// Answers the request and wakes its worker if that sleeps.
    pub fn complete(self, result: Result<(), Errno>) {
        let answer = self.answer_of(result);
        self.record(answer);
    }

    buffer!();

    /// Get-data: answers a READ with all of its data at `from`, as [`Request::complete_from`](crate::Request::complete_from).
    pub fn complete_from(self, from: MemRef<'static>) {
        let fits = self.any_source && from.len() == self.data_len();
        if !fits || !self.lane.values.set(self.tag, from.addr()) {
            return self.complete(Err(Errno::EINVAL));
        }
        let answer = self.answer_of(Ok(()));
        self.record(answer);
    }

    /// Answers EIO for a handler that panicked, and counts the panic (L25).
    pub fn panicked(self) {
        self.lane.meters.panics.add_shared(1);
        self.record(Answer::failed(Errno::EIO));
    }

    fn record(self, answer: Answer) {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used again nor dropped, so the Arc is moved out exactly once.
        let lane = unsafe { std::ptr::read(&raw const this.lane) };
        lane.answer(this.tag, answer);
    }
}

impl Drop for OwnedRequest {
    fn drop(&mut self) {
        self.lane.meters.dropped.add_shared(1);
        self.lane.answer(self.tag, Answer::failed(Errno::EIO));
    }
}

impl fmt::Debug for OwnedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedRequest")
            .field("tag", &self.tag)
            .field("io", &self.io)
            .finish()
    }
}
