//! The words of the link: what the roles say to each other, and what the tool prints as JSON.
//!
//! Between agent and server: describe, assign, armed, live, leave, empty, failed, and health, the
//! event asked for. Between front and agent: add, leave, live, gone, failed.

pub use crate::failure::{Failure, FailureKind};
use crate::shm::Registered;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_backends::Identity;
use ublk_core::{CpuMask, DataMode, Geometry, Limits, Mode, Recovery};

/// What answers the requests of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendSpec {
    /// Reads give zeroes or old bytes, writes are forgotten: for measuring.
    Null {
        /// Size in bytes.
        size: u64,
    },
    /// Memory of the server, filled as it is written.
    Mem {
        /// Size in bytes.
        size: u64,
    },
    /// A regular file or a block device, or a part of it.
    File {
        /// Where it is; absolute.
        path: PathBuf,
        /// Where in it the device begins, in bytes.
        offset: u64,
        /// Bytes of the device, `None` for the rest of the file. The front writes down what it found, so that the
        /// device has the same size whenever it is served again.
        length: Option<u64>,
        /// Through the page cache even where O_DIRECT could be had.
        buffered: bool,
        /// DISCARD is offered where the file can give storage back.
        discard: bool,
        /// It is served although somebody else uses it.
        #[serde(default)]
        force: bool,
    },
}

impl BackendSpec {
    /// Sets the size of the device, in bytes.
    pub fn set_size(&mut self, bytes: u64) {
        match self {
            Self::Null { size } | Self::Mem { size } => *size = bytes,
            Self::File { length, .. } => *length = Some(bytes),
        }
    }

    /// The word of the command line.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null { .. } => "null",
            Self::Mem { .. } => "mem",
            Self::File { .. } => "file",
        }
    }

    /// Size of the device in bytes; 0 for a file whose size nobody has looked at yet.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Null { size } | Self::Mem { size } => *size,
            Self::File {
                length: Some(size), ..
            } => *size,
            Self::File { length: None, .. } => 0,
        }
    }
}

/// The device that `add` shall make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddSpec {
    /// What answers its requests.
    pub backend: BackendSpec,
    /// The device's number, `None` for the lowest free one.
    pub id: Option<u32>,
    /// Hw queues asked for; the kernel lowers it to the number of CPUs.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// Logical block size in bytes; 0 for a file's own, which the front replaces by what it found.
    pub block_size: u32,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// The device refuses writes.
    pub read_only: bool,
    /// How data and commands travel: the features of ADD_DEV. Records without it are of copy mode.
    #[serde(default)]
    pub mode: Mode,
    /// The way of data was left open: the one that measurements favour for this backend, taken into `mode` when the
    /// device is made if the kernel has it.
    #[serde(default)]
    pub auto: Option<DataMode>,
    /// What becomes of it when its server dies.
    #[serde(default)]
    pub recovery: Recovery,
    /// The I/O scheduler of its block device.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Its name: that of a link to its node.
    #[serde(default)]
    pub name: Option<String>,
    /// Its agent gives it a new server when its own dies.
    #[serde(default)]
    pub supervise: bool,
    /// It is made by a user without CAP_SYS_ADMIN, and is theirs (UBLK_F_UNPRIVILEGED_DEV, Linux 6.3).
    #[serde(default)]
    pub unprivileged: bool,
    /// It is made even on a kernel that is known for a crash in ADD_DEV.
    #[serde(default)]
    pub trust_kernel: bool,
    /// How each queue is served: the server's own affair.
    #[serde(default)]
    pub serving: Serving,
}

/// The I/O scheduler of a device that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// None: requests come as they were made.
    #[default]
    None,
    /// What the kernel chose.
    Kernel,
}

/// How the queues of a device are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Threads of each queue.
    pub threads: u16,
    /// What a thread does before it sleeps, as `ublk_queue::Polling` writes it.
    pub poll: String,
    /// The buffers in huge pages where they are to be had.
    #[serde(default)]
    pub huge_pages: bool,
    /// The file of memory that the device's clients share with it; absolute.
    #[serde(default)]
    pub shm: Option<PathBuf>,
    /// The server's memory is locked.
    #[serde(default)]
    pub lock_memory: bool,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            threads: 1,
            poll: ublk_queue::Polling::Off.to_string(),
            huge_pages: false,
            shm: None,
            lock_memory: false,
        }
    }
}

/// How long a device and its processes live, by the front that asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lifetime {
    /// Without the front, which goes once the device serves.
    #[default]
    Own,
    /// No longer than the front: the device is stopped and deleted at its end.
    Front,
    /// The processes live no longer than the front; a recoverable device is written back and waits for the next
    /// ones, every other is stopped and deleted.
    Left,
}

/// First message of the front to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// [`crate::link::LINK_VERSION`] of the front.
    pub version: u32,
    /// The device.
    pub spec: AddSpec,
    /// What ends with the front.
    pub lifetime: Lifetime,
    /// Where messages go once the front has left, `None` for `ID.log` in the run directory.
    pub log: Option<PathBuf>,
    /// Milliseconds until the front gives up.
    pub deadline_ms: u64,
}

/// First message of the front to an agent that shall give a device a new server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// [`crate::link::LINK_VERSION`] of the front.
    pub version: u32,
    /// The device. Its configuration is what the state store has.
    pub id: u32,
    /// Its server is at work and shall be replaced: an upgrade.
    pub replace: bool,
    /// Size in bytes that the device shall have with its new server, `None` for the one it has.
    pub size: Option<u64>,
    /// Requests may fail where the policy cannot keep them from it.
    pub allow_errors: bool,
    /// What its backing store's path leads to now is served, also where that is another than it was made with.
    #[serde(default)]
    pub accept_backing: bool,
    /// What ends with the front.
    pub lifetime: Lifetime,
    /// Milliseconds until the front gives up.
    pub deadline_ms: u64,
}

/// What the front says to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToAgent {
    /// Make this device.
    Add(AddRequest),
    /// Give this device a new server.
    Recover(RecoverRequest),
    /// Stop and delete it (foreground: the front got a signal).
    Leave,
    /// Whoever asked for the device knows its name: from now on it lives without the front.
    Keep,
}

/// What the agent says to the front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FromAgent {
    /// The device serves I/O.
    Live(Added),
    /// The device is deleted, as it should be.
    Gone,
    /// It came to nothing, or to an end that was not asked for.
    Failed(Failure),
}

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

/// What the agent says to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToServer {
    /// The first message: who is speaking, and the backend to open and describe.
    Describe {
        /// [`crate::link::LINK_VERSION`] of the agent.
        version: u32,
        /// What to serve.
        spec: AddSpec,
        /// How it comes to its backing store. A descriptor of it may come with the message.
        opening: Opening,
    },
    /// The device exists: open it and arm it.
    Assign(Assignment),
    /// START_DEV is done: the device serves. The file for the messages from now on comes along, open, if there is one.
    Live,
    /// Report your health.
    Health {
        /// Comes back in the answer.
        ticket: u64,
    },
    /// Leave a recoverable device that is live to its next server. What is in hand is not answered.
    HandOver,
    /// The device will not be started: leave at once.
    Quit,
}

/// How a server comes to the backing store of its device: nothing for a new device, whose path it opens.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Opening {
    /// The nonce of the device, if it has one yet.
    pub nonce: Option<u64>,
    /// What the device was made with: another is refused.
    pub backing: Option<Identity>,
    /// The server before, which may still have it open.
    pub predecessor: Option<u32>,
    /// Where to open it instead of its path.
    pub instead: Option<PathBuf>,
}

/// The device a server shall serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The kernel's reply to ADD_DEV.
    pub geometry: Geometry,
    /// CPUs of each queue, from GET_QUEUE_AFFINITY.
    pub affinity: Vec<CpuMask>,
    /// Milliseconds until all queues must be armed.
    pub deadline_ms: u64,
    /// What was registered of the memory shared with clients.
    #[serde(default)]
    pub shm: Option<Registered>,
}

/// What the server says to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FromServer {
    /// The backend is open and this is its device.
    Described {
        /// [`crate::link::LINK_VERSION`] of the server.
        version: u32,
        /// The device it can serve.
        limits: Limits,
        /// Which file or disk that is. A descriptor of it comes with the message, which keeps its lock and its claim.
        #[serde(default)]
        backing: Option<Identity>,
    },
    /// Every fetch of every queue is with the driver.
    Armed {
        /// The process that opened the character device.
        pid: u32,
    },
    /// Somebody asked the server to end: stop the device, please. The server serves on.
    Leave {
        /// What it was asked by, for the log.
        why: String,
    },
    /// Nothing is in hand or with the driver, and all of the device is closed.
    Empty {
        /// The last counts.
        health: Option<Health>,
    },
    /// A queue failed, hence the device has.
    Failed(Failure),
    /// First word to an agent that found the server at work without one.
    Attached {
        /// [`crate::link::LINK_VERSION`] of the server.
        version: u32,
    },
    /// The answer to [`ToServer::Health`].
    Health {
        /// Of the question.
        ticket: u64,
        /// The snapshot.
        health: Health,
        /// More of its queues follow, in another message of this ticket.
        #[serde(default)]
        more: bool,
    },
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
    /// Requests nobody answered, hence answered with EIO.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backend_words_are_those_of_the_command_line() {
        let spec = BackendSpec::Mem { size: 4096 };
        assert_eq!(
            serde_json::to_string(&spec).unwrap(),
            r#"{"kind":"mem","size":4096}"#
        );
        assert_eq!((spec.name(), spec.size()), ("mem", 4096));
        let mut file = BackendSpec::File {
            path: "/srv/disk.img".into(),
            offset: 0,
            length: None,
            buffered: false,
            discard: true,
            force: false,
        };
        assert_eq!((file.name(), file.size()), ("file", 0));
        if let BackendSpec::File { length, .. } = &mut file {
            *length = Some(8192);
        }
        assert_eq!(file.size(), 8192);
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<BackendSpec>(&text).unwrap(), file);
    }
}
