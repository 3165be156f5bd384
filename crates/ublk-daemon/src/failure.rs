//! Failures, as they are passed between roles and reported to people and scripts.
//!
//! Each cause has one message: constructors for causes that several commands share are here.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use ublk_core::{DevId, Errno};
use ublk_ctrl::Error;

/// Text, hint, and the kind that decides the exit code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Decides the exit code.
    pub kind: FailureKind,
    /// What failed, and why.
    pub text: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The kernel's errno, if any.
    #[serde(default)]
    pub errno: Option<Errno>,
}

/// Kinds of failure that callers distinguish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FailureKind {
    /// Any other. Exit code 1.
    Failed,
    /// The request is invalid. Exit code 2.
    Usage,
    /// A deadline passed. Exit code 3.
    TimedOut,
    /// The device does not exist. Exit code 32.
    NoSuchDevice,
    /// The ublk driver is not loaded, or not in this kernel. Exit code 1, like all that follow.
    DriverMissing,
    /// The caller lacks permission.
    NoPermission,
    /// io_uring is disabled for the caller.
    IoUringDisabled,
    /// The kernel lacks a requested feature or is too old.
    Unsupported,
    /// The kernel has a known fault in the operation, which was therefore not attempted.
    KernelFault,
    /// A temporary obstacle: the number is in use, or the device is open.
    Busy,
    /// Another program or user created the device.
    Foreign,
}

impl FailureKind {
    /// The exit code of a command that fails this way.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::TimedOut => 3,
            Self::NoSuchDevice => 32,
            _ => 1,
        }
    }
}

impl Failure {
    /// A failure without a hint.
    #[must_use]
    pub fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self {
            kind,
            text: text.into(),
            hint: None,
            errno: None,
        }
    }

    /// A failure of kind [`FailureKind::Failed`].
    #[must_use]
    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(FailureKind::Failed, text)
    }

    /// A deadline that passed.
    #[must_use]
    pub fn timed_out(text: impl Into<String>) -> Self {
        Self::new(FailureKind::TimedOut, text)
    }

    /// A device that does not exist, with the name that the user gave.
    #[must_use]
    pub fn no_such_device(word: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::NoSuchDevice, format!("no ublk device {word}"))
            .errno(Errno::ENODEV)
            .hint("`ublkctl list` shows all devices")
    }

    /// A device without a record of the caller's.
    #[must_use]
    pub fn foreign(id: DevId) -> Self {
        let text = format!("device {id} was not created by this ublkctl");
        Self::new(FailureKind::Foreign, text)
            .hint("use the program that created it, or run as that user or as root")
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the errno.
    #[must_use]
    pub const fn errno(mut self, errno: Errno) -> Self {
        self.errno = Some(errno);
        self
    }

    /// Prefixes the text with `subject`.
    #[must_use]
    pub fn about(mut self, subject: impl std::fmt::Display) -> Self {
        self.text = format!("{subject}: {}", self.text);
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::NoSuchDevice { dev: Some(dev), .. } = error {
            return Self::no_such_device(dev);
        }
        let kind = match &error {
            Error::NoSuchDevice { .. } => FailureKind::NoSuchDevice,
            Error::TimedOut { .. } => FailureKind::TimedOut,
            Error::Spec { .. } => FailureKind::Usage,
            Error::MissingModule => FailureKind::DriverMissing,
            Error::NoPermission { .. } => FailureKind::NoPermission,
            Error::IoUringDisabled { .. } => FailureKind::IoUringDisabled,
            Error::TooOld { .. } | Error::Unsupported(_) | Error::UnknownCommand { .. } => {
                FailureKind::Unsupported
            }
            Error::KernelFault { .. } => FailureKind::KernelFault,
            Error::Busy { .. } | Error::IdInUse { .. } | Error::Exhausted { .. } => {
                FailureKind::Busy
            }
            _ => FailureKind::Failed,
        };
        let mut failure = Self::new(kind, error.summary()).hint(error.hint());
        if let Error::ControllerGone { message } = &error
            && message.starts_with(NO_START)
        {
            failure = Self::failed(message.as_str()).hint(starting());
        }
        failure.errno = error.errno();
        failure
    }
}

/// Prefix of the message for a helper that could not be started.
pub(crate) const NO_START: &str = "cannot start a helper process";

/// The hint for a tool that cannot start itself in another role.
#[must_use]
pub fn starting() -> &'static str {
    match std::path::Path::new("/proc/self/exe").exists() {
        false => "mount /proc: ublkctl starts its processes through /proc/self/exe",
        true => "raise `ulimit -n` and `ulimit -u`: they leave no room for another process",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_ctrl::Operation;

    /// One cause has one message, whichever command reports it.
    #[test]
    fn a_missing_device_is_told_in_one_way() {
        let dev = Some(DevId::new(7).unwrap());
        let of = |operation| Failure::from(Error::NoSuchDevice { operation, dev });
        for operation in [Operation::Info, Operation::Stop, Operation::StartRecovery] {
            assert_eq!(of(operation), Failure::no_such_device(7));
        }
        assert_eq!(Failure::no_such_device("x").kind.exit_code(), 32);
    }

    /// A helper that cannot start is distinguished from a server that exited.
    #[test]
    fn what_is_gone_is_told_apart() {
        let of = |message: &str| {
            Failure::from(Error::ControllerGone {
                message: message.to_owned(),
            })
        };
        let start = of(&format!("{NO_START}: too many open files"));
        assert!(start.hint.is_some_and(|h| h.contains("ulimit")));
        let ended = of("the server ended during prove ready");
        assert!(ended.hint.is_some_and(|h| !h.contains("ulimit")));
    }

    /// The errno is kept, and kinds with the same exit code are distinguished.
    #[test]
    fn causes_keep_their_errno_and_kind() {
        let failure = Failure::from(Error::NoPermission {
            operation: Operation::Open,
            dev: None,
            errno: Errno::EACCES,
        });
        assert_eq!(failure.kind, FailureKind::NoPermission);
        assert_eq!(failure.errno, Some(Errno::EACCES));
        let failure = Failure::from(Error::MissingModule);
        assert_eq!(failure.kind, FailureKind::DriverMissing);
        assert_eq!(failure.kind.exit_code(), 1);
        let text = serde_json::to_string(&failure).unwrap();
        assert_eq!(serde_json::from_str::<Failure>(&text).unwrap(), failure);
    }
}
