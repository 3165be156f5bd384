//! Copies to and from memory that several threads, or other processes, use at once.
//!
//! # Why not slices, why not `memcpy`
//!
//! A block device may get overlapping reads and writes at the same time, from several queues; which
//! bytes win is the users' affair, but the server must stay sound. A Rust slice (or any plain
//! access, `copy_nonoverlapping` included) of memory that another thread writes is a data race and
//! undefined behaviour. So the memory behind a device is reached only through this module, and only
//! by accesses that may race:
//!
//! * on x86-64, vector loads and stores inside an `asm!` block (`x86_64.rs`). What such a block does
//!   is judged by the machine, not by the compiler: each byte is read or written as by a relaxed
//!   atomic access, the compiler may not split, repeat or invent accesses, and since the block is
//!   not `nomem` the private side's plain accesses stay on their side of it;
//! * elsewhere, and under Miri, loom, fuzzing and feature `atomic-copy` (sanitizers, which do not
//!   see into `asm!`), relaxed atomic accesses of eight bytes (`portable.rs`), always the same
//!   eight: the shared address is aligned to them. Where a client's memory is not, single bytes.
//!
//! No order is promised between two requests in flight at once; a completed one comes before a later
//! one by the block layer's own hand-over through the ring.

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

/// The unit of all copies in bytes: lengths are multiples of it.
pub const UNIT: usize = 512;

#[cfg(test)]
mod tests;
