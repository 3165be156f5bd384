//! A request of the block layer, as an owned token.
//!
//! Completing only records the answer; the worker turns answers into commands. An answer has no length: the engine
//! commits the full count or an errno (L11). A token that is dropped without an answer is answered with EIO and
//! counted. Soundness never depends on that `Drop`: a leaked token leaves its tag uncommitted, and nobody accesses its
//! buffer.
#![expect(
    unsafe_code,
    reason = "the only token of a tag gives access to its buffer"
)]

use std::cell::Cell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;

use ublk_core::iod::Io;
use ublk_core::{Answer, Errno, IoFlags, Op, QueueId, Tag};

use crate::data_path::DataPath;
use crate::forward::Forward;
use crate::handler::Handler;
use crate::memref::MemRef;
use crate::port::{Content, UserCopyPort};
use crate::shared::{LaneLocal, LaneShared};

/// What the handler did with its request.
// With a separate tag: packed into a niche of `Forward` it costs a forwarded request eight instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Outcome {
    /// Nothing yet: the handler holds the token.
    Held,
    /// Answered on the worker's own thread; in get-data mode with the address of a READ's data, or 0 for the tag's
    /// buffer.
    Answered(Answer, u64),
    /// Taken along: the answer will come through [`LaneShared::answer`] or [`LaneLocal::answer`].
    Detached,
    /// To be forwarded to a file.
    Forwarded(Forward),
}

/// Copies the data of a WRITE into the tag's buffer (user copy, or from memory shared with the client).
#[cold]
fn fetch(lane: &LaneShared, tag: Tag, len: usize) -> Result<(), Errno> {
    let to = lane.arena.mem(tag, len);
    let path = match &lane.path {
        DataPath::Client(client) => match (client.place(tag, len), &client.below) {
            (Some(from), _) => return client.copy(from, to),
            // It is there already: get-data, which may place data elsewhere, is not used with shared memory.
            (None, DataPath::Buffer) => return Ok(()),
            (None, below) => below,
        },
        path => path,
    };
    match path {
        DataPath::Device(device) => device.pull(lane.qid, tag, Content::Data, to),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

/// Copies a READ's data from the tag's buffer to its destination, in a device that shares memory.
#[cold]
fn deliver_to_client(lane: &LaneShared, tag: Tag, len: usize) -> Result<(), Errno> {
    let DataPath::Client(client) = &lane.path else {
        return Ok(());
    };
    let from = lane.arena.mem(tag, len);
    match (client.place(tag, len), &client.below) {
        (Some(to), _) => client.copy(from, to),
        (None, DataPath::Device(device)) => device.push(lane.qid, tag, Content::Data, from),
        (None, _) => Ok(()),
    }
}

/// Whether the server cannot see the data of a tag's request.
#[cold]
fn is_hidden(lane: &LaneShared, tag: Tag) -> bool {
    let here = lane.path.client_place(tag, 0).is_some();
    !here && matches!(lane.path.below(), DataPath::Registered)
}

/// [`Op::brings_data`], with zone operations off the path of WRITE.
#[inline(always)]
pub(crate) fn brings_data(op: Op) -> bool {
    #[cold]
    const fn other(op: Op) -> bool {
        op.brings_data()
    }
    matches!(op, Op::Write) || other(op)
}

/// [`Op::wants_data`], with zone operations off the path of READ.
#[inline(always)]
pub(crate) fn wants_data(op: Op) -> bool {
    #[cold]
    const fn other(op: Op) -> bool {
        op.wants_data()
    }
    matches!(op, Op::Read) || other(op)
}

/// The answer to a successful operation other than READ and WRITE.
#[cold]
fn answer_of_others(lane: &LaneShared, tag: Tag, io: Io) -> Answer {
    match io.op {
        // Otherwise the client would be told that its data is at the start of the device.
        Op::ZoneAppend if !lane.values.is_set(tag) => Answer::failed(Errno::EIO),
        // The decoder has compared it with a u32.
        op if op.has_data() => Answer::full(u32::try_from(io.len).unwrap_or(0)),
        _ => Answer::full(0),
    }
}

/// Records the position of an append, for the answer that follows.
fn land(lane: &LaneShared, tag: Tag, io: &Io, at: u64) -> Result<(), Errno> {
    let sector = io.landed(at)?;
    match lane.values.set(tag, sector) {
        true => Ok(()),
        false => Err(Errno::EOPNOTSUPP),
    }
}

/// The character device, if this request's data goes through it.
fn device(lane: &LaneShared, tag: Tag) -> Option<&dyn UserCopyPort> {
    match &lane.path {
        DataPath::Device(device) => Some(&**device),
        DataPath::Client(client) => match &client.below {
            DataPath::Device(device) if client.place(tag, 0).is_none() => Some(&**device),
            _ => None,
        },
        _ => None,
    }
}

/// The character device, for the metadata of a request that has some.
#[inline]
pub(crate) fn metadata_device<'a>(
    lane: &'a LaneShared,
    io: &Io,
    op: Op,
) -> Result<&'a dyn UserCopyPort, Errno> {
    if !io.flags.has_metadata() || io.op != op {
        return Err(Errno::EINVAL);
    }
    match lane.path.below() {
        DataPath::Device(device) => Ok(&**device),
        _ => Err(Errno::EOPNOTSUPP),
    }
}

macro_rules! accessors {
    () => {
        /// The operation.
        #[inline]
        #[must_use]
        pub const fn op(&self) -> Op {
            self.io.op
        }

        /// The flags of the request.
        #[inline]
        #[must_use]
        pub const fn flags(&self) -> IoFlags {
            self.io.flags
        }

        /// Offset on the device in bytes; 0 for FLUSH.
        #[inline]
        #[must_use]
        pub const fn offset(&self) -> u64 {
            self.io.offset
        }

        /// Length in bytes; 0 for FLUSH.
        #[inline]
        #[must_use]
        pub const fn len(&self) -> u64 {
            self.io.len
        }

        /// True for a FLUSH, which has no range.
        #[inline]
        #[must_use]
        pub const fn is_empty(&self) -> bool {
            self.io.len == 0
        }

        /// The hw queue the request came from.
        #[inline]
        #[must_use]
        pub fn qid(&self) -> QueueId {
            self.shared().qid
        }

        /// The tag of the request.
        #[inline]
        #[must_use]
        pub const fn tag(&self) -> Tag {
            self.tag
        }

        /// The data of a WRITE or ZONE_APPEND; empty for other operations. In user copy the first call fetches it.
        ///
        /// # Errors
        /// EOPNOTSUPP if data bypasses the server (zero copy) or is in memory of the backend; the driver's errno if the
        /// data cannot be fetched.
        #[inline]
        pub fn data(&mut self) -> Result<&[u8], Errno> {
            if !brings_data(self.io.op) {
                return Ok(&[]);
            }
            if matches!(self.shared().path, DataPath::Registered) {
                return Err(Errno::EOPNOTSUPP);
            }
            let len = self.data_len();
            if !self.ready && self.is_elsewhere() {
                // By value: a call that took the token's address would keep every token in memory.
                fetch(self.shared(), self.tag, len)?;
                self.ready = true;
            }
            // SAFETY: `self` is the tag's only token and is borrowed for the life of the slice; it holds (or borrows
            // from a value that holds) the lane's shared part and so the arena.
            Ok(unsafe { self.shared().arena.slice(self.tag, len) })
        }

        /// The buffer for the data of a READ or REPORT_ZONES; empty for other operations. It holds zeroes, or old data
        /// of this device: fill all of it or fail (L05).
        ///
        /// # Errors
        /// EOPNOTSUPP if data bypasses the server (zero copy).
        #[inline]
        pub fn data_mut(&mut self) -> Result<&mut [u8], Errno> {
            if !wants_data(self.io.op) {
                return Ok(&mut []);
            }
            if !matches!(self.shared().path, DataPath::Buffer | DataPath::Device(_))
                && is_hidden(self.shared(), self.tag)
            {
                return Err(Errno::EOPNOTSUPP);
            }
            let len = self.data_len();
            // SAFETY: as in `data`, and `self` is borrowed exclusively.
            Ok(unsafe { self.shared().arena.slice_mut(self.tag, len) })
        }

        /// True if a WRITE's data is outside the tag's buffer.
        #[inline]
        fn is_elsewhere(&self) -> bool {
            self.placed || !matches!(self.shared().path, DataPath::Buffer)
        }

        /// True if [`push_from`](Self::push_from) and [`pull_into`](Self::pull_into) make the driver transfer data in
        /// one copy.
        #[inline]
        #[must_use]
        pub fn copies_by_driver(&self) -> bool {
            match self.shared().path {
                DataPath::Device(_) => true,
                DataPath::Client(_) => device(self.shared(), self.tag).is_some(),
                _ => false,
            }
        }

        /// Takes the data of this request, if it is in memory shared with the client (Linux 7.1): the handler then
        /// copies to or from it with accesses that may race ([`racy_copy`](crate::racy_copy)), or names it to the
        /// kernel, and the engine does not. Handlers that do not call this see such data like any other:
        /// [`data`](Self::data) and [`data_mut`](Self::data_mut) copy it.
        #[must_use]
        pub fn take_shared(&mut self) -> Option<MemRef<'_>> {
            let DataPath::Client(client) = &self.shared().path else {
                return None;
            };
            let here = client.place(self.tag, self.data_len()).is_some();
            self.ready |= here && matches!(self.io.op, Op::Read);
            self.shared().path.client_place(self.tag, self.data_len())
        }

        /// True for a READ that [`Request::complete_from`](crate::Request::complete_from) can answer with data from
        /// anywhere.
        #[inline]
        #[must_use]
        pub const fn takes_any_source(&self) -> bool {
            self.any_source
        }

        /// True for a WRITE whose data is at the address that [`Handler::data_address`](crate::Handler::data_address)
        /// returned.
        #[inline]
        #[must_use]
        pub const fn was_placed(&self) -> bool {
            self.placed
        }

        /// User copy: makes the driver copy `from` into the data of a READ or REPORT_ZONES, all of it.
        ///
        /// # Errors
        /// EOPNOTSUPP in another mode; EINVAL for another operation or length; the driver's errno.
        pub fn push_from(&mut self, from: MemRef<'_>) -> Result<(), Errno> {
            let device = device(self.shared(), self.tag).ok_or(Errno::EOPNOTSUPP)?;
            if !wants_data(self.io.op) || from.len() != self.data_len() {
                return Err(Errno::EINVAL);
            }
            device.push(self.shared().qid, self.tag, Content::Data, from)?;
            self.ready = true;
            Ok(())
        }

        /// User copy: makes the driver copy the data of a WRITE or ZONE_APPEND, all of it, to `to`.
        ///
        /// # Errors
        /// As for [`push_from`](Self::push_from).
        pub fn pull_into(&mut self, to: MemRef<'_>) -> Result<(), Errno> {
            let device = device(self.shared(), self.tag).ok_or(Errno::EOPNOTSUPP)?;
            if !brings_data(self.io.op) || to.len() != self.data_len() {
                return Err(Errno::EINVAL);
            }
            device.pull(self.shared().qid, self.tag, Content::Data, to)
        }

        /// Copies the metadata of a WRITE to `to`, which must be as long ([`Integrity::bytes_for`](ublk_core::Integrity::bytes_for)).
        /// Linux 7.0.
        ///
        /// # Errors
        /// EINVAL for a request without metadata ([`IoFlags::has_metadata`]) or another operation; EIO for another length;
        /// EOPNOTSUPP in modes other than user copy; the driver's errno.
        pub fn pull_metadata(&mut self, to: &mut [u8]) -> Result<(), Errno> {
            let device = metadata_device(self.shared(), &self.io, Op::Write)?;
            device.pull_metadata(self.shared().qid, self.tag, to)
        }

        /// Fills the metadata of a READ from `from`, which must be as long. Do so for each READ with metadata before its
        /// answer: what the block layer would verify is undefined otherwise. Linux 7.0.
        ///
        /// # Errors
        /// As for [`pull_metadata`](Self::pull_metadata).
        pub fn push_metadata(&mut self, from: &[u8]) -> Result<(), Errno> {
            let device = metadata_device(self.shared(), &self.io, Op::Read)?;
            device.push_metadata(self.shared().qid, self.tag, from)
        }

        /// Makes the driver copy `from` into the metadata of a READ: like [`push_metadata`](Self::push_metadata), from memory
        /// that others may use at the same time.
        ///
        /// # Errors
        /// As for [`pull_metadata`](Self::pull_metadata).
        #[inline]
        pub fn push_metadata_from(&mut self, from: MemRef<'_>) -> Result<(), Errno> {
            let device = metadata_device(self.shared(), &self.io, Op::Read)?;
            device.push(self.shared().qid, self.tag, Content::Metadata, from)
        }

        /// Makes the driver copy the metadata of a WRITE to `to`: like [`pull_metadata`](Self::pull_metadata), into memory
        /// that others may use at the same time.
        ///
        /// # Errors
        /// As for [`pull_metadata`](Self::pull_metadata).
        #[inline]
        pub fn pull_metadata_into(&mut self, to: MemRef<'_>) -> Result<(), Errno> {
            let device = metadata_device(self.shared(), &self.io, Op::Write)?;
            device.pull(self.shared().qid, self.tag, Content::Metadata, to)
        }

        /// Answers a ZONE_APPEND whose data was written at byte `at` of the device. The answer is an errno for another
        /// operation, for a position that is not in the zone after its start, or if the handler lacks
        /// [`Handler::ZONES`](crate::Handler::ZONES).
        pub fn complete_append(self, at: u64) {
            let landed = self.land(at);
            self.complete(landed);
        }

        /// Records the position of an append, for the answer that follows.
        pub(crate) fn land(&self, at: u64) -> Result<(), Errno> {
            land(self.shared(), self.tag, &self.io, at)
        }

        /// The driver's answer for a handler's result. In user copy this pushes a READ's data.
        #[inline(always)]
        fn answer_of(&self, result: Result<(), Errno>) -> Answer {
            match result.and_then(|()| self.deliver()) {
                Ok(()) if matches!(self.io.op, Op::Read | Op::Write) =>
                {
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "the decoder has compared it with a u32"
                    )]
                    Answer::full(self.io.len as u32)
                }
                Ok(()) => answer_of_others(self.shared(), self.tag, self.io),
                Err(errno) => Answer::failed(errno),
            }
        }

        #[inline(always)]
        fn deliver(&self) -> Result<(), Errno> {
            if self.ready || !wants_data(self.io.op) {
                return Ok(());
            }
            match &self.shared().path {
                DataPath::Device(device) => {
                    let from = self.shared().arena.mem(self.tag, self.data_len());
                    device.push(self.shared().qid, self.tag, Content::Data, from)
                }
                DataPath::Client(_) => deliver_to_client(self.shared(), self.tag, self.data_len()),
                _ => Ok(()),
            }
        }

        #[inline]
        fn data_len(&self) -> usize {
            // Checked against the buffer's size by the decoder; the arena checks again.
            usize::try_from(self.io.len).unwrap_or(usize::MAX)
        }
    };
}

// After the macro, which it uses.
mod away;

pub use away::{KeptRequest, OwnedRequest};

/// Properties of a request when it arrives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Its data is in the tag's buffer, or there is nothing to fetch.
    pub(crate) ready: bool,
    /// Get-data: a READ's data may be anywhere.
    pub(crate) any_source: bool,
    /// Get-data: a WRITE's data is where the handler placed it.
    pub(crate) placed: bool,
    /// The lane keeps its handler's memory alive.
    pub(crate) backed: bool,
    /// The lane's own handler never passes it on.
    pub(crate) closed: bool,
}

impl Known {
    /// For a request of a lane with this handler. `plain`: the lane is quick; `get_data`: it is in get-data mode;
    /// `placed`: the handler has the data of a WRITE.
    #[inline(always)]
    pub(crate) fn of<H: Handler>(plain: bool, get_data: bool, placed: bool) -> Self {
        Self {
            ready: plain && !H::CLIENT_MEMORY,
            any_source: get_data,
            placed,
            backed: H::BACKING.is_some(),
            closed: H::CLOSED.is_closed(),
        }
    }
}

/// A request on its worker's thread. Not `Send`: [`Request::detach`] converts it to one that is.
pub struct Request<'a> {
    lane: &'a Rc<LaneLocal>,
    slot: &'a Cell<Outcome>,
    /// Outlives a panic of the handler, which the slot does not.
    detached: &'a Cell<bool>,
    tag: Tag,
    io: Io,
    /// The lane keeps its handler's memory alive ([`Backing`](crate::backing::Backing)).
    backed: bool,
    /// It was given to the lane's own handler, which never passes it on ([`Closed`](crate::handler::Closed)).
    closed: bool,
    /// Nothing (more) is to be copied: a WRITE's data is in the tag's buffer, a READ's has been pushed.
    ready: bool,
    /// Get-data: this READ's data may be anywhere; this WRITE's data is where the handler placed it.
    any_source: bool,
    placed: bool,
}

impl<'a> Request<'a> {
    /// The only token of `tag`, which the driver has just handed over.
    #[inline(always)]
    pub(crate) fn new(
        lane: &'a Rc<LaneLocal>,
        slot: &'a Cell<Outcome>,
        detached: &'a Cell<bool>,
        tag: Tag,
        io: Io,
        known: Known,
    ) -> Self {
        let Known {
            ready,
            any_source,
            placed,
            backed,
            closed,
        } = known;
        let any_source = any_source && matches!(io.op, Op::Read);
        Self {
            lane,
            slot,
            detached,
            tag,
            io,
            backed,
            closed,
            ready,
            any_source,
            placed,
        }
    }

    accessors!();

    #[inline(always)]
    fn shared(&self) -> &LaneShared {
        &self.lane.shared
    }

    /// Answers the request: success for all of it, or an errno.
    #[inline(always)]
    pub fn complete(self, result: Result<(), Errno>) {
        let this = ManuallyDrop::new(self);
        this.slot.set(Outcome::Answered(this.answer_of(result), 0));
    }

    /// Get-data: answers a READ with all of its data at `from`. The driver copies it from there after the answer.
    ///
    /// In other modes, or if operation or length do not fit, the request is answered with EINVAL.
    pub fn complete_from(self, from: MemRef<'static>) {
        if !self.any_source || from.len() != self.data_len() {
            return self.complete(Err(Errno::EINVAL));
        }
        let this = ManuallyDrop::new(self);
        this.slot
            .set(Outcome::Answered(this.answer_of(Ok(())), from.addr()));
    }

    /// Whether the request came through this lane. For handlers of this crate that were attached to the lane; the
    /// lane's own handler knows without a comparison.
    #[inline(always)]
    pub(crate) fn is_of(&self, lane: &Arc<LaneShared>) -> bool {
        self.closed || Arc::ptr_eq(&self.lane.shared, lane)
    }

    /// True if memory of the handler may be used after the answer: the handler is the lane's own, and the lane keeps
    /// its memory alive.
    #[inline(always)]
    pub(crate) const fn is_backed(&self) -> bool {
        self.backed
    }

    /// Converts to a token that any thread can answer later.
    #[must_use]
    pub fn detach(self) -> OwnedRequest {
        let this = ManuallyDrop::new(self);
        this.slot.set(Outcome::Detached);
        this.detached.set(true);
        OwnedRequest {
            lane: Arc::clone(&this.lane.shared),
            tag: this.tag,
            io: this.io,
            ready: this.ready,
            any_source: this.any_source,
            placed: this.placed,
        }
    }

    /// Makes the engine forward the request to a file and answer it when that is done. Only for handlers with
    /// [`Handler::FORWARDS`], else the answer is EOPNOTSUPP. The answer is EINVAL for data of a request that has none,
    /// data that was placed elsewhere or belongs to an append or a report, or an unknown file.
    #[inline(always)]
    pub fn forward(self, to: Forward) {
        if self.placed {
            return self.complete(Err(Errno::EINVAL));
        }
        let this = ManuallyDrop::new(self);
        this.slot.set(Outcome::Forwarded(to));
    }

    /// Address of the tag's buffer for any request: for handlers of this crate, which obey the token's rules by other
    /// means.
    #[cold]
    pub(crate) fn memory(&self) -> *mut u8 {
        self.lane.shared.arena.mem(self.tag, 0).ptr().as_ptr()
    }

    /// Converts to a token that this thread can answer later: cheaper than [`Request::detach`].
    #[must_use]
    pub fn keep(self) -> KeptRequest {
        let this = ManuallyDrop::new(self);
        this.slot.set(Outcome::Detached);
        this.detached.set(true);
        KeptRequest {
            lane: Rc::clone(this.lane),
            tag: this.tag,
            io: this.io,
            ready: this.ready,
            any_source: this.any_source,
            placed: this.placed,
        }
    }
}

impl Drop for Request<'_> {
    // Inlined: a call here would keep every request in memory instead of registers.
    #[inline(always)]
    fn drop(&mut self) {
        self.shared().meters.dropped.add_shared(1);
        self.slot
            .set(Outcome::Answered(Answer::failed(Errno::EIO), 0));
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("tag", &self.tag)
            .field("io", &self.io)
            .finish()
    }
}
