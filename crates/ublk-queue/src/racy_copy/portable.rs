//! Copies with relaxed atomic accesses of eight bytes, for any architecture and for checkers.

// Allowed here for the copies: the shared side is a pointer with the callers' contract.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

use super::UNIT;

/// Copies on this machine; created once.
#[derive(Debug, Clone, Copy)]
pub struct Copier;

/// Size of one access in bytes.
const WORD: usize = size_of::<u64>();

/// The element of type `A` with this index behind `shared`.
///
/// # Safety
/// `shared` must be aligned for `A`, an atomic integer; the access must be inside the memory behind it, which must stay
/// valid for `'a` and be accessed in this process by this module only.
unsafe fn place<'a, A>(shared: NonNull<u8>, index: usize) -> &'a A {
    // SAFETY: inside the memory, by the caller's promise.
    let place = unsafe { shared.cast::<A>().add(index) };
    // SAFETY: aligned and valid by the caller's promise; every access to these bytes, by any thread, is atomic, so
    // that a shared reference to the atomic is sound.
    unsafe { place.as_ref() }
}

/// Reads the word `index` behind `shared`: in one access if it is aligned.
///
/// # Safety
/// As for [`place`], with the alignment of bytes.
unsafe fn get(shared: NonNull<u8>, index: usize) -> [u8; WORD] {
    if shared.addr().get().is_multiple_of(WORD) {
        // SAFETY: aligned; the caller's promise.
        let word = unsafe { place::<AtomicU64>(shared, index) };
        return word.load(Relaxed).to_ne_bytes();
    }
    // SAFETY: the caller's promise.
    std::array::from_fn(|n| unsafe { place::<AtomicU8>(shared, index * WORD + n) }.load(Relaxed))
}

/// Writes the word `index` behind `shared`.
///
/// # Safety
/// As for [`get`], and the bytes must be writable.
unsafe fn set(shared: NonNull<u8>, index: usize, bytes: [u8; WORD]) {
    if shared.addr().get().is_multiple_of(WORD) {
        // SAFETY: aligned; the caller's promise.
        let word = unsafe { place::<AtomicU64>(shared, index) };
        return word.store(u64::from_ne_bytes(bytes), Relaxed);
    }
    for (n, byte) in bytes.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { place::<AtomicU8>(shared, index * WORD + n) }.store(byte, Relaxed);
    }
}

impl Copier {
    /// Selects the way to copy.
    #[must_use]
    pub const fn detect() -> Self {
        Self
    }

    /// Copies shared memory into `private`.
    ///
    /// # Safety
    /// `shared` must point to `private.len()` readable bytes that stay valid during the call and are accessed in this
    /// process by this module and by the kernel only, at addresses that differ by multiples of eight.
    ///
    /// # Panics
    /// If the length is not a multiple of [`UNIT`].
    pub unsafe fn load(self, shared: NonNull<u8>, private: &mut [u8]) {
        assert!(private.len().is_multiple_of(UNIT), "whole sectors");
        for (index, bytes) in private.chunks_exact_mut(WORD).enumerate() {
            // SAFETY: the caller's promise; `index` is below `private.len() / 8`.
            bytes.copy_from_slice(&unsafe { get(shared, index) });
        }
    }

    /// Copies `private` into shared memory.
    ///
    /// # Safety
    /// As for [`Copier::load`], and the bytes must be writable.
    ///
    /// # Panics
    /// As [`Copier::load`].
    pub unsafe fn store(self, private: &[u8], shared: NonNull<u8>) {
        assert!(private.len().is_multiple_of(UNIT), "whole sectors");
        for (index, bytes) in private.chunks_exact(WORD).enumerate() {
            let mut value = [0; WORD];
            value.copy_from_slice(bytes);
            // SAFETY: the caller's promise; `index` is below `private.len() / 8`.
            unsafe { set(shared, index, value) };
        }
    }

    /// Copies shared memory into other shared memory.
    ///
    /// # Safety
    /// As for [`Copier::load`], for both ranges; `to` must be writable, and they must not overlap.
    ///
    /// # Panics
    /// As [`Copier::load`].
    pub unsafe fn transfer(self, from: NonNull<u8>, to: NonNull<u8>, len: usize) {
        assert!(len.is_multiple_of(UNIT), "whole sectors");
        for index in 0..len / WORD {
            // SAFETY: the caller's promise; `index` is below `len / 8`.
            let word = unsafe { get(from, index) };
            // SAFETY: as above.
            unsafe { set(to, index, word) };
        }
    }

    /// Writes `len` zeroes into shared memory.
    ///
    /// # Safety
    /// As for [`Copier::store`], with `len` as the length.
    ///
    /// # Panics
    /// As [`Copier::load`].
    pub unsafe fn zero(self, shared: NonNull<u8>, len: usize) {
        assert!(len.is_multiple_of(UNIT), "whole sectors");
        for index in 0..len / WORD {
            // SAFETY: the caller's promise; `index` is below `len / 8`.
            unsafe { set(shared, index, [0; WORD]) };
        }
    }
}
