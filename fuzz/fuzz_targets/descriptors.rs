//! Hostile I/O descriptors, and the words and positions that a descriptor packs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_sys::fuzz::descriptors(bytes));
