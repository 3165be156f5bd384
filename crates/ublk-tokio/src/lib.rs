//! Answers the requests of a ublk device from a tokio runtime.
//!
//! The queues' threads take requests from the driver and hand them over, through a [`channel`] to one receiver, or with
//! [`Spawn`] to one task each. Tasks answer at any time, on any thread of the runtime; the queue's ring is woken at
//! once.
//!
//! ```no_run
//! use ublk::core::Op;
//! use ublk::{Builder, Errno, Limits, OwnedRequest};
//!
//! async fn answer(mut request: OwnedRequest) {
//!     // Whatever can be awaited.
//!     tokio::task::yield_now().await;
//!     let result = match request.op() {
//!         Op::Read => request.data_mut().map(|data| data.fill(0)),
//!         _ => Err(Errno::EOPNOTSUPP),
//!     };
//!     request.complete(result);
//! }
//!
//! # async fn serve() -> Result<(), ublk_tokio::Error> {
//! let limits = Limits::new(1 << 30).read_only(true);
//! let (feed, mut requests) = ublk_tokio::channel(128);
//! let device = ublk_tokio::start(Builder::handlers(limits, move |_queue| feed.clone())).await?;
//! println!("{}", device.path().display());
//! while let Some(request) = requests.next().await {
//!     tokio::spawn(answer(request));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A request that is dropped, for instance by a task that panicked or was aborted, is answered with EIO and counted. If
//! requests need no other thread, `ublk::tasks` works without a runtime at a fraction of the cost.
//!
//! # What safe code cannot break
//! This crate forbids `unsafe`: an `OwnedRequest` is the only access to its tag's buffer, whichever task has it, and a
//! runtime that shuts down drops the requests it holds.
#![forbid(unsafe_code)]

use std::future::Future;
use std::sync::Arc;

use tokio::runtime;
use tokio::sync::mpsc;
use ublk::{Backend, Builder, Device, Handler, OwnedRequest, Request};

/// Why a device could not be started or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The error of the device.
    #[error(transparent)]
    Device(#[from] ublk::Error),
    /// The runtime is shutting down: the call was not made. A device that was to be removed is dropped, which stops and
    /// deletes it on a thread of its own.
    #[error("the runtime is shutting down; start and remove devices before that, or without it")]
    ShutDown,
}

/// Creates a channel with room for `tags` requests. Pass the number of tags of all queues together, depth times queues.
///
/// # Panics
/// If `tags` is 0, or more than a tokio channel supports (`usize::MAX >> 3`).
#[must_use]
pub fn channel(tags: usize) -> (Feed, Requests) {
    let (sender, receiver) = mpsc::channel(tags);
    (Feed(sender), Requests(receiver))
}

/// The sending end of a [`channel`]: a handler that hands each request over. Clone it for each queue.
///
/// A request that does not fit, since more tags feed the channel than it was made for, or that has no receiver any
/// more, is answered with EIO and counted as dropped.
#[derive(Debug, Clone)]
pub struct Feed(mpsc::Sender<OwnedRequest>);

impl Handler for Feed {
    fn handle(&mut self, request: Request<'_>) {
        // A request that is not taken is dropped, and so answered.
        drop(self.0.try_send(request.detach()));
    }
}

/// The receiving end of a [`channel`].
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<OwnedRequest>);

impl Requests {
    /// The next request of any queue; `None` once all queues have ended. Cancel-safe: dropping this future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<OwnedRequest> {
        self.0.recv().await
    }
}

/// A handler that spawns a task of a runtime for each request. Clone it for each queue.
pub struct Spawn<F> {
    runtime: runtime::Handle,
    serve: Arc<F>,
}

impl<F> Clone for Spawn<F> {
    fn clone(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            serve: Arc::clone(&self.serve),
        }
    }
}

impl<F> std::fmt::Debug for Spawn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spawn").finish_non_exhaustive()
    }
}

impl<F, Fut> Spawn<F>
where
    F: Fn(OwnedRequest) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    /// Creates a handler that spawns tasks on this runtime, whose futures answer their request.
    pub fn new(runtime: runtime::Handle, serve: F) -> Self {
        Self {
            runtime,
            serve: Arc::new(serve),
        }
    }
}

impl<F, Fut> Handler for Spawn<F>
where
    F: Fn(OwnedRequest) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn handle(&mut self, request: Request<'_>) {
        // A task that never runs, since the runtime shuts down, drops its request, which is answered.
        drop(self.runtime.spawn((self.serve)(request.detach())));
    }
}

/// Runs [`Builder::start`] on a thread that may block.
///
/// # Errors
/// As for [`Builder::start`]; [`Error::ShutDown`].
///
/// # Panics
/// If starting it panics.
pub async fn start<B: Backend>(builder: Builder<B>) -> Result<Device, Error> {
    Ok(blocking(move || builder.start()).await??)
}

/// Runs [`Device::remove`] on a thread that may block: stop, end, delete. Keep answering requests until it returns: the
/// driver first writes dirty pages back.
///
/// # Errors
/// As for [`Device::remove`]; [`Error::ShutDown`].
///
/// # Panics
/// If removing it panics.
pub async fn remove(device: Device) -> Result<(), Error> {
    Ok(blocking(move || device.remove()).await??)
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => Ok(value),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Error::ShutDown),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A runtime that shuts down is an error of the call, not a panic of the caller.
    #[test]
    fn a_runtime_that_shuts_down_is_an_error() {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("threads");
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        let called = std::thread::spawn(move || {
            // The caller runs on another runtime, or on none.
            let _context = handle.enter();
            let call = blocking(|| 7);
            runtime::Builder::new_current_thread()
                .build()
                .expect("a runtime")
                .block_on(async {
                    let _inner = handle.enter();
                    call.await
                })
        });
        let result = called.join().expect("no panic");
        assert!(matches!(result, Err(Error::ShutDown)), "{result:?}");
    }
}
