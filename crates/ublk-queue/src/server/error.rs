//! Errors of serving a device.

use std::time::Duration;

use ublk_core::{Errno, QueueId};

use crate::port::RingError;
use crate::worker::WorkerError;

/// Why a server could not be armed, or ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A thread could not be started.
    #[error("cannot start a thread: {0}; see `ulimit -u` and the cgroup's pids.max")]
    Thread(#[source] std::io::Error),
    /// A queue's ring could not be created.
    #[error("queue {qid}: cannot make a ring: {source}")]
    Ring {
        /// The thread's first queue.
        qid: QueueId,
        /// The error of io_uring.
        source: RingError,
    },
    /// The descriptors of a queue could not be mapped.
    #[error(
        "queue {qid}: cannot map the I/O descriptors: {errno}; is another process serving this device?"
    )]
    Map {
        /// Hw queue.
        qid: QueueId,
        /// The driver's errno.
        errno: Errno,
    },
    /// The queue's handler does not fit the device.
    #[error(
        "queue {qid}: the handler does not serve zones, or shared memory in this mode; wrap it in Zoned, or ClientShared"
    )]
    Handler {
        /// Hw queue.
        qid: QueueId,
    },
    /// The buffers of a queue could not be mapped.
    #[error(
        "queue {qid}: cannot map the buffers: {errno}; lower the depth or the maximum I/O size"
    )]
    Buffers {
        /// Hw queue.
        qid: QueueId,
        /// The errno of mmap.
        errno: Errno,
    },
    /// A worker ended with an error.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The driver does not let several threads serve a queue.
    #[error(
        "several threads on a queue need per-I/O daemons (Linux 6.16) or batch mode (7.0), which this device has not; \
         use more queues instead"
    )]
    ThreadsPerQueue,
    /// The threads did not arm, or did not end, in time.
    #[error("the queues' threads did not {what} within {deadline:?}")]
    TimedOut {
        /// `arm` or `end`.
        what: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// A worker's thread panicked outside a handler.
    #[error("queue {qid}: the worker's thread panicked")]
    Panicked {
        /// The thread's first queue.
        qid: QueueId,
    },
    /// A panic while a queue was set up, usually while its handler was made.
    #[error("queue {qid}: panic during set-up: {message}")]
    SetUpPanicked {
        /// The thread's first queue.
        qid: QueueId,
        /// The panic's message.
        message: String,
    },
}
