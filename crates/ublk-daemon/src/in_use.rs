//! Who uses a device: mounts, layers above it, processes that have it open, and what is not written back yet.
#![forbid(unsafe_code)]

pub mod holders;
mod layers;
pub mod mounts;
pub mod openers;
pub mod write_back;
