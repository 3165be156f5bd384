//! Measurement of ublk devices: what is counted, and what becomes of the counts.
//!
//! The data plane (`ublk-queue`) writes [`LiveHistogram`]s and counters, one writer each; readers copy them into a
//! [`Snapshot`]. Snapshots add up over queues and devices, and subtract to the work of an interval. This crate knows
//! neither rings nor devices.
#![forbid(unsafe_code)]

mod batches;
pub mod buckets;
mod histogram;
mod level;
mod live;
mod operation;
#[cfg(feature = "prometheus")]
pub mod prometheus;
mod snapshot;

pub use batches::Batches;
pub use histogram::Histogram;
pub use level::{Level, UnknownLevel};
pub use live::LiveHistogram;
pub use operation::Operation;
pub use snapshot::{Facts, OpSnapshot, QueueSnapshot, Snapshot};
