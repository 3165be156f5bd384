//! Processes of a ublk server: front, agent, server and helper, and their link.
#![deny(unsafe_code)]

mod kill_point;
pub mod link;
pub mod peer;
pub mod state;
mod sys;
pub mod wire;
