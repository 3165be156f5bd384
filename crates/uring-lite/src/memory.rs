//! Memory as traits, so that one queue protocol runs on a mapping shared with the kernel, on the heap in tests, and on
//! loom's memory.
//!
//! # Why there is `unsafe` here
//! Entries are read and written without bounds checks on the hot path; the trait methods state the contract.
#![expect(
    unsafe_code,
    reason = "slot access without a bounds check, the caller's contract"
)]

use std::sync::atomic::{AtomicU32, Ordering};

/// A 32-bit word shared by both sides.
pub trait SharedWord {
    /// Relaxed load: own index, counters, hints.
    fn load_relaxed(&self) -> u32;
    /// Acquire load: the other side's index.
    fn load_acquire(&self) -> u32;
    /// Release store: own index.
    fn store_release(&self, value: u32);
}

macro_rules! shared_word {
    ($type:ty, $ordering:path) => {
        impl SharedWord for $type {
            #[inline]
            fn load_relaxed(&self) -> u32 {
                use $ordering as Order;
                self.load(Order::Relaxed)
            }

            #[inline]
            fn load_acquire(&self) -> u32 {
                use $ordering as Order;
                self.load(Order::Acquire)
            }

            #[inline]
            fn store_release(&self, value: u32) {
                use $ordering as Order;
                self.store(value, Order::Release);
            }
        }
    };
}

shared_word!(AtomicU32, Ordering);
#[cfg(loom)]
shared_word!(loom::sync::atomic::AtomicU32, Ordering);

/// Memory of a submission queue: the application writes entries and the tail, the kernel the head.
pub trait SqMemory<S> {
    /// Type of the shared words.
    type Word: SharedWord;

    /// Number of entries, a power of two; must be the same on every call.
    fn entries(&self) -> u32;
    /// Index of the next entry that the kernel takes; written by the kernel.
    fn head(&self) -> &Self::Word;
    /// Index after the last published entry; written by the application.
    fn tail(&self) -> &Self::Word;
    /// `IORING_SQ_*`; written by the kernel.
    fn flags(&self) -> &Self::Word;
    /// Number of entries that the kernel rejected; written by the kernel.
    fn dropped(&self) -> &Self::Word;

    /// Writes one entry.
    ///
    /// # Safety
    /// `slot` must be below `entries()`, and the kernel must be done with the previous entry in it.
    unsafe fn write(&mut self, slot: u32, entry: &S);
}

/// Memory of a completion queue: the kernel writes entries and the tail, the application the head.
pub trait CqMemory<C> {
    /// Type of the shared words.
    type Word: SharedWord;

    /// Number of entries, a power of two; must be the same on every call.
    fn entries(&self) -> u32;
    /// Index of the next entry that the application reads; written by the application.
    fn head(&self) -> &Self::Word;
    /// Index after the last entry; written by the kernel.
    fn tail(&self) -> &Self::Word;
    /// Number of CQEs lost because the ring was full and the kernel had no memory to keep them; written by the kernel.
    fn overflow(&self) -> &Self::Word;

    /// Copies one entry out.
    ///
    /// # Safety
    /// `slot` must be below `entries()`, and the kernel must have published the entry, which must not have been given
    /// back.
    unsafe fn read(&self, slot: u32) -> C;
}
