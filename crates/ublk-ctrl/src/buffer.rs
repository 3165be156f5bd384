//! Memory that a command gives to the kernel.
//!
//! # Why there is `unsafe` here
//! From submission to completion the kernel may read and write this memory, so no reference to it
//! may exist in that time: it is kept as a pointer, copied into before, copied out of after. The
//! slot table owns it, never the caller's stack, and leaks it where a command never ends.
#![expect(unsafe_code, reason = "memory shared with the kernel is a raw pointer")]

use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};

/// Zeroed memory for the payload of a control command, aligned to 8 bytes.
///
/// # Invariants
/// `ptr` is an allocation of `layout`, whose size is not 0, unless `len` is 0: then it is dangling.
#[derive(Debug)]
pub struct Buffer {
    ptr: NonNull<u8>,
    len: u16,
}

// SAFETY: the allocation belongs to this value alone; nothing of it is tied to a thread.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A buffer holding a copy of `payload`.
    pub(crate) fn new(payload: &[u8]) -> Option<Self> {
        let len = u16::try_from(payload.len()).ok()?;
        let Some(layout) = Self::layout(len) else {
            return Some(Self {
                ptr: NonNull::dangling(),
                len: 0,
            });
        };
        // SAFETY: `layout` returns no layout of size 0.
        let raw = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else {
            handle_alloc_error(layout)
        };
        let buffer = Self { ptr, len };
        buffer.fill(payload);
        Some(buffer)
    }

    fn layout(len: u16) -> Option<Layout> {
        (len > 0).then(|| Layout::from_size_align(len.into(), 8).ok())?
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u16 {
        self.len
    }

    /// Whether the command has no payload.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address passed to the kernel; 0 if there is no payload.
    pub(crate) fn addr(&self) -> u64 {
        if self.len == 0 {
            return 0;
        }
        self.ptr.as_ptr().expose_provenance() as u64
    }

    /// Copies `bytes` to the start; what does not fit is left out. A fake kernel answers by this.
    pub fn fill(&self, bytes: &[u8]) {
        let count = bytes.len().min(self.len.into());
        // SAFETY: `ptr` is an allocation of `len` bytes (invariant) and `count` is at most that and
        // at most the length of `bytes`; they cannot overlap, as no reference into the allocation
        // is ever made; nothing else accesses it, as the value is not Sync and the kernel has no
        // hold on it before submission.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.as_ptr(), count) };
    }

    /// A copy of the contents, for after the completion.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let mut out = vec![0; self.len.into()];
        // SAFETY: `ptr` is an allocation of `len` bytes (invariant), all initialised by
        // `alloc_zeroed`; `out` is as long and is fresh memory, so they do not overlap.
        unsafe {
            core::ptr::copy_nonoverlapping(self.ptr.as_ptr(), out.as_mut_ptr(), out.len());
        }
        out
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len) {
            #[cfg(test)]
            tests::FREED.with(|freed| freed.set(freed.get() + 1));
            // SAFETY: `ptr` came from `alloc_zeroed` with this layout (invariant) and is freed once,
            // here; the slot table drops a buffer only after its completion.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// Buffers freed by this thread.
        pub(crate) static FREED: Cell<usize> = const { Cell::new(0) };
    }

    #[test]
    fn holds_what_it_was_given() {
        let buffer = Buffer::new(&[1, 2, 3]).unwrap();
        assert_eq!((buffer.len(), buffer.read()), (3, vec![1, 2, 3]));
        assert_eq!(buffer.addr() % 8, 0);
        buffer.fill(&[9; 10]);
        assert_eq!(buffer.read(), [9; 3]);
        let none = Buffer::new(&[]).unwrap();
        assert!(none.is_empty() && none.addr() == 0 && none.read().is_empty());
        assert!(Buffer::new(&[0; 65536]).is_none());
    }
}
