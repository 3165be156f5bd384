//! What happened, in words.

use super::Error;
use crate::Operation;
use ublk_core::{DevId, Errno, Features, Mode, Recovery};

impl Error {
    /// What happened, without what to do about it: an arm for each cause.
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
}
