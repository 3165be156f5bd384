//! A seeded model of the ublk driver and its block layer, behind the engine's port.
//!
//! A [`Sim`] stands in for the kernel: it takes the engine's commands, hands out requests of a random
//! workload, checks every answer against an oracle of the device's content, and reports as a violation
//! whatever the real driver would refuse, hang on, or turn into lost data. By its [`Config`] it delays,
//! reorders, submits only a part or nothing, interrupts, refuses for want of memory, injects stale completions,
//! aborts, and shows the aborts late, at moments that its seed decides. The same seed gives the same run as long as
//! one thread drives it.
//!
//! [`Sim::serve`] serves a device to its end on the calling thread, without `unsafe`. Each [`Sim::port`] is a ring of its own,
//! so several threads can serve a queue. Whoever sleeps, in an enter or as an owner
//! who drives a worker ([`SimPort::sleep_until_readable`]), is woken by what would wake it and by nothing else: a sleep
//! that nothing would end is a violation, and so is one with commands that were not submitted, a second look at a wake
//! that was told, a ring that is closed in the midst of aborts or after its lanes, and memory that is gone while the
//! driver may use it ([`Sim::late_writes`]).

mod client;
mod config;
mod disk;
mod driver;
mod memory;
mod model;
mod operations;
mod port;
mod rng;
mod serve;
mod shared;
mod zones;

pub use config::{Config, End, Faults};
pub use model::Report;
pub use port::{Sim, SimDescriptors, SimDevice, SimPort, SimWake};
pub use rng::Rng;
