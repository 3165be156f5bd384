//! The messages of the link.
//!
//! Between agent and server: describe, assign, armed, live, leave, empty, failed, and health, the
//! event asked for. Between front and agent: add, leave, live, gone, failed.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_backends::Identity;
use ublk_core::{CpuMask, Geometry, Limits};

use crate::failure::Failure;
use crate::report::{Added, Health};
use crate::spec::{AddSpec, BackendCommand, Registered};

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

/// Messages from the front to the agent.
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
    /// The caller knows the device's name: from now on the device lives without the front.
    Keep,
}

/// Messages from the agent to the front.
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

/// Messages from the agent to the server.
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
    /// Change how the backend works, and report the health.
    Backend {
        /// Comes back in the answer.
        ticket: u64,
        /// The change.
        command: BackendCommand,
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

/// Messages from the server to the agent.
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
    /// The server was asked to end and requests that the agent stop the device. The server keeps serving.
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
