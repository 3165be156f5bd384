//! Copies to and from memory that several threads or processes use at once.
//!
//! # Why not slices, why not `memcpy`
//!
//! A block device may get overlapping reads and writes at the same time, from several queues. Which bytes win is up to
//! the users, but the server must stay sound: accessing memory that another thread writes through a Rust slice (or by
//! any plain access, `copy_nonoverlapping` included) is a data race and undefined behaviour. So the memory behind a
//! device is accessed only through this module, with accesses that may race:
//!
//! * on x86-64, vector loads and stores inside an `asm!` block (`x86_64.rs`). The semantics of such a block are those
//!   of the machine: each byte is read or written as by a relaxed atomic access, the compiler may not split, repeat or
//!   invent accesses, and since the block is not `nomem` the private side's plain accesses stay on their side of it;
//! * elsewhere, and under Miri, loom, fuzzing and feature `atomic-copy` (for sanitizers, which cannot see into `asm!`),
//!   relaxed atomic accesses of eight bytes (`portable.rs`), always the same eight: the shared address is aligned to
//!   them. If a client's memory is not, single bytes.
//!
//! No order is guaranteed between two requests in flight at once. A completed request comes before a later one, by the
//! block layer's hand-over through the ring.

#[cfg(any(
    not(target_arch = "x86_64"),
    miri,
    loom,
    fuzzing,
    feature = "atomic-copy",
    test
))]
mod portable;
#[cfg(all(
    target_arch = "x86_64",
    not(any(miri, loom, fuzzing, feature = "atomic-copy"))
))]
mod x86_64;

#[cfg(any(
    not(target_arch = "x86_64"),
    miri,
    loom,
    fuzzing,
    feature = "atomic-copy"
))]
pub use portable::Copier;
#[cfg(all(
    target_arch = "x86_64",
    not(any(miri, loom, fuzzing, feature = "atomic-copy"))
))]
pub use x86_64::Copier;

/// Copies are multiples of this many bytes.
pub const UNIT: usize = 512;

#[cfg(test)]
mod tests;
