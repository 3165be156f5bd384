//! A server that says anything before it serves.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nbd_client::fuzz::handshake(bytes));
