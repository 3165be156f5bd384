//! Backends for ublk devices: null, memory, file, several files.
//!
//! * [`Null`] accepts everything and stores nothing: for measuring the path to it.
//! * [`Memory`] is a sparse memory device: a page exists from its first write to its discard.
//! * [`File`] serves a regular file, a block device, or a part of one.
//! * [`Composed`] serves several files as one device, one after the other or striped.
//! * [`Faulty`] wraps another backend and makes its requests slow, or fail, by a plan: to test what is above a device.
//! * [`ZonedDevice`] makes a zoned device of memory or of a file.
//! * [`Protected`] keeps integrity metadata, such as protection information, beside the data of memory or of a file.
//! * `fault::Fault` (feature `fault`, for tests) wraps another backend and makes selected requests fail, wait or panic.
//!
//! All implement [`ublk_core::Backend`] and know nothing of rings, queues or devices.
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
//! No function here is unsafe. [`Memory`] is accessed by `ublk_queue::racy_copy`, whose accesses may race, and is never
//! a slice: clients may read a block that another client writes. A range of it that is named to the kernel (`MemRef`)
//! either borrows it, or the lane keeps it alive. [`File`] passes to the kernel only the data of requests, its own
//! aligned copies, and descriptors that it holds open.

mod composed;
mod error;
#[cfg(feature = "fault")]
pub mod fault;
mod faulty;
mod file;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod mapping;
mod memory;
mod null;
mod pagemap;
mod protected;
mod zoned;

pub use composed::{Composed, ComposedHandler, Layout};
pub use error::{Error, SideFileError, ZonesFileError};
pub use faulty::{FaultOp, FaultPlan, Faulty};
pub use file::{Created, File, FileHandler, FileOptions, Identity, User};
pub use memory::Memory;
pub use null::Null;
pub use protected::{Checked, Protected, SideFile};
pub use zoned::{ZoneLayout, ZonedDevice, ZonesFile};
