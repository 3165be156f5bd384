//! Queue memory on the heap, with the kernel's side of the protocol, for tests, fuzzing and loom.
//!
//! # Why there is `unsafe` here
//! Two threads use the entries' cells in turn, as in the mapping. The queue protocol decides who may access which; loom
//! checks it.
#![expect(unsafe_code, reason = "cells handed over by the queue protocol")]

#[cfg(loom)]
use loom::cell::UnsafeCell;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

use crate::memory::{CqMemory, SqMemory};

/// A cell with loom's interface.
#[cfg(not(loom))]
#[derive(Debug)]
struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Words and entries of one queue. For the SQ `flags` and `count` are flags and dropped; for the CQ `count` is
/// overflow.
struct QueueMemory<T> {
    head: AtomicU32,
    tail: AtomicU32,
    flags: AtomicU32,
    count: AtomicU32,
    slots: Box<[UnsafeCell<T>]>,
}

// SAFETY: one side at a time reads and writes a slot; the indices hand it over with release and acquire, and the unsafe
// methods that access slots require it. T is sent from thread to thread, so it must be Send.
unsafe impl<T: Send> Sync for QueueMemory<T> {}
// SAFETY: owned values of a Send type, and atomics.
unsafe impl<T: Send> Send for QueueMemory<T> {}

impl<T: Copy> QueueMemory<T> {
    fn new(entries: u32, start: u32, fill: T) -> Arc<Self> {
        Arc::new(Self {
            head: AtomicU32::new(start),
            tail: AtomicU32::new(start),
            flags: AtomicU32::new(0),
            count: AtomicU32::new(0),
            slots: (0..entries).map(|_| UnsafeCell::new(fill)).collect(),
        })
    }

    fn entries(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// # Safety
    /// No other access to the slot may happen meanwhile.
    unsafe fn put(&self, slot: u32, entry: T) {
        // SAFETY: the cell is live, and ours alone by contract. The index is checked.
        self.slots[slot as usize].with_mut(|at| unsafe { at.write(entry) });
    }

    /// # Safety
    /// No write to the slot may happen meanwhile.
    unsafe fn get(&self, slot: u32) -> T {
        // SAFETY: the cell is live, and not written by contract. The index is checked.
        self.slots[slot as usize].with(|at| unsafe { at.read() })
    }
}

/// The application's side of a submission queue.
pub struct HeapSq<S>(Arc<QueueMemory<S>>);

/// The kernel's side of a submission queue.
pub struct KernelSq<S> {
    shared: Arc<QueueMemory<S>>,
    head: u32,
}

/// Creates a submission queue whose indices start at `start`; unwritten entries hold `fill`.
pub fn sq<S: Copy>(entries: u32, start: u32, fill: S) -> (HeapSq<S>, KernelSq<S>) {
    let shared = QueueMemory::new(entries, start, fill);
    (
        HeapSq(Arc::clone(&shared)),
        KernelSq {
            shared,
            head: start,
        },
    )
}

impl<S: Copy> SqMemory<S> for HeapSq<S> {
    type Word = AtomicU32;

    fn entries(&self) -> u32 {
        self.0.entries()
    }

    fn head(&self) -> &AtomicU32 {
        &self.0.head
    }

    fn tail(&self) -> &AtomicU32 {
        &self.0.tail
    }

    fn flags(&self) -> &AtomicU32 {
        &self.0.flags
    }

    fn dropped(&self) -> &AtomicU32 {
        &self.0.count
    }

    unsafe fn write(&mut self, slot: u32, entry: &S) {
        // SAFETY: by contract the kernel side is done with the slot, and we are the only producer.
        unsafe { self.0.put(slot, *entry) };
    }
}

impl<S: Copy> KernelSq<S> {
    /// Takes the next published entry, as `io_get_sqe` does.
    pub fn take(&mut self) -> Option<S> {
        // Acquire: pairs with the application's release of the tail.
        if self.shared.tail.load(Ordering::Acquire) == self.head {
            return None;
        }
        let slot = self.head % self.shared.entries();
        // SAFETY: published and not given back, so the producer does not write it.
        let entry = unsafe { self.shared.get(slot) };
        self.head = self.head.wrapping_add(1);
        // Release: the copy is done before the producer may reuse the entry.
        self.shared.head.store(self.head, Ordering::Release);
        Some(entry)
    }

    /// Sets `IORING_SQ_*`.
    pub fn set_flags(&self, flags: u32) {
        self.shared.flags.store(flags, Ordering::Relaxed);
    }
}

/// The application's side of a completion queue.
pub struct HeapCq<C>(Arc<QueueMemory<C>>);

/// The kernel's side of a completion queue.
pub struct KernelCq<C> {
    shared: Arc<QueueMemory<C>>,
    tail: u32,
}

/// Creates a completion queue whose indices start at `start`; unwritten entries hold `fill`.
pub fn cq<C: Copy>(entries: u32, start: u32, fill: C) -> (HeapCq<C>, KernelCq<C>) {
    let shared = QueueMemory::new(entries, start, fill);
    (
        HeapCq(Arc::clone(&shared)),
        KernelCq {
            shared,
            tail: start,
        },
    )
}

impl<C: Copy> CqMemory<C> for HeapCq<C> {
    type Word = AtomicU32;

    fn entries(&self) -> u32 {
        self.0.entries()
    }

    fn head(&self) -> &AtomicU32 {
        &self.0.head
    }

    fn tail(&self) -> &AtomicU32 {
        &self.0.tail
    }

    fn overflow(&self) -> &AtomicU32 {
        &self.0.count
    }

    unsafe fn read(&self, slot: u32) -> C {
        // SAFETY: by contract published and not given back, so the kernel side does not write it.
        unsafe { self.0.get(slot) }
    }
}

impl<C: Copy> KernelCq<C> {
    /// Number of entries that the application has not given back.
    pub fn used(&self) -> u32 {
        // Acquire: pairs with the application's release of the head.
        self.tail
            .wrapping_sub(self.shared.head.load(Ordering::Acquire))
    }

    /// Posts an entry, as `io_get_cqe` and `io_commit_cqring` do; `false` when the ring is full.
    pub fn post(&mut self, entry: C) -> bool {
        if self.used() == self.shared.entries() {
            return false;
        }
        // SAFETY: given back, so the consumer does not read it, and we are the only producer.
        unsafe { self.shared.put(self.tail % self.shared.entries(), entry) };
        self.tail = self.tail.wrapping_add(1);
        // Release: the entry is written before the consumer sees the tail.
        self.shared.tail.store(self.tail, Ordering::Release);
        true
    }

    /// Counts a lost CQE.
    pub fn count_overflow(&self) {
        // There is one writer.
        let count = self.shared.count.load(Ordering::Relaxed);
        self.shared
            .count
            .store(count.wrapping_add(1), Ordering::Relaxed);
    }
}
