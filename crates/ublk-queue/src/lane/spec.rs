//! The parameters of a lane.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use ublk_core::iod::IoBounds;
use ublk_core::{DataMode, Errno, QueueId};

use crate::buffers::Arena;
use crate::failures::OnFailure;
use crate::port::{NoDevice, UserCopyPort};
use crate::shmem::SharedMemory;

/// The parameters of a lane on a worker.
#[non_exhaustive]
pub struct LaneSpec<D, H> {
    /// Hw queue.
    pub qid: QueueId,
    /// Number of tags, as granted by ADD_DEV.
    pub depth: u16,
    /// Bounds that descriptors are checked against; `max_io_bytes` is also the size of a tag's buffer.
    pub bounds: IoBounds,
    /// The queue's descriptors.
    pub descriptors: D,
    /// The handler that answers the requests.
    pub handler: H,
    /// Generation of this lane's index on the worker: completions of another generation are ignored (L53).
    pub generation: u16,
    /// How data is transferred, as granted by ADD_DEV.
    pub data: DataMode,
    /// Whether commands carry many tags, as granted by ADD_DEV.
    pub batch: bool,
    /// Whether the device is zoned; for handlers with [`Handler::ZONES`](crate::Handler::ZONES).
    pub zoned: bool,
    /// Index of the lane's first buffer in the ring's buffer table, `depth` in all; for the zero-copy modes.
    pub buf_base: u16,
    /// First slot of the handler's files in the ring's file table.
    pub files: u32,
    /// Number of these files.
    pub file_count: u16,
    /// The character device for user copy.
    pub device: Box<dyn UserCopyPort>,
    /// The lane's share of the queue.
    pub share: Share,
    /// Allocates the buffers in huge pages if some are available.
    pub huge_pages: bool,
    /// Memory shared with the device's clients; for handlers with [`Handler::CLIENT_MEMORY`](crate::Handler::CLIENT_MEMORY).
    pub client_memory: Option<SharedMemory>,
    /// Called for requests that are answered with an errno.
    pub on_failure: Option<OnFailure>,
}

/// The part of a queue that one lane serves, if several threads serve it: the tags `first`, `first + step`, …
///
/// With a command per tag, tags stay with the thread that fetched them (PER_IO_DAEMON, 6.16). In batch mode each
/// request goes to the thread whose fetch comes first (7.0). The buffers belong to the queue.
///
/// A share belongs to one lane: it is dealt once and cannot be copied.
pub struct Share {
    pub(crate) first: u16,
    pub(crate) step: u16,
    pub(crate) arena: Option<Arena>,
    /// Depth that the arena was mapped for; 0 without one.
    depth: u16,
    /// Batch mode: number of lanes of the queue that have not prepared their tags. No lane fetches before it is 0.
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

    /// Divides a queue among this many lanes.
    ///
    /// # Errors
    /// ENOMEM if the buffers cannot be mapped; EINVAL for more lanes than tags, since one without a tag would never be
    /// armed.
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

    /// A copy of the share, for the only lane that is made of it.
    pub(crate) fn duplicate(&self) -> Self {
        Self {
            first: self.first,
            step: self.step,
            arena: self.arena.clone(),
            depth: self.depth,
            unprepared: self.unprepared.clone(),
        }
    }

    /// Whether its buffers, if any, fit a queue of this depth and size (L65).
    pub(crate) fn fits(&self, depth: u16, max_io_bytes: u32) -> bool {
        let holds = |arena: &Arena| self.depth == depth && arena.holds(max_io_bytes);
        self.arena.as_ref().is_none_or(holds)
    }
}

impl<D, H> LaneSpec<D, H> {
    /// A lane of the first generation in copy mode.
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
            client_memory: None,
            on_failure: None,
        }
    }
}
