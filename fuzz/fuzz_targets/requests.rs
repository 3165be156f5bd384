//! Hostile descriptors: accepted requests lie inside the device and the buffer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_core::fuzz::descriptors(bytes));
