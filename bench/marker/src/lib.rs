//! The marker: a no-op instruction at which the counting plugin writes a snapshot.
#![cfg(target_arch = "x86_64")]
#![expect(
    unsafe_code,
    reason = "the marker is an instruction that no compiler writes"
)]

use std::arch::asm;

/// Executes the marker, `0f 1f 84 00 44 33 22 11`: a nop with an address operand that reads nothing.
#[inline(never)]
pub fn mark() {
    // SAFETY: a multi-byte nop changes no register, no flag and no memory, and does not access its operand. Without
    // `nomem` the compiler moves no access across it.
    unsafe {
        asm!(
            ".byte 0x0f, 0x1f, 0x84, 0x00, 0x44, 0x33, 0x22, 0x11",
            options(nostack, preserves_flags)
        );
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_does_nothing() {
        super::mark();
    }
}
