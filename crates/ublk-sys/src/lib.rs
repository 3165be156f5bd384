//! The ublk driver's UAPI of Linux 7.3: structs, opcodes, flags, layout asserts, checked marshalling.
