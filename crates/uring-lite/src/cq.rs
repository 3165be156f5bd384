//! The consumer side of the completion queue.
//!
//! # Why there is `unsafe` here
//! Entries are read without a bounds check. The struct's invariants are the proof.
//!
//! # Orderings
//! According to the head comment of `io_uring/io_uring.c` (v6.12), the kernel writes a CQE, then stores the tail with
//! release; the application reads the tail with acquire, then the CQE. The application stores the head with release
//! once it is done with the CQEs before it; the kernel reads the head before it writes over them.
#![expect(unsafe_code, reason = "slot access through CqMemory")]

use std::marker::PhantomData;

use crate::memory::{CqMemory, SharedWord};

/// Completion queue: entries are copied out one by one, and given back all at once by [`release`](Cq::release).
///
/// # Invariants
/// - `mask` is `entries − 1` of the memory, a power of two less one, so `index & mask` is below `entries`.
/// - Indices run free as `u32`; entries from `head` up to `tail` (wrapping) are published and not given back.
/// - Only this struct writes the shared head.
pub struct Cq<C, M> {
    mem: M,
    mask: u32,
    /// Local head; entries before it have been copied out.
    head: u32,
    /// The shared tail as last seen.
    tail: u32,
    /// The shared head as last stored.
    released: u32,
    _entry: PhantomData<C>,
}

impl<C, M: CqMemory<C>> Cq<C, M> {
    /// Takes over a queue at its present indices; `None` if the size is not a power of two.
    pub fn new(mem: M) -> Option<Self> {
        let entries = mem.entries();
        if !entries.is_power_of_two() {
            return None;
        }
        // Relaxed: own index, we are its only writer.
        let head = mem.head().load_relaxed();
        Some(Self {
            mem,
            mask: entries - 1,
            head,
            tail: head,
            released: head,
            _entry: PhantomData,
        })
    }

    /// Copies the next entry out. Reads shared memory only if the cached tail says empty.
    #[inline]
    pub fn pop(&mut self) -> Option<C> {
        // Kept in a register: the compiler would reload it after an acquire load.
        let head = self.head;
        if head == self.tail {
            // Acquire: pairs with the kernel's release of cq.tail; the CQEs before it are then complete.
            self.tail = self.mem.tail().load_acquire();
            if head == self.tail {
                return None;
            }
        }
        // SAFETY: masked, so below `entries`; published because head ≠ tail, and ours until `release`.
        let entry = unsafe { self.mem.read(head & self.mask) };
        self.head = head.wrapping_add(1);
        Some(entry)
    }

    /// Number of entries that can be popped now.
    #[inline]
    pub fn ready(&mut self) -> u32 {
        // Acquire: as in `pop`, which relies on the cached tail.
        self.tail = self.mem.tail().load_acquire();
        self.tail.wrapping_sub(self.head)
    }

    /// Gives all popped entries back to the kernel.
    #[inline]
    pub fn release(&mut self) {
        let head = self.head;
        if self.released != head {
            // Release: our CQE reads are done before the kernel may overwrite them.
            self.mem.head().store_release(head);
            self.released = head;
        }
    }

    /// Number of CQEs lost because the ring was full and memory short; a counter, so relaxed.
    pub fn overflow(&self) -> u32 {
        self.mem.overflow().load_relaxed()
    }
}
