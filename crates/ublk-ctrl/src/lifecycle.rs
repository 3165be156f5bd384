//! Commands later in a device's life: recovery, quiesce, resize, and conditional or asynchronous removal.
#![forbid(unsafe_code)]

use crate::control::on;
use crate::port::CtrlPort;
use crate::wait::{deadline_in, until};
use crate::{Control, Error, Operation};
use core::time::Duration;
use std::time::Instant;
use ublk_core::{DevId, DevState, Errno, Features, SECTOR_SIZE};

impl<P: CtrlPort> Control<P> {
    /// Fails unless this kernel has `features`; the error names the kernel that introduced them.
    fn require(&mut self, features: Features, deadline: Duration) -> Result<(), Error> {
        let kernel = self.features(deadline)?;
        Ok(ublk_core::require_features(features, kernel).map(drop)?)
    }

    /// Starts the recovery of a device for a new server (START_USER_RECOVERY). Waits until the device is quiesced or
    /// failing I/O (L34) and until the driver has released the old server's character device, for which there is no
    /// event. Afterwards: open the character device, fetch every tag, [`Control::end_recovery`].
    ///
    /// The call may be repeated if the new server dies during the recovery.
    ///
    /// # Errors
    /// [`Error::WrongState`] if the device stays live or dead until the deadline, [`Error::Busy`] if its old server
    /// still has it open, [`Error::Refused`] with EINVAL if it was created without recovery, [`Error::NoSuchDevice`],
    /// [`Error::TimedOut`].
    pub fn start_recovery(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let operation = Operation::StartRecovery;
        let end = deadline_in(deadline);
        let mut last = None;
        let taken = until(end, || {
            let left = end.saturating_duration_since(Instant::now());
            // Query at least once; each command gets a minimum of time.
            let left = left.max(LEAST);
            let info = self.info(id, left)?;
            let state = info.state();
            if !state.is_recoverable() {
                last = Some(Error::WrongState {
                    operation,
                    dev: id,
                    state,
                });
                return Ok(None);
            }
            let request = on(operation, id);
            match self.raw(&request, left) {
                Ok(_) => Ok(Some(())),
                Err(busy @ Error::Busy { .. }) => {
                    last = Some(busy);
                    Ok(None)
                }
                // Older kernels (6.12) refuse a second START after the new server of the first one died. The first
                // START is still in effect.
                Err(Error::Refused { errno, .. })
                    if errno == Errno::EINVAL
                        && info.features().contains(Features::USER_RECOVERY) =>
                {
                    Ok(Some(()))
                }
                Err(error) => Err(error),
            }
        })?;
        taken.ok_or(last.unwrap_or(Error::TimedOut {
            operation,
            dev: Some(id),
            after: deadline,
            abandoned: false,
        }))
    }

    /// Makes a device live again (END_USER_RECOVERY). Waits until every tag of every queue is fetched, so never call it
    /// on a thread that serves a queue (L20). `server_pid` is the process (tgid) that reopened the character device.
    /// The driver then sends it the requests that were held.
    ///
    /// At its deadline the command is cancelled and has done nothing.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`] for a device that is not being recovered,
    /// [`Error::NoSuchDevice`], [`Error::Refused`].
    pub fn end_recovery(
        &mut self,
        id: DevId,
        server_pid: u32,
        deadline: Duration,
    ) -> Result<(), Error> {
        let request = on(Operation::EndRecovery, id).data(server_pid.into());
        self.raw(&request, deadline).map(drop)
    }

    /// Holds new I/O of a live device and aborts its idle fetches (QUIESCE_DEV, Linux 6.16), so that its server can
    /// leave and another recover it.
    ///
    /// A server whose tags are all busy does not notice: notify it in another way. There is no roll-back: I/O stays
    /// held until the device is recovered, stopped or deleted, even if this fails.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the kernel, [`Error::UnknownCommand`] for a device made without
    /// [`Features::QUIESCE`], [`Error::NoSuchDevice`], [`Error::Busy`], [`Error::TimedOut`].
    pub fn quiesce(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let end = deadline_in(deadline);
        self.require(Features::QUIESCE, deadline)?;
        let left = end.saturating_duration_since(Instant::now());
        let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
        let request = on(Operation::Quiesce, id).data(ms);
        self.raw(&request, left).map(drop)
    }

    /// Changes the size of a live device (UPDATE_SIZE, Linux 6.16), in bytes. Processes that have it open see the new
    /// size; no requests beyond a smaller size arrive. The server must answer requests up to the new size before this
    /// is sent.
    ///
    /// Kernels before 7.0 crash on a device without a disk, so the state is checked first; nothing else may stop the
    /// device at that moment.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the kernel, [`Error::WrongState`] if the device is not live, [`Error::Spec`] for a
    /// size that is 0 or not a multiple of the sector size, [`Error::NoSuchDevice`], [`Error::TimedOut`].
    pub fn update_size(&mut self, id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
        let operation = Operation::UpdateSize;
        if size == 0 || !size.is_multiple_of(SECTOR_SIZE) || size > i64::MAX.unsigned_abs() {
            return Err(Error::Spec {
                message: format!("a device cannot have {size} bytes"),
            });
        }
        let end = deadline_in(deadline);
        let left = || end.saturating_duration_since(Instant::now());
        self.require(Features::UPDATE_SIZE, left())?;
        let state = self.info(id, left())?.state();
        if state != DevState::Live {
            return Err(Error::WrongState {
                operation,
                dev: id,
                state,
            });
        }
        let request = on(operation, id);
        self.raw(&request.data(size / SECTOR_SIZE), left())
            .map(drop)
    }

    /// Stops a device if it is not open (TRY_STOP_DEV, Linux 7.0); otherwise nothing happens. A device without a disk is
    /// already stopped. After success the device can only be deleted.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the kernel, [`Error::Busy`], [`Error::NoSuchDevice`],
    /// [`Error::TimedOut`].
    pub fn try_stop(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let end = deadline_in(deadline);
        self.require(Features::SAFE_STOP_DEV, deadline)?;
        let request = on(Operation::TryStop, id);
        let left = || end.saturating_duration_since(Instant::now());
        match self.raw(&request, left()) {
            // ENODEV is success if the device exists without a disk, and an error if the device does not exist.
            Err(Error::NoSuchDevice { .. }) => self.info(id, left()).map(drop)?,
            other => drop(other?),
        }
        self.stopped.insert(id);
        Ok(())
    }

    /// Deletes a device without waiting until it is closed (DEL_DEV_ASYNC, Linux 6.9); its number stays in use until then.
    /// The driver refuses the command for an unprivileged device (EINVAL on every kernel), which is deleted by DEL_DEV
    /// within the deadline.
    ///
    /// # Errors
    /// [`Error::UnknownCommand`] before Linux 6.9, [`Error::NoSuchDevice`], [`Error::TimedOut`].
    pub fn delete_async(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let end = deadline_in(deadline);
        let request = on(Operation::DeleteAsync, id);
        match self.raw(&request, deadline) {
            Err(Error::Refused { errno, .. }) if errno == Errno::EINVAL => {
                self.delete(id, end.saturating_duration_since(Instant::now()))
            }
            other => other.map(drop),
        }
    }
}

/// Minimum time for each command of a repeated query.
const LEAST: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
