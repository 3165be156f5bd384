//! Reports on serving devices, which the tool prints as text and as JSON.
#![forbid(unsafe_code)]

use crate::spec::Retry;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_core::{DataMode, Recovery};
pub use ublk_nbd::TlsInfo;

/// A device that serves I/O: what `add --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Its number.
    pub id: u32,
    /// The block device.
    pub path: PathBuf,
    /// The character device.
    pub char_path: PathBuf,
    /// Hw queues, as granted by the kernel.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// Whether the device refuses writes.
    pub read_only: bool,
    /// The backend's name on the command line.
    pub backend: String,
    /// The data mode, according to the granted features.
    pub data: DataMode,
    /// Whether batch mode is in force, according to the granted features.
    pub batch: bool,
    /// What happens when its server dies, according to the granted features.
    pub recovery: Recovery,
    /// How long I/O was held, in microseconds, if the server was replaced.
    pub pause_us: Option<u64>,
    /// Names of the features in force.
    pub features: Vec<String>,
    /// The server process.
    pub server_pid: u32,
    /// The agent process.
    pub agent_pid: u32,
}

/// Counts of requests since the server started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// READ requests.
    pub reads: u64,
    /// WRITE requests.
    pub writes: u64,
    /// FLUSH requests.
    pub flushes: u64,
    /// DISCARD requests.
    pub discards: u64,
    /// WRITE_ZEROES requests.
    pub write_zeroes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Requests answered with an errno.
    pub errors: u64,
    /// Panics of the backend, contained.
    pub panics: u64,
    /// Requests that were dropped unanswered, and failed with EIO.
    pub dropped: u64,
    /// Descriptors refused.
    pub refused: u64,
    /// Calls of `io_uring_enter`.
    pub enters: u64,
}

/// The request that a queue has had in hand for longest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldestReport {
    /// Milliseconds, at least: since a look at the queue found it first; with latencies, since it arrived.
    pub ms: u64,
    /// Where it is: `waiting` for a thread of the backend, in the `backend`, or its `answer` waits for the queue's thread.
    pub place: String,
}

/// The first request that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstFailure {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Operation, place and errno.
    pub text: String,
}

/// Something that is wrong with a serving device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Which.
    pub kind: ProblemKind,
    /// For people.
    pub text: String,
}

/// What may be wrong with a serving device, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// A queue has ended with an error.
    Failed,
    /// A request has not been answered for [`STALLED`](crate::problems::STALLED).
    Stalled,
    /// The storage behind the device cannot be reached.
    Degraded,
    /// The backend has panicked.
    Panics,
    /// Requests have failed.
    Errors,
    /// One that a later version knows.
    #[serde(other)]
    Other,
}

impl ProblemKind {
    /// It in one word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Stalled => "stalled",
            Self::Degraded => "degraded",
            Self::Panics => "panics",
            Self::Errors => "errors",
            Self::Other => "other",
        }
    }
}

/// Health of one queue.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct QueueReport {
    /// The queue.
    pub qid: u16,
    /// Index among the queue's threads, if there are several.
    #[serde(default)]
    pub thread: u16,
    /// Its state in one word.
    pub state: String,
    /// Requests that the server holds; at least one while its thread works on a batch.
    pub in_hand: u64,
    /// The request that it has had in hand for longest, as far as looks at it know.
    #[serde(default)]
    pub oldest: Option<OldestReport>,
    /// Batches that its thread has finished. A queue with requests in flight that finishes none is stuck.
    #[serde(default)]
    pub batches: u64,
    /// CPUs that its thread is pinned to; `None` if it is not pinned.
    pub pinned: Option<Vec<u32>>,
    /// Whether PR_SET_IO_FLUSHER is set for the thread, as read back.
    pub io_flusher: bool,
    /// The features that its ring was granted.
    pub setup: String,
    /// Size of its buffers in bytes: mapped, but populated page by page as requests arrive.
    #[serde(default)]
    pub buffer_bytes: u64,
    /// Page size of the buffers.
    #[serde(default)]
    pub pages: String,
}

/// Health of a server.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Health {
    /// The worst state of its queues, in one word.
    pub state: String,
    /// The first error of any queue.
    pub first_error: Option<String>,
    /// The first request that failed.
    #[serde(default)]
    pub first_failure: Option<FirstFailure>,
    /// What is wrong, the worst first; empty of a good device.
    #[serde(default)]
    pub problems: Vec<Problem>,
    /// Counts.
    #[serde(flatten)]
    pub stats: Stats,
    /// Each queue.
    pub queues: Vec<QueueReport>,
    /// The file of a file device.
    #[serde(default)]
    pub file: Option<FileReport>,
    /// The memory shared with clients, if any.
    #[serde(default)]
    pub shm: Option<ShmReport>,
    /// The connections of an NBD device.
    #[serde(default)]
    pub nbd: Option<NbdReport>,
}

/// The connections of an NBD device to its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdReport {
    /// `up`; `reconnecting` while requests wait; `failing` once they fail; `reads-only` after a change of the export.
    pub state: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Why a connection was lost or could not be made, most recently.
    pub last_error: Option<String>,
    /// Connections now.
    pub connections: u32,
    /// Connections that were lost and made again.
    pub reconnects: u64,
    /// Requests that were in flight on a lost connection and sent again.
    pub replayed: u64,
    /// What becomes of requests while the server cannot be reached.
    pub retry: Retry,
    /// The server that has the device's data.
    pub uri: String,
    /// Queues that have not moved yet.
    pub moving: u32,
    /// The server that they move to.
    #[serde(default)]
    pub moving_to: Option<String>,
    /// Encryption of the most recent connection; `null` for plain text.
    #[serde(default)]
    pub tls: Option<TlsInfo>,
}

/// Use of the memory that a device shares with its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmReport {
    /// Size of the shared memory in bytes.
    pub bytes: u64,
    /// Requests with data in this memory, so that the driver copied nothing.
    pub hits: u64,
    /// Misses: requests with data elsewhere, served in the device's data mode.
    pub fallbacks: u64,
}

/// Use of a file device's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Whether data bypasses the page cache of the server's machine (O_DIRECT).
    pub direct: bool,
    /// Whether requests wait for the disk concurrently, as operations on the queue's ring; false for a file in memory,
    /// which is accessed by system calls.
    pub asynchronous: bool,
    /// FLUSH and FUA requests.
    pub sync_requests: u64,
    /// Calls of fdatasync that served them.
    pub syncs: u64,
}
