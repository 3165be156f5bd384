//! Memory that a command passes to the kernel.
//!
//! # Why there is `unsafe` here
//! The kernel may access this memory from submission to completion, so no reference to it may exist in that time. It is
//! held by a pointer: data is copied in before and out afterwards. The slot table owns it, never the caller's stack,
//! and leaks it if a command never completes.
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

// SAFETY: the allocation belongs to this value alone and is not tied to a thread.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A buffer with a copy of `payload`.
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

    /// Size in bytes.
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

    /// Copies `bytes` to the start, truncated to the buffer's size. A fake kernel answers through this.
    pub fn fill(&self, bytes: &[u8]) {
        let count = bytes.len().min(self.len.into());
        // SAFETY: `ptr` is an allocation of `len` bytes (invariant), and `count` is at most that and at most the length
        // of `bytes`. The ranges cannot overlap, because no reference into the allocation is ever made. Nothing else
        // accesses it, because the value is not Sync and the kernel does not use it before submission.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.as_ptr(), count) };
    }

    /// A copy of the contents, for use after the completion.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let mut out = vec![0; self.len.into()];
        // SAFETY: `ptr` is an allocation of `len` bytes (invariant), all initialised by `alloc_zeroed`; `out` is fresh
        // memory of the same length, so they do not overlap.
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
            // SAFETY: `ptr` came from `alloc_zeroed` with this layout (invariant) and is freed once, here. The slot
            // table drops a buffer only after its completion.
            unsafe { dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// Number of buffers that this thread has freed.
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
