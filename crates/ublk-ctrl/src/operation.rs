//! The operations of the control plane, for errors, and what EINTR means for each.
#![forbid(unsafe_code)]

use crate::table::table;
use core::fmt;
use ublk_core::DevId;

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

/// A column that may be empty: an opcode of `ublk_sys`, or a literal.
macro_rules! optional {
    (-) => {
        None
    };
    ($opcode:ident) => {
        Some(ublk_sys::$opcode)
    };
    ($value:literal) => {
        Some($value)
    };
}

macro_rules! operations {
    ($(#[$doc:meta] $variant:ident: $name:literal, $phrase:ident, $number:tt, $since:tt, $eintr:ident
        $(, $(#[$more:meta])* $call:ident $(($($arg:ident: $ty:ty),+))? -> $reply:ty, of $dev:expr)?;)+) => {
        /// An operation of the control plane: a command of the driver, or an action on the nodes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Operation {
            $(#[$doc] $variant,)+
            /// Another command of the driver, by number.
            Raw(u8),
        }

        impl Operation {
            /// Every operation of the table.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];

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

table!(operations);

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
        assert_eq!(Operation::Add.cmd_op(), Some(ublk_sys::UBLK_U_CMD_ADD_DEV));
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
