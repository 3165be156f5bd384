//! Load on a file or block device, from one thread through one io_uring ring: replays of traces ([`replay`]) and
//! measurements ([`measure`], [`compare`]).
//!
//! [`Engine`] keeps a number of requests in flight on an open file. It owns their buffers, and knows when each request
//! was handed to the kernel and when it came back. Every wait has a deadline.
#![deny(unsafe_code)]

mod bench;
mod compare;
mod engine;
mod error;
mod pattern;
mod replay;

pub use bench::{Measured, Pattern, Plan, Rate, measure};
pub use compare::{Comparison, compare};
pub use engine::{Done, Engine, Io, Kind};
pub use error::Error;
pub use pattern::{Fill, is_ours};
pub use replay::{Options, Replayed, Speed, replay};
