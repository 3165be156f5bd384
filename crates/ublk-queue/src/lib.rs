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
//! | what is given | safe, because | else |
//! |---|---|---|
//! | memory to copy to or from ([`Request::push_from`], [`port::UserCopyPort`]) | a [`MemRef`] is a loan for the call | [`MemRef::new`] is unsafe |
//! | memory for the driver behind an answer ([`Request::complete_from`]) | `MemRef<'static>`; of a [`Direct`] backend the lane holds the owner | [`Handler::place`] is unsafe to call |
//! | a request's bytes | the one token gives slices and buffer, each for a borrow | |
//! | buffers of operations ([`task::IoBuf`]) | the operation owns them until its last completion | the trait is unsafe |
//! | a registered buffer ([`task::BufferLocation`]) | named with its ring; others refuse it | |
//! | descriptors ([`task::SharedFd`]) | held until the operation is over | |
//! | a device ([`Server::arm`], [`RawQueue::arm`]) | an `OpenDevice` is one device's node and the driver's word on it | `OpenDevice::new` is unsafe |
//! | a share of a queue ([`worker::Share`]) | dealt once, compared with its lane | |
//! | tags, queues, file numbers, places | compared with depth, files, pool; what is beyond is refused | |
//! | completions ([`port::Port`], [`Handler::operation_completed`]) | | the trait and the call are unsafe |
//! | a ring for lanes ([`port::RingPort::new`]) | | unsafe |
//! | requests of another lane, to an [`Async`](task::Async) inside another handler | compared with its own lane, refused | |
//!
//! Nothing here starts, stops or deletes a device: that is the job of the control plane (`ublk-ctrl`). The two share
//! only types of `ublk-core`.

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
pub mod memref;
pub mod operations;
mod options;
mod panics;
pub mod polling;
pub mod port;
pub mod racy_copy;
pub mod raw;
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

pub use batch::BatchCommand;
pub use buffers::Pages;
pub use failures::{Failed, OnFailure};
pub use forward::Forward;
pub use handler::{
    Backing, ClientShared, Direct, Handler, Inline, LaneContext, Mapped, Pool, Pooled, Zoned,
};
pub use health::{Counters, Health, QueueHealth, State};
pub use lane::{LaneError, LaneHandle, LaneSpec, Share};
pub use memref::MemRef;
pub use operations::{NotPushed, Operation, Operations, RingId};
pub use options::ServeOptions;
pub use polling::Polling;
pub use raw::RawQueue;
pub use request::{KeptRequest, OwnedRequest, Request};
pub use server::{Error, Plan, Report, Server, Threads};
pub use shmem::SharedMemory;
#[cfg(feature = "kill-points")]
pub use worker::EndThread;
pub use worker::{Next, Worker, WorkerError};
