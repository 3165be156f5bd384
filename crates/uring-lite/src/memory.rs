//! What the queue protocol needs of memory, so that one protocol runs on a mapping shared with the kernel, on the
//! heap under test, and on loom's memory.
//!
//! # Why there is `unsafe` here
//! Writing and reading an entry is unchecked on the hot path; the contract is on the trait methods.
#![expect(
    unsafe_code,
    reason = "slot access without a bounds check, the caller's contract"
)]

use std::sync::atomic::{AtomicU32, Ordering};

/// A 32-bit word that both sides see.
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

/// Memory of a submission queue: we write entries and the tail, the kernel the head.
pub trait SqMemory<S> {
    /// Type of the shared words.
    type Word: SharedWord;

    /// Number of entries, a power of two; the same at every call.
    fn entries(&self) -> u32;
    /// Index of the next entry the kernel takes; written by the kernel.
    fn head(&self) -> &Self::Word;
    /// Index behind the last published entry; written by us.
    fn tail(&self) -> &Self::Word;
    /// `IORING_SQ_*`; written by the kernel.
    fn flags(&self) -> &Self::Word;
    /// Count of entries the kernel refused to look at; written by the kernel.
    fn dropped(&self) -> &Self::Word;

    /// Writes one entry.
    ///
    /// # Safety
    /// `slot` is below `entries()`, and the kernel is done with the entry that was there.
    unsafe fn write(&mut self, slot: u32, entry: &S);
}

/// Memory of a completion queue: the kernel writes entries and the tail, we the head.
pub trait CqMemory<C> {
    /// Type of the shared words.
    type Word: SharedWord;

    /// Number of entries, a power of two; the same at every call.
    fn entries(&self) -> u32;
    /// Index of the next entry we take; written by us.
    fn head(&self) -> &Self::Word;
    /// Index behind the last entry; written by the kernel.
    fn tail(&self) -> &Self::Word;
    /// Count of CQEs lost because the ring was full and no memory left to keep them; written by the kernel.
    fn overflow(&self) -> &Self::Word;

    /// Copies one entry out.
    ///
    /// # Safety
    /// `slot` is below `entries()`, and the kernel has published the entry and not been given it back.
    unsafe fn read(&self, slot: u32) -> C;
}
