//! Backends of ublk devices: what answers the requests.
//!
//! * [`Null`] accepts everything and keeps nothing: for measuring the path to it.
//! * [`Memory`] is a sparse memory device: a page exists from its first write to its discard.
//! * [`File`] serves a regular file or a block device, or a part of it.
//! * `fault::Fault` (feature `fault`, for tests) wraps another backend and makes chosen requests
//!   fail, wait or panic.
//!
//! All are values of [`ublk_core::Backend`] and know nothing of rings, queues or devices.
//!
//! ```
//! use ublk_backends::Memory;
//! use ublk_core::Backend;
//!
//! let memory = Memory::new(1 << 20, 512)?;
//! memory.write_at(&[7; 512], 4096, false)?;
//! let mut sector = [0; 512];
//! memory.read_at(&mut sector, 4096)?;
//! assert_eq!(sector, [7; 512]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What safe code cannot break
//! No function here is unsafe. [`Memory`] is copied to and from by `ublk_queue::racy_copy`, whose accesses may race, and is
//! never a slice: clients may read a block that another client writes. What names it to the kernel is a loan
//! (`MemRef`) that borrows it, or is held by the lane for good. [`File`] gives the kernel data of requests, its own aligned
//! copies, and descriptors that it holds open.

mod error;
#[cfg(feature = "fault")]
pub mod fault;
mod file;
mod mapping;
mod memory;
mod null;
mod pagemap;

pub use error::Error;
pub use file::{Created, File, FileHandler, FileOptions, Identity, User};
pub use memory::Memory;
pub use null::Null;
