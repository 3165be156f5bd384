//! Backends of ublk devices: null and memory.
