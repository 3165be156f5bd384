//! Bring-up and recovery: the commands that bring a device to serve, for embedding programs and for the tool.
//!
//! | step | new device | device that lost its server |
//! |---|---|---|
//! | features | [`negotiate`] | |
//! | first command | [`Added::add`]: ADD_DEV | [`params`]: GET_PARAMS; [`Unserved::take_over`]: START_USER_RECOVERY |
//! | set-up | [`Added::set_up`]: compares what was granted, SET_PARAMS, REG_BUF | |
//! | arming | [`Unserved::affinity`]; the server opens the character device and fetches every tag | the same |
//! | last command | [`Unserved::go_live`]: START_DEV | [`Unserved::go_live`]: END_USER_RECOVERY |
//!
//! The caller keeps what is its own between the steps: threads or processes, records, locks. No step undoes anything: a
//! device whose bring-up failed must be deleted, and a device whose recovery failed keeps waiting.
#![forbid(unsafe_code)]

use crate::{Controller, Error, Operation};
use core::time::Duration;
use std::os::fd::BorrowedFd;
use std::time::Instant;
use ublk_core::{
    CheckedSpec, CpuMask, DevId, DevState, DeviceParams, Features, Geometry, QueueId, Recovery,
    SharedBuffer,
};

/// The time that the commands of a sequence may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// Each command may take this long.
    Each(Duration),
    /// All commands together may take until then.
    Until(Instant),
}

impl TimeLimit {
    /// The time for the next command.
    fn next(self) -> Duration {
        match self {
            Self::Each(each) => each,
            Self::Until(end) => end.saturating_duration_since(Instant::now()),
        }
    }

    /// The time for a command that waits for udev. Half of a common limit is left, to report and undo a failure.
    fn next_for_udev(self) -> Duration {
        match self {
            Self::Each(each) => each,
            Self::Until(_) => self.next() / 2,
        }
    }
}

/// The features to request: all of `asked`, and each set of `optional` that this kernel supports completely. A
/// recoverable device also gets QUIESCE (6.16) if the kernel supports it: without it, I/O cannot be held while a server
/// is replaced.
///
/// The kernel's features are queried only if the result depends on them.
///
/// # Errors
/// [`Error::BatchNotRecoverable`] for batch mode with recovery before Linux 7.3, and the errors of GET_FEATURES.
pub fn negotiate<C: Controller + ?Sized>(
    controller: &mut C,
    asked: Features,
    optional: &[Features],
    deadline: Duration,
) -> Result<Features, Error> {
    let recovery = Recovery::of(asked);
    let news = |set: &Features| !set.without(asked).is_empty();
    if !recovery.is_recoverable() && !optional.iter().any(news) {
        return Ok(asked);
    }
    let kernel = controller.features(deadline)?;
    // IO_DESC_SIZE came with the kernel whose batch mode recovers (7.3).
    let batch = asked.contains(Features::BATCH_IO);
    if recovery.is_recoverable() && batch && !kernel.contains(Features::IO_DESC_SIZE) {
        return Err(Error::BatchNotRecoverable { recovery });
    }
    let quiesce = match recovery.is_recoverable() {
        true => Features::QUIESCE,
        false => Features::NONE,
    };
    let had = optional
        .iter()
        .chain([&quiesce])
        .filter(|set| kernel.contains(**set));
    Ok(had.fold(asked, |all, set| all | *set))
}

/// A device that ADD_DEV created: `/dev/ublkcN` exists, without parameters.
#[derive(Debug, Clone, Copy)]
pub struct Added {
    spec: CheckedSpec,
    geometry: Geometry,
}

impl Added {
    /// Sends ADD_DEV. From then on the device is the caller's to delete.
    ///
    /// # Errors
    /// Those of [`Controller::add`]. After [`Error::TimedOut`] the device may still appear.
    pub fn add<C: Controller + ?Sized>(
        controller: &mut C,
        spec: CheckedSpec,
        limit: TimeLimit,
    ) -> Result<Self, Error> {
        let geometry = controller.add(spec, limit.next())?;
        Ok(Self { spec, geometry })
    }

    /// The geometry that the kernel granted.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Compares what was granted with what was requested (no mode or policy is replaced silently), sends SET_PARAMS and
    /// registers the memory to share with the device's clients. Returns what the driver knows of that memory.
    ///
    /// For an unprivileged device SET_PARAMS waits for udev.
    ///
    /// # Errors
    /// [`Error::NotGranted`], and those of [`Controller::set_params`] and [`Controller::share_memory`].
    pub fn set_up<C: Controller + ?Sized>(
        &self,
        controller: &mut C,
        memory: Option<BorrowedFd<'_>>,
        limit: TimeLimit,
    ) -> Result<(Unserved, Vec<SharedBuffer>), Error> {
        let Self { spec, geometry } = self;
        granted(spec, geometry)?;
        let within = match geometry.features().contains(Features::UNPRIVILEGED_DEV) {
            true => limit.next_for_udev(),
            false => limit.next(),
        };
        controller.set_params(*spec, *geometry, within)?;
        let shared = match memory {
            Some(file) => controller.share_memory(geometry.dev_id(), file, limit.next())?,
            None => Vec::new(),
        };
        let unserved = Unserved {
            geometry: *geometry,
            last: Last::Start,
        };
        Ok((unserved, shared))
    }
}

/// The command that makes a device live once its queues are armed.
#[derive(Debug, Clone, Copy)]
enum Last {
    /// START_DEV, for a new device.
    Start,
    /// END_USER_RECOVERY, for a device in recovery.
    EndRecovery,
}

/// A device that lacks nothing but a server: a server may open its character device and fetch every tag.
#[derive(Debug, Clone, Copy)]
pub struct Unserved {
    geometry: Geometry,
    last: Last,
}

impl Unserved {
    /// Starts the recovery of a device (START_USER_RECOVERY), waiting at most `release` until the driver has released
    /// its old server; then queries the device within `limit`. May be repeated after a failure.
    ///
    /// # Errors
    /// Those of [`Controller::start_recovery`] and [`Controller::info`].
    pub fn take_over<C: Controller + ?Sized>(
        controller: &mut C,
        id: DevId,
        release: Duration,
        limit: TimeLimit,
    ) -> Result<Self, Error> {
        controller.start_recovery(id, release)?;
        let geometry = controller.info(id, limit.next())?;
        let last = Last::EndRecovery;
        Ok(Self { geometry, last })
    }

    /// The geometry, as the kernel reported it.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The device's number.
    #[must_use]
    pub const fn id(&self) -> DevId {
        self.geometry.dev_id()
    }

    /// The CPUs of each hw queue, to which its threads are pinned.
    ///
    /// # Errors
    /// Those of [`Controller::affinity`].
    pub fn affinity<C: Controller + ?Sized>(
        &self,
        controller: &mut C,
        limit: TimeLimit,
    ) -> Result<Vec<CpuMask>, Error> {
        let queues = (0..self.geometry.queues()).filter_map(|qid| QueueId::new(qid).ok());
        queues
            .map(|queue| controller.affinity(self.id(), queue, limit.next()))
            .collect()
    }

    /// Makes the device live: START_DEV, or END_USER_RECOVERY for a device in recovery. Both wait until process
    /// `server_pid` has fetched every tag.
    ///
    /// # Errors
    /// Those of [`Controller::start`] or [`Controller::end_recovery`].
    pub fn go_live<C: Controller + ?Sized>(
        &self,
        controller: &mut C,
        server_pid: u32,
        limit: TimeLimit,
    ) -> Result<(), Error> {
        match self.last {
            Last::Start => controller.start(self.id(), server_pid, limit.next()),
            Last::EndRecovery => controller.end_recovery(self.id(), server_pid, limit.next()),
        }
    }
}

/// The parameters of a device that is to be recovered. They are never set again: the new server must fit them.
///
/// # Errors
/// [`Error::WrongState`] for a device that was never started, and those of [`Controller::get_params`].
pub fn params<C: Controller + ?Sized>(
    controller: &mut C,
    id: DevId,
    limit: TimeLimit,
) -> Result<DeviceParams, Error> {
    let params = controller.get_params(id, limit.next())?;
    params.ok_or(Error::WrongState {
        operation: Operation::StartRecovery,
        dev: id,
        state: DevState::Dead,
    })
}

/// Compares what ADD_DEV granted with what was requested. The driver drops some features without an error: recovery and
/// the modes without a copy for an unprivileged caller, UNPRIVILEGED_DEV for a privileged one.
fn granted(asked: &CheckedSpec, geometry: &Geometry) -> Result<(), Error> {
    let refused = asked.refused(geometry);
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::NotGranted {
        dev: geometry.dev_id(),
        asked: geometry.features() | refused,
        refused,
    })
}

#[cfg(test)]
mod tests;
