//! Processes of a ublk server: front, agent, server and helper, and their link.
//!
//! * **front** ([`front`]) is the process that people wait for. It owns no ring and always returns.
//! * **agent** ([`agent`]) owns the control ring of one device: it creates, starts, stops and deletes
//!   it, and watches its server.
//! * **server** ([`server`]) owns the data rings of one device and nothing else; it never issues a
//!   control command.
//! * **helper** ([`helper`]) runs control commands, and the open that proves readiness, for
//!   processes that must be able to return. Programs that embed ublk use it through [`embed`].
//!
//! Roles are hidden subcommands of one program, started by `posix_spawn` with a socket of sequenced
//! packets ([`link`]) as standard input; every other descriptor is closed on exec. What outlives
//! the processes is in the [`state`] store.
#![deny(unsafe_code)]

pub mod agent;
pub mod backend;
mod backing;
pub mod embed;
pub mod exporter;
pub mod failure;
#[cfg(test)]
mod fakes;
pub mod front;
pub mod helper;
pub mod in_use;
mod kill_point;
pub mod link;
pub mod log;
pub mod names;
pub mod policy;
pub mod privilege;
pub mod problems;
pub mod recording;
pub mod report;
pub mod roles;
pub mod server;
pub mod shm;
pub mod signals;
pub mod spec;
pub mod state;
mod sys;

pub use sys::closed;
