//! Summaries: what happened.

use super::Error;
use crate::Operation;
use ublk_core::{DevId, Errno, Features, Mode, Recovery};

impl Error {
    /// What happened, without the hint.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one arm per error")]
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
            } => format!("{operation}: refused on kernel {release}: {fault}"),
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
            Self::DeviceLimit => "add: the driver's device limit is reached".into(),
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
                    (Operation::SetParams, Errno::EACCES) => "the device already has a disk",
                    (Operation::Start, Errno::EEXIST) => "the device is already live",
                    (Operation::Start, Errno::EBUSY) => {
                        "the device was stopped and its server is still attached"
                    }
                    (Operation::OpenChar, _) => "another server has the device open",
                    (Operation::StartRecovery, _) => "the old server is still attached",
                    (Operation::EndRecovery, _) => "the device is not being recovered",
                    (Operation::RegisterMemory, _) => "one of its pages is already registered",
                    (Operation::TryStop, _) => "the device is open",
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
                // The command's own time limit is what earlier commands left of the caller's deadline, which means
                // nothing to a user.
                let what = on(operation, dev);
                match (operation, abandoned) {
                    (_, true) => {
                        format!("{what}: not finished by the deadline, and cannot be cancelled")
                    }
                    (Operation::ProveReady | Operation::OpenChar, false) => {
                        format!("{what}: the node did not appear by the deadline")
                    }
                    (Operation::NoScheduler, false) => {
                        format!("{what}: not finished by the deadline")
                    }
                    _ => format!("{what}: cancelled at the deadline"),
                }
            }
            Self::Exhausted { operation, pending } => {
                format!("{operation}: {pending} earlier commands are stuck in the kernel")
            }
            Self::Spec { message } => message.clone(),
            Self::NotGranted { refused, .. } if refused.contains(Features::UNPRIVILEGED_DEV) => {
                "the device is not unprivileged: its creator has CAP_SYS_ADMIN".into()
            }
            Self::NotGranted { asked, refused, .. } => format!(
                "the kernel did not grant {refused}: mode {} with recovery {} is not available",
                Mode::of(*asked),
                Recovery::of(*asked)
            ),
            Self::BatchNotRecoverable { recovery } => format!(
                "batch mode with recovery {recovery}: before Linux 7.3 a recovered device in batch mode may keep \
                 failing I/O"
            ),
            Self::BadReply { operation, message } => format!("{operation}: {message}"),
            Self::NoNode {
                operation,
                dev,
                node,
            } => format!(
                "{}: the device exists in the kernel, but there is no {node}",
                operation.on(Some(*dev))
            ),
            Self::WrongSize { dev, want, got } => {
                format!("device {dev} has {got} bytes instead of the {want} it was created with")
            }
            Self::ControllerGone { message } => {
                format!("the controller is gone: {message}")
            }
        }
    }
}
