//! Control commands as values, and the trait of everything that issues them. These values cross the agent's socket.
#![expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]

use crate::wait::deadline_in;
use crate::{Error, Operation, nodes};
use core::time::Duration;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;
use ublk_core::{
    CheckedSpec, CpuMask, DevId, DeviceParams, Features, Geometry, OpenDevice, QueueId,
    SharedBuffer,
};

/// A command of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Command {
    /// GET_FEATURES. Answered by [`Reply::Features`].
    Features,
    /// ADD_DEV, after the requested features were compared with the kernel's. Answered by [`Reply::Geometry`].
    Add(CheckedSpec),
    /// SET_PARAMS for a newly added device, based on the geometry that the kernel returned. Answered by
    /// [`Reply::Done`].
    SetParams {
        /// The spec of the device.
        spec: CheckedSpec,
        /// The geometry that the kernel returned.
        geometry: Geometry,
    },
    /// GET_PARAMS. Takes the device mutex: waits while the device starts or stops. Answered by
    /// [`Reply::Params`].
    GetParams {
        /// The device.
        id: DevId,
    },
    /// START_DEV: waits until every tag is fetched. Answered by [`Reply::Done`].
    Start {
        /// The device.
        id: DevId,
        /// The process (tgid) that opened the character device.
        server_pid: u32,
    },
    /// STOP_DEV: waits for the requests in flight. Answered by [`Reply::Done`].
    Stop {
        /// The device.
        id: DevId,
    },
    /// DEL_DEV: waits until the last reference is dropped. Answered by [`Reply::Done`].
    Delete {
        /// The device.
        id: DevId,
    },
    /// GET_DEV_INFO: never takes the device mutex. Answered by [`Reply::Geometry`].
    Info {
        /// The device.
        id: DevId,
    },
    /// GET_QUEUE_AFFINITY: never takes the device mutex. Answered by [`Reply::Affinity`].
    Affinity {
        /// The device.
        id: DevId,
        /// The hw queue.
        queue: QueueId,
    },
    /// START_USER_RECOVERY, sent once the device is quiesced or failing I/O and the old server's character device is
    /// closed. Answered by [`Reply::Done`].
    StartRecovery {
        /// The device.
        id: DevId,
    },
    /// END_USER_RECOVERY: waits until the new server has fetched every tag. Answered by [`Reply::Done`].
    EndRecovery {
        /// The device.
        id: DevId,
        /// The process (tgid) that reopened the character device.
        server_pid: u32,
    },
    /// QUIESCE_DEV. Answered by [`Reply::Done`].
    Quiesce {
        /// The device.
        id: DevId,
    },
    /// UPDATE_SIZE, for a live device only. Answered by [`Reply::Done`].
    UpdateSize {
        /// The device.
        id: DevId,
        /// The new size in bytes.
        size: u64,
    },
    /// TRY_STOP_DEV. Answered by [`Reply::Done`].
    TryStop {
        /// The device.
        id: DevId,
    },
    /// DEL_DEV_ASYNC, or DEL_DEV for an unprivileged device. Answered by [`Reply::Done`].
    DeleteAsync {
        /// The device.
        id: DevId,
    },
    /// Writes back the dirty data of `/dev/ublkbN` through its server. May block beyond any deadline, so issue it from
    /// a helper. Answered by [`Reply::Done`].
    Sync {
        /// The device.
        id: DevId,
    },
    /// Disables the I/O scheduler of the device, if it has one, in a child process, which waits until no request is in
    /// flight ([`Nodes::no_scheduler_by_child`](crate::nodes::Nodes::no_scheduler_by_child)). Answered by
    /// [`Reply::Done`].
    NoScheduler {
        /// The device.
        id: DevId,
    },
    /// REG_BUF for a whole memory file: descriptor `fd` of process `pid`, which may be another process than the issuer.
    /// Answered by [`Reply::Shared`].
    ShareMemory {
        /// The device.
        id: DevId,
        /// The process that has the file open for reading and writing.
        pid: u32,
        /// Its descriptor.
        fd: u32,
    },
    /// Waits until `/dev/ublkbN` exists, opens and has this size (L38). Answered by [`Reply::Done`].
    ProveReady {
        /// The device.
        id: DevId,
        /// Expected size in bytes.
        size: u64,
    },
}

impl Command {
    /// The operation, for errors.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Features => Operation::Features,
            Self::Add(_) => Operation::Add,
            Self::SetParams { .. } => Operation::SetParams,
            Self::GetParams { .. } => Operation::GetParams,
            Self::Start { .. } => Operation::Start,
            Self::Stop { .. } => Operation::Stop,
            Self::Delete { .. } => Operation::Delete,
            Self::Info { .. } => Operation::Info,
            Self::Affinity { .. } => Operation::Affinity,
            Self::StartRecovery { .. } => Operation::StartRecovery,
            Self::EndRecovery { .. } => Operation::EndRecovery,
            Self::Quiesce { .. } => Operation::Quiesce,
            Self::UpdateSize { .. } => Operation::UpdateSize,
            Self::TryStop { .. } => Operation::TryStop,
            Self::DeleteAsync { .. } => Operation::DeleteAsync,
            Self::Sync { .. } => Operation::Sync,
            Self::NoScheduler { .. } => Operation::NoScheduler,
            Self::ShareMemory { .. } => Operation::RegisterMemory,
            Self::ProveReady { .. } => Operation::ProveReady,
        }
    }

    /// The device that the command names, if any.
    #[must_use]
    pub const fn dev(&self) -> Option<DevId> {
        match self {
            Self::Features => None,
            Self::Add(spec) => spec.spec().id,
            Self::SetParams { geometry, .. } => Some(geometry.dev_id()),
            Self::GetParams { id }
            | Self::Start { id, .. }
            | Self::Stop { id }
            | Self::Delete { id }
            | Self::Info { id }
            | Self::Affinity { id, .. }
            | Self::StartRecovery { id }
            | Self::EndRecovery { id, .. }
            | Self::Quiesce { id }
            | Self::UpdateSize { id, .. }
            | Self::TryStop { id }
            | Self::DeleteAsync { id }
            | Self::Sync { id }
            | Self::NoScheduler { id }
            | Self::ShareMemory { id, .. }
            | Self::ProveReady { id, .. } => Some(*id),
        }
    }
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Reply {
    /// Success without data.
    Done,
    /// The kernel's features.
    Features(Features),
    /// The device as the kernel reports it.
    Geometry(Geometry),
    /// The parameters; `None` before SET_PARAMS.
    Params(Option<DeviceParams>),
    /// The CPUs of a queue.
    Affinity(CpuMask),
    /// The registered memory.
    Shared(Vec<SharedBuffer>),
}

/// Issues control commands: [`ControlThread`](crate::ControlThread), or a client of an agent process.
///
/// Every call returns by its deadline plus the time to cancel the command, at most
/// [`CANCEL_GRACE`](crate::CANCEL_GRACE), whatever the kernel does (L27). An [`Error::TimedOut`] with `abandoned` means
/// that the command may still take effect. Never call from a thread that serves a queue (L20).
///
/// # Safety
/// [`Reply::Geometry`] to [`Command::Info`] must be the driver's reply about that device, obtained during the call: the
/// data plane gives the driver buffers of the reported size, and if they are too small, the driver overwrites other
/// memory.
///
/// # Errors
/// Every method returns an [`Error`] that names operation, device and errno.
pub unsafe trait Controller: Send {
    /// Issues a command and waits for its answer until the deadline.
    ///
    /// # Errors
    /// The kernel's refusal, or [`Error::TimedOut`].
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error>;

    /// The kernel's features.
    ///
    /// # Errors
    /// [`Error::TooOld`] before Linux 6.5.
    fn features(&mut self, deadline: Duration) -> Result<Features, Error> {
        match self.call(Command::Features, deadline)? {
            Reply::Features(features) => Ok(features),
            other => Err(unexpected(Operation::Features, &other)),
        }
    }

    /// Adds a device. Check [`CheckedSpec::refused`] for features that the kernel dropped without an error.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::IdInUse`], [`Error::DeviceLimit`], [`Error::NoPermission`] …
    fn add(&mut self, spec: &CheckedSpec, deadline: Duration) -> Result<Geometry, Error> {
        match self.call(Command::Add(*spec), deadline)? {
            Reply::Geometry(geometry) => Ok(geometry),
            other => Err(unexpected(Operation::Add, &other)),
        }
    }

    /// Sets the parameters of a newly added device.
    ///
    /// # Errors
    /// [`Error::Busy`] if the device already has a disk, [`Error::Refused`] …
    fn set_params(
        &mut self,
        spec: &CheckedSpec,
        geometry: &Geometry,
        deadline: Duration,
    ) -> Result<(), Error> {
        let (spec, geometry) = (*spec, *geometry);
        done(self, Command::SetParams { spec, geometry }, deadline)
    }

    /// The parameters of a device; `None` before SET_PARAMS.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] …
    fn get_params(&mut self, id: DevId, deadline: Duration) -> Result<Option<DeviceParams>, Error> {
        match self.call(Command::GetParams { id }, deadline)? {
            Reply::Params(params) => Ok(params),
            other => Err(unexpected(Operation::GetParams, &other)),
        }
    }

    /// Starts a device; process `server_pid` must be fetching all of its tags.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`], [`Error::Refused`] …
    fn start(&mut self, id: DevId, server_pid: u32, deadline: Duration) -> Result<(), Error> {
        done(self, Command::Start { id, server_pid }, deadline)
    }

    /// Stops a device.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the server does not answer its requests, [`Error::NoSuchDevice`] …
    fn stop(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::Stop { id }, deadline)
    }

    /// Deletes one device. There is no call that deletes all devices (L32).
    ///
    /// # Errors
    /// [`Error::TimedOut`] while it is open, [`Error::NoSuchDevice`] …
    fn delete(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::Delete { id }, deadline)
    }

    /// Queries the kernel's information about a device.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`] …
    fn info(&mut self, id: DevId, deadline: Duration) -> Result<Geometry, Error> {
        match self.call(Command::Info { id }, deadline)? {
            Reply::Geometry(geometry) => Ok(geometry),
            other => Err(unexpected(Operation::Info, &other)),
        }
    }

    /// Opens the character device once udev allows it (see [`Nodes::open_char`](crate::nodes::Nodes::open_char)) and
    /// queries the device that it belongs to, for the server.
    ///
    /// # Errors
    /// Those of opening the node and of [`info`](Controller::info).
    fn open_device(&mut self, id: DevId, deadline: Duration) -> Result<OpenDevice, Error> {
        let until = deadline_in(deadline);
        let node = nodes::open_char(id, deadline)?;
        if !nodes::is_char_of(&node, id) {
            return Err(Error::BadReply {
                operation: Operation::OpenChar,
                message: format!(
                    "/dev/ublkc{id} is the node of another device: check the udev rules"
                ),
            });
        }
        let geometry = self.info(id, until.saturating_duration_since(Instant::now()))?;
        if geometry.dev_id() != id {
            return Err(unexpected(Operation::Info, &Reply::Geometry(geometry)));
        }
        // SAFETY: the node belongs to the device by its number. No other device can have had this number since the node
        // was opened, and the driver was queried after that (the trait's contract).
        Ok(unsafe { OpenDevice::new(node, geometry) })
    }

    /// The CPUs that submit to a hw queue.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], [`Error::Refused`] for a queue that does not exist …
    fn affinity(
        &mut self,
        id: DevId,
        queue: QueueId,
        deadline: Duration,
    ) -> Result<CpuMask, Error> {
        match self.call(Command::Affinity { id, queue }, deadline)? {
            Reply::Affinity(mask) => Ok(mask),
            other => Err(unexpected(Operation::Affinity, &other)),
        }
    }

    /// Starts the recovery of a device whose server is gone, after the driver has released the old server.
    ///
    /// # Errors
    /// [`Error::WrongState`] if the device stays live or dead until the deadline, [`Error::Busy`] if its old server
    /// still has it open, [`Error::Refused`] with EINVAL if it was created without recovery …
    fn start_recovery(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::StartRecovery { id }, deadline)
    }

    /// Makes a device live again; process `server_pid` must be fetching all of its tags.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`], [`Error::Refused`] …
    fn end_recovery(
        &mut self,
        id: DevId,
        server_pid: u32,
        deadline: Duration,
    ) -> Result<(), Error> {
        done(self, Command::EndRecovery { id, server_pid }, deadline)
    }

    /// Holds a device's I/O for a new server. Only a recovery resumes it.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::UnknownCommand`] for a device without the feature …
    fn quiesce(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::Quiesce { id }, deadline)
    }

    /// Changes the size of a live device, in bytes.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::WrongState`], [`Error::Spec`] for a size that is not a multiple of the sector
    /// size …
    fn update_size(&mut self, id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
        done(self, Command::UpdateSize { id, size }, deadline)
    }

    /// Stops a device if it is not open.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::Busy`] while it is open …
    fn try_stop(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::TryStop { id }, deadline)
    }

    /// Deletes a device without waiting until it is closed; its number stays in use until then.
    ///
    /// # Errors
    /// [`Error::UnknownCommand`] before Linux 6.9, [`Error::NoSuchDevice`] …
    fn delete_async(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::DeleteAsync { id }, deadline)
    }

    /// Writes back the dirty data of the block device, whose server must be running: STOP_DEV would lose this data on a
    /// recoverable device.
    ///
    /// # Errors
    /// [`Error::Refused`] with the errno of the write-back, [`Error::NoPermission`] …
    fn sync(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::Sync { id }, deadline)
    }

    /// Registers a memory file with a device: a memfd, or a file on tmpfs or hugetlbfs, open for reading and writing.
    /// See [`Control::share_file`](crate::Control::share_file).
    ///
    /// # Errors
    /// [`Error::Unsupported`] before Linux 7.1, [`Error::Refused`] for another kind of file …
    fn share_memory(
        &mut self,
        id: DevId,
        file: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<Vec<SharedBuffer>, Error> {
        let (pid, fd) = (std::process::id(), file.as_raw_fd().unsigned_abs());
        match self.call(Command::ShareMemory { id, pid, fd }, deadline)? {
            Reply::Shared(buffers) => Ok(buffers),
            other => Err(unexpected(Operation::RegisterMemory, &other)),
        }
    }

    /// Disables the I/O scheduler of the device, if it has one: see
    /// [`Nodes::no_scheduler_by_child`](crate::nodes::Nodes::no_scheduler_by_child).
    ///
    /// # Errors
    /// [`Error::NoPermission`], [`Error::Refused`] by sysfs, [`Error::TimedOut`] while requests are in flight.
    fn no_scheduler(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        done(self, Command::NoScheduler { id }, deadline)
    }

    /// Waits until the block device exists, can be opened and has its size. A controller in this process does not open
    /// the device ([`Nodes::see_ready`](crate::nodes::Nodes::see_ready)); one in another process does, and also sees
    /// the result of the partition scan.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::WrongSize`], [`Error::NoPermission`] …
    fn prove_ready(&mut self, id: DevId, size: u64, deadline: Duration) -> Result<(), Error> {
        done(self, Command::ProveReady { id, size }, deadline)
    }
}

/// One controller for many devices. Commands are serialized, so one that waits for its deadline delays the others.
// SAFETY: replies come from the inner controller.
unsafe impl<C: Controller> Controller for std::sync::Arc<std::sync::Mutex<C>> {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        let mut controller = match self.lock() {
            Ok(controller) => controller,
            Err(poisoned) => poisoned.into_inner(),
        };
        controller.call(command, deadline)
    }
}

// SAFETY: replies come from the inner controller.
unsafe impl<C: Controller + ?Sized> Controller for Box<C> {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        (**self).call(command, deadline)
    }
}

fn done<C: Controller + ?Sized>(
    controller: &mut C,
    command: Command,
    deadline: Duration,
) -> Result<(), Error> {
    let operation = command.operation();
    match controller.call(command, deadline)? {
        Reply::Done => Ok(()),
        other => Err(unexpected(operation, &other)),
    }
}

fn unexpected(operation: Operation, reply: &Reply) -> Error {
    Error::BadReply {
        operation,
        message: format!("unexpected reply {reply:?}"),
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;
    use serde::{Serialize, de::DeserializeOwned};
    use ublk_core::{DeviceSpec, Limits};

    fn round<T: Serialize + DeserializeOwned + PartialEq + core::fmt::Debug>(values: &[T]) {
        for value in values {
            let text = serde_json::to_string(value).unwrap();
            assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn commands_and_replies_cross_a_socket() {
        let id = DevId::new(4).unwrap();
        let queue = QueueId::new(5).unwrap();
        let spec = DeviceSpec::new(Limits::new(1 << 20)).id(id);
        let spec = spec.check(4096).unwrap();
        let geometry = Geometry::from_reply(&spec.dev_info()).unwrap();
        let server_pid = 7;
        let commands = [
            Command::Features,
            Command::Add(spec),
            Command::SetParams { spec, geometry },
            Command::GetParams { id },
            Command::Start { id, server_pid },
            Command::Stop { id },
            Command::Delete { id },
            Command::Info { id },
            Command::Affinity { id, queue },
            Command::StartRecovery { id },
            Command::EndRecovery { id, server_pid },
            Command::Quiesce { id },
            Command::UpdateSize { id, size: 4096 },
            Command::TryStop { id },
            Command::DeleteAsync { id },
            Command::Sync { id },
            Command::NoScheduler { id },
            Command::ShareMemory { id, pid: 1, fd: 2 },
            Command::ProveReady { id, size: u64::MAX },
        ];
        round(&commands);
        for command in &commands[1..] {
            assert_eq!(command.dev(), Some(id), "{command:?}");
        }
        let params = DeviceParams::decode(&spec.params(&geometry).unwrap());
        round(&[
            Reply::Done,
            Reply::Features(Features::from_bits(u64::MAX)),
            Reply::Geometry(geometry),
            Reply::Params(params),
            Reply::Params(None),
            Reply::Affinity(CpuMask::from_iter([1, 2000])),
            Reply::Shared(vec![SharedBuffer::new(3, 4096, 8192)]),
        ]);
    }
}
