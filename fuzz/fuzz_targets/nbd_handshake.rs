//! A server that sends arbitrary bytes in the handshake.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| nbd_client::fuzz::handshake(bytes));
