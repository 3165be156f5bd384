//! A seeded model of the ublk driver and its block layer, behind the engine's kernel seam.
//!
//! A [`Sim`] stands in for the kernel: it takes the engine's commands, hands out requests of a random
//! workload, checks every answer against an oracle of the device's content, and reports as a violation
//! whatever the real driver would refuse, hang on, or turn into lost data. By its [`Config`] it delays,
//! reorders, submits only a part, interrupts, refuses for want of memory, injects stale completions,
//! and aborts, at moments that its seed decides. The same seed gives the same run as long as one thread
//! drives it.

mod client;
mod config;
mod disk;
mod driver;
mod memory;
mod model;
mod operations;
mod port;
mod rng;
mod shared;

pub use config::{Config, End, Faults};
pub use model::Report;
pub use port::{Sim, SimDescriptors, SimDevice, SimPort, SimWake};
pub use rng::Rng;
