//! QEMU TCG plugin that counts executed guest instructions in three classes, kernel, server and other user code, and
//! writes a snapshot whenever the guest executes the marker.
//!
//! Arguments, as in `-plugin libicount_plugin.so,lo=10000000,hi=14000000,out=/x/counts`:
//!
//! | argument | meaning |
//! |---|---|
//! | `lo`, `hi` | the server's text as hexadecimal addresses, `hi` excluded |
//! | `out` | file of the snapshots, one `mark NUMBER vcpu N kernel N server N other N` per marker and a last line `exit …` |
//! | `hot` | file of the server's executed blocks between markers (optional): `mark NUMBER`, then a count and the addresses of a block's instructions per line |
//!
//! The marker is the 8-byte nop `0f 1f 84 00 44 33 22 11` in user code. Whole translation blocks are counted when they
//! start: a block that a fault leaves early counts in full. That excess is small and repeatable.
//!
//! Uses version 1 of the plugin interface (QEMU 6 to 8, include/qemu/qemu-plugin.h).

mod args;
mod count;
mod hot;
// The interface's functions are in the QEMU program, so a test binary cannot link it.
#[cfg(not(test))]
mod plugin;
#[cfg(not(test))]
mod qemu;
