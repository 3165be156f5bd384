//! The operations of the control plane, for errors, and what EINTR means for each.
#![forbid(unsafe_code)]

use core::fmt;
use ublk_core::DevId;
use ublk_sys::{
    UBLK_U_CMD_ADD_DEV, UBLK_U_CMD_DEL_DEV, UBLK_U_CMD_DEL_DEV_ASYNC, UBLK_U_CMD_END_USER_RECOVERY,
    UBLK_U_CMD_GET_DEV_INFO, UBLK_U_CMD_GET_FEATURES, UBLK_U_CMD_GET_PARAMS,
    UBLK_U_CMD_GET_QUEUE_AFFINITY, UBLK_U_CMD_QUIESCE_DEV, UBLK_U_CMD_REG_BUF,
    UBLK_U_CMD_SET_PARAMS, UBLK_U_CMD_START_DEV, UBLK_U_CMD_START_USER_RECOVERY,
    UBLK_U_CMD_STOP_DEV, UBLK_U_CMD_TRY_STOP_DEV, UBLK_U_CMD_UNREG_BUF, UBLK_U_CMD_UPDATE_SIZE,
};

/// How to handle an EINTR that is not due to our own cancel request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnEintr {
    /// Send the command again: the driver has changed nothing, or the command may be repeated.
    Reissue,
    /// Send it again; ENODEV is then success, because the first attempt may have taken effect.
    ReissueUntilGone,
    /// Report the error, because the command may have taken effect in part.
    Report,
}

/// What separates an operation's name from its device.
#[derive(Debug, Clone, Copy)]
enum Phrase {
    /// `start device 3`.
    Bare,
    /// `get info of device 3`.
    Of,
    /// `stop if unused: device 3`.
    Colon,
}

macro_rules! optional {
    (-) => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

/// One row per operation: its name, how the device follows it, the driver's opcode, the first kernel with the command
/// if no feature flag announces it or a device may lack it, and the EINTR rule.
macro_rules! operations {
    ($($(#[$doc:meta])+ $variant:ident: $name:literal, $phrase:ident, $number:tt, $since:tt, $eintr:ident;)+) => {
        /// An operation of the control plane: a command of the driver, or an action on the nodes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Operation {
            $($(#[$doc])+ $variant,)+
            /// Another command of the driver, by number.
            Raw(u8),
        }

        impl Operation {
            /// The name in messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                    Self::Raw(_) => "command",
                }
            }

            const fn phrase(self) -> Phrase {
                match self {
                    $(Self::$variant => Phrase::$phrase,)+
                    Self::Raw(_) => Phrase::Of,
                }
            }

            /// The driver's opcode, for operations that are commands.
            pub(crate) const fn cmd_op(self) -> Option<u32> {
                match self {
                    $(Self::$variant => optional!($number),)+
                    Self::Raw(_) => None,
                }
            }

            /// The first kernel with a command that no feature flag announces or that a device may lack.
            pub(crate) const fn since(self) -> Option<&'static str> {
                match self {
                    $(Self::$variant => optional!($since),)+
                    Self::Raw(_) => None,
                }
            }

            /// The EINTR rule, derived from the driver. START and END_USER_RECOVERY wait for the fetches before they
            /// change anything; ADD acquires its mutex interruptibly before it changes anything; DEL waits for the last
            /// reference after it has removed the device; the GET commands, STOP and those that set a state may be
            /// repeated. QUIESCE may already hold the device's I/O.
            pub(crate) const fn on_eintr(self) -> OnEintr {
                match self {
                    $(Self::$variant => OnEintr::$eintr,)+
                    Self::Raw(_) => OnEintr::Report,
                }
            }
        }
    };
}

operations! {
    /// Opening `/dev/ublk-control` and a ring for it.
    Open: "open control", Of, -, -, Report;
    /// `UBLK_U_CMD_GET_FEATURES`, since Linux 6.5.
    Features: "get features", Of, UBLK_U_CMD_GET_FEATURES, -, Reissue;
    /// `UBLK_U_CMD_ADD_DEV`.
    Add: "add", Bare, UBLK_U_CMD_ADD_DEV, -, Reissue;
    /// `UBLK_U_CMD_SET_PARAMS`.
    SetParams: "set parameters", Of, UBLK_U_CMD_SET_PARAMS, -, Report;
    /// `UBLK_U_CMD_GET_PARAMS`.
    GetParams: "get parameters", Of, UBLK_U_CMD_GET_PARAMS, -, Reissue;
    /// `UBLK_U_CMD_START_DEV`.
    Start: "start", Bare, UBLK_U_CMD_START_DEV, -, Reissue;
    /// `UBLK_U_CMD_STOP_DEV`.
    Stop: "stop", Bare, UBLK_U_CMD_STOP_DEV, -, Reissue;
    /// `UBLK_U_CMD_DEL_DEV`.
    Delete: "delete", Bare, UBLK_U_CMD_DEL_DEV, -, ReissueUntilGone;
    /// `UBLK_U_CMD_GET_DEV_INFO`.
    Info: "get info", Of, UBLK_U_CMD_GET_DEV_INFO, -, Reissue;
    /// `UBLK_U_CMD_GET_QUEUE_AFFINITY`.
    Affinity: "get queue affinity", Of, UBLK_U_CMD_GET_QUEUE_AFFINITY, -, Reissue;
    /// `UBLK_U_CMD_START_USER_RECOVERY`.
    StartRecovery: "start recovery", Of, UBLK_U_CMD_START_USER_RECOVERY, -, Reissue;
    /// `UBLK_U_CMD_END_USER_RECOVERY`.
    EndRecovery: "end recovery", Of, UBLK_U_CMD_END_USER_RECOVERY, -, Reissue;
    /// `UBLK_U_CMD_QUIESCE_DEV`, since Linux 6.16.
    Quiesce: "quiesce", Bare, UBLK_U_CMD_QUIESCE_DEV, "6.16", Report;
    /// `UBLK_U_CMD_UPDATE_SIZE`, since Linux 6.16.
    UpdateSize: "resize", Bare, UBLK_U_CMD_UPDATE_SIZE, "6.16", Reissue;
    /// `UBLK_U_CMD_TRY_STOP_DEV`, since Linux 7.0.
    TryStop: "stop if unused", Colon, UBLK_U_CMD_TRY_STOP_DEV, "7.0", Reissue;
    /// `UBLK_U_CMD_DEL_DEV_ASYNC`, since Linux 6.9.
    DeleteAsync: "delete without waiting", Colon, UBLK_U_CMD_DEL_DEV_ASYNC, "6.9", ReissueUntilGone;
    /// `UBLK_U_CMD_REG_BUF`, since Linux 7.1.
    RegisterMemory: "register memory", Of, UBLK_U_CMD_REG_BUF, "7.1", Report;
    /// `UBLK_U_CMD_UNREG_BUF`, since Linux 7.1.
    UnregisterMemory: "unregister memory", Of, UBLK_U_CMD_UNREG_BUF, "7.1", Report;
    /// Opening `/dev/ublkcN`.
    OpenChar: "open the character device", Of, -, -, Report;
    /// Checking that `/dev/ublkbN` exists, opens and has its size.
    ProveReady: "wait until ready", Colon, -, -, Report;
    /// Writing back the dirty data of `/dev/ublkbN`.
    Sync: "sync", Bare, -, -, Report;
    /// Opening `/dev/ublkbN` to see who uses it.
    Claim: "check the users of", Bare, -, -, Report;
    /// Disabling the I/O scheduler of `/dev/ublkbN`.
    NoScheduler: "disable the I/O scheduler", Of, -, -, Report;
    /// Listing the devices.
    List: "list devices", Of, -, -, Report;
}

impl Operation {
    /// The operation and its object, as `start device 3`.
    pub(crate) fn on(self, dev: Option<DevId>) -> String {
        let Some(dev) = dev else {
            return self.to_string();
        };
        match (self, self.phrase()) {
            (Self::Raw(_), _) => format!("{self} on device {dev}"),
            (_, Phrase::Bare) => format!("{self} device {dev}"),
            (_, Phrase::Of) => format!("{self} of device {dev}"),
            (_, Phrase::Colon) => format!("{self}: device {dev}"),
        }
    }

    /// Whether slots are reserved for this command.
    pub(crate) const fn is_stop(self) -> bool {
        matches!(self, Self::Stop)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The table matches the driver's header, and messages read as sentences.
    #[test]
    fn the_table_names_commands_as_the_driver_does() {
        assert_eq!(Operation::Add.cmd_op(), Some(UBLK_U_CMD_ADD_DEV));
        assert_eq!(Operation::Sync.cmd_op(), None);
        assert_eq!(Operation::TryStop.since(), Some("7.0"));
        assert_eq!(Operation::Delete.on_eintr(), OnEintr::ReissueUntilGone);
        assert_eq!(Operation::Raw(7).on_eintr(), OnEintr::Report);
        let dev = DevId::new(3).ok();
        for (operation, text) in [
            (Operation::Start, "start device 3"),
            (Operation::Info, "get info of device 3"),
            (Operation::TryStop, "stop if unused: device 3"),
            (Operation::Raw(0x18), "command 0x18 on device 3"),
        ] {
            assert_eq!(operation.on(dev), text);
        }
        assert_eq!(Operation::List.on(None), "list devices");
    }
}
