//! A request as its task sees it, and its buffer for operations.
//!
//! General safety argument. A tag's bytes belong to the server from the CQE that brings the request to the commit that
//! answers it, and the executor does not answer while the tag has leases. A `TaskRequest` is a lease, and so is a
//! `TagBuf`; each is given back when the value is dropped. One of the two has the data: the `TaskRequest`, until a
//! `TagBuf` is taken out of it, and again once that is gone. So whichever has the data has exclusive access to the
//! bytes: only a `TagBuf` lends them to the kernel, and only a `TaskRequest` with the data makes slices of them. A
//! value that is leaked leaks its lease: the request is never answered, and its memory never used again. The memory
//! itself lives with the lane's shared part, which the request's token holds; and the token is there as long as there
//! are leases: on the stack of the first poll, then in the executor. What a lease finds in the executor about its tag
//! (`Io`, memory) therefore belongs to its own request: the tag delivers no other one meanwhile.
#![expect(unsafe_code, reason = "slices and places of a tag's buffer")]

use std::fmt;
use std::rc::Rc;

use ublk_core::iod::Io;
use ublk_core::{Errno, IoFlags, Op, QueueId, Tag};

use super::buf::{BufferLocation, IoBuf, IoBufMut};
use super::core::Core;
use super::fd::SharedFd;
use super::ring::Ring;
use crate::request::{brings_data, metadata_device, wants_data};

/// The request of an async handler. The result of its task is the answer, even if this was dropped before.
///
/// # Invariants
/// This is a lease of its tag, and the only `TaskRequest` of it: while it is the only lease, no `TagBuf` of the request
/// exists, and this value has the data.
pub struct TaskRequest {
    core: Rc<Core>,
    tag: Tag,
}

impl TaskRequest {
    /// The request of a tag; the caller has just begun it, with one lease.
    #[inline(always)]
    pub(super) const fn new(core: Rc<Core>, tag: Tag) -> Self {
        Self { core, tag }
    }

    #[inline]
    fn io(&self) -> Io {
        self.core.io(self.tag.index())
    }

    /// The operation.
    #[must_use]
    pub fn op(&self) -> Op {
        self.io().op
    }

    /// The flags of the request.
    #[must_use]
    pub fn flags(&self) -> IoFlags {
        self.io().flags
    }

    /// Offset on the device in bytes; 0 for FLUSH.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.io().offset
    }

    /// Length in bytes; 0 for FLUSH.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.io().len
    }

    /// True for a FLUSH, which has no range.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.io().len == 0
    }

    /// The hw queue the request came from.
    #[must_use]
    pub fn qid(&self) -> QueueId {
        self.core.qid
    }

    /// The tag of the request.
    #[must_use]
    pub const fn tag(&self) -> Tag {
        self.tag
    }

    /// The worker's ring.
    #[must_use]
    pub fn ring(&self) -> Ring {
        Ring(Rc::clone(&self.core))
    }

    /// The location of the data.
    fn place(&self) -> Result<BufferLocation, Errno> {
        let io = self.io();
        if self.core.leases(self.tag.index()) != 1 {
            return Err(Errno::EBUSY);
        }
        let len = u32::try_from(io.len).map_err(|_| Errno::EINVAL)?;
        match self.core.registered {
            None => Ok(BufferLocation::Memory {
                ptr: self.core.memory(self.tag.index()),
                len,
            }),
            // In memory shared with the client: the handler copies it into or out of the buffer.
            Some(_) if io.flags.in_shared_memory() => Ok(BufferLocation::Memory {
                ptr: self.core.memory(self.tag.index()),
                len,
            }),
            Some(base) => Ok(BufferLocation::Registered {
                ring: self.core.ring,
                index: base + self.tag.get(),
                offset: 0,
                len,
            }),
        }
    }

    fn memory(&self) -> Result<(*mut u8, usize), Errno> {
        match self.place()? {
            BufferLocation::Memory { ptr, len } => Ok((ptr, len as usize)),
            BufferLocation::Registered { .. } => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Reports at which byte of the device the data of a ZONE_APPEND was written, before the task ends successfully.
    ///
    /// # Errors
    /// EOPNOTSUPP for another operation, or a handler without [`Handler::ZONES`](crate::Handler::ZONES); EIO for a
    /// position before the zone's start or inside a sector.
    pub fn landed(&mut self, at: u64) -> Result<(), Errno> {
        let sector = self.io().landed(at)?;
        match self.core.values.set(self.tag, sector) {
            true => Ok(()),
            false => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Copies the metadata of a WRITE to `to`: see [`OwnedRequest::pull_metadata`](crate::OwnedRequest::pull_metadata).
    ///
    /// # Errors
    /// As there; ENODEV once the queue has ended.
    pub fn pull_metadata(&mut self, to: &mut [u8]) -> Result<(), Errno> {
        let lane = self.core.lane.upgrade().ok_or(Errno::ENODEV)?;
        let device = metadata_device(&lane, &self.io(), Op::Write)?;
        device.pull_metadata(self.core.qid, self.tag, to)
    }

    /// Fills the metadata of a READ: see [`OwnedRequest::push_metadata`](crate::OwnedRequest::push_metadata).
    ///
    /// # Errors
    /// As there; ENODEV once the queue has ended.
    pub fn push_metadata(&mut self, from: &[u8]) -> Result<(), Errno> {
        let lane = self.core.lane.upgrade().ok_or(Errno::ENODEV)?;
        let device = metadata_device(&lane, &self.io(), Op::Read)?;
        device.push_metadata(self.core.qid, self.tag, from)
    }

    /// The data of a WRITE or ZONE_APPEND; empty for other operations.
    ///
    /// # Errors
    /// EOPNOTSUPP if data bypasses the server (zero copy), EBUSY while the buffer is [taken](Self::take_data).
    pub fn data(&mut self) -> Result<&[u8], Errno> {
        if !brings_data(self.op()) {
            return Ok(&[]);
        }
        let (ptr, len) = self.memory()?;
        // SAFETY: whoever has the data has exclusive access to the bytes; they are initialised, the decoder has checked
        // that the tag's place holds as many, and the slice ends before the data can be taken out.
        Ok(unsafe { std::slice::from_raw_parts(ptr, len) })
    }

    /// The buffer for the data of a READ or REPORT_ZONES; empty for other operations. It holds zeroes, or old data of
    /// this device: fill all of it or fail (L05).
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub fn data_mut(&mut self) -> Result<&mut [u8], Errno> {
        if !wants_data(self.op()) {
            return Ok(&mut []);
        }
        let (ptr, len) = self.memory()?;
        // SAFETY: as in `data`, and `self` is borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(ptr, len) })
    }

    /// Takes the request's buffer for operations: the data of a WRITE, or the destination of a READ. It is memory, or
    /// in zero-copy mode a registered buffer.
    ///
    /// The request is not answered until the buffer is dropped or [given back](Self::give_back), even if its task ends.
    ///
    /// # Errors
    /// EBUSY if it is taken already, EINVAL for a request without data.
    pub fn take_data(&mut self) -> Result<TagBuf, Errno> {
        if !self.op().has_data() {
            return Err(Errno::EINVAL);
        }
        let place = self.place()?;
        self.core.lease(self.tag.index());
        Ok(TagBuf {
            core: Rc::clone(&self.core),
            place,
            tag: self.tag,
        })
    }

    /// Gives the buffer back, so that [`data`](Self::data) and [`data_mut`](Self::data_mut) return it again. Dropping
    /// the buffer does the same; an operation that is dropped keeps it until the kernel is done.
    pub fn give_back(&mut self, buffer: TagBuf) {
        drop(buffer);
    }

    /// Fills a READ's data from a file, starting at `offset`.
    ///
    /// # Errors
    /// The operation's errno; EIO if the file ends early (L05); EOVERFLOW if the end of the range exceeds 64 bits.
    pub async fn read_from(&mut self, file: &SharedFd, offset: u64) -> Result<(), Errno> {
        self.transfer(file, offset, Op::Read).await
    }

    /// Writes a WRITE's data to a file, starting at `offset`.
    ///
    /// # Errors
    /// The operation's errno; EIO if the file takes no more (L11); EOVERFLOW if the end of the range exceeds 64 bits.
    pub async fn write_to(&mut self, file: &SharedFd, offset: u64) -> Result<(), Errno> {
        self.transfer(file, offset, Op::Write).await
    }

    async fn transfer(&mut self, file: &SharedFd, offset: u64, op: Op) -> Result<(), Errno> {
        if self.op() != op {
            return Err(Errno::EINVAL);
        }
        // L13: a stream ignores the offset, and the sum below could wrap after a short transfer.
        offset.checked_add(self.len()).ok_or(Errno::EOVERFLOW)?;
        let ring = self.ring();
        let mut buffer = self.take_data()?;
        let (mut done, len) = (0, buffer.place.len());
        let mut result = Ok(());
        while done < len {
            let part = buffer.slice(done, len - done);
            let at = offset + u64::from(done);
            let (count, part) = match op {
                Op::Read => ring.read(file, part, at).await,
                _ => ring.write(file, part, at).await,
            };
            buffer = part.into_inner();
            match count {
                Ok(0) => result = Err(Errno::EIO),
                Ok(count) => done += count,
                Err(errno) => result = Err(errno),
            }
            if result.is_err() {
                break;
            }
        }
        self.give_back(buffer);
        result
    }
}

impl Drop for TaskRequest {
    #[inline(always)]
    fn drop(&mut self) {
        self.core.release(self.tag.index());
    }
}

impl fmt::Debug for TaskRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskRequest")
            .field("tag", &self.tag)
            .field("io", &self.io())
            .finish_non_exhaustive()
    }
}

/// A request's buffer, taken out of it for operations.
///
/// # Invariants
/// This is a lease of its tag, and the only `TagBuf` of it; `place` is the location of the data.
pub struct TagBuf {
    core: Rc<Core>,
    place: BufferLocation,
    tag: Tag,
}

// SAFETY: the tag's place in the lane's arena does not move, is initialised, and outlives the lease (head of this
// file), which gives exclusive access to the bytes. The bytes of a registered buffer belong to the kernel.
unsafe impl IoBuf for TagBuf {
    fn place(&self) -> BufferLocation {
        self.place
    }
}

// SAFETY: as above; the arena's memory is writable, whatever the direction of the request.
unsafe impl IoBufMut for TagBuf {
    fn place_mut(&mut self) -> BufferLocation {
        self.place
    }
}

impl Drop for TagBuf {
    fn drop(&mut self) {
        self.core.release(self.tag.index());
    }
}

impl fmt::Debug for TagBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TagBuf")
            .field("tag", &self.tag)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}
