//! Everything the engine needs of a kernel, as traits, and what a real kernel has for them.
//!
//! The engine is generic over them and monomorphised, so the code that runs on a real ring ([`RingPort`]), on a simulated
//! driver and under a fuzzer is the same.
//!
//! The engine believes what comes through it: a completion makes a request's only token, and frees what an operation
//! was lent. So [`Port`] is unsafe to implement, and a port of the kernel's is unsafe to make
//! ([`RingPort::new`]). [`Descriptors`] and [`UserCopyPort`] need no promise: descriptors are
//! checked against the device's bounds, and memory is lent for a call.

mod char_device;
mod descriptors;
mod ring;
pub(crate) mod traits;

pub use self::char_device::CharDevice;
pub use self::descriptors::DescTable;
pub use self::ring::{Prepared, RingError, RingNeeds, RingPort};
pub use self::traits::{
    Completion, Descriptors, Full, IoCommand, NoDevice, PollPort, Port, UserCopyPort, Wake,
};
