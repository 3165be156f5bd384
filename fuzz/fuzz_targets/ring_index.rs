//! Ring indices against an oracle of queues without indices.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| uring_lite::fuzz::ring_index(bytes));
