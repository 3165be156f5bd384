//! End-to-end cases on a real ublk driver.
fn main() {}
