//! The data plane as seen by the server role: real, or a test's.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;
use ublk_backends::Identity;
use ublk_core::Limits;

use crate::failure::Failure;
use crate::link::message::{Assignment, Opening};
use crate::report::Health;
use crate::spec::AddSpec;
use crate::spec::BackendCommand;
use ublk_metrics::{Level, Snapshot};
use ublk_trace::recorder::Drain;

/// Opens and arms the server role's data plane: the real one, or a test's.
pub trait Engine {
    /// Opens the backend, by the descriptors of the server before if there are any, and says what device it can serve.
    ///
    /// # Errors
    /// The backend's error.
    fn open(
        &mut self,
        spec: &AddSpec,
        opening: &Opening,
        passed: Vec<OwnedFd>,
    ) -> Result<Backing, Failure>;

    /// Opens the character device and returns once every fetch of every queue is with the driver.
    ///
    /// # Errors
    /// The first failure of any queue.
    fn arm(&mut self, assignment: &Assignment) -> Result<Box<dyn Running>, Failure>;
}

/// An opened backend.
#[derive(Debug)]
pub struct Backing {
    /// The limits of the device that it can serve.
    pub limits: Limits,
    /// Which files or disks it is, and descriptors of those for the agent, which keeps locks and claims when the server
    /// dies.
    pub store: Vec<(Identity, OwnedFd)>,
}

/// Notes where a device goes, by URI. Called on any thread; does not block.
pub type Announce = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// A device being served.
pub trait Running {
    /// Readable once all threads have ended.
    fn ended_fd(&self) -> BorrowedFd<'_>;

    /// Its current health.
    fn health(&self) -> Health;

    /// Readable when failed requests are to be reported.
    fn failures_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Logs the failed requests.
    fn say_failures(&self) {}

    /// Readable once the device has moved after [`tell_when_moving`](Self::tell_when_moving).
    fn moved_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Makes [`moved_fd`](Self::moved_fd) readable once the device has served something; an idle one is not woken.
    fn tell_when_moving(&self) {}

    /// Changes how the backend works; a backend without the option ignores it. The health reports what is in force.
    fn command(&self, command: &BackendCommand) {
        let _ = command;
    }

    /// Calls this before the device goes to another server; if it fails, the device stays.
    fn announce_moves(&self, announce: Announce) {
        drop(announce);
    }

    /// What the device has done.
    fn metrics(&self) -> Snapshot;

    /// Changes what is measured.
    fn measure(&self, level: Level);

    /// Passes each request from now on to a ring of its queue's thread, and returns the rings' other ends.
    fn record(&self) -> Vec<Drain>;

    /// Ends the recording; soon afterwards nothing is pushed any more.
    fn end_recording(&self);

    /// Why a queue failed, if one did.
    fn failure(&self) -> Option<Failure>;

    /// Joins the threads and closes rings, mappings and character device.
    ///
    /// # Errors
    /// The cause, if it is not the normal end.
    fn finish(&mut self, within: Duration) -> Result<Health, Failure>;
}
