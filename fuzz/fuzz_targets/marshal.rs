//! Every struct of the driver's interface, from bytes and back.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_sys::fuzz::marshal_all(bytes));
