//! The options that the stages of a device keep from its builder.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ublk_core::{OpenDevice, SharedBuffer};
use ublk_queue::{OnFailure, Plan, ServeOptions, Server, Threads};

/// How the data plane is armed with the backend.
pub(crate) type ArmFn<B> = fn(OpenDevice, Plan, Arc<B>) -> Result<Server, ublk_queue::Error>;

/// Options that the stages keep from the builder.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) deadline: Duration,
    pub(crate) pin: bool,
    pub(crate) threads: Option<u16>,
    pub(crate) hosts: Option<Arc<Threads>>,
    pub(crate) serve: ServeOptions,
    pub(crate) pool_threads: usize,
    pub(crate) shared: Option<ClientMemory>,
    pub(crate) on_failure: Option<OnFailure>,
    pub(crate) unscheduled: bool,
    pub(crate) partitions: bool,
}

/// Memory shared with the device's clients, and its registration with the driver.
#[derive(Debug, Clone)]
pub(crate) struct ClientMemory {
    pub(crate) file: Arc<OwnedFd>,
    pub(crate) buffers: Vec<SharedBuffer>,
}
