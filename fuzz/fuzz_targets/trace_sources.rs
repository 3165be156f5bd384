//! Traces of every format that is read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_trace::fuzz::source(bytes));
