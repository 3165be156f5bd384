//! The plan: how a device is to be served.

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
    /// Size of the device in bytes; requests beyond it are refused.
    pub size: u64,
    /// CPUs of each hw queue, from GET_QUEUE_AFFINITY; empty for no pinning.
    pub affinity: Vec<CpuMask>,
    /// Number of threads for all queues together; `None` is one per queue. Queues are assigned round-robin.
    pub threads: Option<u16>,
    /// Threads that serve other devices, too, instead of threads of this server. `threads`, polling and `affinity` are
    /// ignored then: these threads have their own.
    pub shared_threads: Option<Arc<Threads>>,
    /// How each queue is served.
    pub options: ServeOptions,
    /// Number of pool threads, for a backend that is not quick.
    pub pool_threads: usize,
    /// Files that handlers forward requests to or operate on. They are registered with each ring, and named by their
    /// index here.
    pub files: Vec<Arc<OwnedFd>>,
    /// Whether the kernel may scan for partitions when the device starts. If not, the tags are fetched by threads that
    /// have dropped CAP_SYS_ADMIN meanwhile; the driver then never allows a scan. For kernels before 7.0, which lack
    /// [`Features::NO_AUTO_PART_SCAN`](ublk_core::Features::NO_AUTO_PART_SCAN).
    pub partitions: bool,
    /// Makes the threads give up CAP_SYS_ADMIN for good: a queue's thread once it is armed, a pool thread as soon as it
    /// runs. (The driver allows a partition scan only if every queue was armed with the capability.) Ignored with
    /// `shared_threads`, which serve other devices.
    pub gives_up_admin: bool,
    /// Memory shared with the device's clients, as registered with the driver; for a device made with
    /// [`Features::SHMEM_ZC`](ublk_core::Features::SHMEM_ZC).
    pub client_memory: Option<SharedMemory>,
    /// Called for requests that are answered with an errno.
    pub on_failure: Option<OnFailure>,
    /// Deadline for arming.
    pub arm_deadline: Duration,
    /// How long the thread of a failed queue keeps its ring, while the other queues serve on, for an owner that ends
    /// the process: all rings are then closed at once. If rings are closed one by one with requests in hand, drivers
    /// before Linux 6.16 may wait for one of them for ever. Zero, the default: all threads leave. Ignored with `shared_threads`.
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
            shared_threads: None,
            options: ServeOptions::DEFAULT,
            pool_threads: 4,
            files: Vec::new(),
            partitions: true,
            gives_up_admin: false,
            client_memory: None,
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
