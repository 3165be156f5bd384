//! Copies by relaxed atomic accesses of eight bytes: any architecture, and the tools that check.

// Re-opened here for the copies: the shared side is a pointer with the callers' promise.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The way this machine copies, found once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Copier;

/// Bytes of one access.
const WORD: usize = size_of::<u64>();

/// The word `index` behind `shared`.
///
/// # Safety
/// `shared` is aligned to eight, `index` is inside the memory behind it, which stays valid for `'a`
/// and is accessed by this module only.
unsafe fn word<'a>(shared: NonNull<u8>, index: usize) -> &'a AtomicU64 {
    // SAFETY: inside the memory, by the caller's promise.
    let place = unsafe { shared.cast::<AtomicU64>().add(index) };
    // SAFETY: aligned and valid by the caller's promise; every access to these eight bytes, by any
    // thread, is atomic and of this size, so that a shared reference to the atomic is sound.
    unsafe { place.as_ref() }
}

impl Copier {
    /// Finds out how to copy.
    pub(crate) fn detect() -> Self {
        Self
    }

    /// Copies shared memory into `private`.
    ///
    /// # Safety
    /// `shared` is aligned to eight and heads `private.len()` readable bytes that stay valid during
    /// the call and are accessed by this module only; the length is a multiple of [`super::UNIT`].
    pub(crate) unsafe fn load(self, shared: NonNull<u8>, private: &mut [u8]) {
        for (index, bytes) in private.chunks_exact_mut(WORD).enumerate() {
            // SAFETY: the caller's promise; `index` is below `private.len() / 8`.
            let word = unsafe { word(shared, index) };
            bytes.copy_from_slice(&word.load(Relaxed).to_ne_bytes());
        }
    }

    /// Copies `private` into shared memory.
    ///
    /// # Safety
    /// As for [`Copier::load`], the bytes being writable.
    pub(crate) unsafe fn store(self, private: &[u8], shared: NonNull<u8>) {
        for (index, bytes) in private.chunks_exact(WORD).enumerate() {
            // SAFETY: the caller's promise; `index` is below `private.len() / 8`.
            let word = unsafe { word(shared, index) };
            let mut value = [0; WORD];
            value.copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(value), Relaxed);
        }
    }

    /// Writes `len` zeroes into shared memory.
    ///
    /// # Safety
    /// As for [`Copier::store`], with `len` as the length.
    pub(crate) unsafe fn zero(self, shared: NonNull<u8>, len: usize) {
        for index in 0..len / WORD {
            // SAFETY: the caller's promise; `index` is below `len / 8`.
            let word = unsafe { word(shared, index) };
            word.store(0, Relaxed);
        }
    }
}
