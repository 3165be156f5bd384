//! The blocks of a ublk trace, with a checksum that is right and with any.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_trace::fuzz::trace(bytes));
