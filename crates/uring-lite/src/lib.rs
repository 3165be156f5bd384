//! An io_uring ring by hand: SQE64/SQE128, CQE16/CQE32, explicit acquire/release, registration.
//!
//! One thread makes a [`Ring`], pushes entries made by [`op`], enters the kernel once per batch, and pops
//! completions. The ring asks the kernel for the best set-up it has and says what it got.
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
//! Needs Linux 5.19; the best rung of the ladder needs 6.1.

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
