//! Operations on zones: reports are what the block layer accepts.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_backends::fuzz::zone_reports(bytes));
