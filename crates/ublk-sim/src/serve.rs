//! Runs the engine on the simulated driver, for tests that need no port of their own.
#![expect(unsafe_code, reason = "makes a port for lanes of its own device")]

use std::sync::Arc;

use ublk_core::iod::IoBounds;
use ublk_core::{Errno, QueueId};
use ublk_queue::{Handler, LaneHandle, LaneSpec, Worker, WorkerError};

use crate::port::Sim;

impl Sim {
    /// Serves the device to its end on the calling thread, with a handler from `make` per queue. Returns the worker's
    /// result and the queues' counters.
    ///
    /// # Errors
    /// The error of [`Worker::add_lane`], such as ENOMEM.
    pub fn serve<H: Handler>(
        &self,
        mut make: impl FnMut(QueueId) -> H,
    ) -> Result<(Result<(), WorkerError>, Vec<LaneHandle>), Errno> {
        let config = self.config();
        // SAFETY: the worker's lanes are made below, of this device's configuration, and nobody else gets the worker.
        let mut worker = Worker::new(unsafe { self.port() }, Arc::default());
        let mut lanes = Vec::new();
        let memory = self
            .shared_memory()
            .map_err(|error| Errno::from_io(&error))?;
        for number in 0..config.queues {
            let qid = QueueId::new(number).map_err(|_| Errno::EINVAL)?;
            let size = u64::try_from(config.size).unwrap_or(u64::MAX);
            let bounds = IoBounds::new(size, config.max_io_bytes);
            let descriptors = self.descriptors(number);
            let mut spec = LaneSpec::new(qid, config.depth, bounds, descriptors, make(qid));
            spec.data = config.data;
            spec.batch = config.batch;
            spec.zoned = config.zone_size != 0;
            spec.file_count = u16::from(config.file);
            spec.buf_base = number * config.depth;
            spec.device = Box::new(self.device());
            spec.client_memory.clone_from(&memory);
            lanes.push(worker.add_lane(spec)?);
        }
        let result = worker.arm().and_then(|()| worker.run());
        worker.finish(&result);
        Ok((result, lanes))
    }
}
