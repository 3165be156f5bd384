//! Tries to break the library's soundness without the word `unsafe`.
//!
//! `tests/refused.rs` sees that each line of `refused/` that is marked `//~ CODE` does not compile, for the reason that
//! CODE is, and that nothing else there is at fault. `tests/fails.rs` sees that what compiles fails where it must.
