//! The control ring: commands with deadlines.
#![expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]

use crate::command::Answer;
use crate::nodes::Nodes;
use crate::operation::OnEintr;
use crate::port::{Completion, CtrlPort, RingPort};
use crate::slots::{Slots, Ticket};
use crate::table::table;
use crate::wait::{self, deadline_in};
use crate::{Buffer, Command, Controller, Error, Operation, Reply, Request, nodes, scheduler};
use core::time::Duration;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;
use ublk_core::kernel::{Fault, Release};
use ublk_core::{
    CheckedSpec, CpuMask, DevId, DevState, DeviceParams, Errno, Features, Geometry, QueueId,
    require_features,
};
use ublk_sys::{Uapi, ublk_params, ublksrv_ctrl_dev_info};

/// How long a cancelled command may take to end before it is abandoned.
pub const CANCEL_GRACE: Duration = Duration::from_millis(200);

/// Size of the CPU mask in bytes: 8192 CPUs, the most that Linux can be built for. The kernel refuses a mask shorter
/// than its own.
const CPU_MASK_BYTES: usize = 1024;

/// Space for parameters in bytes; more than any known kernel fills (152 since Linux 7.0).
const PARAMS_BYTES: u32 = 512;

/// `/dev/ublk-control` with its own ring, and the typed commands.
///
/// The value belongs to the thread that opened it, which must serve no queue (L20). Each command has a deadline, after
/// which it is cancelled. START then ends with EINTR and has done nothing. A command that cannot be cancelled, such as
/// STOP, is abandoned after [`CANCEL_GRACE`]: it stays in the kernel, its memory stays allocated until it ends, and the
/// generation identifies its late completion. The ring reserves room for a STOP in addition to abandoned commands. A
/// command that completes after its deadline but before it is abandoned succeeds normally.
///
/// An errno from the kernel is returned at once and never masked by a retry (L28), with one exception: a command that a
/// signal interrupted (EINTR), without being cancelled by us, is sent again if the driver has changed nothing. A
/// DEL_DEV that was interrupted and then fails with "no such device" has succeeded.
///
/// # Drop
/// Closes the ring. A thread with an unfinished command, and therefore its process, cannot exit before the command
/// ends: see [`ControlThread`](crate::ControlThread).
#[derive(Debug)]
pub struct Control<P = RingPort> {
    // Dropped before the slots, whose memory commands in the ring may name; that memory is then leaked.
    port: P,
    slots: Slots,
    kernel: Option<Features>,
    /// The kernel's release, by which known faults are recognized.
    release: Option<Release>,
    /// Devices that this value has stopped. None of them can be started again.
    pub(crate) stopped: BTreeSet<DevId>,
    /// Devices known to be unprivileged; their commands carry the path of the character node.
    unprivileged: BTreeSet<DevId>,
    nodes: Nodes,
}

/// A result and the buffer that the completion released.
type Completed = (Result<u32, Errno>, Buffer);

/// The end of a command.
struct Ended {
    result: Result<u32, Errno>,
    buffer: Buffer,
    /// Whether we cancelled it.
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

    /// As [`Control::open`], for a control node at another path (in a container).
    ///
    /// # Errors
    /// As [`Control::open`].
    pub fn open_at(node: &Path) -> Result<Self, Error> {
        RingPort::open(node).map(|port| Self::with_port(port).release(crate::sys::release()))
    }
}

impl<P: CtrlPort> Control<P> {
    /// A control ring on another port, such as a scripted kernel.
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

    /// Sets the kernel's release, by which known faults are recognized; `None` assumes no fault.
    #[must_use]
    pub fn release(mut self, release: Option<Release>) -> Self {
        self.release = release;
        self
    }

    /// The port, for tests: a script records what it has seen.
    pub const fn port(&self) -> &P {
        &self.port
    }

    /// The port, for tests that change a script.
    #[cfg(any(test, feature = "test-utils"))]
    pub const fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Number of commands in the kernel: abandoned ones that have not ended.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.slots.pending()
    }

    /// Sends a command to the driver; the typed methods use it. Returns the non-negative result, and the payload as the
    /// kernel left it.
    ///
    /// For an unprivileged device the driver fails any command that lacks the path of the character node with EINVAL,
    /// before the command takes effect. The command is then sent again with the path.
    ///
    /// # Errors
    /// [`Error::of_command`] of the errno, [`Error::TimedOut`], [`Error::Exhausted`], [`Error::Ring`]; [`Error::Spec`] for
    /// REG_BUF, whose payload names memory: use [`Control::register_memory`].
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
            // Another user's device: with the path the driver reports that.
            Err(Error::NoPermission { errno, .. }) => Err(Error::NoPermission {
                operation: request.operation(),
                dev: Some(id),
                errno,
            }),
            _ => first,
        }
    }

    /// GET_DEV_INFO2, permitted for every caller who may read the device's character node, and for every kind of
    /// device.
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

    /// Sends a command, again if it was interrupted.
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
            // Repeated interruptions do not extend the deadline (L27).
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

    /// Sends a command once and waits for its end, at most until the deadline plus the grace.
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
            // On failure the slot stays taken, because the kernel may have seen the entry.
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

    /// Waits for the completion of one command; `None` on timeout. Completions of abandoned commands release their
    /// slots meanwhile. Those of earlier generations and of cancel requests are ignored (L53).
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

    /// The kernel's features (GET_FEATURES). Cached after the first call.
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

    /// Adds a device (ADD_DEV), after comparing the requested features with the kernel's. Only the returned geometry
    /// describes the device that the kernel created (L04). [`CheckedSpec::refused`] reports features that the kernel
    /// dropped without an error.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::IdInUse`], [`Error::DeviceLimit`], [`Error::NoFreeId`],
    /// [`Error::NoPermission`], [`Error::TooOld`], [`Error::TimedOut`], [`Error::Refused`]; and [`Error::KernelFault`]
    /// for a kernel that is known to crash in ADD_DEV, without sending it, unless
    /// [`DeviceSpec::trust_kernel`](ublk_core::DeviceSpec::trust_kernel) was set.
    pub fn add(&mut self, spec: CheckedSpec, deadline: Duration) -> Result<Geometry, Error> {
        let until = deadline_in(deadline);
        self.refuse_crash(&spec)?;
        require_features(spec.spec().features, self.features(deadline)?)?;
        let left = until.saturating_duration_since(Instant::now());
        let request = Request::of(Operation::Add, spec.spec().id)
            .payload(spec.dev_info().to_bytes().to_vec());
        let (_, payload) = self.raw(&request, left)?;
        let geometry = geometry(Operation::Add, &payload)?;
        // An earlier device may have had the same number.
        let id = geometry.dev_id();
        self.unprivileged.remove(&id);
        self.stopped.remove(&id);
        if geometry.features().contains(Features::UNPRIVILEGED_DEV) {
            self.unprivileged.insert(id);
        }
        Ok(geometry)
    }

    /// Refuses to add a device on a kernel that is known to crash (L27).
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

    /// Sets the parameters of a newly added device (SET_PARAMS), based on the kernel's geometry. Waits until udev has
    /// given the node of an unprivileged device to its user.
    ///
    /// # Errors
    /// [`Error::Spec`], [`Error::Busy`] if the device already has a disk, [`Error::NoSuchDevice`], [`Error::Refused`],
    /// [`Error::TimedOut`].
    pub fn set_params(
        &mut self,
        spec: CheckedSpec,
        geometry: Geometry,
        deadline: Duration,
    ) -> Result<(), Error> {
        let params = spec.params(&geometry)?;
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
                // The last attempt may have had no time left.
                Err(Error::TimedOut {
                    abandoned: false, ..
                }) if last.is_some() => Ok(None),
                Err(e) => Err(e),
            }
        })?;
        match (set, last) {
            // Without a path, EACCES means that the device is busy.
            (None, Some(_)) => Err(Error::NoPermission {
                operation: Operation::OpenChar,
                dev: Some(geometry.dev_id()),
                errno: Errno::EACCES,
            }),
            _ => Ok(()),
        }
    }

    /// The parameters of a device (GET_PARAMS); `None` before SET_PARAMS. Takes the device mutex: waits while the
    /// device starts or stops.
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

    /// Starts a device (START_DEV). Waits until every tag of every queue is fetched, so never call it on a thread that
    /// serves a queue (L20). The queues must serve requests meanwhile, because some kernels scan for partitions inside
    /// the command. `server_pid` is the process (tgid) that opened the character device.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if a tag is not fetched, [`Error::Busy`], [`Error::NoSuchDevice`], [`Error::Refused`].
    /// [`Error::WrongState`], without sending the command, for a device that this value has stopped: depending on the
    /// kernel, the driver would answer EBUSY, hang or crash. Delete such a device and add it again.
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

    /// Stops a device (STOP_DEV). Waits until its server has answered the requests in flight. Stopping a stopped device
    /// is not an error.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the server does not answer its requests, [`Error::NoSuchDevice`].
    pub fn stop(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let request = on(Operation::Stop, id);
        // Even if this fails: a cancelled stop may have begun.
        self.stopped.insert(id);
        self.raw(&request, deadline).map(drop)
    }

    /// Deletes a device (DEL_DEV): stops it and waits until its last reference is dropped. Send STOP first, because a
    /// DEL that waits for a stop blocks ADD and DEL of all ublk devices.
    ///
    /// # Errors
    /// [`Error::TimedOut`] while it is open, [`Error::NoSuchDevice`].
    pub fn delete(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        let request = on(Operation::Delete, id);
        self.raw(&request, deadline)?;
        // Another device may get the number from now on.
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
            // An unprivileged user may query a device by the path of its node, if they may read that.
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

    /// As [`nodes::sync`].
    pub(crate) fn sync(&mut self, id: DevId, _deadline: Duration) -> Result<(), Error> {
        nodes::sync(id)
    }

    /// Disables the I/O scheduler. The caller may be the server itself, so a child waits for the requests.
    pub(crate) fn no_scheduler(&mut self, id: DevId, deadline: Duration) -> Result<(), Error> {
        scheduler::no_scheduler_by_child(id, deadline)
    }

    /// As [`nodes::see_ready`]. The caller may be the server itself: an open would wait for its own answers (L80).
    pub(crate) fn prove_ready(
        &mut self,
        id: DevId,
        size: u64,
        deadline: Duration,
    ) -> Result<(), Error> {
        nodes::see_ready(id, size, deadline)
    }
}

macro_rules! dispatch {
    ($(#[$doc:meta] $variant:ident: $name:literal, $phrase:ident, $number:tt, $since:tt, $eintr:ident
        $(, $(#[$more:meta])* $call:ident $(($($arg:ident: $ty:ty),+))? -> $reply:ty, of $dev:expr)?;)+) => {
        impl<P: CtrlPort> Control<P> {
            /// Issues a command value.
            ///
            /// # Errors
            /// Those of the command's method.
            pub fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
                match command {
                    $($(Command::$variant $({ $($arg),+ })? => {
                        self.$call($($($arg,)+)? deadline).map(Answer::into_reply)
                    })?)+
                }
            }
        }
    };
}
table!(dispatch);

// SAFETY: replies are built from what the port received from the driver (the port's contract).
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
mod tests;
