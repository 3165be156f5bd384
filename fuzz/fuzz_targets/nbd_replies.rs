//! A server that sends arbitrary replies to requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nbd_client::fuzz::replies(bytes));
