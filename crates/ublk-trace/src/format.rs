//! The format of ublk traces: a header, then blocks of records, each block with its own checksum.
//!
//! All numbers are little-endian. A varint has 7 bits in each byte, low bits first, and the top bit set in all but the
//! last byte; a signed number is zigzagged first (0, -1, 1, -2, …).
//!
//! | header | bytes | |
//! |---|---|---|
//! | magic | 8 | `ublktrc\n` |
//! | version | 2 | 1 |
//! | length | 2 | of the header, CRC included: readers skip what they do not know |
//! | flags | 4 | 0 |
//! | began | 8 | nanoseconds since 1970, 0 if not known |
//! | size | 8 | of the device in bytes, 0 if not known |
//! | block | 4 | logical block size in bytes, 0 if not known |
//! | crc | 4 | CRC-32 (IEEE) of the bytes before it; always the last 4 |
//!
//! | block | bytes | |
//! |---|---|---|
//! | magic | 4 | `UTBK` |
//! | payload | 4 | length in bytes, at most 65536 |
//! | records | 4 | their number, at most 1024 |
//! | flags | 4 | bit 0: offsets and lengths are in sectors of 512 bytes; bit 1: this is the end, without records |
//! | time | 8 | nanoseconds: what the first record's time is relative to |
//! | lost | 8 | requests that were not recorded since the previous block |
//! | crc | 4 | CRC-32 of the 32 bytes before it and of the payload |
//!
//! A record is a byte, then what the byte says is there, in this order. Each block starts anew: nothing refers to an
//! earlier one.
//!
//! | bits of the byte | |
//! |---|---|
//! | 0–2 | the operation: read, write, flush, discard, write-zeroes, zone-append, zone, other |
//! | 3 | it failed: the errno follows last, a varint |
//! | 4 | no queue follows: that of the previous record (0 for the first) |
//! | 5 | no offset follows: it begins where the previous record ended (0 for the first) |
//! | 6 | no length follows: that of the previous record (0 for the first) |
//! | 7 | no latency follows: it is not known |
//!
//! | field | |
//! |---|---|
//! | time | signed varint: nanoseconds since the previous record's |
//! | queue | varint |
//! | offset | signed varint: from the previous record's end |
//! | length | varint |
//! | latency | varint, nanoseconds |
//! | errno | varint, 1 to 65535 |
//!
//! A trace that ends without its end block was cut off: by a full disk, a crash, or because it is still being written.

mod block;
mod reader;
#[cfg(test)]
mod tests;
mod varint;
mod writer;

pub(crate) use reader::fill;
pub use reader::{Damage, Reader};
pub use writer::Writer;

/// The first bytes of a trace.
pub(crate) const MAGIC: [u8; 8] = *b"ublktrc\n";

/// The version that is written.
const VERSION: u16 = 1;

/// The length of the header that is written.
const HEADER: usize = 40;

/// The longest header that is read.
const MAX_HEADER: usize = 4096;

/// What a trace tells of its device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// When the trace began: nanoseconds since 1970, 0 if not known.
    pub began: u64,
    /// The size of the device in bytes, 0 if not known.
    pub size: u64,
    /// Its logical block size in bytes, 0 if not known.
    pub block_size: u32,
}
