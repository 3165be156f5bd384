//! Assembles a worker on the thread that will run it: ring, descriptors, buffers, handlers.
#![expect(
    unsafe_code,
    reason = "makes the kernel's port for lanes of its device"
)]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ublk_core::iod::IoBounds;
use ublk_core::{CpuMask, DataMode, Errno, Features, Geometry, Mode, OpenDevice, QueueId};

use super::error::Error;
use super::plan::Plan;
use crate::handler::Handler;
use crate::lane;
use crate::port::{CharDevice, DescTable, RingNeeds, RingPort};
use crate::thread;
use crate::worker::{LaneHandle, LaneSpec, Share, Worker};

/// The parameters of a worker.
pub(crate) struct Parts<'a> {
    /// Its queues.
    pub(crate) qids: &'a [QueueId],
    /// Its share of them, if it does not serve the whole.
    pub(crate) share: Option<&'a Share>,
    pub(crate) device: &'a OpenDevice,
    pub(crate) plan: &'a Plan,
}

/// A worker whose tags are all with the driver, and its lanes as seen from outside.
pub(crate) type ArmedWorker<H> = (Worker<RingPort, DescTable, H>, Vec<LaneHandle>);

/// The settings of a worker's thread.
#[derive(Debug, Clone, Default)]
pub(crate) struct ThreadSetup {
    pub(crate) pinned: Option<CpuMask>,
    pub(crate) io_flusher: bool,
}

/// Whether the device is zoned.
pub(crate) fn is_zoned(geometry: &Geometry) -> bool {
    geometry.features().contains(Features::ZONED)
}

/// Whether the data of a request may be in memory shared with clients.
pub(crate) fn shares_memory(geometry: &Geometry) -> bool {
    geometry.features().contains(Features::SHMEM_ZC)
}

impl Parts<'_> {
    /// Pins the calling thread to the CPUs of its queues before it touches any memory, so that the memory is on their
    /// NUMA node; and marks it as an I/O flusher, so that memory reclaim does not wait for it (L37).
    pub(crate) fn set_up_thread(&self) -> ThreadSetup {
        let mut mask = CpuMask::new();
        let affinity = &self.plan.affinity;
        let masks = self
            .qids
            .iter()
            .map(|qid| affinity.get(usize::from(qid.get())));
        for cpu in masks.flatten().flat_map(CpuMask::iter) {
            mask.insert(cpu);
        }
        ThreadSetup {
            pinned: (!mask.is_empty() && thread::pin(&mask).is_ok()).then_some(mask),
            io_flusher: thread::set_io_flusher(),
        }
    }

    /// Creates the ring on the calling thread.
    pub(crate) fn port<H: Handler>(&self) -> Result<RingPort, Error> {
        let qid = self.qids.first().copied().unwrap_or(QueueId::ZERO);
        let count = u32::try_from(self.qids.len()).unwrap_or(u32::MAX);
        let tags = u32::from(self.device.geometry().depth()).saturating_mul(count);
        let mut files = vec![self.device.as_fd(); self.qids.len()];
        files.extend(self.plan.files.iter().map(|file| file.as_fd()));
        let mode = Mode::of(self.device.geometry().features());
        let zero_copy = mode.data.is_zero_copy();
        let needs = RingNeeds {
            commands: tags,
            operations: match (H::SPLITS, H::OPERATIONS || H::FORWARDS) {
                (true, _) => tags.saturating_mul(self.parts().into()),
                (false, true) => tags,
                (false, false) => 0,
            },
            lanes: u16::try_from(self.qids.len()).unwrap_or(u16::MAX),
            buffers: if zero_copy { tags } else { 0 },
            batch: mode.batch,
            polling: self.plan.options.polling,
        };
        // SAFETY: the worker that gets it has the lanes that `lane` makes, which are those of this device as the driver
        // reports it.
        let port = unsafe { RingPort::new(&needs, &files) };
        port.map_err(|source| Error::Ring { qid, source })
    }

    /// Operations that a split request may have in flight.
    fn parts(&self) -> u16 {
        lane::width(u16::try_from(self.plan.files.len()).unwrap_or(u16::MAX))
    }

    /// Creates the lanes on the ring and fetches every tag.
    pub(crate) fn worker<H: Handler>(
        &self,
        port: RingPort,
        leave: Arc<AtomicBool>,
        make: impl Fn(QueueId) -> H,
    ) -> Result<ArmedWorker<H>, Error> {
        let mut worker = Worker::new(port, leave);
        let mut lanes = Vec::with_capacity(self.qids.len());
        for qid in self.qids.iter().copied() {
            let spec = self.lane(qid, lanes.len(), make(qid))?;
            let lane = worker.add_lane(spec);
            lanes.push(lane.map_err(|errno| match errno {
                Errno::EOPNOTSUPP => Error::Handler { qid },
                errno => Error::Buffers { qid, errno },
            })?);
        }
        let unsearched = (!self.plan.partitions).then(thread::WithoutAdmin::here);
        worker.arm()?;
        drop(unsearched);
        if self.plan.gives_up_admin && self.plan.shared_threads.is_none() {
            thread::give_up_admin();
        }
        Ok((worker, lanes))
    }

    fn lane<H: Handler>(
        &self,
        qid: QueueId,
        index: usize,
        handler: H,
    ) -> Result<LaneSpec<DescTable, H>, Error> {
        let (geometry, mode) = (
            self.device.geometry(),
            Mode::of(self.device.geometry().features()),
        );
        let bounds = IoBounds::new(self.plan.size, geometry.max_io_bytes());
        let descriptors = DescTable::map(self.device.as_fd(), geometry, qid)
            .map_err(|errno| Error::Map { qid, errno })?;
        let depth = geometry.depth();
        let mut spec = LaneSpec::new(qid, depth, bounds, descriptors, handler);
        spec.data = mode.data;
        spec.batch = mode.batch;
        spec.zoned = is_zoned(geometry);
        spec.buf_base = u16::try_from(index).unwrap_or(0).saturating_mul(depth);
        spec.files = u32::try_from(self.qids.len()).unwrap_or(u32::MAX);
        spec.file_count = u16::try_from(self.plan.files.len()).unwrap_or(u16::MAX);
        if mode.data == DataMode::UserCopy {
            let device = CharDevice::new(self.device.as_fd());
            spec.device = Box::new(device.map_err(|errno| Error::Map { qid, errno })?);
        }
        if let Some(share) = self.share {
            spec.share = share.duplicate();
        }
        spec.huge_pages = self.plan.options.huge_pages;
        spec.on_failure.clone_from(&self.plan.on_failure);
        if shares_memory(geometry) {
            // An empty map: a request in shared memory that this plan does not have is refused, not served from the
            // wrong place.
            spec.client_memory = Some(self.plan.client_memory.clone().unwrap_or_default());
        }
        Ok(spec)
    }
}
