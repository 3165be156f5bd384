//! What was being done, for errors; and what an interruption means for each.
#![forbid(unsafe_code)]

use core::fmt;
use ublk_core::DevId;

/// An operation of the control plane: a command of the driver, or one of ours on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Operation {
    /// Opening `/dev/ublk-control` and a ring for it.
    Open,
    /// `UBLK_U_CMD_GET_FEATURES`, since Linux 6.5.
    Features,
    /// `UBLK_U_CMD_ADD_DEV`.
    Add,
    /// `UBLK_U_CMD_SET_PARAMS`.
    SetParams,
    /// `UBLK_U_CMD_GET_PARAMS`.
    GetParams,
    /// `UBLK_U_CMD_START_DEV`.
    Start,
    /// `UBLK_U_CMD_STOP_DEV`.
    Stop,
    /// `UBLK_U_CMD_DEL_DEV`.
    Delete,
    /// `UBLK_U_CMD_GET_DEV_INFO`.
    Info,
    /// `UBLK_U_CMD_GET_QUEUE_AFFINITY`.
    Affinity,
    /// `UBLK_U_CMD_START_USER_RECOVERY`.
    StartRecovery,
    /// `UBLK_U_CMD_END_USER_RECOVERY`.
    EndRecovery,
    /// `UBLK_U_CMD_QUIESCE_DEV`, since Linux 6.16.
    Quiesce,
    /// `UBLK_U_CMD_UPDATE_SIZE`, since Linux 6.16.
    UpdateSize,
    /// `UBLK_U_CMD_TRY_STOP_DEV`, since Linux 7.0.
    TryStop,
    /// `UBLK_U_CMD_DEL_DEV_ASYNC`, since Linux 6.9.
    DeleteAsync,
    /// `UBLK_U_CMD_REG_BUF`, since Linux 7.1.
    RegisterMemory,
    /// `UBLK_U_CMD_UNREG_BUF`, since Linux 7.1.
    UnregisterMemory,
    /// Another command of the driver, by its number.
    Raw(u8),
    /// Opening `/dev/ublkcN`.
    OpenChar,
    /// Proving that `/dev/ublkbN` exists, opens and has its size.
    ProveReady,
    /// Writing back what is dirty of `/dev/ublkbN`.
    Sync,
    /// Opening `/dev/ublkbN` to see who uses it.
    Claim,
    /// Taking the I/O scheduler away from `/dev/ublkbN`.
    NoScheduler,
    /// Listing the devices.
    List,
}

/// What is done about a command that ended with EINTR and that we did not cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnEintr {
    /// The driver changed nothing, or the command may be said twice: say it again.
    Reissue,
    /// As above, and the first try may have had its effect: "no such device" is then success.
    ReissueUntilGone,
    /// It may have had half its effect: report it.
    Report,
}

impl Operation {
    /// The word for it in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open control",
            Self::Features => "get features",
            Self::Add => "add",
            Self::SetParams => "set parameters",
            Self::GetParams => "get parameters",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Delete => "delete",
            Self::Info => "get info",
            Self::Affinity => "get queue affinity",
            Self::StartRecovery => "start recovery",
            Self::EndRecovery => "end recovery",
            Self::Quiesce => "quiesce",
            Self::UpdateSize => "resize",
            Self::TryStop => "stop if unused",
            Self::DeleteAsync => "delete without waiting",
            Self::RegisterMemory => "register memory",
            Self::UnregisterMemory => "unregister memory",
            Self::Raw(_) => "command",
            Self::OpenChar => "open the character device",
            Self::ProveReady => "wait until ready",
            Self::Sync => "sync",
            Self::Claim => "look who uses",
            Self::NoScheduler => "set no I/O scheduler",
            Self::List => "list devices",
        }
    }

    /// The operation and its object, as `start device 3`.
    pub(crate) fn on(self, dev: Option<DevId>) -> String {
        let Some(dev) = dev else {
            return self.to_string();
        };
        match self {
            Self::Add
            | Self::Start
            | Self::Stop
            | Self::Delete
            | Self::Quiesce
            | Self::Sync
            | Self::Claim
            | Self::UpdateSize => format!("{self} device {dev}"),
            Self::TryStop | Self::DeleteAsync => format!("{self}: device {dev}"),
            Self::Raw(_) => format!("{self} on device {dev}"),
            Self::ProveReady => format!("{self}: device {dev}"),
            _ => format!("{self} of device {dev}"),
        }
    }

    /// Whether this is the command that room is kept for.
    pub(crate) const fn is_stop(self) -> bool {
        matches!(self, Self::Stop)
    }

    /// The first kernel with a command that no feature flag announces or that a device may lack.
    pub(crate) const fn since(self) -> Option<&'static str> {
        match self {
            Self::DeleteAsync => Some("6.9"),
            Self::Quiesce | Self::UpdateSize => Some("6.16"),
            Self::TryStop => Some("7.0"),
            Self::RegisterMemory | Self::UnregisterMemory => Some("7.1"),
            _ => None,
        }
    }

    /// The rule for EINTR, read off the driver: START and END_USER_RECOVERY wait for the fetches before
    /// they do anything; ADD takes its mutex interruptibly before it does anything; DEL waits for the last
    /// reference after it removed the device; the GET commands, STOP and those that set a state may be
    /// repeated. QUIESCE may have held the device's I/O already.
    pub(crate) const fn on_eintr(self) -> OnEintr {
        match self {
            Self::Features
            | Self::Add
            | Self::GetParams
            | Self::Start
            | Self::Stop
            | Self::Info
            | Self::Affinity
            | Self::StartRecovery
            | Self::EndRecovery
            | Self::UpdateSize
            | Self::TryStop => OnEintr::Reissue,
            Self::Delete | Self::DeleteAsync => OnEintr::ReissueUntilGone,
            _ => OnEintr::Report,
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(nr) => write!(f, "command {nr:#x}"),
            _ => f.write_str(self.name()),
        }
    }
}
