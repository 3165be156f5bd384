//! The real kernel side: mapped queues and `io_uring_enter`.
//!
//! # Why there is `unsafe` here
//! Queue memory is accessed through pointers into mappings that the kernel writes, too. No reference is ever made to an
//! entry; shared words are atomics.
//!
//! # Argument
//! [`MmapSq`] and [`MmapCq`] hold pointers into the mappings of the [`Linux`] they were made with. All three are
//! private fields of one [`Ring`](crate::Ring), which declares `Linux` last, so the mappings outlive the pointers.
//! [`MmapSq::new`] and [`MmapCq::new`] only take pointers from `Mapping::pointer`, which checks bounds and alignment.
#![expect(unsafe_code, reason = "queue memory in a mapping")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use crate::entry::{CqEntry, SqEntry};
use crate::errno::Errno;
use crate::memory::{CqMemory, SqMemory};
use crate::mmap::Mapping;
use crate::port::Port;
use crate::sys;
use crate::syscall;

/// A ring of the running kernel: descriptor and mappings.
#[derive(Debug)]
pub struct Linux {
    /// The argument of `io_uring_enter`: the descriptor, or its registered index.
    enter_fd: RawFd,
    /// `IORING_ENTER_REGISTERED_RING` or 0.
    enter_flags: u32,
    /// The index to unregister, if registered.
    registered: Option<u32>,
    // Drop order: mappings, then the descriptor. The ring lives until both are closed.
    _ring: Mapping,
    _sqes: Mapping,
    fd: OwnedFd,
}

impl Linux {
    pub(crate) fn new(ring: Mapping, sqes: Mapping, fd: OwnedFd) -> Self {
        Self {
            enter_fd: fd.as_raw_fd(),
            enter_flags: 0,
            registered: None,
            _ring: ring,
            _sqes: sqes,
            fd,
        }
    }

    /// Registers the descriptor with this task (5.18), which saves a lookup per enter. A task has 16 slots.
    pub(crate) fn register_fd(&mut self) -> bool {
        let Ok(index) = syscall::register_ring_fd(self.fd.as_fd()) else {
            return false;
        };
        let Ok(enter_fd) = RawFd::try_from(index) else {
            return false;
        };
        self.enter_fd = enter_fd;
        self.enter_flags = sys::IORING_ENTER_REGISTERED_RING;
        self.registered = Some(index);
        true
    }
}

impl AsFd for Linux {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Linux {
    fn drop(&mut self) {
        // A registered descriptor keeps the ring alive until the task exits. We are on the task that registered it: a
        // ring is not Send.
        if let Some(index) = self.registered {
            let _ = syscall::unregister_ring_fd(self.fd.as_fd(), index);
        }
    }
}

impl<S: SqEntry, C: CqEntry> Port<S, C> for Linux {
    type Sq = MmapSq<S>;
    type Cq = MmapCq<C>;

    #[inline]
    fn enter(
        &mut self,
        to_submit: u32,
        min_complete: u32,
        flags: u32,
        timeout: Option<&sys::__kernel_timespec>,
    ) -> Result<u32, Errno> {
        syscall::enter(
            self.enter_fd,
            to_submit,
            min_complete,
            flags | self.enter_flags,
            timeout,
        )
    }
}

/// A mapped submission queue.
///
/// # Invariants
/// The pointers are aligned, inside mappings that live as long as this struct, and `sqes` has `entries` entries.
#[derive(Debug)]
pub struct MmapSq<S> {
    head: NonNull<AtomicU32>,
    tail: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    dropped: NonNull<AtomicU32>,
    sqes: NonNull<S>,
    entries: u32,
}

impl<S: SqEntry> MmapSq<S> {
    /// Locates the fields; `None` if one is out of bounds. The caller must keep the mappings as long as the struct.
    pub(crate) fn new(
        ring: &Mapping,
        sqes: &Mapping,
        params: &sys::io_uring_params,
    ) -> Option<Self> {
        let off = &params.sq_off;
        Some(Self {
            head: ring.pointer(off.head, 1)?,
            tail: ring.pointer(off.tail, 1)?,
            flags: ring.pointer(off.flags, 1)?,
            dropped: ring.pointer(off.dropped, 1)?,
            sqes: sqes.pointer(0, params.sq_entries)?,
            entries: params.sq_entries,
        })
    }
}

/// A mapped completion queue.
///
/// # Invariants
/// The pointers are aligned, inside mappings that live as long as this struct, and `cqes` has `entries` entries.
#[derive(Debug)]
pub struct MmapCq<C> {
    head: NonNull<AtomicU32>,
    tail: NonNull<AtomicU32>,
    overflow: NonNull<AtomicU32>,
    cqes: NonNull<C>,
    entries: u32,
}

impl<C: CqEntry> MmapCq<C> {
    /// Locates the fields; `None` if one is out of bounds. The caller must keep the mapping as long as the struct.
    pub(crate) fn new(ring: &Mapping, params: &sys::io_uring_params) -> Option<Self> {
        let off = &params.cq_off;
        Some(Self {
            head: ring.pointer(off.head, 1)?,
            tail: ring.pointer(off.tail, 1)?,
            overflow: ring.pointer(off.overflow, 1)?,
            cqes: ring.pointer(off.cqes, params.cq_entries)?,
            entries: params.cq_entries,
        })
    }
}

/// Reads a word that the kernel wrote during set-up.
pub(crate) fn read_word(ring: &Mapping, offset: u32) -> Option<u32> {
    let word: NonNull<AtomicU32> = ring.pointer(offset, 1)?;
    // SAFETY: aligned and inside the mapping; an atomic, so a concurrent kernel write is no data race.
    Some(unsafe { word.as_ref() }.load(std::sync::atomic::Ordering::Relaxed))
}

/// Fills the SQ's index array with the identity, once: slot i is SQE i as long as the ring lives.
pub(crate) fn fill_array(ring: &Mapping, offset: u32, entries: u32) -> Option<()> {
    let array: NonNull<u32> = ring.pointer(offset, entries)?;
    for i in 0..entries {
        // SAFETY: i < entries, all inside the mapping; u32 to usize does not lose bits on 32 bits and more.
        let slot = unsafe { array.add(i as usize) };
        // SAFETY: aligned and ours: the kernel reads the array only during enter.
        unsafe { slot.write(i) };
    }
    Some(())
}

macro_rules! word {
    ($name:ident) => {
        #[inline]
        fn $name(&self) -> &AtomicU32 {
            // SAFETY: aligned and live by the struct's invariant; an atomic may be shared with the kernel.
            unsafe { self.$name.as_ref() }
        }
    };
}

impl<S: SqEntry> SqMemory<S> for MmapSq<S> {
    type Word = AtomicU32;

    #[inline]
    fn entries(&self) -> u32 {
        self.entries
    }

    word!(head);
    word!(tail);
    word!(flags);
    word!(dropped);

    #[inline]
    unsafe fn write(&mut self, slot: u32, entry: &S) {
        debug_assert!(slot < self.entries);
        // SAFETY: slot < entries by contract, so inside the mapping.
        let at = unsafe { self.sqes.add(slot as usize) };
        // SAFETY: in bounds, aligned to 8 as the page-aligned base and the entry size are, and not read by the
        // kernel now, by contract.
        unsafe { at.write(*entry) };
    }
}

impl<C: CqEntry> CqMemory<C> for MmapCq<C> {
    type Word = AtomicU32;

    #[inline]
    fn entries(&self) -> u32 {
        self.entries
    }

    word!(head);
    word!(tail);
    word!(overflow);

    #[inline]
    unsafe fn read(&self, slot: u32) -> C {
        debug_assert!(slot < self.entries);
        // SAFETY: slot < entries by contract, so inside the mapping.
        let at = unsafe { self.cqes.add(slot as usize) };
        // SAFETY: in bounds, aligned, published and not given back by contract; every bit pattern is a C. The copy
        // leaves no reference to memory the kernel will write (L57).
        unsafe { at.read() }
    }
}
