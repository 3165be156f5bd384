//! Atomics of std, or of loom under `--cfg loom`, so that the shipped code is what loom checks.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicI32, AtomicU32, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
