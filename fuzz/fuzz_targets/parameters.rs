//! Parameters of any numbers: what is sent is what the driver accepts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_core::fuzz::parameters(bytes));
