//! Atomics of std, or loom's twins of them under `--cfg loom`: the shipped code is what is modelled.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicI32, AtomicU32, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
