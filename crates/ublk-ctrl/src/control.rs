//! The control ring: commands with deadlines.
#![expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]

use crate::nodes::Nodes;
use crate::operation::OnEintr;
use crate::port::{Completion, CtrlPort, RingPort};
use crate::slots::{Slots, Ticket};
use crate::wait::{self, deadline_in};
use crate::{Buffer, Command, Controller, Error, Operation, Reply, Request, nodes, scheduler};
use core::time::Duration;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;
use ublk_core::kernel::{Fault, Release};
use ublk_core::{
    CheckedSpec, CpuMask, DevId, DevState, DeviceParams, Errno, Features, Geometry, QueueId,
    negotiate,
};
use ublk_sys::{Uapi, ublk_params, ublksrv_ctrl_dev_info};

/// How long a command past its deadline is given to end by its cancelling, before it is abandoned.
pub const CANCEL_GRACE: Duration = Duration::from_millis(200);

/// Bytes asked for a CPU mask: 8192 CPUs, the most any Linux is built for. It must cover the
/// kernel's own count, or the command is refused.
const CPU_MASK_BYTES: usize = 1024;

/// Bytes offered for parameters: more than any kernel known here fills (152 since Linux 7.0).
const PARAMS_BYTES: u32 = 512;

/// `/dev/ublk-control` with its own ring, and the typed commands.
///
/// The real one belongs to the thread that opened it, which must serve no queue (L20). Each command
/// has a deadline. Past it the command is cancelled (START then ends with EINTR, having done
/// nothing); one that cannot be cancelled, as STOP, is abandoned after [`CANCEL_GRACE`]: it stays in
/// the kernel, its memory stays allocated until it ends, and its late completion is told apart by
/// its generation. The ring reserves room for a STOP behind abandoned commands. An answer after the deadline but before
/// the command is abandoned is returned normally.
///
/// An errno of the kernel is returned immediately and never masked by a retry (L28). One exception: a command interrupted
/// by a signal (EINTR), not by us, is sent again if the driver had changed nothing; a DEL_DEV that was interrupted and
/// then fails with "no such device" has succeeded.
///
/// # Drop
/// Closes the ring. A thread with an unfinished command cannot exit before the command ends, and so
/// its process cannot: see [`ControlThread`](crate::ControlThread).
#[derive(Debug)]
pub struct Control<P = RingPort> {
    // Behind it in drop order is the memory that commands in the ring may name; it is leaked if so.
    port: P,
    slots: Slots,
    kernel: Option<Features>,
    /// The kernel's release, where faults are to be known by it.
    release: Option<Release>,
    /// Devices that were stopped by this value: none of them starts again.
    pub(crate) stopped: BTreeSet<DevId>,
    /// Devices found to be unprivileged: their commands carry the character node's path.
    unprivileged: BTreeSet<DevId>,
    nodes: Nodes,
}

/// A completion and the memory it gives back.
type Completed = (Result<u32, Errno>, Buffer);

/// How a command in the kernel ended.
struct Ended {
    result: Result<u32, Errno>,
    buffer: Buffer,
    /// We asked for its end.
    cancelled: bool,
}

impl Control {
    /// Opens `/dev/ublk-control` and a ring of 128-byte entries.
    ///
    /// # Errors
    /// [`Error::MissingModule`], [`Error::NoPermission`], [`Error::IoUringDisabled`],
    /// [`Error::Ring`].
    pub fn open() -> Result<Self, Error> {
        Self::open_at(Path::new("/dev/ublk-control"))
    }

    /// As [`Control::open`], for a control node elsewhere (a container's).
    ///
    /// # Errors
    /// As [`Control::open`].
    pub fn open_at(node: &Path) -> Result<Self, Error> {
        RingPort::open(node).map(|port| Self::with_port(port).release(crate::sys::release()))
    }
}

impl<P: CtrlPort> Control<P> {
    /// A control ring on another port: a scripted kernel.
    pub fn with_port(port: P) -> Self {
        let slots = Slots::new(port.capacity());
        Self {
            port,
            slots,
            kernel: None,
            release: None,
            stopped: BTreeSet::new(),
            unprivileged: BTreeSet::new(),
            nodes: Nodes::default(),
        }
    }

    /// Knows the faults of this kernel; without it, none.
    #[must_use]
    pub fn release(mut self, release: Option<Release>) -> Self {
        self.release = release;
        self
    }

    /// The port: a script's record of what it saw.
    pub const fn port(&self) -> &P {
        &self.port
    }

    /// The port, to change a script.
    #[cfg(any(test, feature = "test-utils"))]
    pub const fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Commands still in the kernel: the abandoned ones that have not ended yet.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.slots.pending()
    }

    /// Sends any command of the driver; the typed methods are built on it. Returns the non-negative result, and the payload
    /// as the kernel left it.
    ///
    /// # Errors
    /// The errno as [`Error::of_command`] tells it, [`Error::TimedOut`], [`Error::Exhausted`],
    /// [`Error::Ring`]; [`Error::Spec`] for REG_BUF, whose payload names memory: [`Control::register_memory`] is for that.
    ///
    /// An unprivileged device fails any command without the path of its character node with EINVAL, before the command has
    /// any effect: the command is then sent again with the path.
    pub fn raw(&mut self, request: &Request, deadline: Duration) -> Result<(u32, Vec<u8>), Error> {
        if request.cmd_op() == ublk_sys::UBLK_U_CMD_REG_BUF {
            return Err(Error::Spec {
                message: "REG_BUF names memory, which this call cannot check: use register_memory"
                    .into(),
            });
        }
        self.deliver(request, deadline)
    }

    /// [`Control::raw`] for every command.
    pub(crate) fn deliver(
        &mut self,
        request: &Request,
        deadline: Duration,
    ) -> Result<(u32, Vec<u8>), Error> {
        let by_path = request.has_path() || matches!(request.operation(), Operation::Add);
        let Some(id) = request.dev().filter(|_| !by_path) else {
            return self.send(request, deadline);
        };
        let node = self.nodes.char_device(id);
        if self.unprivileged.contains(&id) {
            return self.send(&request.clone().path(&node), deadline);
        }
        let until = deadline_in(deadline);
        let first = self.send(request, deadline);
        if !matches!(&first, Err(e) if e.errno() == Some(Errno::EINVAL)) {
            return first;
        }
        let left = || until.saturating_duration_since(Instant::now());
        match self.info_by_path(id, left()) {
            Ok(geometry) if geometry.features().contains(Features::UNPRIVILEGED_DEV) => {
                self.unprivileged.insert(id);
                self.send(&request.clone().path(&node), left())
            }
            // Somebody else's: by its path the driver says so.
            Err(Error::NoPermission { errno, .. }) => Err(Error::NoPermission {
                operation: request.operation(),
                dev: Some(id),
                errno,
            }),
            _ => first,
        }
    }

    /// GET_DEV_INFO2: allowed to any caller who may read the device's character node, for every kind of device.
    pub(crate) fn info_by_path(
        &mut self,
        id: DevId,
        deadline: Duration,
    ) -> Result<Geometry, Error> {
        let request = Request::new(
            Operation::Info,
            ublk_sys::UBLK_U_CMD_GET_DEV_INFO2,
            Some(id),
        )
        .payload(vec![0; ublksrv_ctrl_dev_info::SIZE])
        .path(&self.nodes.char_device(id));
        let (_, payload) = self.send(&request, deadline)?;
        geometry(Operation::Info, &payload)
    }

    /// Sends a command as it is.
    fn send(&mut self, request: &Request, deadline: Duration) -> Result<(u32, Vec<u8>), Error> {
        let (operation, dev) = (request.operation(), request.dev());
        let until = deadline_in(deadline);
        let mut interrupted = false;
        loop {
            let ended = self.issue(request, deadline, until)?;
            let errno = match ended.result {
                Ok(value) => return Ok((value, request.answer(&ended.buffer))),
                Err(errno) => errno,
            };
            let end = matches!(errno, Errno::EINTR | Errno::ECANCELED);
            // A command that is interrupted again and again has a deadline as others have (L27).
            let late = interrupted && Instant::now() >= until;
            if end && (ended.cancelled || late) {
                return Err(Error::TimedOut {
                    operation,
                    dev,
                    after: deadline,
                    abandoned: false,
                });
            }
            let rule = operation.on_eintr();
            if errno == Errno::EINTR && rule != OnEintr::Report {
                interrupted = true;
                continue;
            }
            if errno == Errno::ENODEV && interrupted && rule == OnEintr::ReissueUntilGone {
                return Ok((0, request.answer(&ended.buffer)));
            }
            return Err(Error::of_command(operation, dev, errno));
        }
    }

    /// Sends a command once and waits for its end, at most until the deadline and the grace.
    fn issue(
        &mut self,
        request: &Request,
        deadline: Duration,
        until: Instant,
    ) -> Result<Ended, Error> {
        let (operation, dev) = (request.operation(), request.dev());
        let buffer = request.buffer().ok_or_else(|| Error::Spec {
            message: format!("{operation}: a payload is at most 65535 bytes"),
        })?;
        let header = request.header(&buffer);
        let ticket = self.slots.take(operation, buffer)?;
        if let Some(buffer) = self.slots.buffer(ticket) {
            let word = ticket.pack();
            // On failure the slot stays taken: whether the kernel saw the entry is not known.
            self.port.submit(word, request.cmd_op(), &header, buffer)?;
        }
        if let Some((result, buffer)) = self.reap(ticket, until)? {
            let cancelled = false;
            return Ok(Ended {
                result,
                buffer,
                cancelled,
            });
        }
        self.port.cancel(ticket.to_cancel().pack(), ticket.pack())?;
        match self.reap(ticket, deadline_in(CANCEL_GRACE))? {
            Some((result, buffer)) => Ok(Ended {
                result,
                buffer,
                cancelled: true,
            }),
            None => Err(Error::TimedOut {
                operation,
                dev,
                after: deadline,
                abandoned: true,
            }),
        }
    }

    /// Waits for the completion of one command; `None` when the time is over. Completions of
    /// abandoned commands free their slots on the way; those of earlier lives, and of cancel
    /// requests, mean nothing (L53).
    fn reap(&mut self, ticket: Ticket, until: Instant) -> Result<Option<Completed>, Error> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Some(Completion { user_data, res }) = self.port.wait(left)? else {
                return Ok(None);
            };
            let of = Ticket::unpack(user_data);
            let ended = of.and_then(|of| self.slots.release(of));
            if let Some(buffer) = ended.filter(|_| of == Some(ticket)) {
                return Ok(Some((Errno::from_result(res), buffer)));
            }
        }
    }

    /// What this kernel can do (GET_FEATURES). Asked once; the kernel does not change.
    ///
    /// # Errors
    /// [`Error::TooOld`] before Linux 6.5, [`Error::TimedOut`].
    pub fn features(&mut self, deadline: Duration) -> Result<Features, Error> {
        if let Some(known) = self.kernel {
            return Ok(known);
        }
        let request = Request::of(Operation::Features, None).payload(vec![0; 8]);
        let (_, payload) = self.raw(&request, deadline)?;
        let word = <[u8; 8]>::try_from(payload).map_err(|p| Error::BadReply {
            operation: Operation::Features,
            message: format!("{} bytes of features", p.len()),
        })?;
        let features = Features::from_bits(u64::from_ne_bytes(word));
        self.kernel = Some(features);
        Ok(features)
    }

    /// Adds a device (ADD_DEV), after comparing the features asked for with the kernel's. What was
    /// made is in the answer and nowhere else (L04). [`CheckedSpec::refused`] tells which features
    /// the kernel dropped in silence.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::IdInUse`], [`Error::DeviceLimit`], [`Error::NoFreeId`],
    /// [`Error::NoPermission`], [`Error::TooOld`], [`Error::TimedOut`], [`Error::Refused`]; and
    /// [`Error::KernelFault`] on a kernel that is known to crash in ADD_DEV, before it is sent, unless
    /// [`DeviceSpec::trust_kernel`](ublk_core::DeviceSpec::trust_kernel) was set.
    pub fn add(&mut self, spec: &CheckedSpec, deadline: Duration) -> Result<Geometry, Error> {
        let until = deadline_in(deadline);
        self.refuse_crash(spec)?;
        negotiate(spec.spec().features, self.features(deadline)?)?;
        let left = until.saturating_duration_since(Instant::now());
        let request = Request::of(Operation::Add, spec.spec().id)
            .payload(spec.dev_info().to_bytes().to_vec());
        let (_, payload) = self.raw(&request, left)?;
        let geometry = geometry(Operation::Add, &payload)?;
        // The number may have been another device's before.
        let id = geometry.dev_id();
        self.unprivileged.remove(&id);
        self.stopped.remove(&id);
        if geometry.features().contains(Features::UNPRIVILEGED_DEV) {
            self.unprivileged.insert(id);
        }
        Ok(geometry)
    }

    /// Refuses to add a device on a kernel that would crash (L27).
    fn refuse_crash(&self, spec: &CheckedSpec) -> Result<(), Error> {
        match &self.release {
            Some(release) if release.has(Fault::AddCrashes) && !spec.spec().trust_kernel => {
                Err(Error::KernelFault {
                    operation: Operation::Add,
                    fault: Fault::AddCrashes,
                    release: release.to_string(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Sets the parameters of a device just added (SET_PARAMS), by the kernel's geometry. A user's device is
    /// theirs only once udev has given them its node: that is waited for.
    ///
    /// # Errors
    /// [`Error::Spec`], [`Error::Busy`] where the device has a disk, [`Error::NoSuchDevice`],
    /// [`Error::Refused`], [`Error::TimedOut`].
    pub fn set_params(
        &mut self,
        spec: &CheckedSpec,
        geometry: &Geometry,
        deadline: Duration,
    ) -> Result<(), Error> {
        let params = spec.params(geometry)?;
        let request = on(Operation::SetParams, geometry.dev_id());
        let request = request.payload(params.to_bytes().to_vec());
        if !self.unprivileged.contains(&geometry.dev_id()) {
            return self.raw(&request, deadline).map(drop);
        }
        let until = deadline_in(deadline);
        let mut last = None;
        let set = wait::until(until, || {
            let left = until.saturating_duration_since(Instant::now());
            match self.raw(&request, left) {
                Ok(_) => Ok(Some(())),
                Err(e) if matches!(e.errno(), Some(Errno::EACCES | Errno::ENOENT)) => {
                    last = Some(e);
                    Ok(None)
                }
                // The last look may have had no time left.
                Err(Error::TimedOut {
                    abandoned: false, ..
                }) if last.is_some() => Ok(None),
                Err(e) => Err(e),
            }
        })?;
        match (set, last) {
            // EACCES means a busy device where no path was given.
            (None, Some(_)) => Err(Error::NoPermission {
                operation: Operation::OpenChar,
                dev: Some(geometry.dev_id()),
                errno: Errno::EACCES,
            }),
            _ => Ok(()),
        }
    }

    /// The parameters of a device (GET_PARAMS), `None` while none were set. Takes the device mutex:
    /// waits while the device starts or stops.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], [`Error::BadReply`], [`Error::TimedOut`].
    pub fn get_params(
        &mut self,
        id: DevId,
        deadline: Duration,
    ) -> Result<Option<DeviceParams>, Error> {
        let operation = Operation::GetParams;
        let mut payload = vec![0; PARAMS_BYTES as usize];
        payload[..4].copy_from_slice(&PARAMS_BYTES.to_ne_bytes());
        let request = on(operation, id).payload(payload);
        let (_, payload) = self.raw(&request, deadline)?;
        let params = ublk_params::read_prefix(&payload).map_err(|e| bad(operation, &e))?;
        Ok(DeviceParams::decode(&params))
    }

    /// Starts a device (START_DEV): waits until every tag of every queue is fetched, so never call
    /// it on a thread that serves a queue (L20), and have the queues serve before it returns: some
    /// kernels scan for partitions inside it. `server_pid` is the process (tgid) that opened the
    /// character device.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`], [`Error::NoSuchDevice`],
    /// [`Error::Refused`]. [`Error::WrongState`] for a device that was stopped by this value, without asking the
    /// driver: by kernel it answers EBUSY, waits for ever or crashes. Such a device is deleted and added again.
    pub fn start(&mut self, id: DevId, server_pid: u32, deadline: Duration) -> Result<(), Error> {
        if self.stopped.contains(&id) {
            return Err(Error::WrongState {
                operation: Operation::Start,
                dev: id,
                state: DevState::Dead,
            });
        }
        let request = on(Operation::Start, id).data(server_pid.into());
        self.raw(&request, deadline).map(drop)
    }

    /// Stops a device (STOP_DEV): waits until the requests accepted are answered, for which it needs
    /// its server. Stopping twice is no error.
    ///
    /// # Errors
    /// [`Error::TimedOut`] where the server holds requests, [`Error::NoSuchDevice`].
    pub fn stop(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let request = on(Operation::Stop, id);
        // Whatever comes of it: a stop that was cancelled may have begun.
        self.stopped.insert(id);
        self.raw(&request, deadline).map(drop)
    }

    /// Deletes a device (DEL_DEV): stops it and waits for its last reference. Send STOP first: a
    /// DEL that waits for a stop holds up ADD and DEL of every ublk device.
    ///
    /// # Errors
    /// [`Error::TimedOut`] where it is still open, [`Error::NoSuchDevice`].
    pub fn delete(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let request = on(Operation::Delete, id);
        self.raw(&request, deadline)?;
        // The number may be another device's from now on.
        self.stopped.remove(&id);
        Ok(())
    }

    /// Queries the kernel's information about a device (GET_DEV_INFO, or GET_DEV_INFO2 with a path); never waits for the
    /// device mutex.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], [`Error::NoPermission`], [`Error::BadReply`], [`Error::TimedOut`].
    pub fn info(&mut self, id: DevId, deadline: Duration) -> Result<Geometry, Error> {
        let request = on(Operation::Info, id).payload(vec![0; ublksrv_ctrl_dev_info::SIZE]);
        match self.raw(&request, deadline) {
            Ok((_, payload)) => geometry(Operation::Info, &payload),
            // A normal user may ask for a device whose node they may read, by its path.
            Err(Error::NoPermission { .. }) => self.info_by_path(id, deadline),
            Err(error) => Err(error),
        }
    }

    /// The CPUs that submit to a hw queue (GET_QUEUE_AFFINITY); never waits for the device mutex.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`], [`Error::Refused`] with EINVAL for a queue the device lacks,
    /// [`Error::TimedOut`].
    pub fn affinity(
        &mut self,
        id: DevId,
        queue: QueueId,
        deadline: Duration,
    ) -> Result<CpuMask, Error> {
        let request = on(Operation::Affinity, id)
            .data(queue.get().into())
            .payload(vec![0; CPU_MASK_BYTES]);
        let (_, payload) = self.raw(&request, deadline)?;
        Ok(CpuMask::from_bytes(&payload))
    }

    /// Issues a command given as a value.
    ///
    /// # Errors
    /// As the method of the command.
    pub fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        let done = |()| Reply::Done;
        match command {
            Command::Features => self.features(deadline).map(Reply::Features),
            Command::Add(spec) => self.add(&spec, deadline).map(Reply::Geometry),
            Command::SetParams { spec, geometry } => {
                self.set_params(&spec, &geometry, deadline).map(done)
            }
            Command::GetParams { id } => self.get_params(id, deadline).map(Reply::Params),
            Command::Start { id, server_pid } => self.start(id, server_pid, deadline).map(done),
            Command::Stop { id } => self.stop(id, deadline).map(done),
            Command::Delete { id } => self.delete(id, deadline).map(done),
            Command::Info { id } => self.info(id, deadline).map(Reply::Geometry),
            Command::Affinity { id, queue } => {
                self.affinity(id, queue, deadline).map(Reply::Affinity)
            }
            Command::StartRecovery { id } => self.start_recovery(id, deadline).map(done),
            Command::EndRecovery { id, server_pid } => {
                self.end_recovery(id, server_pid, deadline).map(done)
            }
            Command::Quiesce { id } => self.quiesce(id, deadline).map(done),
            Command::UpdateSize { id, size } => self.update_size(id, size, deadline).map(done),
            Command::TryStop { id } => self.try_stop(id, deadline).map(done),
            Command::DeleteAsync { id } => self.delete_async(id, deadline).map(done),
            Command::Sync { id } => nodes::sync(id).map(done),
            // Nor a wait for its answers.
            Command::NoScheduler { id } => scheduler::no_scheduler_by_child(id, deadline).map(done),
            Command::ShareMemory { id, pid, fd } => self
                .share_descriptor(id, (pid, fd), deadline)
                .map(Reply::Shared),
            // Who calls this may be the server itself: no open, which would wait for it (L80).
            Command::ProveReady { id, size } => nodes::see_ready(id, size, deadline).map(done),
        }
    }
}

// SAFETY: replies are made of what the port brings from the driver (its promise).
unsafe impl<P: CtrlPort + Send> Controller for Control<P> {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        Self::call(self, command, deadline)
    }
}

pub(crate) const fn on(operation: Operation, id: DevId) -> Request {
    Request::of(operation, Some(id))
}

fn bad(operation: Operation, error: &dyn core::fmt::Display) -> Error {
    Error::BadReply {
        operation,
        message: error.to_string(),
    }
}

fn geometry(operation: Operation, payload: &[u8]) -> Result<Geometry, Error> {
    let info = ublksrv_ctrl_dev_info::read_from(payload).map_err(|e| bad(operation, &e))?;
    Geometry::from_reply(&info).map_err(|e| bad(operation, &e))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
