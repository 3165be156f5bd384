//! A request as its task sees it, and its buffer as operations take it.
//!
//! General safety argument. A tag's bytes belong to the server from the CQE that brings the request to the commit that
//! answers it, and the executor does not answer while the tag is leased. The lease is one thing that is either in
//! the tag's `TaskRequest`, or in a `TagBuf` that was taken out of it, and that an operation may own; it is given
//! back when the one that has it is dropped. So who has the lease is alone with the bytes: nobody but a `TagBuf`
//! lends them to the kernel, and only a `TaskRequest` with the lease makes slices of them. What has the lease and
//! is leaked, leaks the lease: the request is never answered, and its memory never used again. The memory itself
//! lives with the lane's shared part, which the request's token in the executor holds; and the token is there as long
//! as the lease is out.
#![expect(unsafe_code, reason = "slices and places of a tag's buffer")]

use std::fmt;
use std::rc::Rc;

use ublk_core::iod::Io;
use ublk_core::{Errno, IoFlags, Op, QueueId, Tag};

use super::buf::{IoBuf, IoBufMut, Place};
use super::core::Core;
use super::fd::SharedFd;
use super::ring::Ring;

/// A request in the hands of an async handler. The task's result is its answer.
///
/// # Invariants
/// With `leased`, this is the only one of its tag that has the lease, and `place` is where the data is.
pub struct TaskRequest {
    core: Rc<Core>,
    io: Io,
    place: Place,
    qid: QueueId,
    tag: Tag,
    leased: bool,
}

impl TaskRequest {
    /// The request of a tag; the caller has just set the tag's lease where there is data.
    #[inline(always)]
    pub(super) fn new(
        core: Rc<Core>,
        qid: QueueId,
        tag: Tag,
        io: Io,
        place: Option<Place>,
    ) -> Self {
        Self {
            core,
            io,
            place: place.unwrap_or(Place::Registered {
                index: 0,
                offset: 0,
                len: 0,
            }),
            qid,
            tag,
            leased: place.is_some(),
        }
    }

    /// The operation.
    #[must_use]
    pub const fn op(&self) -> Op {
        self.io.op
    }

    /// The flags of the request.
    #[must_use]
    pub const fn flags(&self) -> IoFlags {
        self.io.flags
    }

    /// First byte; 0 for FLUSH.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.io.offset
    }

    /// Bytes; 0 for FLUSH.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.io.len
    }

    /// True for a FLUSH, which has no range.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.io.len == 0
    }

    /// The hw queue the request came from.
    #[must_use]
    pub const fn qid(&self) -> QueueId {
        self.qid
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

    fn memory(&self) -> Result<(*mut u8, usize), Errno> {
        match self.place {
            _ if !self.leased => Err(Errno::EBUSY),
            Place::Memory { ptr, len } => Ok((ptr, len as usize)),
            Place::Registered { .. } => Err(Errno::EOPNOTSUPP),
        }
    }

    /// The data of a WRITE; empty for other operations.
    ///
    /// # Errors
    /// EOPNOTSUPP where the plan moves data past the server (zero copy), EBUSY while the buffer is
    /// [taken](Self::take_data).
    pub fn data(&mut self) -> Result<&[u8], Errno> {
        if self.io.op != Op::Write {
            return Ok(&[]);
        }
        let (ptr, len) = self.memory()?;
        // SAFETY: with the lease nobody else reaches the bytes; they are initialised, and the slice ends before the
        // lease can be given away.
        Ok(unsafe { std::slice::from_raw_parts(ptr, len) })
    }

    /// Where the data of a READ goes; empty for other operations. Zeroes, or old data of this device, at entry:
    /// fill all of it or fail (L05).
    ///
    /// # Errors
    /// As [`data`](Self::data).
    pub fn data_mut(&mut self) -> Result<&mut [u8], Errno> {
        if self.io.op != Op::Read {
            return Ok(&mut []);
        }
        let (ptr, len) = self.memory()?;
        // SAFETY: as in `data`, and `self` is borrowed exclusively.
        Ok(unsafe { std::slice::from_raw_parts_mut(ptr, len) })
    }

    /// Takes the request's buffer, for operations: the data of a WRITE, or the place for a READ's. Memory, or in
    /// zero copy a registered buffer.
    ///
    /// Until the buffer is dropped or [given back](Self::give_back) the request is not answered, whatever becomes
    /// of its task.
    ///
    /// # Errors
    /// EBUSY if it is taken, EINVAL for a request without data.
    pub fn take_data(&mut self) -> Result<TagBuf, Errno> {
        if !self.io.op.has_data() {
            return Err(Errno::EINVAL);
        }
        if !std::mem::replace(&mut self.leased, false) {
            return Err(Errno::EBUSY);
        }
        Ok(TagBuf {
            core: Rc::clone(&self.core),
            place: self.place,
            tag: self.tag,
            leased: true,
        })
    }

    /// Gives the buffer back, so that [`data`](Self::data) and [`data_mut`](Self::data_mut) give it again. Another
    /// request's is dropped.
    pub fn give_back(&mut self, mut buffer: TagBuf) {
        if buffer.tag == self.tag && Rc::ptr_eq(&buffer.core, &self.core) {
            buffer.leased = false;
            self.leased = true;
        }
    }

    /// Fills a READ's data from a file, from its byte `offset` on.
    ///
    /// # Errors
    /// The operation's errno; EIO where the file ends before (L05).
    pub async fn read_from(&mut self, file: &SharedFd, offset: u64) -> Result<(), Errno> {
        self.transfer(file, offset, Op::Read).await
    }

    /// Writes a WRITE's data to a file, from its byte `offset` on.
    ///
    /// # Errors
    /// The operation's errno; EIO where the file takes no more (L11).
    pub async fn write_to(&mut self, file: &SharedFd, offset: u64) -> Result<(), Errno> {
        self.transfer(file, offset, Op::Write).await
    }

    async fn transfer(&mut self, file: &SharedFd, offset: u64, op: Op) -> Result<(), Errno> {
        if self.io.op != op {
            return Err(Errno::EINVAL);
        }
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
    #[inline]
    fn drop(&mut self) {
        if self.leased {
            self.core.release(self.tag.index());
        }
    }
}

impl fmt::Debug for TaskRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskRequest")
            .field("tag", &self.tag)
            .field("io", &self.io)
            .finish_non_exhaustive()
    }
}

/// A request's buffer, taken out of it for operations.
///
/// # Invariants
/// With `leased`, this has the tag's lease.
pub struct TagBuf {
    core: Rc<Core>,
    place: Place,
    tag: Tag,
    leased: bool,
}

// SAFETY: the tag's place in the lane's arena does not move, is initialised, and outlives the lease (the head of this
// file); with it nobody else reaches the bytes. A registered buffer's bytes are the kernel's.
unsafe impl IoBuf for TagBuf {
    fn place(&self) -> Place {
        self.place
    }
}

// SAFETY: as above; the arena's memory is writable, whatever the direction of the request.
unsafe impl IoBufMut for TagBuf {
    fn place_mut(&mut self) -> Place {
        self.place
    }
}

impl Drop for TagBuf {
    fn drop(&mut self) {
        if self.leased {
            self.core.release(self.tag.index());
        }
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
