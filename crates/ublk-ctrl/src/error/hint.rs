//! Hints: what to do about an error.

use super::Error;
use crate::Operation;
use std::borrow::Cow;
use ublk_core::{DevState, Errno, Features};

impl Error {
    /// What to do next.
    #[must_use]
    #[expect(clippy::too_many_lines, reason = "one arm per error")]
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
                    "run as root, or as the owner of the node; devices of other users need the udev rules \
                     (udev/60-ublkctl.rules)"
                }
                Operation::Open => {
                    "run as root, or install the udev rules (udev/60-ublkctl.rules) and join the group `ublk`"
                }
                Operation::Add => "run as root (CAP_SYS_ADMIN is required)",
                _ => "run as root, or as the user who created the device",
            },
            Self::IoUringDisabled { sysctl } => match sysctl {
                Some(1) => {
                    "run as root, join the group in kernel.io_uring_group, or run `sysctl kernel.io_uring_disabled=0`"
                }
                Some(0) | None => {
                    "allow io_uring in the container's seccomp profile; outside a container, set the sysctl \
                     kernel.io_uring_disabled to 0"
                }
                // Some distributions (RHEL) ship this default.
                Some(_) => {
                    "run `sysctl kernel.io_uring_disabled=0`; a file in /etc/sysctl.d makes it permanent"
                }
            },
            Self::Ring { .. } => {
                "check the limits of locked memory and open files (`ulimit -l`, `ulimit -n`)"
            }
            Self::TooOld { .. } => "use Linux 6.5 or newer; 6.12 is the oldest tested",
            Self::KernelFault { fault, .. } => fault.remedy(),
            Self::Unsupported(_) => "omit the feature, or use a newer kernel",
            Self::UnknownCommand { operation, .. } => {
                return match operation.since() {
                    Some(since) => Cow::Owned(format!(
                        "the command needs Linux {since}; if this kernel is new enough, the device was created without \
                         the feature: delete it and add it again"
                    )),
                    None => {
                        "request only features that the kernel has, or use a newer kernel".into()
                    }
                };
            }
            Self::WrongState {
                operation, state, ..
            } => wrong_state_hint(*operation, *state),
            Self::DeviceLimit => {
                "delete a device, or raise the limit: `echo 256 > \
                 /sys/module/ublk_drv/parameters/ublks_max` (default 64; Linux 6.3 to 6.14 count all \
                 devices, later kernels only those of unprivileged users)"
            }
            Self::NoFreeId => "delete devices that are no longer used",
            Self::IdInUse { .. } => {
                "choose another number, or omit it to get the lowest free one; a deleted device keeps its \
                 number until its last user closes it"
            }
            Self::Busy {
                operation, errno, ..
            } => match (operation, *errno) {
                (Operation::SetParams, _) => "parameters can be set only between add and start",
                (Operation::Start, Errno::EEXIST) => "`info` shows the process that serves it",
                (Operation::Start, _) => "stop and delete the device and add it again",
                (Operation::OpenChar | Operation::StartRecovery, _) => {
                    "stop the other server, or wait until it has exited"
                }
                (Operation::EndRecovery, _) => "start the recovery first",
                (Operation::RegisterMemory, _) => "unregister the other memory first",
                (Operation::TryStop, _) => {
                    "unmount and close the device (`fuser -v` shows its users), or stop it anyway"
                }
                _ => "close the device (`fuser -v` shows its users), then try again",
            },
            Self::NoSuchDevice { .. } => "list the devices",
            Self::TimedOut {
                operation,
                abandoned,
                ..
            } => return Cow::Owned(timed_out_hint(*operation, *abandoned, &id())),
            Self::Exhausted { .. } => {
                "stop the affected devices; if the commands remain stuck, restart this process, \
                 or the machine if the process cannot exit"
            }
            Self::Spec { .. } => "nothing was sent to the kernel; correct the request",
            Self::NotGranted { refused, .. } if refused.contains(Features::UNPRIVILEGED_DEV) => {
                "run as the unprivileged user, without capabilities"
            }
            Self::NotGranted { .. } => {
                "choose another mode (--data, --batch) or recovery policy (--recovery)"
            }
            Self::BatchNotRecoverable { .. } => "omit batch mode (--batch on) or recovery",
            Self::BadReply { .. } => {
                "this is a bug in this program or in the kernel: report it with the output of `uname -r`"
            }
            Self::NoNode { .. } => {
                "this /dev gets no new nodes, because it is not a devtmpfs (container, chroot): bind-mount the host's \
                 /dev there, or run outside"
            }
            Self::WrongSize { .. } => {
                "another device may have taken the number: list the devices; or something wrote a file where the node \
                 belongs: `ls -l` tells, and removing it helps"
            }
            Self::Refused {
                operation, errno, ..
            } => refused_hint(*operation, *errno),
            Self::ControllerGone { .. } => {
                "create a new controller; list the devices to see what is left"
            }
        })
    }
}

/// L27: hints for a timeout, by command.
fn timed_out_hint(operation: Operation, abandoned: bool, id: &str) -> String {
    let next = match operation {
        Operation::Start => format!(
            "START_DEV waits until the server has fetched every tag of every queue, and before Linux 7.0 also for \
             the reads of the partition scan: look for a failed queue or a backend that does not answer, then \
             stop and delete device {id}; if neither is the cause, the kernel lost the command, which some kernels \
             do when several devices are created at once: add the device again"
        ),
        Operation::EndRecovery => format!(
            "END_USER_RECOVERY waits until the new server has fetched every tag of every queue: look for a \
             failed queue, then recover device {id} again"
        ),
        Operation::Stop | Operation::TryStop => format!(
            "STOP_DEV waits for requests that the server has not answered: kill the server of device {id} \
             if it no longer answers, then stop again"
        ),
        Operation::Delete | Operation::DeleteAsync => format!(
            "DEL_DEV waits until device {id} is closed everywhere: unmount and close /dev/ublkb{id} \
             (`fuser -v /dev/ublkb{id}`) and end its server; the device is then removed"
        ),
        Operation::Sync => {
            format!("the server of device {id} does not answer the write-back: see its log")
        }
        Operation::Claim => format!(
            "/dev/ublkb{id} cannot be opened: its server does not answer, or a last close waits for it; \
             see its log"
        ),
        Operation::NoScheduler => {
            format!("the server of device {id} does not answer its requests in flight: see its log")
        }
        Operation::Add if !abandoned => {
            "the kernel lost the command, which some kernels do when several devices \
             are created at once: try again"
                .into()
        }
        Operation::Add => "some kernels (6.18.4, 6.18.5 and builds with the same backport) never \
             finish ADD_DEV: see `dmesg`, reboot, and use another kernel"
            .into(),
        Operation::ProveReady | Operation::OpenChar => format!(
            "check that udev runs (`udevadm settle`), and the output of `ls -l /dev/ublk*{id}` and `dmesg`"
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

/// Hints for a device in the wrong state.
const fn wrong_state_hint(operation: Operation, state: DevState) -> &'static str {
    match (operation, state) {
        (Operation::StartRecovery, DevState::Live) => {
            "the device is served: end its server first, or stop the device if the server no longer answers"
        }
        (Operation::StartRecovery, DevState::Dead) => {
            "the device was stopped or never started, so there is nothing to recover: delete it and add it again"
        }
        (Operation::Start, _) => {
            "a stopped device cannot be started again: delete it and add it again"
        }
        (Operation::UpdateSize, DevState::Quiesced | DevState::FailIo) => {
            "recover the device first"
        }
        (Operation::UpdateSize, _) => "only a live device can be resized",
        _ => "see `info` of the device",
    }
}

fn refused_hint(operation: Operation, errno: Errno) -> &'static str {
    match (operation, errno) {
        (Operation::Add, Errno::EINVAL) => {
            "the kernel refused this combination of features: request fewer"
        }
        (Operation::SetParams, Errno::EINVAL) => {
            "the kernel refused the parameters: check block size, largest I/O and discard limits"
        }
        (Operation::Affinity, Errno::EINVAL) => {
            "the device has no such queue: see `info` of the device"
        }
        (Operation::Start, Errno::EINVAL) => {
            "set the parameters first, and give the ID of the process that opened the character \
             device"
        }
        (Operation::ProveReady, Errno::ENXIO | Errno::ENODEV) => {
            "the block device is gone: its server ended, or the device was stopped; see its log"
        }
        (Operation::StartRecovery | Operation::EndRecovery, Errno::EINVAL) => {
            "the device was created without recovery: delete it and add it again with a recovery policy"
        }
        (Operation::RegisterMemory, Errno::ENOMEM) => {
            "raise the limit of locked memory (`ulimit -l`), or share less memory"
        }
        (
            Operation::RegisterMemory,
            Errno::EFAULT | Errno::EINVAL | Errno::ENODEV | Errno::EOPNOTSUPP,
        ) => "only memory can be shared: a memfd, or a file on tmpfs or hugetlbfs, in whole pages",
        (Operation::Claim, Errno::ENOENT) => {
            "the node is missing in this /dev: the /dev of a container does not get new nodes, or udev does not run"
        }
        (Operation::Sync, _) => "the server or its backend failed: see its log and `dmesg`",
        (Operation::UnregisterMemory, _) => "the memory is not registered with this device",
        (_, Errno::ENOMEM) => "free memory, or request fewer queues, less depth or smaller I/O",
        (_, Errno::EINTR) => "the command was interrupted: check the device, then try again",
        (_, Errno::EMFILE | Errno::ENFILE) => "raise the limit of open files (`ulimit -n`)",
        _ => "see `dmesg` for messages of the driver",
    }
}
