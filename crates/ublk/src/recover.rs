//! Starts a new server for a waiting device, in stages: take over, arm, resume.

use std::fmt;

use ublk_core::{Backend, DevId, Geometry, recovery};
use ublk_ctrl::ControlThread;
use ublk_ctrl::bring_up::{self, TimeLimit, Unserved};
use ublk_queue::Server;

use crate::builder::Builder;
use crate::device::Device;
use crate::error::{Error, Failure, Left};
use crate::stages::{Added, Armed, resize_of};

/// START_USER_RECOVERY is done: the device waits for this process. If dropped, the device waits for any other server.
pub struct Recovering<B> {
    added: Added<B>,
    size: u64,
}

/// Every tag of every queue is with the driver again. If dropped, the threads leave and the device keeps waiting.
pub struct Rearmed {
    armed: Armed,
}

impl<B: Backend> Builder<B> {
    /// Takes over a device whose server is gone, after waiting until the driver has released the old server (L34). The
    /// device keeps its properties: this builder sets only what concerns the server (backend, controller, threads, pinning,
    /// polling, buffers, shared memory, deadline).
    ///
    /// The driver does not know which program a device belongs to: compare [`Builder::server_flags`] of its creator, in
    /// [`Recovering::geometry`].
    ///
    /// # Errors
    /// [`Error::Misfit`] if the backend cannot serve the device, or an error of the driver: the device is live, dead, or was
    /// created without recovery. The device is unchanged.
    pub fn recover(self, id: DevId) -> Result<Recovering<B>, Error> {
        let deadline = self.options.deadline;
        let mut controller = match self.controller {
            Some(controller) => controller,
            None => Box::new(ControlThread::start(deadline)?),
        };
        let limit = TimeLimit::Each(deadline);
        let params = bring_up::params(&mut controller, id, limit)?;
        recovery::fits(&self.backend.limits(), &params)
            .map_err(|misfit| Error::Misfit { id, misfit })?;
        let unserved = Unserved::take_over(&mut controller, id, deadline, limit)?;
        Ok(Recovering {
            added: Added {
                backend: self.backend,
                unserved,
                controller,
                options: self.options,
                arm: self.arm,
            },
            size: params.size,
        })
    }

    /// Runs all stages of a recovery: the device serves again when this returns. If a stage fails, the device keeps
    /// waiting.
    ///
    /// # Errors
    /// The error of the first stage that failed.
    pub fn resume(self, id: DevId) -> Result<Device, Error> {
        Ok(self.recover(id)?.arm()?.resume()?)
    }
}

impl<B: Backend> Recovering<B> {
    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.added.id()
    }

    /// The geometry that the kernel granted.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        self.added.geometry()
    }

    /// Opens `/dev/ublkcN`, starts the queues' threads and gives every tag to the driver.
    ///
    /// # Errors
    /// The error of a queue that could not be armed; the device keeps waiting.
    pub fn arm(mut self) -> Result<Rearmed, Failure<Self>> {
        match self.added.try_arm() {
            Ok(server) => Ok(Rearmed {
                armed: self.into_armed(server),
            }),
            Err(error) => Err(Failure {
                error,
                left: Left::Same(Box::new(self)),
            }),
        }
    }

    fn into_armed(self, server: Server) -> Armed {
        let Self { added, size } = self;
        Armed {
            server,
            resize: resize_of(&added.backend),
            unserved: added.unserved,
            controller: added.controller,
            size,
            deadline: added.options.deadline,
            // The scheduler was set when the device was first started.
            unscheduled: false,
        }
    }
}

impl Rearmed {
    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.armed.id()
    }

    /// Sends END_USER_RECOVERY: the device becomes live and receives the waiting requests.
    ///
    /// # Errors
    /// An error of the driver; the device keeps waiting. Past the deadline the command was cancelled and had no
    /// effect.
    pub fn resume(mut self) -> Result<Device, Failure<Self>> {
        match self.armed.go_live() {
            Ok(()) => Ok(Device::new(self.armed)),
            Err(error) => Err(Failure {
                error: error.into(),
                left: Left::Same(Box::new(self)),
            }),
        }
    }
}

impl<B> fmt::Debug for Recovering<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Recovering").field(&self.added).finish()
    }
}

impl fmt::Debug for Rearmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rearmed").field(&self.armed).finish()
    }
}
