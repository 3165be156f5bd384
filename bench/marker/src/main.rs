//! Executes the marker once, for use by hand in a guest.
#![forbid(unsafe_code)]

fn main() {
    icount_marker::mark();
}
