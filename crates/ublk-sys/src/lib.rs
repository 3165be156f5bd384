//! The userspace API of the kernel's ublk driver (`linux/ublk_cmd.h`), as of Linux 7.3.
//!
//! * [`raw`] repeats the C header name for name: structs, commands, flags, limits. Its content is also re-exported at
//!   the root of the crate. Padding is spelled out as fields, so that every byte of every struct is defined.
//! * [`marshal`] converts the structs to bytes and back, checked, in safe code.
//! * [`offset`] computes positions of the character device: user copy and descriptor mappings.
//! * [`word`] packs and unpacks words with several values: `op_flags`, the auto-buffer-registration word, the
//!   shared-memory address.
//! * [`batch`] has the elements of batch commands, whose shape depends on flags.
//! * [`ioctl`] computes the encoded command numbers.
//! * [`table`] describes the crate's own definitions, which `cargo xtask layout` compares with the real header.
//!
//! The crate has no behaviour and makes no system calls. Flag words are plain integers: bits that this version does not
//! know survive every conversion. Sectors are 512 bytes everywhere, whatever the logical block size of the device.
//!
//! ```
//! use ublk_sys::{Uapi, ublksrv_io_desc, UBLK_IO_F_FUA, UBLK_IO_OP_WRITE};
//!
//! let iod = ublksrv_io_desc {
//!     op_flags: u32::from(UBLK_IO_OP_WRITE) | UBLK_IO_F_FUA,
//!     nr_sectors: 8,
//!     ..ublksrv_io_desc::ZERO
//! };
//! let bytes = iod.to_bytes();
//! let back = ublksrv_io_desc::read_from(&bytes)?;
//! assert_eq!(back.op(), UBLK_IO_OP_WRITE);
//! assert_ne!(back.flags() & UBLK_IO_F_FUA, 0);
//! # Ok::<(), ublk_sys::Error>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

#[macro_use]
mod macros;

pub mod batch;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzz;
pub mod ioctl;
pub mod marshal;
pub mod offset;
mod params;
pub mod raw;
pub mod table;
pub mod word;

pub use error::Error;
pub use marshal::Uapi;
#[doc(no_inline)]
pub use raw::*;
