//! The ublk control plane: `/dev/ublk-control`, typed commands, deadlines, errors.
//!
//! * [`Control`] opens the control node and a ring of 128-byte entries and issues the commands, each with a deadline
//!   that holds even if the command is stuck (L27).
//! * [`Controller`] is the interface for the layers above: one [`Command`] in, one [`Reply`] or [`Error`] out.
//!   [`ControlThread`] implements it on a separate thread; an agent process can implement it over a socket.
//! * [`bring_up`] has the sequences of commands that bring a new device, or one that lost its server, to serve.
//! * [`nodes`] opens and checks the device nodes, which udev creates asynchronously.
//! * [`probe`] finds out why a host cannot create devices, and names a one-line fix.
//!
//! START_DEV waits until every tag of every queue is fetched, so no thread that serves a queue may issue it (L20). A
//! process with an unfinished command cannot exit; see [`ControlThread`] for the consequences.
//!
//! # What safe code cannot break
//! | what is given | safe, because | else |
//! |---|---|---|
//! | a buffer for a reply | it is the command's own, and leaked with a command that the kernel does not give back in time | |
//! | an answer to a command | [`ControlThread`] has it from the driver | [`Controller`] and [`CtrlPort`](port::CtrlPort) are unsafe to implement: geometry and completions are believed |
//! | memory to share | [`Control::share_file`] maps the file for the length of the command: no Rust object is in it | [`Control::register_memory`] is unsafe |
//! | a node by its path | [`nodes`] compares its device number with the driver's | `OpenDevice::new` is unsafe |
#![deny(unsafe_code)]

pub mod bring_up;
mod buffer;
pub mod command;
pub mod control;
pub mod error;
#[cfg(any(test, feature = "test-utils"))]
pub mod fake;
mod lifecycle;
pub mod nodes;
pub mod operation;
pub mod port;
pub mod probe;
mod request;
pub mod scheduler;
mod share;
mod shmem;
mod slots;
mod sys;
mod table;
pub mod thread;
pub mod wait;

pub use buffer::Buffer;
pub use command::{Command, Controller, Reply};
pub use control::{CANCEL_GRACE, Control};
pub use error::{Error, Kind};
pub use operation::Operation;
pub use request::Request;
pub use shmem::MemoryId;
pub use sys::page_size;
pub use thread::ControlThread;

/// The release of the running kernel, used to recognize known faults; `None` if it is unknown.
#[must_use]
pub fn kernel_release() -> Option<ublk_core::kernel::Release> {
    sys::release()
}
