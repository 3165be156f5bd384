//! Tries to break the library's soundness without the word `unsafe`.
//!
//! `tests/refused.rs` checks that each line of `refused/` marked with `//~ CODE` does not compile, for the reason CODE,
//! and that there is no other error. `tests/fails.rs` checks that code which compiles fails where it must.
