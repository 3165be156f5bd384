//! Every struct of the driver's interface, bytes to struct to bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ublk_sys::fuzz::marshal_all(bytes));
