//! The producer side of the submission queue.
//!
//! # Why there is `unsafe` here
//! Entries are written without a bounds check. The struct's invariants are the proof.
//!
//! # Orderings
//! According to the head comment of `io_uring/io_uring.c` (v6.12), the application stores the SQ tail with release, the
//! kernel reads it with acquire; the kernel stores the head with release after it has copied the entries, the
//! application reads it with acquire before it reuses one. Without SQPOLL the kernel reads the tail inside
//! `io_uring_enter` on our own thread, so no full fence between tail store and flags load is needed.
#![expect(unsafe_code, reason = "slot access through SqMemory")]

use std::marker::PhantomData;

use crate::error::{ChainError, Full};
use crate::memory::{SharedWord, SqMemory};

/// Submission queue: entries are written locally, and made visible by [`publish`](Sq::publish).
///
/// # Invariants
/// - `mask` is `entries − 1` and `entries` is a power of two, so `index & mask` is below `entries`.
/// - Indices run free as `u32`; `limit − tail` (wrapping) is the number of entries known to be free, and never above
///   `entries`.
/// - Only this struct writes the shared tail.
pub struct Sq<S, M> {
    mem: M,
    entries: u32,
    mask: u32,
    /// Local tail; entries before it are written.
    tail: u32,
    /// The tail at which the queue is full, according to the last seen shared head: a push compares two words.
    limit: u32,
    _entry: PhantomData<S>,
}

impl<S: Copy, M: SqMemory<S>> Sq<S, M> {
    /// Takes over a queue at its present indices; `None` if the size is not a power of two.
    pub fn new(mem: M) -> Option<Self> {
        let entries = mem.entries();
        if !entries.is_power_of_two() {
            return None;
        }
        // Relaxed: own index, we are its only writer.
        let tail = mem.tail().load_relaxed();
        let mut queue = Self {
            mem,
            entries,
            mask: entries - 1,
            tail,
            limit: tail,
            _entry: PhantomData,
        };
        queue.space();
        Some(queue)
    }

    /// Free entries according to the cached head.
    #[inline]
    fn cached_space(&self) -> u32 {
        self.limit.wrapping_sub(self.tail)
    }

    /// Free entries according to the shared head.
    #[inline]
    pub fn space(&mut self) -> u32 {
        // Acquire: pairs with the kernel's release of sq.head; only then are the entries ours again.
        let head = self.mem.head().load_acquire();
        // Cannot underflow while the kernel keeps head ≤ tail; if it did not, there is no space.
        let free = self.entries.saturating_sub(self.tail.wrapping_sub(head));
        self.limit = self.tail.wrapping_add(free);
        free
    }

    /// Writes one entry at the local tail; the kernel does not see it before [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`Full`], with nothing changed (L54).
    #[inline]
    pub fn push(&mut self, entry: &S) -> Result<(), Full> {
        self.push_with(|| *entry)
    }

    /// Like [`push`](Self::push), for an entry that is built only if there is room.
    ///
    /// # Errors
    /// [`Full`], with nothing changed and `make` not called.
    #[inline(always)]
    pub fn push_with(&mut self, make: impl FnOnce() -> S) -> Result<(), Full> {
        if self.cached_space() == 0 && self.space() == 0 {
            return Err(Full);
        }
        // SAFETY: masked, so below `entries`; not taken by the kernel because limit − tail > 0 was just seen.
        unsafe { self.mem.write(self.tail & self.mask, &make()) };
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Writes a chain, all or nothing.
    ///
    /// # Errors
    /// [`ChainError`], with nothing changed (L52).
    pub fn push_linked(&mut self, chain: &[S]) -> Result<(), ChainError> {
        let len = u32::try_from(chain.len())
            .ok()
            .filter(|len| *len <= self.entries);
        let Some(len) = len else {
            return Err(ChainError::TooLong {
                len: chain.len(),
                entries: self.entries,
            });
        };
        if self.cached_space() < len && self.space() < len {
            return Err(ChainError::Full);
        }
        for entry in chain {
            self.push(entry).map_err(|Full| ChainError::Full)?;
        }
        Ok(())
    }

    /// Makes everything pushed visible to the kernel.
    #[inline]
    pub fn publish(&mut self) {
        // Release: pairs with the kernel's acquire of sq.tail; the SQE bytes become visible first.
        self.mem.tail().store_release(self.tail);
    }

    /// Number of pushed entries that the kernel has not taken.
    #[inline]
    pub fn pending(&self) -> u32 {
        // Acquire: pairs with the kernel's release of sq.head.
        self.tail.wrapping_sub(self.mem.head().load_acquire())
    }

    /// The present `IORING_SQ_*`; a hint, so relaxed.
    #[inline]
    pub fn flags(&self) -> u32 {
        self.mem.flags().load_relaxed()
    }

    /// Number of entries that the kernel dropped as invalid; a counter, so relaxed.
    pub fn dropped(&self) -> u32 {
        self.mem.dropped().load_relaxed()
    }
}
