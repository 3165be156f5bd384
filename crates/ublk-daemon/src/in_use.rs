//! The users of a device: mounts, stacked devices, processes that have it open, and dirty data.
#![forbid(unsafe_code)]

pub mod holders;
mod layers;
pub mod mounts;
pub mod openers;
pub mod write_back;
