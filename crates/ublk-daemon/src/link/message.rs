//! The messages of the link.
//!
//! Between agent and server: describe, assign, armed, live, leave, empty, failed, and health on request. Between front
//! and agent: add, leave, live, gone, failed.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_backends::Identity;
use ublk_core::{CpuMask, DeviceParams, Geometry, Limits};
use ublk_metrics::{Level, Snapshot};

use crate::failure::Failure;
use crate::report::{Added, Health};
use crate::spec::{AddSpec, BackendCommand, Registered};

/// How long a device and its processes live, relative to the front.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Lifetime {
    /// Independent of the front, which exits once the device serves.
    #[default]
    Own,
    /// As long as the front: when it exits, the device is stopped and deleted.
    Front,
    /// The processes live as long as the front. When it exits, a recoverable device is written back and waits for a new
    /// server; any other device is stopped and deleted.
    Left,
}

/// First message of the front to a new device's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// [`crate::link::LINK_VERSION`] of the front.
    pub version: u32,
    /// The device.
    pub spec: Box<AddSpec>,
    /// What ends when the front exits.
    pub lifetime: Lifetime,
    /// Log file once the front has exited; `None` for `ID.log` in the run directory.
    pub log: Option<PathBuf>,
    /// The front's deadline in milliseconds.
    pub deadline_ms: u64,
}

/// First message of the front to an agent that starts a new server for a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverRequest {
    /// [`crate::link::LINK_VERSION`] of the front.
    pub version: u32,
    /// The device, whose configuration is in the state store.
    pub id: u32,
    /// An upgrade: replace a running server.
    pub replace: bool,
    /// New size of the device in bytes; `None` to keep the current one.
    pub size: Option<u64>,
    /// Proceed even if the recovery policy lets requests fail meanwhile.
    pub allow_errors: bool,
    /// Serve what the backing path leads to now, even if its identity has changed.
    #[serde(default)]
    pub accept_backing: bool,
    /// What ends when the front exits.
    pub lifetime: Lifetime,
    /// The front's deadline in milliseconds.
    pub deadline_ms: u64,
}

/// Messages from the front to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToAgent {
    /// Add this device.
    Add(AddRequest),
    /// Start a new server for this device.
    Recover(RecoverRequest),
    /// Stop and delete the device (foreground mode: the front got a signal).
    Leave,
    /// The front has reported the device's name to its caller: the device now outlives the front.
    Keep,
}

/// Messages from the agent to the front.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FromAgent {
    /// The device serves I/O.
    Live(Added),
    /// The device is deleted as requested.
    Gone,
    /// The operation failed, or the device ended unexpectedly.
    Failed(Failure),
}

/// Messages from the agent to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ToServer {
    /// The first message: the link version, and the backend to open and describe.
    Describe {
        /// [`crate::link::LINK_VERSION`] of the agent.
        version: u32,
        /// What to serve.
        spec: AddSpec,
        /// How to open the backing store; its descriptors may come with the message.
        opening: Opening,
    },
    /// The device exists: open it and arm it.
    Assign(Assignment),
    /// START_DEV is done: the device serves. The log file, if any, comes with the message.
    Live,
    /// Report your health.
    Health {
        /// Returned in the answer.
        ticket: u64,
    },
    /// Change the backend's operation and report health.
    Backend {
        /// Returned in the answer.
        ticket: u64,
        /// The change.
        command: BackendCommand,
    },
    /// Report the device's metrics.
    Metrics {
        /// Returned in the answer.
        ticket: u64,
        /// Change what is measured first.
        level: Option<Level>,
    },
    /// Record the requests of the device, hand over what was recorded, or end it.
    Record {
        /// Returned in the answer.
        ticket: u64,
        /// What to do.
        order: RecordOrder,
    },
    /// Log messages from this level on, and report the health.
    Log {
        /// Returned in the answer.
        ticket: u64,
        /// The level.
        level: String,
    },
    /// Leave a live, recoverable device to its next server, without answering the requests in flight.
    HandOver,
    /// The device will not be started: exit.
    Quit,
}

/// How a server opens its device's backing store. All fields are empty for a new device, whose path is opened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Opening {
    /// The nonce of the device, once assigned.
    pub nonce: Option<u64>,
    /// Identities of the files it was made with, in order; a mismatch is refused. Empty: any are accepted.
    pub backing: Vec<Identity>,
    /// Pid of the previous server, which may still have the store open.
    pub predecessor: Option<u32>,
    /// A path to open instead of the configured one.
    pub instead: Option<PathBuf>,
}

/// The device that a server is to serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The kernel's reply to ADD_DEV.
    pub geometry: Geometry,
    /// CPUs of each queue, from GET_QUEUE_AFFINITY.
    pub affinity: Vec<CpuMask>,
    /// Milliseconds until all queues must be armed.
    pub deadline_ms: u64,
    /// The registered memory that is shared with clients.
    #[serde(default)]
    pub shm: Option<Registered>,
    /// The parameters of a device that exists.
    #[serde(default)]
    pub params: Option<DeviceParams>,
}

/// Messages from the server to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FromServer {
    /// The backend is open.
    Described {
        /// [`crate::link::LINK_VERSION`] of the server.
        version: u32,
        /// The limits of the device that the server can serve.
        limits: Limits,
        /// Identities of the files. The descriptors that come with the message keep their locks and claims.
        #[serde(default)]
        backing: Vec<Identity>,
    },
    /// Every tag of every queue is fetched.
    Armed {
        /// The process that opened the character device.
        pid: u32,
    },
    /// The server was asked to end and requests that the agent stop the device. The server keeps serving.
    Leave {
        /// What asked the server to end, for the log.
        why: String,
    },
    /// No request is in flight or with the driver, and the character device is closed.
    Empty {
        /// Final health snapshot.
        health: Option<Health>,
    },
    /// The NBD device goes to another server: this is where its data is from now on. Sent before the first request goes there.
    Moves {
        /// The server's URI.
        uri: String,
    },
    /// A queue failed, and therefore the device.
    Failed(Failure),
    /// First message to a new agent that found the server running without one.
    Attached {
        /// [`crate::link::LINK_VERSION`] of the server.
        version: u32,
    },
    /// The answer to [`ToServer::Health`].
    Health {
        /// The ticket of the question.
        ticket: u64,
        /// The snapshot.
        health: Health,
        /// Whether more queues follow in another message with this ticket.
        #[serde(default)]
        more: bool,
    },
    /// The answer to [`ToServer::Metrics`].
    Metrics {
        /// Of the question.
        ticket: u64,
        /// What the device has done.
        snapshot: Snapshot,
        /// More of its queues follow, in another message of this ticket.
        more: bool,
    },
    /// The answer to [`ToServer::Record`].
    Recorded {
        /// Of the question.
        ticket: u64,
        /// What was recorded.
        piece: Piece,
        /// More requests follow, in another message of this ticket.
        more: bool,
    },
}

/// What a server is to do about a recording. A recording belongs to the caller that chose its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum RecordOrder {
    /// Begin.
    Start(u64),
    /// Hand over what was recorded since the last time.
    Pull(u64),
    /// End, and hand over the rest.
    Stop(u64),
}

/// The question about a recording.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordQuestion {
    /// What the server is to do.
    pub record: RecordOrder,
}

/// What a server has recorded since it was last asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Why there is no such recording; else nothing.
    pub refused: Option<String>,
    /// When the recording began: nanoseconds since 1970.
    pub began: u64,
    /// Number of requests lost since the last time: a ring was full.
    pub lost: u64,
    /// Requests, [`packed`](crate::recording::pack).
    pub requests: Vec<String>,
}

/// What a caller at the agent's socket asks for. One that says nothing asks for the health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Question {
    /// A change of the backend, and the health then.
    Backend(BackendCommand),
    /// What the device has done.
    Metrics(MetricsQuestion),
    /// Its requests, one by one.
    Record(RecordQuestion),
    /// Another level of the messages of agent and server.
    Log(LogQuestion),
}

/// The order to log other messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogQuestion {
    /// The least level that is logged from now on: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
}

/// The question for what a device has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsQuestion {
    /// Measure this much from now on; later servers of the device, too.
    pub metrics: Option<Level>,
}
