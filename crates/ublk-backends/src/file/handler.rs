//! Serves a file with operations on the queues' rings.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;

use ublk_core::{Backend, DataMode, Mode, Op, OpenDevice};
use ublk_queue::{Error, Forward, Handler, Plan, Pool, Pooled, Request, Server};

use super::File;

/// Threads for operations that are rare and always block: discard and write-zeroes. A ring would hand them to a kernel
/// worker, too, and EOPNOTSUPP needs a fallback.
const THREADS: usize = 1;

/// Lets the engine read and write the file on the queue's ring, so that requests wait for the disk concurrently without
/// blocking the thread. FLUSH and FUA requests of a queue share syncs.
#[derive(Debug)]
pub struct FileHandler {
    file: Arc<File>,
    rare: Pooled,
    /// Its threads end with the last handler.
    _pool: Arc<Pool>,
}

impl Handler for FileHandler {
    const FORWARDS: bool = true;

    #[inline]
    fn handle(&mut self, request: Request<'_>) {
        match request.op() {
            Op::Read | Op::Write => {
                let durable = request.flags().fua() && request.op() == Op::Write;
                if durable {
                    self.file.core.syncs.count();
                }
                // Inside the window, as the engine has checked: the sum is within the file (L13).
                let offset = self.file.core.base + request.offset();
                request.forward(Forward::Data {
                    file: 0,
                    offset,
                    durable,
                });
            }
            Op::Flush => {
                self.file.core.syncs.count();
                request.forward(Forward::Sync { file: 0 });
            }
            _ => self.rare.handle(request),
        }
    }
}

impl File {
    /// Whether requests use the queue's ring in this mode; otherwise the queue's own thread makes calls. Calls are
    /// cheaper for a file in memory, but only a ring can transfer data past the server.
    #[must_use]
    pub const fn by_ring(&self, data: DataMode) -> bool {
        !self.in_memory || data.is_zero_copy()
    }

    /// Serves a device with this file, in the way that suits the file and the device's mode: with operations on the
    /// queues' rings, or with calls on the queues' own threads. Sets [`Plan::files`].
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm(device: OpenDevice, mut plan: Plan, file: Arc<Self>) -> Result<Server, Error> {
        let geometry = *device.geometry();
        if !file.by_ring(Mode::of(geometry.features()).data) {
            return Server::arm(device, plan, file);
        }
        let descriptor = file.as_fd().try_clone_to_owned().map_err(Error::Thread)?;
        plan.files = vec![Arc::new(descriptor)];
        let tags = usize::from(geometry.depth()) * usize::from(geometry.queues());
        let limits = file.limits();
        let rare = limits.max_discard != 0 || limits.max_write_zeroes != 0;
        let threads = if rare { THREADS } else { 0 };
        let pool = Pool::start(&file, threads, tags).map_err(Error::Thread)?;
        let pool = Arc::new(pool);
        Server::arm_with(device, plan, move |_| FileHandler {
            file: Arc::clone(&file),
            rare: pool.handler(),
            _pool: Arc::clone(&pool),
        })
    }
}
