//! Memory that the kernel reads or writes on our behalf while other threads may access it too.
#![expect(unsafe_code, reason = "the contract for raw memory is made here, once")]

use std::marker::PhantomData;
use std::ptr::NonNull;

/// A range of memory, named to the kernel by address. It is never a Rust reference: like the blocks of a disk, other
/// threads may read and write it at the same time.
///
/// The range is borrowed from its owner for `'a`. A copy during a call takes a `MemRef` of any lifetime; memory that
/// the driver may access after the answer must be `MemRef<'static>`.
///
/// # Invariants
/// The contract of [`new`](MemRef::new) holds for all of `'a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRef<'a> {
    ptr: NonNull<u8>,
    len: usize,
    _owner: PhantomData<&'a ()>,
}

// SAFETY: it is an address and a length; nothing here reads or writes through it, and the contract of `MemRef::new` is
// not tied to a thread.
unsafe impl Send for MemRef<'_> {}

impl<'a> MemRef<'a> {
    /// An empty range.
    pub const EMPTY: Self = Self {
        ptr: NonNull::dangling(),
        len: 0,
        _owner: PhantomData,
    };

    /// Creates a range from its address and length.
    ///
    /// # Safety
    /// For all of `'a` the range must be mapped, readable and writable, and valid for any byte values, and no Rust
    /// reference to it may exist: every holder of the value, or of a copy, reads and writes through it, and such
    /// accesses may race.
    #[must_use]
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self {
            ptr,
            len,
            _owner: PhantomData,
        }
    }

    /// Extends the lifetime of the range.
    ///
    /// # Safety
    /// As for [`new`](MemRef::new), for all of `'b`.
    pub(crate) const unsafe fn extend<'b>(self) -> MemRef<'b> {
        // SAFETY: the caller's contract.
        unsafe { MemRef::new(self.ptr, self.len) }
    }

    /// The part of the range behind its first `at` bytes, at most `len` bytes of it.
    #[must_use]
    pub fn part(self, at: usize, len: usize) -> Self {
        let at = at.min(self.len);
        let len = len.min(self.len - at);
        // SAFETY: `at` is at most the length of the range.
        let ptr = unsafe { self.ptr.add(at) };
        // SAFETY: a part of the range, for the same time.
        unsafe { Self::new(ptr, len) }
    }

    /// The address, for a command or a system call.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.ptr.as_ptr() as u64
    }

    /// The first byte.
    #[must_use]
    pub const fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// The length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if the range is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}
