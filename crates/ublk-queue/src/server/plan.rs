//! How a device is to be served.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ublk_core::CpuMask;

use super::shared_threads::Threads;
use crate::failures::OnFailure;
use crate::options::ServeOptions;
use crate::shmem::SharedMemory;

/// How a device is to be served.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Plan {
    /// Size of the device in bytes: requests beyond it are refused.
    pub size: u64,
    /// CPUs of each hw queue, as GET_QUEUE_AFFINITY has them; empty for no pinning.
    pub affinity: Vec<CpuMask>,
    /// Threads for all queues together; `None` is one for each queue. Queues are dealt round-robin.
    pub threads: Option<u16>,
    /// Threads that serve other devices too, instead of the server's own: `threads` and polling are set aside, and so
    /// is `affinity`, since these threads are pinned or not already.
    pub hosts: Option<Arc<Threads>>,
    /// How each queue is served.
    pub options: ServeOptions,
    /// Threads of the pool for a backend that is not quick.
    pub pool_threads: usize,
    /// Files for handlers that forward requests to them or have operations on them: registered with each ring, and
    /// named by their place here.
    pub files: Vec<Arc<OwnedFd>>,
    /// Whether the kernel may look for partitions when the device starts. Without, the driver is given the tags by threads
    /// that have laid down CAP_SYS_ADMIN for that moment: it then lets the kernel look neither at once nor later. For
    /// kernels before 7.0, which have no [`Features::NO_AUTO_PART_SCAN`](ublk_core::Features::NO_AUTO_PART_SCAN).
    pub partitions: bool,
    /// Has the threads give up CAP_SYS_ADMIN for good: a queue's once it is armed, a pool's as soon as it runs. (The driver
    /// lets the kernel look for partitions only where every queue was armed with it.) Not for `hosts`, which serve others.
    pub gives_up_admin: bool,
    /// Memory shared with the device's clients, as it was registered with the driver: for a device made with
    /// [`Features::SHMEM_ZC`](ublk_core::Features::SHMEM_ZC).
    pub shared: Option<SharedMemory>,
    /// Is told of requests that are answered with an errno.
    pub on_failure: Option<OnFailure>,
    /// How long arming may take before it counts as failed.
    pub arm_deadline: Duration,
    /// How long the thread of a queue that failed keeps its ring, while the other queues serve on, for an owner that ends
    /// its process for it: all rings then go at once. Where they go one by one with requests in hand, drivers before
    /// Linux 6.16 may wait for one of them for ever. Zero, the usual: all threads leave. Not for `hosts`.
    pub linger: Duration,
}

impl Plan {
    /// One thread per queue, not pinned, four pool threads, ten seconds to arm.
    #[must_use]
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            affinity: Vec::new(),
            threads: None,
            hosts: None,
            options: ServeOptions::DEFAULT,
            pool_threads: 4,
            files: Vec::new(),
            partitions: true,
            gives_up_admin: false,
            shared: None,
            on_failure: None,
            arm_deadline: Duration::from_secs(10),
            linger: Duration::ZERO,
        }
    }

    /// Pins each queue's thread to the queue's CPUs.
    #[must_use]
    pub fn affinity(mut self, masks: Vec<CpuMask>) -> Self {
        self.affinity = masks;
        self
    }
}
