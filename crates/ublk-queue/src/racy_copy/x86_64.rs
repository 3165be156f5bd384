//! Copies with vector loads and stores in `asm!` blocks.
//!
//! `rep movsb` would be shorter, but its start-up dominates at 4 KiB and emulators count it per byte. The AVX loop
//! takes 34 instructions for 512 bytes (a 4 KiB copy: 272 and a handful around it), the SSE2 loop 18 for 128.

// Allowed here for the copies: the shared side is a pointer with the callers' contract.
#![allow(unsafe_code)]

use core::arch::asm;
use std::ptr::NonNull;

use super::UNIT;

/// Copies on this machine; created once.
#[derive(Debug, Clone, Copy)]
pub struct Copier {
    avx: bool,
}

/// Copies `len` bytes with 32-byte vectors.
///
/// # Safety
/// The machine must have AVX. `src` must point to `len` readable and `dst` to `len` writable bytes, not overlapping;
/// `len` must be a positive multiple of 512. Each side must be private to the caller, or memory that is only accessed
/// in ways that may race.
#[inline]
unsafe fn copy_avx(src: *const u8, dst: *mut u8, len: usize) {
    // The index runs from -len to 0, so that one addition both advances and tests.
    let src = src.wrapping_add(len);
    let dst = dst.wrapping_add(len);
    // SAFETY: with the index from -len to -512 in steps of 512 and 512 bytes a round, exactly the `len` bytes of each
    // side are accessed, which are valid by the caller's contract, as is the use of AVX. All vector registers whose
    // upper half vzeroupper clears are declared as clobbered; memory and flags are by default; the stack is not used.
    unsafe {
        asm!(
            "2:",
            "vmovdqu ymm0, [{src} + {i}]",
            "vmovdqu ymm1, [{src} + {i} + 32]",
            "vmovdqu ymm2, [{src} + {i} + 64]",
            "vmovdqu ymm3, [{src} + {i} + 96]",
            "vmovdqu ymm4, [{src} + {i} + 128]",
            "vmovdqu ymm5, [{src} + {i} + 160]",
            "vmovdqu ymm6, [{src} + {i} + 192]",
            "vmovdqu ymm7, [{src} + {i} + 224]",
            "vmovdqu ymm8, [{src} + {i} + 256]",
            "vmovdqu ymm9, [{src} + {i} + 288]",
            "vmovdqu ymm10, [{src} + {i} + 320]",
            "vmovdqu ymm11, [{src} + {i} + 352]",
            "vmovdqu ymm12, [{src} + {i} + 384]",
            "vmovdqu ymm13, [{src} + {i} + 416]",
            "vmovdqu ymm14, [{src} + {i} + 448]",
            "vmovdqu ymm15, [{src} + {i} + 480]",
            "vmovdqu [{dst} + {i}], ymm0",
            "vmovdqu [{dst} + {i} + 32], ymm1",
            "vmovdqu [{dst} + {i} + 64], ymm2",
            "vmovdqu [{dst} + {i} + 96], ymm3",
            "vmovdqu [{dst} + {i} + 128], ymm4",
            "vmovdqu [{dst} + {i} + 160], ymm5",
            "vmovdqu [{dst} + {i} + 192], ymm6",
            "vmovdqu [{dst} + {i} + 224], ymm7",
            "vmovdqu [{dst} + {i} + 256], ymm8",
            "vmovdqu [{dst} + {i} + 288], ymm9",
            "vmovdqu [{dst} + {i} + 320], ymm10",
            "vmovdqu [{dst} + {i} + 352], ymm11",
            "vmovdqu [{dst} + {i} + 384], ymm12",
            "vmovdqu [{dst} + {i} + 416], ymm13",
            "vmovdqu [{dst} + {i} + 448], ymm14",
            "vmovdqu [{dst} + {i} + 480], ymm15",
            "add {i}, 512",
            "jne 2b",
            "vzeroupper",
            src = in(reg) src,
            dst = in(reg) dst,
            i = inout(reg) len.wrapping_neg() => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            options(nostack)
        );
    }
}

/// Copies `len` bytes with 16-byte vectors, which every x86-64 machine has.
///
/// # Safety
/// As for [`copy_avx`], except AVX; `len` must be a positive multiple of 128.
#[inline]
unsafe fn copy_sse2(src: *const u8, dst: *mut u8, len: usize) {
    let src = src.wrapping_add(len);
    let dst = dst.wrapping_add(len);
    // SAFETY: with the index from -len to -128 in steps of 128 and 128 bytes a round, exactly the `len` bytes of each
    // side are accessed, which are valid by the caller's contract. Written registers are declared; memory and flags are
    // by default; the stack is not used.
    unsafe {
        asm!(
            "2:",
            "movdqu xmm0, [{src} + {i}]",
            "movdqu xmm1, [{src} + {i} + 16]",
            "movdqu xmm2, [{src} + {i} + 32]",
            "movdqu xmm3, [{src} + {i} + 48]",
            "movdqu xmm4, [{src} + {i} + 64]",
            "movdqu xmm5, [{src} + {i} + 80]",
            "movdqu xmm6, [{src} + {i} + 96]",
            "movdqu xmm7, [{src} + {i} + 112]",
            "movdqu [{dst} + {i}], xmm0",
            "movdqu [{dst} + {i} + 16], xmm1",
            "movdqu [{dst} + {i} + 32], xmm2",
            "movdqu [{dst} + {i} + 48], xmm3",
            "movdqu [{dst} + {i} + 64], xmm4",
            "movdqu [{dst} + {i} + 80], xmm5",
            "movdqu [{dst} + {i} + 96], xmm6",
            "movdqu [{dst} + {i} + 112], xmm7",
            "add {i}, 128",
            "jne 2b",
            src = in(reg) src,
            dst = in(reg) dst,
            i = inout(reg) len.wrapping_neg() => _,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            options(nostack)
        );
    }
}

/// Writes `len` zeroes with 16-byte vectors.
///
/// # Safety
/// `dst` must point to `len` writable bytes that are only accessed in ways that may race; `len` must be a positive
/// multiple of 128.
#[inline]
unsafe fn zero_sse2(dst: *mut u8, len: usize) {
    let dst = dst.wrapping_add(len);
    // SAFETY: as in `copy_sse2`, for the destination only.
    unsafe {
        asm!(
            "pxor xmm0, xmm0",
            "2:",
            "movdqu [{dst} + {i}], xmm0",
            "movdqu [{dst} + {i} + 16], xmm0",
            "movdqu [{dst} + {i} + 32], xmm0",
            "movdqu [{dst} + {i} + 48], xmm0",
            "movdqu [{dst} + {i} + 64], xmm0",
            "movdqu [{dst} + {i} + 80], xmm0",
            "movdqu [{dst} + {i} + 96], xmm0",
            "movdqu [{dst} + {i} + 112], xmm0",
            "add {i}, 128",
            "jne 2b",
            dst = in(reg) dst,
            i = inout(reg) len.wrapping_neg() => _,
            out("xmm0") _,
            options(nostack)
        );
    }
}

impl Copier {
    /// Detects the vector instructions. Too expensive for each request.
    #[must_use]
    pub fn detect() -> Self {
        Self {
            avx: std::arch::is_x86_feature_detected!("avx"),
        }
    }

    /// A copier that does not use AVX.
    #[cfg(test)]
    pub(crate) const fn without_avx() -> Self {
        Self { avx: false }
    }

    /// Copies between two ranges with the machine's widest vectors.
    ///
    /// # Safety
    /// As for [`copy_avx`], except AVX; `len` must be a multiple of [`UNIT`], or 0.
    #[inline]
    unsafe fn copy(self, src: *const u8, dst: *mut u8, len: usize) {
        // A length outside the contract would overrun the range by a round; the check is cheap.
        assert!(len.is_multiple_of(UNIT), "callers pass whole sectors");
        if len == 0 {
        } else if self.avx {
            // SAFETY: the caller's contract; `len` is positive, and a multiple of 512; AVX was detected when `self` was
            // made.
            unsafe { copy_avx(src, dst, len) };
        } else {
            // SAFETY: the caller's contract; `len` is positive, and a multiple of 512, hence of 128.
            unsafe { copy_sse2(src, dst, len) };
        }
    }

    /// Copies shared memory into `private`.
    ///
    /// # Safety
    /// `shared` must point to `private.len()` readable bytes that stay valid during the call and are accessed in this
    /// process by this module and by the kernel only, at addresses that differ by multiples of eight.
    ///
    /// # Panics
    /// If the length is not a multiple of [`UNIT`].
    #[inline]
    pub unsafe fn load(self, shared: NonNull<u8>, private: &mut [u8]) {
        // SAFETY: the source is valid by the caller's contract. The target is a slice, so it is valid, private to the
        // caller, and cannot overlap memory that only this module accesses.
        unsafe { self.copy(shared.as_ptr(), private.as_mut_ptr(), private.len()) };
    }

    /// Copies `private` into shared memory.
    ///
    /// # Safety
    /// As for [`Copier::load`], and the bytes must be writable.
    ///
    /// # Panics
    /// As [`Copier::load`].
    #[inline]
    pub unsafe fn store(self, private: &[u8], shared: NonNull<u8>) {
        // SAFETY: as in `load`, with the roles exchanged.
        unsafe { self.copy(private.as_ptr(), shared.as_ptr(), private.len()) };
    }

    /// Copies shared memory into other shared memory.
    ///
    /// # Safety
    /// As for [`Copier::load`], for both ranges; `to` must be writable, and they must not overlap.
    ///
    /// # Panics
    /// As [`Copier::load`].
    #[inline]
    pub unsafe fn transfer(self, from: NonNull<u8>, to: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.copy(from.as_ptr(), to.as_ptr(), len) };
    }

    /// Writes `len` zeroes into shared memory.
    ///
    /// # Safety
    /// As for [`Copier::store`], with `len` as the length.
    ///
    /// # Panics
    /// As [`Copier::load`].
    #[inline]
    pub unsafe fn zero(self, shared: NonNull<u8>, len: usize) {
        assert!(len.is_multiple_of(UNIT), "callers pass whole sectors");
        if len != 0 {
            // SAFETY: the caller's contract; `len` is positive, and a multiple of 512, hence of 128.
            unsafe { zero_sse2(shared.as_ptr(), len) };
        }
    }
}
