//! A seeded model of the ublk driver and its block layer, behind the engine's port.
//!
//! A [`Sim`] replaces the kernel: it takes the engine's commands, delivers requests of a random workload, checks every
//! answer against an oracle of the device's content, and reports a violation for anything that the real driver would
//! refuse, hang on, or turn into data loss. Depending on its [`Config`] it delays, reorders, submits only a part or
//! nothing, interrupts, refuses for lack of memory, injects stale completions, aborts, and shows the aborts late, at
//! moments determined by its seed. The same seed gives the same run as long as one thread drives it.
//!
//! [`Sim::serve`] serves a device to its end on the calling thread, without `unsafe`. Each [`Sim::port`] is a separate
//! ring, so several threads can serve a queue. A sleeping thread, in an enter or as the owner of a driven worker
//! ([`SimPort::sleep_until_readable`]), is woken only by what would wake it on a real kernel. These are violations: a
//! sleep that nothing would end, a sleep with unsubmitted commands, a second reaction to the same wake-up, closing a
//! ring in the middle of aborts or after its lanes, and memory that is freed while the driver may use it
//! ([`Sim::late_writes`]).

mod client;
mod client_memory;
mod config;
mod disk;
mod driver;
mod memory;
mod model;
mod operations;
mod port;
mod rng;
mod serve;

pub use config::{Config, End, Faults};
pub use model::Report;
pub use port::{Sim, SimDescriptors, SimDevice, SimPort, SimWake};
pub use rng::Rng;
