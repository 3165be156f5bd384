//! Memory that the kernel reads or fills for us while others may use it too.
#![expect(unsafe_code, reason = "promises about raw memory are made here, once")]

use std::marker::PhantomData;
use std::ptr::NonNull;

/// A range of memory named to the kernel by address: never a Rust reference, since other threads may read and
/// write it at the same time, as they may a disk's blocks.
///
/// It is a loan of its owner for `'a`, so that whoever lends memory out keeps it: what copies during a call takes a
/// `MemRef` of any lifetime, what the driver may use behind an answer only memory that is there for good
/// (`MemRef<'static>`).
///
/// # Invariants
/// For all of `'a` the range is as [`new`](MemRef::new) demands it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRef<'a> {
    ptr: NonNull<u8>,
    len: usize,
    _owner: PhantomData<&'a ()>,
}

// SAFETY: it is an address and a length; nothing here reads or writes through it, and the promise made to
// `MemRef::new` is not tied to a thread.
unsafe impl Send for MemRef<'_> {}

impl<'a> MemRef<'a> {
    /// No bytes.
    pub const EMPTY: Self = Self {
        ptr: NonNull::dangling(),
        len: 0,
        _owner: PhantomData,
    };

    /// Names a range.
    ///
    /// # Safety
    /// For all of `'a` the range is mapped, readable and writable, holds bytes of any value, and no Rust reference to
    /// it exists: whoever has the value, or a copy of it, reads and writes there, by ways that may race.
    #[must_use]
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self {
            ptr,
            len,
            _owner: PhantomData,
        }
    }

    /// The same range for longer than it was lent.
    ///
    /// # Safety
    /// As for [`new`](MemRef::new), for all of `'b`.
    pub(crate) const unsafe fn extend<'b>(self) -> MemRef<'b> {
        // SAFETY: the caller's contract.
        unsafe { MemRef::new(self.ptr, self.len) }
    }

    /// Its address, for a command or a system call.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.ptr.as_ptr() as u64
    }

    /// Its first byte.
    #[must_use]
    pub const fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Its length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}
