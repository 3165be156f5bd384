//! The stages of a device before and after it serves: each consumes the previous one.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ublk_core::{Backend, DevId, Errno, Features, Geometry, SharedBuffer, SharedTable};
use ublk_ctrl::Controller;
use ublk_ctrl::bring_up::{TimeLimit, Unserved};
use ublk_queue::{Plan, Server, SharedMemory};

use crate::device::Device;
use crate::error::{Error, Failure, Left};
use crate::options::{ArmFn, Options};

/// ADD_DEV and SET_PARAMS are done: `/dev/ublkcN` exists, without a server.
pub struct Added<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) unserved: Unserved,
    pub(crate) controller: Box<dyn Controller>,
    pub(crate) options: Options,
    pub(crate) arm: ArmFn<B>,
}

/// Every tag of every queue is with the driver: START_DEV may be sent.
pub struct Armed {
    pub(crate) server: Server,
    pub(crate) unserved: Unserved,
    pub(crate) controller: Box<dyn Controller>,
    pub(crate) size: u64,
    pub(crate) deadline: Duration,
    pub(crate) unscheduled: bool,
    pub(crate) resize: Resize,
}

/// How long a start waits until the I/O scheduler is disabled, which requires that the first reads are answered.
const UNSCHEDULED: Duration = Duration::from_secs(1);

/// Asks the backend for another size.
pub(crate) type Resize = Arc<dyn Fn(u64) -> Result<(), Errno> + Send + Sync>;

pub(crate) fn resize_of<B: Backend>(backend: &Arc<B>) -> Resize {
    let backend = Arc::clone(backend);
    Arc::new(move |size| backend.resize(size))
}

/// The device has stopped and its queues are gone; its number and `/dev/ublkcN` remain.
pub struct Stopped {
    pub(crate) geometry: Geometry,
    pub(crate) controller: Box<dyn Controller>,
    pub(crate) deadline: Duration,
}

/// A command timed out: the stage of the device is unknown.
pub struct Unsettled {
    pub(crate) geometry: Geometry,
    pub(crate) controller: Box<dyn Controller>,
    pub(crate) server: Option<Server>,
    pub(crate) deadline: Duration,
}

/// Common to all stages.
pub(crate) trait Stage: Sized {
    /// Removes the device from this stage: stop, end, delete.
    fn remove(self) -> Result<(), Error>;
}

/// Removes what a failed stage left, and returns its error.
pub(crate) fn clean_up<S: Stage>(failure: Failure<S>) -> Error {
    // Report the first error; a device that cannot be removed stays listed.
    let _ = match failure.left {
        Left::Same(stage) => stage.remove(),
        Left::Unsettled(unsettled) => unsettled.remove(),
    };
    failure.error
}

impl<B: Backend> Added<B> {
    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.unserved.id()
    }

    /// The geometry that the kernel granted.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        self.unserved.geometry()
    }

    /// The registered memory that is shared with clients; empty if there is none.
    #[must_use]
    pub fn shared_buffers(&self) -> &[SharedBuffer] {
        let shared = self.options.shared.as_ref();
        shared.map_or(&[], |shared| &shared.buffers)
    }

    /// Opens `/dev/ublkcN`, starts the queues' threads and gives every tag to the driver.
    ///
    /// # Errors
    /// The error of a queue that could not be armed; the device still exists.
    pub fn arm(mut self) -> Result<Armed, Failure<Self>> {
        match self.try_arm() {
            Ok(server) => Ok(Armed {
                server,
                unserved: self.unserved,
                size: self.backend.limits().size,
                resize: resize_of(&self.backend),
                controller: self.controller,
                deadline: self.options.deadline,
                unscheduled: self.options.unscheduled,
            }),
            Err(error) => Err(Failure {
                error,
                left: Left::Same(Box::new(self)),
            }),
        }
    }

    pub(crate) fn try_arm(&mut self) -> Result<Server, Error> {
        let deadline = self.options.deadline;
        let mut plan = Plan::new(self.backend.limits().size);
        plan.threads = self.options.threads;
        plan.shared_threads = self.options.hosts.clone();
        plan.options = self.options.serve;
        plan.pool_threads = self.options.pool_threads;
        plan.arm_deadline = deadline;
        let granted = self.geometry().features();
        let by_flag = granted.contains(Features::NO_AUTO_PART_SCAN);
        plan.partitions = self.options.partitions || by_flag;
        plan.on_failure.clone_from(&self.options.on_failure);
        if let Some(shared) = &self.options.shared {
            let table = SharedTable::new(&shared.buffers);
            let memory = SharedMemory::map(shared.file.as_fd(), table);
            plan.client_memory = Some(memory.map_err(Error::SharedMemory)?);
        }
        if self.options.pin && plan.shared_threads.is_none() {
            let limit = TimeLimit::Each(deadline);
            plan.affinity = self.unserved.affinity(&mut self.controller, limit)?;
        }
        let device = self.controller.open_device(self.id(), deadline)?;
        Ok((self.arm)(device, plan, Arc::clone(&self.backend))?)
    }

    /// Deletes the device.
    ///
    /// # Errors
    /// The error of DEL_DEV.
    pub fn delete(self) -> Result<(), Error> {
        self.remove()
    }
}

impl<B> Stage for Added<B> {
    fn remove(mut self) -> Result<(), Error> {
        Ok(self
            .controller
            .delete(self.unserved.id(), self.options.deadline)?)
    }
}

impl Armed {
    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.unserved.id()
    }

    /// Sends START_DEV, and waits until `/dev/ublkbN` exists, may be opened and has its size. It does not open the node: the
    /// open would wait for the partition scan, and the scan for our own answers.
    ///
    /// # Errors
    /// The error of START_DEV. After a deadline the device is unsettled.
    pub fn start(mut self) -> Result<Device, Failure<Self>> {
        match self.go_live() {
            Ok(()) => {}
            Err(error @ ublk_ctrl::Error::TimedOut { .. }) => {
                return Err(self.unsettled(error.into()));
            }
            Err(error) => {
                return Err(Failure {
                    error: error.into(),
                    left: Left::Same(Box::new(self)),
                });
            }
        }
        if let Err(error) = self
            .controller
            .prove_ready(self.id(), self.size, self.deadline)
        {
            return Err(self.unsettled(error.into()));
        }
        if self.unscheduled {
            // A device that keeps its scheduler is only slower, and not every owner may write to sysfs.
            let within = self.deadline.min(UNSCHEDULED);
            let _ = self.controller.no_scheduler(self.id(), within);
        }
        Ok(Device::new(self))
    }

    /// START_DEV, or END_USER_RECOVERY for a device in recovery.
    pub(crate) fn go_live(&mut self) -> Result<(), ublk_ctrl::Error> {
        let limit = TimeLimit::Each(self.deadline);
        self.unserved
            .go_live(&mut self.controller, std::process::id(), limit)
    }

    fn unsettled(self, error: Error) -> Failure<Self> {
        Failure {
            error,
            left: Left::Unsettled(Box::new(self.into_unsettled())),
        }
    }

    fn into_unsettled(self) -> Unsettled {
        Unsettled {
            geometry: *self.unserved.geometry(),
            controller: self.controller,
            server: Some(self.server),
            deadline: self.deadline,
        }
    }

    /// Takes the tags back and deletes the device.
    ///
    /// # Errors
    /// The error of DEL_DEV, or a thread that did not end.
    pub fn delete(self) -> Result<(), Error> {
        self.remove()
    }
}

impl Stage for Armed {
    fn remove(self) -> Result<(), Error> {
        self.into_unsettled().remove()
    }
}

impl Stopped {
    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.geometry.dev_id()
    }

    /// Sends DEL_DEV and waits until the number is free.
    ///
    /// # Errors
    /// The error of DEL_DEV; after a deadline another process still has the device open.
    pub fn delete(mut self) -> Result<(), Error> {
        Ok(self
            .controller
            .delete(self.geometry.dev_id(), self.deadline)?)
    }
}

impl Stage for Stopped {
    fn remove(self) -> Result<(), Error> {
        self.delete()
    }
}

impl Unsettled {
    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.geometry.dev_id()
    }

    /// Stops and deletes the device in whatever stage it is: STOP_DEV while the queues serve, then their end, then
    /// DEL_DEV (L22).
    ///
    /// # Errors
    /// The error of the first step that failed. The device stays listed.
    pub fn settle(self) -> Result<(), Error> {
        self.remove()
    }
}

impl Stage for Unsettled {
    fn remove(mut self) -> Result<(), Error> {
        let id = self.geometry.dev_id();
        self.controller.stop(id, self.deadline)?;
        if let Some(mut server) = self.server.take() {
            // Before START_DEV some kernels abort nothing on STOP_DEV, so tell the threads.
            if server.finish(Duration::from_millis(100)).is_err() {
                server.leave();
                server.finish(self.deadline)?;
            }
        }
        Ok(self.controller.delete(id, self.deadline)?)
    }
}

macro_rules! debug {
    ($($stage:ident $(<$b:ident>)?: $field:ident),*) => {$(
        impl $(<$b>)? fmt::Debug for $stage $(<$b>)? {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($stage)).field(stringify!($field), &self.$field).finish_non_exhaustive()
            }
        }
    )*};
}
debug!(Added<B>: unserved, Armed: unserved, Stopped: geometry, Unsettled: geometry);
