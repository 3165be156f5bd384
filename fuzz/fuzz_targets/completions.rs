//! Hostile completions and late answers for one tag.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_core::fuzz::completions(bytes));
