//! A Linux block device in user space: a backend in, `/dev/ublkbN` out.
//!
//! ```no_run
//! use ublk::{Backend, Builder, Errno, Limits};
//!
//! /// A read-only device full of one letter.
//! struct Letter(u8);
//!
//! impl Backend for Letter {
//!     fn limits(&self) -> Limits {
//!         Limits::new(1 << 30).read_only(true).quick(true)
//!     }
//!     fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
//!         buf.fill(self.0);
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), ublk::Error> {
//! // Serves until SIGINT, SIGTERM or a stop from outside; then stops and deletes the device.
//! Builder::new(Letter(b'x')).run(|device| println!("{}", device.path().display()))
//! # }
//! ```
//!
//! [`Builder::start`] gives a [`Device`] to hold instead; [`Builder::add`] goes one stage at a time,
//! each failure giving back the stage it began with. The layers below are re-exported: [`core`],
//! [`ctrl`], [`queue`], [`backends`].
//!
//! # What safe code cannot break
//! This crate forbids `unsafe` and has no unsafe function of its own: a backend, a handler or a future that is wrong costs its
//! device data or time, never this process its memory. What the layers below ask to be promised (a handler of one's own that
//! pushes operations, a controller that answers commands) is unsafe to implement there.
//!
//! # Who issues the control commands
//! A process with a blocking control command in flight cannot exit: not even SIGKILL ends it before
//! the command does. By default the commands run on a thread of this process, each with a deadline
//! that frees the caller, so **a program killed hard while it stops its own device under I/O hangs in
//! its exit until reboot**: the stop waits for requests that only the exit would fail. Give
//! [`Builder::controller`] a controller in another process (`ublk-daemon` has one) where that
//! matters, or stop devices from outside with `ublkctl`.
#![forbid(unsafe_code)]

mod builder;
mod device;
mod error;
mod handlers;
mod options;
mod recover;
mod run;
mod stages;

pub use builder::Builder;
pub use device::Device;
pub use error::{Error, Failure, Left};
pub use handlers::{Handlers, tasks};
pub use recover::{Rearmed, Recovering};
pub use stages::{Added, Armed, Stopped, Unsettled};

pub use ublk_backends as backends;
pub use ublk_core as core;
pub use ublk_core::{Backend, DevId, Errno, Features, Geometry, Limits, Recovery};
pub use ublk_ctrl as ctrl;
pub use ublk_ctrl::Controller;
pub use ublk_queue as queue;
pub use ublk_queue::{Handler, Health, OwnedRequest, Request, State, Threads};

/// The programs of the README, compiled by the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
