//! The data plane: workers, the lanes they host, request tokens and the handlers that answer them.
//!
//! A [`Worker`] is one thread with one ring and the lanes it hosts; a lane serves one hw queue of one device. The
//! worker reaps completions, hands each request to the lane's [`Handler`], turns the answers into commits, and submits
//! the whole batch with the same `io_uring_enter` that it sleeps in. [`Server`] runs workers on threads, pins them to
//! the kernel's queue affinity, and reports their [`Health`].
//!
//! # What safe code cannot break
//! No safe function lets its caller read or write memory that it does not own, or answer a request twice.
//!
//! | argument | safe because | otherwise |
//! |---|---|---|
//! | memory to copy to or from ([`Request::push_from`], [`port::UserCopyPort`]) | a [`MemRef`] is borrowed for the call | [`MemRef::new`] is unsafe |
//! | memory that the driver uses after an answer ([`Request::complete_from`]) | it is a `MemRef<'static>`; the lane holds the owner of a [`Direct`] backend's memory | [`Handler::data_address`] is unsafe to call |
//! | a request's bytes | its only token lends slices and buffer, each for a borrow | |
//! | buffers of operations ([`task::IoBuf`]) | the operation owns them until its last completion | the trait is unsafe |
//! | a registered buffer ([`task::BufferLocation`]) | it names its ring; others refuse it | |
//! | descriptors ([`task::SharedFd`]) | the operation holds them until it completes | |
//! | a device ([`Server::arm`], [`RawQueue::arm`]) | an `OpenDevice` is a device's node together with the driver's report on it | `OpenDevice::new` is unsafe |
//! | a share of a queue ([`worker::Share`]) | it is dealt once and checked against its lane | |
//! | tags, queues, file indices, slots | they are checked against depth, files and pool | |
//! | completions ([`port::Port`], [`Handler::operation_completed`]) | | the trait and the call are unsafe |
//! | a ring for lanes ([`port::RingPort::new`]) | | unsafe |
//! | requests of another lane, passed to an [`Async`](task::Async) inside another handler | the lane is checked, and the request refused | |
//!
//! Nothing here starts, stops or deletes a device: that is the job of the control plane (`ublk-ctrl`). The two share
//! only types of `ublk-core`.

mod age;
mod backing;
mod batch;
mod buffers;
mod data_path;
mod epoll;
mod failures;
mod forward;
pub mod handler;
pub mod health;
mod lane;
mod measure;
pub mod memref;
pub mod operations;
mod options;
mod panics;
pub mod polling;
pub mod port;
pub mod racy_copy;
pub mod raw;
mod recording;
mod remote;
pub mod request;
mod server;
mod shared;
mod shmem;
mod sync;
pub mod task;
pub mod thread;
pub mod user_data;
pub mod worker;

pub use age::{Oldest, Place};
pub use batch::BatchCommand;
pub use buffers::Pages;
pub use failures::{Failed, OnFailure};
pub use forward::{Forward, Part};
pub use handler::{
    Backing, ClientShared, Direct, Handler, Inline, InlineMetadata, LaneContext, Mapped, Pool,
    Pooled, Zoned,
};
pub use health::{Counters, Health, QueueHealth, State};
pub use lane::{LaneError, LaneHandle, LaneSpec, Share};
pub use memref::MemRef;
pub use operations::{NotPushed, Operation, Operations, RingId};
pub use options::ServeOptions;
pub use polling::Polling;
pub use raw::RawQueue;
pub use recording::{Recorded, Recorder};
pub use request::{KeptRequest, OwnedRequest, Request};
pub use server::{Error, Plan, Report, Server, Threads};
pub use shmem::SharedMemory;
#[cfg(feature = "kill-points")]
pub use worker::EndThread;
pub use worker::{Next, Worker, WorkerError};
