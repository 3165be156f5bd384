//! What a lane is made of.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use ublk_core::iod::IoBounds;
use ublk_core::{DataMode, Errno, QueueId};

use crate::buffers::Arena;
use crate::failures::OnFailure;
use crate::port::{NoDevice, UserCopyPort};
use crate::shmem::SharedMemory;

/// A lane to be hosted by a worker.
#[non_exhaustive]
pub struct LaneSpec<D, H> {
    /// Hw queue.
    pub qid: QueueId,
    /// Tags of the queue, as ADD_DEV's answer has them.
    pub depth: u16,
    /// What a descriptor is checked against; `max_io_bytes` is also the size of a tag's buffer.
    pub bounds: IoBounds,
    /// The queue's descriptors.
    pub descriptors: D,
    /// Answers the requests.
    pub handler: H,
    /// Which life of this place on the worker it is: completions of another life are ignored (L53).
    pub generation: u16,
    /// How data travels, as ADD_DEV granted it.
    pub data: DataMode,
    /// Whether commands carry many tags, as ADD_DEV granted it.
    pub batch: bool,
    /// Whether the device is zoned; for handlers with [`Handler::ZONES`](crate::Handler::ZONES).
    pub zoned: bool,
    /// First index of the lane's `depth` buffers in the ring's table; for the zero-copy modes.
    pub buf_base: u16,
    /// First slot of the handler's files in the ring's table.
    pub files: u32,
    /// How many there are.
    pub file_count: u16,
    /// The data path by the character device; used in user copy.
    pub device: Box<dyn UserCopyPort>,
    /// The thread's share of the queue.
    pub share: Share,
    /// The buffers shall be in huge pages where they are to be had.
    pub huge_pages: bool,
    /// Memory shared with the device's clients; for handlers with [`Handler::SHARED`](crate::Handler::SHARED).
    pub shared: Option<SharedMemory>,
    /// Is told of requests that are answered with an errno.
    pub on_failure: Option<OnFailure>,
}

/// Which part of a queue one lane serves, where several threads do: the tags `first`, `first + step`, …
///
/// With commands of one tag each the tags stay where they were fetched (PER_IO_DAEMON, 6.16); in batch mode they go to
/// whichever thread's fetch comes first (7.0). The buffers are the queue's.
///
/// A lane has its share to itself: a share is dealt once and cannot be copied.
pub struct Share {
    pub(crate) first: u16,
    pub(crate) step: u16,
    pub(crate) arena: Option<Arena>,
    /// Tags that the arena was mapped for; 0 without one.
    depth: u16,
    /// Batch: lanes of the queue that have not prepared their tags. No fetch before there are none.
    pub(crate) unprepared: Option<Arc<AtomicU32>>,
}

impl Share {
    /// The whole queue.
    pub const WHOLE: Self = Self {
        first: 0,
        step: 1,
        arena: None,
        depth: 0,
        unprepared: None,
    };

    /// The shares of a queue for so many lanes.
    ///
    /// # Errors
    /// ENOMEM when the buffers cannot be mapped, EINVAL for more lanes than tags: one without any would never be armed.
    pub fn deal(lanes: u16, depth: u16, max_io_bytes: u32) -> Result<Vec<Self>, Errno> {
        if lanes > depth {
            return Err(Errno::EINVAL);
        }
        let arena = Arena::new(depth, max_io_bytes)?;
        let unprepared = Arc::new(AtomicU32::new(u32::from(lanes)));
        let share = |first| Self {
            first,
            step: lanes,
            arena: Some(arena.clone()),
            depth,
            unprepared: Some(Arc::clone(&unprepared)),
        };
        Ok((0..lanes).map(share).collect())
    }

    /// The same share, for the one lane of it that is made.
    pub(crate) fn again(&self) -> Self {
        Self {
            first: self.first,
            step: self.step,
            arena: self.arena.clone(),
            depth: self.depth,
            unprepared: self.unprepared.clone(),
        }
    }

    /// Whether its buffers, if it has any, are those of such a queue.
    pub(crate) fn fits(&self, depth: u16, max_io_bytes: u32) -> bool {
        let holds = |arena: &Arena| self.depth == depth && arena.holds(max_io_bytes);
        self.arena.as_ref().is_none_or(holds)
    }
}

impl<D, H> LaneSpec<D, H> {
    /// A lane of its first life in copy mode.
    #[must_use]
    pub fn new(qid: QueueId, depth: u16, bounds: IoBounds, descriptors: D, handler: H) -> Self {
        Self {
            qid,
            depth,
            bounds,
            descriptors,
            handler,
            generation: 0,
            data: DataMode::Copy,
            batch: false,
            zoned: false,
            buf_base: 0,
            files: 0,
            file_count: 0,
            device: Box::new(NoDevice),
            share: Share::WHOLE,
            huge_pages: false,
            shared: None,
            on_failure: None,
        }
    }
}
