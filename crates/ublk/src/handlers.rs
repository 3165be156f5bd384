//! Devices answered by handlers or futures instead of a backend's blocking calls.

use std::future::Future;
use std::sync::Arc;

use ublk_core::{Backend, Errno, Limits, QueueId};
use ublk_queue::task::{Async, TaskRequest};
use ublk_queue::{Handler, Server};

use crate::builder::Builder;

/// Takes the place of a backend: the limits, and the constructor of the queues' handlers.
pub struct Handlers<F> {
    limits: Limits,
    make: F,
}

impl<F> std::fmt::Debug for Handlers<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handlers")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<F: Send + Sync + 'static> Backend for Handlers<F> {
    fn limits(&self) -> Limits {
        self.limits
    }

    /// Never called: the handlers answer.
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// The caller, who requests the resize, owns the storage behind the handlers.
    fn resize(&self, _size: u64) -> Result<(), Errno> {
        Ok(())
    }
}

impl<F, H> Builder<Handlers<F>>
where
    F: Fn(QueueId) -> H + Send + Sync + 'static,
    H: Handler + 'static,
{
    /// A device whose requests are answered by handlers, one per queue, created by `make` on the thread that calls
    /// them. `limits` determines what the device supports.
    pub fn handlers(limits: Limits, make: F) -> Self {
        Self {
            arm: |device, plan, handlers| {
                Server::arm_with(device, plan, move |qid| (handlers.make)(qid))
            },
            ..Self::shared(Arc::new(Handlers { limits, make }))
        }
    }
}

/// A device with an async handler: `serve` receives each request, and its future is polled on the queue's own thread and
/// may wait for operations on its ring. See [`ublk_queue::task`].
///
/// ```no_run
/// use ublk::{Errno, Limits};
/// use ublk::core::Op;
/// use ublk::queue::task::{SharedFd, TaskRequest};
///
/// async fn serve(mut request: TaskRequest, file: SharedFd) -> Result<(), Errno> {
///     let offset = request.offset();
///     match request.op() {
///         Op::Read => request.read_from(&file, offset).await,
///         Op::Write => request.write_to(&file, offset).await,
///         Op::Flush => request.ring().fdatasync(&file).await,
///         _ => Err(Errno::EOPNOTSUPP),
///     }
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let file = std::fs::File::options().read(true).write(true).open("disk.img")?;
/// let limits = Limits::new(file.metadata()?.len());
/// let file = SharedFd::new(file);
/// ublk::tasks(limits, move |request| serve(request, file.clone()))
///     .run(|device| println!("{}", device.path().display()))?;
/// # Ok(())
/// # }
/// ```
pub fn tasks<S, Fut>(limits: Limits, serve: S) -> Builder<impl Backend>
where
    S: Fn(TaskRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Errno>> + 'static,
{
    let serve = Arc::new(serve);
    Builder::handlers(limits, move |_| {
        let serve = Arc::clone(&serve);
        Async::new(move |request| serve(request))
    })
}
