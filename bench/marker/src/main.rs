//! Executes the marker once, for manual use in a guest.
#![forbid(unsafe_code)]

fn main() {
    icount_marker::mark();
}
