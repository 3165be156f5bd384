//! Memory that the kernel reads or fills for us while others may use it too.
#![expect(unsafe_code, reason = "promises about raw memory are made here, once")]

use std::ptr::NonNull;

/// A range of memory named to the kernel by address: never a Rust reference, since other threads may read and
/// write it at the same time, as they may a disk's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemRef {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address and a length; nothing here reads or writes through it, and the promise made to
// `MemRef::new` is not tied to a thread.
unsafe impl Send for MemRef {}

impl MemRef {
    /// No bytes.
    pub const EMPTY: Self = Self {
        ptr: NonNull::dangling(),
        len: 0,
    };

    /// Names a range.
    ///
    /// # Safety
    /// The range is mapped, readable and writable, for as long as the backend that names it lives, and is never
    /// looked at through a Rust reference while a request may use it.
    #[must_use]
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len }
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
