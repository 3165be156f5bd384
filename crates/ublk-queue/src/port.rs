//! The engine's kernel interface as traits, and its implementation on a real kernel.
//!
//! The engine is generic over these traits and monomorphised, so that the same code runs on a real ring ([`RingPort`]),
//! on a simulated driver and under a fuzzer.
//!
//! The engine trusts the port: a completion creates a request's only token, and frees memory lent to an operation. So
//! [`Port`] is unsafe to implement, and [`RingPort::new`] is unsafe to call. [`Descriptors`] and [`UserCopyPort`] need
//! no contract: descriptors are checked against the device's bounds, and memory is lent for one call.

mod char_device;
mod descriptors;
mod ring;
pub(crate) mod traits;

pub use self::char_device::CharDevice;
pub use self::descriptors::DescTable;
pub use self::ring::{Prepared, RingError, RingNeeds, RingPort};
pub use self::traits::{
    Completion, Content, Descriptors, Full, IoCommand, NoDevice, PollPort, Port, UserCopyPort, Wake,
};
