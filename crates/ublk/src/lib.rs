//! Linux block devices in user space: turns a backend into `/dev/ublkbN`.
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
//! // Serves until SIGINT, SIGTERM or an external stop; then stops and deletes the device.
//! Builder::new(Letter(b'x')).run(|device| println!("{}", device.path().display()))
//! # }
//! ```
//!
//! [`Builder::start`] returns a [`Device`] instead; [`Builder::add`] goes one stage at a time, and each failure returns
//! the stage it started from. The layers below are re-exported: [`core`],
//! [`ctrl`], [`queue`], [`backends`].
//!
//! # What safe code cannot break
//! This crate forbids `unsafe` and has no unsafe functions: a faulty backend, handler or future can lose its device's data or
//! time, but cannot violate the memory safety of this process. Where the layers below rely on promises (your own handler that
//! pushes operations, a controller that answers commands), the traits are unsafe to implement.
//!
//! # Who issues the control commands
//! A process with a blocking control command in flight cannot exit: not even SIGKILL ends it before
//! the command does. By default the commands run on a thread of this process, each with a deadline
//! that frees the caller, so **a program that is killed while it stops its own device under I/O hangs in
//! its exit until reboot**: the stop waits for requests that only the exit would fail. If that matters, pass
//! [`Builder::controller`] a controller in another process (`ublk-daemon` has one), or stop devices with `ublkctl`.
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
pub use ublk_metrics as metrics;
pub use ublk_queue as queue;
pub use ublk_queue::{Handler, Health, OwnedRequest, Recorded, Recorder, Request, State, Threads};

/// The programs of the README, compiled by the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
