//! io_uring without liburing: 64- and 128-byte SQEs, 16- and 32-byte CQEs, explicit acquire and release, registration.
//!
//! One thread creates a [`Ring`], pushes entries built by [`op`], enters the kernel once per batch, and pops
//! completions. The ring requests the best set-up that the kernel supports and reports what it got.
//!
//! ```
//! use uring_lite::{Ring, op};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut ring: Ring = Ring::builder(8).build()?;
//! ring.push(&op::nop().user_data(7))?;
//! while ring.cq_ready() == 0 {
//!     ring.enter(1, None)?;
//! }
//! assert_eq!(ring.next_cqe().map(|cqe| cqe.user_data), Some(7));
//! # Ok(())
//! # }
//! ```
//!
//! The queue protocol (`sq`, `cq`, `park`) is generic over memory and atomics: the shipped code runs on the kernel's
//! mapping, on the heap with a fake kernel side (feature `test-utils`), and under loom.
//!
//! Requires Linux 5.19; the best rung of the ladder requires 6.1.
//!
//! # What safe code cannot break
//! No safe function lets its caller make the kernel access memory or descriptors that the caller does not own.
//!
//! | argument | safe because | otherwise |
//! |---|---|---|
//! | an address: [`op::read`] and all builders that name memory, [`Sqe64::addr`], [`Sqe64::len`], [`Sqe64::buf_index`] | | unsafe, for every push of the entry or a copy |
//! | a descriptor in an entry | the ring holds the files of its own table ([`Fd::registered`]) | [`Fd::raw`] is unsafe |
//! | a descriptor to close | [`Ring::push_close`] takes it by value | [`op::close`] is unsafe |
//! | a descriptor to register | the kernel takes a reference during the call | |
//! | a `user_data` | it only comes back in the ring's own completions | [`op::msg_ring`], which posts to other rings, is unsafe |
//! | buffers for a group | the kernel pins the [`BufRing`] itself | [`BufRing::add`] is unsafe |
//! | the `user_data` of an operation to cancel | the operation still completes with its own result | |
//!
//! Entries are `Copy` and own nothing; queue entries and completions are copied in and out by value; a [`Ring`] stays
//! on its thread.

mod buf_ring;
mod cq;
mod entry;
mod errno;
mod error;
#[cfg(any(test, feature = "test-utils"))]
pub mod fake;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
#[cfg(any(test, feature = "test-utils"))]
mod heap;
mod linux;
#[cfg(all(test, loom))]
mod loom_tests;
pub mod memory;
mod mmap;
pub mod op;
mod park;
mod port;
mod register;
mod ring;
mod setup;
mod sq;
pub mod sys;
mod syscall;
mod waker;

pub use buf_ring::BufRing;
pub use entry::{CqEntry, Cqe16, Cqe32, SqEntry, Sqe64, Sqe128};
pub use errno::Errno;
pub use error::{ChainError, EnterError, Full, RegisterError, SetupError};
pub use linux::{Linux, MmapCq, MmapSq};
pub use op::{Fd, SqeFlags};
pub use port::Port;
pub use register::Probe;
pub use ring::{Entered, Ring};
pub use setup::{Builder, Ladder, Setup};
pub use waker::{WAKE_USER_DATA, Waker};
