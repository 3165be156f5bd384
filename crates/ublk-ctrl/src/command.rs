//! Control commands as values, and the trait of everything that issues them. These values cross the agent's socket.
#![expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]

use crate::table::table;
use crate::wait::deadline_in;
use crate::{Error, Operation, nodes};
use core::time::Duration;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Instant;
use ublk_core::{
    CheckedSpec, CpuMask, DevId, DeviceParams, Features, Geometry, OpenDevice, QueueId,
    SharedBuffer,
};

/// What an argument of a command is; a name means the same in every command.
macro_rules! meaning {
    (spec) => {
        "The spec of the device."
    };
    (geometry) => {
        "The geometry that the kernel returned."
    };
    (id) => {
        "The device."
    };
    (server_pid) => {
        "The process (tgid) that opened the character device."
    };
    (queue) => {
        "The hw queue."
    };
    (size) => {
        "Size in bytes."
    };
    (pid) => {
        "The process that has the file open for reading and writing."
    };
    (fd) => {
        "Its descriptor."
    };
}

macro_rules! commands {
    ($(#[$doc:meta] $variant:ident: $name:literal, $phrase:ident, $number:tt, $since:tt, $eintr:ident
        $(, $(#[$more:meta])* $call:ident $(($($arg:ident: $ty:ty),+))? -> $reply:ty, of $dev:expr)?;)+) => {
        /// A command of the control plane. [`Controller`] has a method for each; the type of its result tells which
        /// [`Reply`] answers the command.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[non_exhaustive]
        pub enum Command {
            $($(
                #[$doc]
                #[doc = ""]
                $(#[$more])*
                $variant $({ $(#[doc = meaning!($arg)] $arg: $ty),+ })?,
            )?)+
        }

        impl Command {
            /// The operation, for errors.
            #[must_use]
            pub const fn operation(&self) -> Operation {
                match self {
                    $($(Self::$variant $({ $($arg: _),+ })? => Operation::$variant,)?)+
                }
            }

            /// The device that the command names, if any.
            #[must_use]
            #[expect(unused_variables, reason = "one argument names the device")]
            pub const fn dev(&self) -> Option<DevId> {
                match self {
                    $($(Self::$variant $({ $($arg),+ })? => $dev,)?)+
                }
            }
        }
    };
}
table!(commands);

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Reply {
    /// Success without data.
    Done,
    /// The kernel's features.
    Features(Features),
    /// The device as the kernel reports it.
    Geometry(Geometry),
    /// The parameters; `None` before SET_PARAMS.
    Params(Option<DeviceParams>),
    /// The CPUs of a queue.
    Affinity(CpuMask),
    /// The registered memory.
    Shared(Vec<SharedBuffer>),
}

/// The content of a [`Reply`], by its type.
pub(crate) trait Answer: Sized {
    /// The reply with this content.
    fn into_reply(self) -> Reply;

    /// The content of the reply, if it is of this type.
    fn of(reply: Reply) -> Result<Self, Reply>;
}

macro_rules! answers {
    ($($variant:ident($ty:ty)),+) => {$(
        impl Answer for $ty {
            fn into_reply(self) -> Reply {
                Reply::$variant(self)
            }

            fn of(reply: Reply) -> Result<Self, Reply> {
                match reply {
                    Reply::$variant(content) => Ok(content),
                    other => Err(other),
                }
            }
        }
    )+};
}
answers!(
    Features(Features),
    Geometry(Geometry),
    Params(Option<DeviceParams>),
    Affinity(CpuMask),
    Shared(Vec<SharedBuffer>)
);

impl Answer for () {
    fn into_reply(self) -> Reply {
        Reply::Done
    }

    fn of(reply: Reply) -> Result<Self, Reply> {
        match reply {
            Reply::Done => Ok(()),
            other => Err(other),
        }
    }
}

/// The typed calls of a [`Controller`], one for each command.
macro_rules! calls {
    ($(#[$doc:meta] $variant:ident: $name:literal, $phrase:ident, $number:tt, $since:tt, $eintr:ident
        $(, $(#[$more:meta])* $call:ident $(($($arg:ident: $ty:ty),+))? -> $reply:ty, of $dev:expr)?;)+) => {$($(
        #[$doc]
        #[doc = ""]
        $(#[$more])*
        fn $call(&mut self, $($($arg: $ty,)+)? deadline: Duration) -> Result<$reply, Error> {
            answer(self, Command::$variant $({ $($arg),+ })?, deadline)
        }
    )?)+};
}

/// Issues control commands: [`ControlThread`](crate::ControlThread), or a client of an agent process.
///
/// Every call returns by its deadline plus the time to cancel the command, at most
/// [`CANCEL_GRACE`](crate::CANCEL_GRACE), whatever the kernel does (L27). An [`Error::TimedOut`] with `abandoned` means
/// that the command may still take effect. Never call from a thread that serves a queue (L20).
///
/// # Safety
/// [`Reply::Geometry`] to [`Command::Info`] must be the driver's reply about that device, obtained during the call: the
/// data plane gives the driver buffers of the reported size, and if they are too small, the driver overwrites other
/// memory.
///
/// # Errors
/// Every method returns an [`Error`] that names operation, device and errno.
pub unsafe trait Controller: Send {
    /// Issues a command and waits for its answer until the deadline.
    ///
    /// # Errors
    /// The kernel's refusal, or [`Error::TimedOut`].
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error>;

    table!(calls);

    /// Opens the character device once udev allows it (see [`Nodes::open_char`](crate::nodes::Nodes::open_char)) and
    /// queries the device that it belongs to, for the server.
    ///
    /// # Errors
    /// Those of opening the node and of [`info`](Controller::info).
    fn open_device(&mut self, id: DevId, deadline: Duration) -> Result<OpenDevice, Error> {
        let until = deadline_in(deadline);
        let node = nodes::open_char(id, deadline)?;
        if !nodes::is_char_of(&node, id) {
            return Err(Error::BadReply {
                operation: Operation::OpenChar,
                message: format!(
                    "/dev/ublkc{id} is the node of another device: check the udev rules"
                ),
            });
        }
        let geometry = self.info(id, until.saturating_duration_since(Instant::now()))?;
        if geometry.dev_id() != id {
            return Err(unexpected(Operation::Info, &Reply::Geometry(geometry)));
        }
        // SAFETY: the node belongs to the device by its number. No other device can have had this number since the node
        // was opened, and the driver was queried after that (the trait's contract).
        Ok(unsafe { OpenDevice::new(node, geometry) })
    }

    /// Registers a memory file with a device: a memfd, or a file on tmpfs or hugetlbfs, open for reading and writing, or for
    /// reading only.
    /// See [`Control::share_file`](crate::Control::share_file).
    ///
    /// # Errors
    /// As [`share_descriptor`](Controller::share_descriptor).
    fn share_memory(
        &mut self,
        id: DevId,
        file: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<Vec<SharedBuffer>, Error> {
        let (pid, fd) = (std::process::id(), file.as_raw_fd().unsigned_abs());
        self.share_descriptor(id, pid, fd, deadline)
    }
}

/// One controller for many devices. Commands are serialized, so one that waits for its deadline delays the others.
// SAFETY: replies come from the inner controller.
unsafe impl<C: Controller> Controller for std::sync::Arc<std::sync::Mutex<C>> {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        let mut controller = match self.lock() {
            Ok(controller) => controller,
            Err(poisoned) => poisoned.into_inner(),
        };
        controller.call(command, deadline)
    }
}

// SAFETY: replies come from the inner controller.
unsafe impl<C: Controller + ?Sized> Controller for Box<C> {
    fn call(&mut self, command: Command, deadline: Duration) -> Result<Reply, Error> {
        (**self).call(command, deadline)
    }
}

fn answer<A: Answer, C: Controller + ?Sized>(
    controller: &mut C,
    command: Command,
    deadline: Duration,
) -> Result<A, Error> {
    let operation = command.operation();
    let reply = controller.call(command, deadline)?;
    A::of(reply).map_err(|other| unexpected(operation, &other))
}

fn unexpected(operation: Operation, reply: &Reply) -> Error {
    Error::BadReply {
        operation,
        message: format!("unexpected reply {reply:?}"),
    }
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use super::*;
    use serde::{Serialize, de::DeserializeOwned};
    use ublk_core::{DeviceSpec, Limits};

    fn round<T: Serialize + DeserializeOwned + PartialEq + core::fmt::Debug>(values: &[T]) {
        for value in values {
            let text = serde_json::to_string(value).unwrap();
            assert_eq!(&serde_json::from_str::<T>(&text).unwrap(), value, "{text}");
        }
    }

    /// A value of an argument's type.
    trait Sample {
        fn sample() -> Self;
    }

    impl Sample for u32 {
        fn sample() -> Self {
            Self::MAX
        }
    }

    impl Sample for u64 {
        fn sample() -> Self {
            Self::MAX
        }
    }

    impl Sample for DevId {
        fn sample() -> Self {
            Self::new(4).unwrap()
        }
    }

    impl Sample for QueueId {
        fn sample() -> Self {
            Self::new(5).unwrap()
        }
    }

    impl Sample for CheckedSpec {
        fn sample() -> Self {
            let spec = DeviceSpec::new(Limits::new(1 << 20)).id(DevId::sample());
            spec.check(4096).unwrap()
        }
    }

    impl Sample for Geometry {
        fn sample() -> Self {
            Self::from_reply(&CheckedSpec::sample().dev_info()).unwrap()
        }
    }

    /// Every command, and the device that it names.
    macro_rules! samples {
        ($(#[$doc:meta] $variant:ident: $name:literal, $phrase:ident, $number:tt, $since:tt, $eintr:ident
            $(, $(#[$more:meta])* $call:ident $(($($arg:ident: $ty:ty),+))? -> $reply:ty, of $dev:expr)?;)+) => {
            [$($(Command::$variant $({ $($arg: <$ty>::sample()),+ })?,)?)+]
        };
    }

    #[test]
    fn commands_and_replies_cross_a_socket() {
        let commands = table!(samples);
        round(&commands);
        for command in &commands {
            let dev = (*command != Command::Features).then(DevId::sample);
            assert_eq!(command.dev(), dev, "{command:?}");
        }
        let (spec, geometry) = (CheckedSpec::sample(), Geometry::sample());
        let params = DeviceParams::decode(&spec.params(&geometry).unwrap());
        round(&[
            Reply::Done,
            Reply::Features(Features::from_bits(u64::MAX)),
            Reply::Geometry(geometry),
            Reply::Params(params),
            Reply::Params(None),
            Reply::Affinity(CpuMask::from_iter([1, 2000])),
            Reply::Shared(vec![SharedBuffer::new(3, 4096, 8192)]),
        ]);
    }
}
