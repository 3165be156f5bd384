//! What can go wrong, by what the caller can do next.
#![forbid(unsafe_code)]

use crate::Operation;
use core::fmt;
use core::time::Duration;
use std::borrow::Cow;
use ublk_core::kernel::Fault;
use ublk_core::{DevId, DevState, Errno, Features, Missing, Mode, Recovery};

/// An error of the control plane. Its text says what happened and what to do next; the two halves
/// are also to be had apart, by [`Error::summary`] and [`Error::hint`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Error {
    /// There is no control node: the ublk driver is not loaded, or not in this kernel.
    MissingModule,
    /// The caller may not do this.
    NoPermission {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// EPERM or EACCES.
        errno: Errno,
    },
    /// io_uring is switched off for this caller (sysctl `kernel.io_uring_disabled`, or seccomp).
    IoUringDisabled {
        /// The sysctl's value, where it could be read.
        sysctl: Option<u8>,
    },
    /// The control ring could not be made, or broke.
    Ring {
        /// What the ring said, hint included.
        message: String,
    },
    /// The kernel has no GET_FEATURES: it is older than Linux 6.5 and is not served.
    TooOld {
        /// What the kernel answered.
        errno: Errno,
    },
    /// The kernel is known, by its release, for a fault in what was asked; nothing was sent to it.
    KernelFault {
        /// What was to be done.
        operation: Operation,
        /// The fault.
        fault: Fault,
        /// The kernel, as `uname -r` tells it.
        release: String,
    },
    /// Features were asked for that this kernel lacks.
    Unsupported(Missing),
    /// The driver made the device without features that were asked for, which it drops without an error.
    NotGranted {
        /// The device; it exists.
        dev: DevId,
        /// What was asked for.
        asked: Features,
        /// What was dropped of it.
        refused: Features,
    },
    /// Before Linux 7.3 a device in batch mode that was recovered may go on failing I/O.
    BatchNotRecoverable {
        /// The recovery policy that was asked for.
        recovery: Recovery,
    },
    /// The kernel does not know the command, or the device lacks the feature for it.
    UnknownCommand {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
    },
    /// The driver's limit of devices is reached (`ublks_max`).
    DeviceLimit,
    /// Every device number is taken.
    NoFreeId,
    /// The device number asked for is taken.
    IdInUse {
        /// The number.
        dev: Option<DevId>,
    },
    /// The device is in the way of this: already live, still open, or still served.
    Busy {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// EBUSY, EEXIST, or EACCES for parameters of a device that has a disk.
        errno: Errno,
    },
    /// The device is in a state in which this cannot be done; nothing was sent to the kernel.
    WrongState {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: DevId,
        /// Its state.
        state: DevState,
    },
    /// There is no such device.
    NoSuchDevice {
        /// What was tried.
        operation: Operation,
        /// The number that is not there.
        dev: Option<DevId>,
    },
    /// The deadline passed.
    TimedOut {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// How long it was waited for.
        after: Duration,
        /// The command could not be cancelled and is still in the kernel: its effect may come yet,
        /// and this process cannot exit before it ends.
        abandoned: bool,
    },
    /// Too many abandoned commands are still in the kernel for another.
    Exhausted {
        /// What was tried.
        operation: Operation,
        /// How many are pending.
        pending: usize,
    },
    /// The spec breaks a rule; nothing was sent to the kernel.
    Spec {
        /// The rule, the value, and what to do.
        message: String,
    },
    /// The kernel answered something no known driver would.
    BadReply {
        /// What was asked.
        operation: Operation,
        /// What is wrong with the answer.
        message: String,
    },
    /// The kernel has the device, and this `/dev` no node of it: it is no devtmpfs, and nobody makes nodes in it.
    NoNode {
        /// What was tried.
        operation: Operation,
        /// Which device.
        dev: DevId,
        /// The node that is not there.
        node: String,
    },
    /// The block device has another size than it was made with.
    WrongSize {
        /// Which device.
        dev: DevId,
        /// Bytes it should have.
        want: u64,
        /// Bytes it has.
        got: u64,
    },
    /// The kernel or a node refused for another reason.
    Refused {
        /// What was tried.
        operation: Operation,
        /// On which device.
        dev: Option<DevId>,
        /// The reason given.
        errno: Errno,
    },
    /// The thread or process that issues the commands is gone.
    ControllerGone {
        /// What is known of its end.
        message: String,
    },
}

/// Kinds of errors, for exit codes and decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Kind {
    /// No such device.
    NoDevice,
    /// A deadline passed.
    TimedOut,
    /// What was asked for makes no sense.
    Usage,
    /// The caller may not.
    Permission,
    /// Something is in the way that may go away.
    Busy,
    /// Anything else.
    Other,
}

impl Error {
    /// The kind of error.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::NoSuchDevice { .. } => Kind::NoDevice,
            Self::TimedOut { .. } => Kind::TimedOut,
            Self::Spec { .. } => Kind::Usage,
            Self::NoPermission { .. } | Self::IoUringDisabled { .. } => Kind::Permission,
            Self::Busy { .. }
            | Self::IdInUse { .. }
            | Self::Exhausted { .. }
            | Self::WrongState { .. } => Kind::Busy,
            _ => Kind::Other,
        }
    }

    /// The device concerned, where there is one.
    #[must_use]
    pub const fn dev(&self) -> Option<DevId> {
        match self {
            Self::NoPermission { dev, .. }
            | Self::UnknownCommand { dev, .. }
            | Self::IdInUse { dev }
            | Self::Busy { dev, .. }
            | Self::NoSuchDevice { dev, .. }
            | Self::TimedOut { dev, .. }
            | Self::Refused { dev, .. } => *dev,
            Self::NoNode { dev, .. }
            | Self::NotGranted { dev, .. }
            | Self::WrongSize { dev, .. }
            | Self::WrongState { dev, .. } => Some(*dev),
            _ => None,
        }
    }

    /// The errno the kernel gave, where it gave one and the variant does not say it all (L28).
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        match self {
            Self::NoPermission { errno, .. }
            | Self::TooOld { errno }
            | Self::Busy { errno, .. }
            | Self::Refused { errno, .. } => Some(*errno),
            Self::NoSuchDevice { .. } => Some(Errno::ENODEV),
            Self::IdInUse { .. } => Some(Errno::EEXIST),
            Self::UnknownCommand { .. } => Some(Errno::EOPNOTSUPP),
            Self::NoFreeId => Some(Errno::ENOSPC),
            Self::DeviceLimit => Some(Errno::EACCES),
            Self::MissingModule | Self::NoNode { .. } => Some(Errno::ENOENT),
            _ => None,
        }
    }

    /// What the errno of a command means: the one place where errnos become errors, each as what it
    /// is, none retried and none handed back as success (L28).
    #[must_use]
    pub fn of_command(operation: Operation, dev: Option<DevId>, errno: Errno) -> Self {
        use Operation as Op;
        match (operation, errno) {
            // Before 6.5 there is no GET_FEATURES, and before 6.4 no encoded ADD_DEV.
            (Op::Features, Errno::ENODEV | Errno::EOPNOTSUPP | Errno::EPERM)
            | (Op::Add, Errno::ENODEV | Errno::EOPNOTSUPP) => Self::TooOld { errno },
            (Op::Add, Errno::EEXIST) => Self::IdInUse { dev },
            (Op::Add, Errno::ENOSPC) => Self::NoFreeId,
            (Op::Add, Errno::EACCES) => Self::DeviceLimit,
            (Op::SetParams, Errno::EACCES) | (_, Errno::EBUSY | Errno::EEXIST) => Self::Busy {
                operation,
                dev,
                errno,
            },
            (_, Errno::EPERM | Errno::EACCES) => Self::NoPermission {
                operation,
                dev,
                errno,
            },
            (_, Errno::ENODEV) => Self::NoSuchDevice { operation, dev },
            (_, Errno::EOPNOTSUPP) => Self::UnknownCommand { operation, dev },
            _ => Self::Refused {
                operation,
                dev,
                errno,
            },
        }
    }

    /// What happened, without what to do about it.
    #[must_use]
    pub fn summary(&self) -> String {
        let on = |op: &Operation, dev: &Option<DevId>| op.on(*dev);
        match self {
            Self::MissingModule => "no /dev/ublk-control: the ublk driver is not loaded".into(),
            Self::NoPermission {
                operation,
                dev,
                errno,
            }
            | Self::Refused {
                operation,
                dev,
                errno,
            } => format!("{}: {errno}", on(operation, dev)),
            Self::IoUringDisabled { sysctl } => match sysctl {
                Some(value) if *value != 0 => {
                    format!("io_uring is not permitted (kernel.io_uring_disabled is {value})")
                }
                _ => "io_uring is not permitted".into(),
            },
            Self::Ring { message } => format!("control ring: {message}"),
            Self::TooOld { errno } => {
                format!("this kernel's ublk driver is older than Linux 6.5: {errno}")
            }
            Self::KernelFault {
                operation,
                fault,
                release,
            } => format!("{operation}: not done on kernel {release}: {fault}"),
            Self::Unsupported(missing) => missing.to_string(),
            Self::UnknownCommand { operation, dev } => format!(
                "{}: the kernel does not know the command, or the device lacks the feature",
                on(operation, dev)
            ),
            Self::WrongState {
                operation,
                dev,
                state,
            } => format!("{}: the device is {state}", operation.on(Some(*dev))),
            Self::DeviceLimit => "add: the driver's limit of devices is reached".into(),
            Self::NoFreeId => "add: every device number is taken".into(),
            Self::IdInUse { dev } => match dev {
                Some(dev) => format!("add device {dev}: the number is in use"),
                None => "add: the number is in use".into(),
            },
            Self::Busy {
                operation,
                dev,
                errno,
            } => {
                let why = match (operation, *errno) {
                    (Operation::SetParams, Errno::EACCES) => "the device has a disk already",
                    (Operation::Start, Errno::EEXIST) => "the device is live already",
                    (Operation::Start, Errno::EBUSY) => {
                        "it was stopped and its server is still attached"
                    }
                    (Operation::OpenChar, _) => "another server has it open",
                    (Operation::StartRecovery, _) => "its old server is still attached",
                    (Operation::EndRecovery, _) => "it is not being recovered",
                    (Operation::RegisterMemory, _) => "a page of it is registered already",
                    (Operation::TryStop, _) => "somebody has it open",
                    _ => "the device is in use",
                };
                format!("{}: {why}: {errno}", on(operation, dev))
            }
            Self::NoSuchDevice { operation, dev } => match dev {
                Some(dev) => format!("{operation}: no ublk device {dev}"),
                None => format!("{operation}: no such ublk device"),
            },
            Self::TimedOut {
                operation,
                dev,
                after: _,
                abandoned,
            } => {
                // What a command had is what others had left of the caller's time: no figure to tell a user.
                let what = on(operation, dev);
                match (operation, abandoned) {
                    (_, true) => {
                        format!("{what}: not done by the deadline, and it cannot be cancelled")
                    }
                    (Operation::ProveReady | Operation::OpenChar, false) => {
                        format!("{what}: no such node by the deadline")
                    }
                    (Operation::NoScheduler, false) => format!("{what}: not done by the deadline"),
                    _ => format!("{what}: cancelled at the deadline"),
                }
            }
            Self::Exhausted { operation, pending } => {
                format!("{operation}: {pending} earlier commands are stuck in the kernel")
            }
            Self::Spec { message } => message.clone(),
            Self::NotGranted { refused, .. } if refused.contains(Features::UNPRIVILEGED_DEV) => {
                "the device is not an unprivileged one: its maker has CAP_SYS_ADMIN".into()
            }
            Self::NotGranted { asked, refused, .. } => format!(
                "the kernel did not grant {refused}, so there is no mode {} with recovery {}",
                Mode::of(*asked),
                Recovery::of(*asked)
            ),
            Self::BatchNotRecoverable { recovery } => format!(
                "batch mode with recovery {recovery}: before Linux 7.3 a recovered device in batch mode may go on \
                 failing I/O"
            ),
            Self::BadReply { operation, message } => format!("{operation}: {message}"),
            Self::NoNode {
                operation,
                dev,
                node,
            } => format!(
                "{}: the kernel has the device, but there is no {node}",
                operation.on(Some(*dev))
            ),
            Self::WrongSize { dev, want, got } => {
                format!("device {dev} has {got} bytes, not the {want} it was made with")
            }
            Self::ControllerGone { message } => {
                format!("what issues the control commands is gone: {message}")
            }
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Cow<'static, str> {
        let id = || self.dev().map_or_else(|| "N".into(), |d| d.to_string());
        Cow::Borrowed(match self {
            Self::MissingModule => {
                "load it with `modprobe ublk_drv`; if there is no such module, install the kernel's \
                 extra modules or use a kernel built with CONFIG_BLK_DEV_UBLK (Linux 6.5 or newer)"
            }
            Self::NoPermission { operation, .. } => match operation {
                Operation::OpenChar
                | Operation::ProveReady
                | Operation::Sync
                | Operation::Claim => {
                    "run as root, or as the owner udev gave the node to; a user's own devices want the udev \
                     rules (udev/60-ublkctl.rules)"
                }
                Operation::Open => {
                    "run as root, or install the udev rules (udev/60-ublkctl.rules) and join the group `ublk`"
                }
                Operation::Add => "run as root (CAP_SYS_ADMIN is needed)",
                _ => "run as root, or as the user who made the device",
            },
            Self::IoUringDisabled { sysctl } => match sysctl {
                Some(1) => {
                    "run as root, join the group of kernel.io_uring_group, or `sysctl kernel.io_uring_disabled=0`"
                }
                Some(0) | None => {
                    "allow io_uring in the seccomp profile of the container; else look at the sysctl \
                     kernel.io_uring_disabled, which has to be 0"
                }
                // Some distributions ship it so (RHEL).
                Some(_) => {
                    "`sysctl kernel.io_uring_disabled=0`, and a file in /etc/sysctl.d to keep it so"
                }
            },
            Self::Ring { .. } => {
                "see the locked-memory and descriptor limits (ulimit -l, ulimit -n)"
            }
            Self::TooOld { .. } => "use Linux 6.5 or newer; 6.12 is the oldest tested",
            Self::KernelFault { fault, .. } => fault.remedy(),
            Self::Unsupported(_) => "leave the feature out, or use a newer kernel",
            Self::UnknownCommand { operation, .. } => {
                return match operation.since() {
                    Some(since) => Cow::Owned(format!(
                        "Linux {since} brings it; where the kernel is as new as that, the device was made \
                         without the feature: delete it and add it again"
                    )),
                    None => "ask for the features the kernel has, or use a newer kernel".into(),
                };
            }
            Self::WrongState {
                operation, state, ..
            } => wrong_state_hint(*operation, *state),
            Self::DeviceLimit => {
                "delete a device, or raise the limit: `echo 256 > \
                 /sys/module/ublk_drv/parameters/ublks_max` (default 64; Linux 6.3 to 6.14 count all \
                 devices, later ones only those of unprivileged users)"
            }
            Self::NoFreeId => "delete devices that are no longer used",
            Self::IdInUse { .. } => {
                "choose another number, or none for the lowest free one; a deleted device keeps its \
                 number until everything that had it open is closed"
            }
            Self::Busy {
                operation, errno, ..
            } => match (operation, *errno) {
                (Operation::SetParams, _) => "parameters can be set only between add and start",
                (Operation::Start, Errno::EEXIST) => "its info names the process that serves it",
                (Operation::Start, _) => "stop and delete the device and add it again",
                (Operation::OpenChar | Operation::StartRecovery, _) => {
                    "stop the other server, or wait until it has ended"
                }
                (Operation::EndRecovery, _) => "start the recovery first",
                (Operation::RegisterMemory, _) => "unregister the other memory first",
                (Operation::TryStop, _) => {
                    "unmount it and close what has it open (`fuser -v` names it), or stop it all the same"
                }
                _ => "close what has the device open (`fuser -v` names it), then try again",
            },
            Self::NoSuchDevice { .. } => "list the devices to see which there are",
            Self::TimedOut {
                operation,
                abandoned,
                ..
            } => return Cow::Owned(timed_out_hint(*operation, *abandoned, &id())),
            Self::Exhausted { .. } => {
                "stop the devices concerned; if that does not free the commands, restart this \
                 process, and the machine where it cannot end"
            }
            Self::Spec { .. } => "nothing was sent to the kernel; change the request",
            Self::NotGranted { refused, .. } if refused.contains(Features::UNPRIVILEGED_DEV) => {
                "run as the unprivileged user, without capabilities"
            }
            Self::NotGranted { .. } => {
                "ask for another mode (--data, --batch) or recovery policy (--recovery)"
            }
            Self::BatchNotRecoverable { .. } => "leave out batch mode (--batch on) or recovery",
            Self::BadReply { .. } => {
                "this is a bug, here or in the kernel: report it with `uname -r`"
            }
            Self::NoNode { .. } => {
                "this /dev gets no new nodes, as that of a container or chroot that is no devtmpfs: bind the machine's \
                 /dev there, or run this outside"
            }
            Self::WrongSize { .. } => "another device may have taken the number: list the devices",
            Self::Refused {
                operation, errno, ..
            } => refused_hint(*operation, *errno),
            Self::ControllerGone { .. } => {
                "make a new controller; list the devices to see what is left"
            }
        })
    }
}

/// A length of time for people: `300 ms`, `2.5 s`.
/// L27: names what to do, by command.
fn timed_out_hint(operation: Operation, abandoned: bool, id: &str) -> String {
    let next = match operation {
        Operation::Start => format!(
            "START_DEV waits until the server has fetched every tag of every queue, and before Linux 7.0 for its \
             answers to the search for partitions: look for a queue that failed and for a backend that does not \
             answer, then stop and delete device {id}; where all did well the kernel has lost the command, as some \
             do where several devices are created at once: add it again"
        ),
        Operation::EndRecovery => format!(
            "END_USER_RECOVERY waits until the new server has fetched every tag of every queue: look for a \
             queue that failed, then recover device {id} again"
        ),
        Operation::Stop | Operation::TryStop => format!(
            "STOP_DEV waits for requests the server has not answered: end the server of device {id} \
             if it no longer answers, then stop again"
        ),
        Operation::Delete | Operation::DeleteAsync => format!(
            "DEL_DEV waits until nobody has device {id} open: unmount it and close /dev/ublkb{id} \
             (`fuser -v /dev/ublkb{id}`) and end its server; it then goes by itself"
        ),
        Operation::Sync => {
            format!("the server of device {id} does not answer what is written back: see its log")
        }
        Operation::Claim => format!(
            "the disk of device {id} does not open: its server does not answer, or somebody's last close waits for it; \
             see its log"
        ),
        Operation::NoScheduler => {
            format!("the server of device {id} does not answer what is in flight: see its log")
        }
        Operation::Add if !abandoned => {
            "the kernel did not take the command up, as some do where several devices \
             are created at once: try again"
                .into()
        }
        Operation::Add => "some kernels (6.18.4, 6.18.5 and builds with the same backport) never \
             finish ADD_DEV: see `dmesg`, reboot, and use another kernel"
            .into(),
        Operation::ProveReady | Operation::OpenChar => format!(
            "see whether udev runs (`udevadm settle`) and what `ls -l /dev/ublk*{id}` and `dmesg` say"
        ),
        _ => format!(
            "another command may hold device {id}: see `dmesg`, stop the device, then try again"
        ),
    };
    if abandoned {
        next + "; the command stays behind in the kernel, and this process cannot exit before it ends"
    } else {
        next
    }
}

/// What to do about a device in the wrong state.
const fn wrong_state_hint(operation: Operation, state: DevState) -> &'static str {
    match (operation, state) {
        (Operation::StartRecovery, DevState::Live) => {
            "it is served: end its server first, or stop it if it no longer answers"
        }
        (Operation::StartRecovery, DevState::Dead) => {
            "it was stopped or never started, so there is nothing to recover: delete it and add it again"
        }
        (Operation::Start, _) => {
            "a stopped device does not start again: delete it and add it again"
        }
        (Operation::UpdateSize, DevState::Quiesced | DevState::FailIo) => "recover it first",
        (Operation::UpdateSize, _) => "only a live device has a size to change",
        _ => "see its info",
    }
}

fn refused_hint(operation: Operation, errno: Errno) -> &'static str {
    match (operation, errno) {
        (Operation::Add, Errno::EINVAL) => {
            "the kernel refused the combination of features: ask for fewer"
        }
        (Operation::SetParams, Errno::EINVAL) => {
            "the kernel refused the parameters: check block size, largest I/O and discard limits"
        }
        (Operation::Affinity, Errno::EINVAL) => "the device has no such queue: see its info",
        (Operation::Start, Errno::EINVAL) => {
            "set the parameters first, and give the process id of the one that opened the character \
             device"
        }
        (Operation::ProveReady, Errno::ENXIO | Errno::ENODEV) => {
            "the block device went away: its server ended or it was stopped; see its log"
        }
        (Operation::StartRecovery | Operation::EndRecovery, Errno::EINVAL) => {
            "the device was made without recovery: delete it and add it again with a recovery policy"
        }
        (Operation::RegisterMemory, Errno::ENOMEM) => {
            "raise the limit of locked memory (`ulimit -l`), or share less"
        }
        (
            Operation::RegisterMemory,
            Errno::EFAULT | Errno::EINVAL | Errno::ENODEV | Errno::EOPNOTSUPP,
        ) => "only memory can be shared: a memfd, or a file of tmpfs or hugetlbfs, of whole pages",
        (Operation::Claim, Errno::ENOENT) => {
            "its node is missing in this /dev: a container's /dev, or udev, does not get new nodes"
        }
        (Operation::Sync, _) => "the server or its backend failed: see its log and `dmesg`",
        (Operation::UnregisterMemory, _) => "the memory is not registered with this device",
        (_, Errno::ENOMEM) => "free memory, or ask for fewer queues, less depth or smaller I/O",
        (_, Errno::EINTR) => "the command was interrupted: look at the device, then try again",
        (_, Errno::EMFILE | Errno::ENFILE) => "raise the limit of open files (`ulimit -n`)",
        _ => "see `dmesg` for what the driver says",
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.summary(), self.hint())
    }
}

impl std::error::Error for Error {}

impl From<ublk_core::SpecError> for Error {
    fn from(error: ublk_core::SpecError) -> Self {
        Self::Spec {
            message: error.to_string(),
        }
    }
}

impl From<Missing> for Error {
    fn from(missing: Missing) -> Self {
        Self::Unsupported(missing)
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
