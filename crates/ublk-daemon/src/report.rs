//! Reports on serving devices, which the tool prints as text and as JSON.
#![forbid(unsafe_code)]

use crate::spec::Retry;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_core::{DataMode, Recovery};

/// A device that serves I/O: what `add --json` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Its number.
    pub id: u32,
    /// The block device.
    pub path: PathBuf,
    /// The character device.
    pub char_path: PathBuf,
    /// Hw queues, as the kernel made them.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// The device refuses writes.
    pub read_only: bool,
    /// The backend's word of the command line.
    pub backend: String,
    /// How data travels, by the features in force.
    pub data: DataMode,
    /// Whether commands go in batches, by the features in force.
    pub batch: bool,
    /// What becomes of it when its server dies, by the features in force.
    pub recovery: Recovery,
    /// How long its I/O was held, in microseconds, where its server was replaced.
    pub pause_us: Option<u64>,
    /// Names of the features in force.
    pub features: Vec<String>,
    /// The server process.
    pub server_pid: u32,
    /// The agent process.
    pub agent_pid: u32,
}

/// Counts of requests, since the server started.
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

/// Health of one queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueReport {
    /// The queue.
    pub qid: u16,
    /// Which of the queue's threads, where it has several.
    #[serde(default)]
    pub thread: u16,
    /// Its state in one word.
    pub state: String,
    /// Requests in the server's hands; at least one while its thread is at work.
    pub in_hand: u64,
    /// Batches that its thread has finished. A queue that has requests in hand and finishes none is stuck.
    #[serde(default)]
    pub batches: u64,
    /// CPUs its thread is pinned to, `None` if it is not.
    pub pinned: Option<Vec<u32>>,
    /// Whether the thread carries PR_SET_IO_FLUSHER, as read back.
    pub io_flusher: bool,
    /// What its ring was granted.
    pub setup: String,
    /// Bytes of its buffers: mapped, and taken page by page as requests come.
    #[serde(default)]
    pub buffer_bytes: u64,
    /// What pages they are made of.
    #[serde(default)]
    pub pages: String,
}

/// Health of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The worst state of its queues, in one word.
    pub state: String,
    /// The first error of any queue.
    pub first_error: Option<String>,
    /// Counts.
    #[serde(flatten)]
    pub stats: Stats,
    /// Each queue.
    pub queues: Vec<QueueReport>,
    /// The file of a file device.
    #[serde(default)]
    pub file: Option<FileReport>,
    /// The memory shared with clients, of a device that shares some.
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
    /// The server that connections are made to.
    pub uri: String,
    /// Queues that have not moved to it yet.
    pub moving: u32,
}

/// How the memory that a device shares with its clients is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShmReport {
    /// Bytes that are shared.
    pub bytes: u64,
    /// Requests whose data was in it, so that the driver copied nothing.
    pub hits: u64,
    /// Misses: requests with data outside, which the mode of the device served.
    pub fallbacks: u64,
}

/// How the file of a file device is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Data goes past the page cache of the server's machine (O_DIRECT).
    pub direct: bool,
    /// Its requests wait for the disk side by side, as operations on the queue's ring; false for a file in memory, which is
    /// read and written by calls.
    pub asynchronous: bool,
    /// FLUSH and FUA requests.
    pub sync_requests: u64,
    /// Calls of fdatasync that served them.
    pub syncs: u64,
}
