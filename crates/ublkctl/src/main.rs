//! Make, list, stop and delete ublk devices.
fn main() {}
