//! Hostile headers of side files: nothing wraps, and what is accepted is written as it was read.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_backends::fuzz::metadata_geometry(bytes));
