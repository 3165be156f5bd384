//! Traces of block I/O: what was asked of a device, when, and how long it took.
//!
//! * [`mod@format`] is our own format: a few bytes a request, in blocks that each have a checksum.
//! * [`Source`] reads it, and fio's iolog, blktrace's stream and the MSR Cambridge CSV: any of them becomes a stream of
//!   [`Record`]s. [`IologWriter`] writes what `fio --read_iolog` replays.
//! * [`recorder`] records requests while they are served, without ever holding up who serves them.
//! * [`Analysis`] takes records and yields a [`Summary`]: operations, sizes, sequential and working set, rates, depth and
//!   latency over time. [`picture`] draws it.
//!
//! Nothing here trusts its input: whatever a file holds, it is an error or a warning, never a panic, and the memory used
//! does not grow with it.
#![forbid(unsafe_code)]

mod analysis;
mod blktrace;
mod error;
pub mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod iolog;
mod lines;
mod msr;
#[cfg(feature = "picture")]
pub mod picture;
mod record;
pub mod recorder;
mod sort;
mod source;
pub mod units;

pub use analysis::{
    Analysis, Column, Distribution, OpSummary, SizeClass, Summary, Timeline, WorkingSet, curve,
    latencies, percentiles,
};
pub use blktrace::Blktrace;
pub use error::Error;
pub use iolog::{Iolog, IologWriter};
pub use msr::Msr;
pub use record::{MAX_END, MAX_TIME, Op, Record};
pub use sort::Sorter;
pub use source::{Format, Source};
