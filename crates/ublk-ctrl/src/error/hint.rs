//! What to do about it, in words.

use super::Error;
use crate::Operation;
use std::borrow::Cow;
use ublk_core::{DevState, Errno, Features};

impl Error {
    /// What to do next: an arm for each cause.
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
