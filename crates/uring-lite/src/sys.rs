//! The part of `include/uapi/linux/io_uring.h` that this crate uses, with the names of C.
//!
//! No behaviour here: constants, `#[repr(C)]` structures whose layout is asserted at compile time, and a [`table`] of
//! both, so that a test can compare them with the real header. Unions are flattened to the member of full width; the
//! other names of the same bytes are listed in the table and in the field's documentation.

#![forbid(unsafe_code)]

mod consts;
mod structs;
pub mod table;

pub use consts::*;
pub use structs::*;
