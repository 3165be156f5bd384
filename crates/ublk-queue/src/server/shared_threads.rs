//! Threads that serve several devices.
//!
//! Each device has its own ring on each of its threads, since a ring holds the device's character device open for as
//! long as it lives: a device can end, fail or be handed over without affecting the others. A thread sleeps in one
//! epoll that watches all its rings. An idle device costs its descriptors and mappings, and no wake-ups.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ublk_core::{CpuMask, deadline_in};

use crate::epoll::Epoll;
use crate::handler::Handler;
use crate::panics::caught;
use crate::port::{DescTable, RingPort};
use crate::thread;
use crate::worker::{Next, Worker, WorkerError};

/// The worker of one device on a shared thread.
pub(crate) trait Hosted {
    /// The ring's descriptor.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// Serves what has arrived. Returns `Ended` for a failure, too; the device's health has the error.
    fn drive(&mut self) -> Next;
}

/// A worker, and a guard that is dropped once its ring is closed.
pub(crate) struct Guest<H: Handler, G> {
    worker: Option<Worker<RingPort, DescTable, H>>,
    /// Its result; `None` after a panic outside its handlers, which `guard` reports.
    result: Option<Result<(), WorkerError>>,
    _guard: G,
}

impl<H: Handler, G> Guest<H, G> {
    pub(crate) const fn new(worker: Worker<RingPort, DescTable, H>, guard: G) -> Self {
        Self {
            worker: Some(worker),
            result: Some(Err(WorkerError::Left)),
            _guard: guard,
        }
    }
}

impl<H: Handler, G> Hosted for Guest<H, G> {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.worker.as_ref()?.port().as_fd())
    }

    fn drive(&mut self) -> Next {
        let Some(worker) = &mut self.worker else {
            return Next::Ended;
        };
        // A panic outside the handlers is a defect of the engine: it ends this device, not its neighbours.
        self.result = match caught(|| worker.drive()) {
            Some(Ok(Next::Ended)) => Some(Ok(())),
            Some(Ok(next)) => return next,
            Some(Err(error)) => Some(Err(error)),
            None => None,
        };
        Next::Ended
    }
}

impl<H: Handler, G> Drop for Guest<H, G> {
    fn drop(&mut self) {
        if let (Some(worker), Some(result)) = (self.worker.take(), &self.result) {
            worker.finish(result);
        }
    }
}

/// Creates a worker on the thread that will drive it; `None` if that failed and was reported.
pub(crate) type Newcomer = Box<dyn FnOnce() -> Option<Box<dyn Hosted>> + Send>;

/// Messages from the owner to a thread.
struct Inbox {
    state: Mutex<InboxState>,
    bell: OwnedFd,
}

#[derive(Default)]
struct InboxState {
    newcomers: Vec<Newcomer>,
    /// The thread ends with its last device.
    closed: bool,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, InboxState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A set of threads that serves any number of devices with any backends: the queues of each new device are assigned to
/// them in turn. Pass it to [`Plan::shared_threads`](crate::Plan::shared_threads).
///
/// Dropping it does not wait: each thread ends with its last device.
pub struct Threads {
    inboxes: Vec<Arc<Inbox>>,
    next: AtomicUsize,
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Threads")
            .field("count", &self.inboxes.len())
            .finish_non_exhaustive()
    }
}

impl Threads {
    /// Starts this many threads, at least one, not pinned.
    ///
    /// # Errors
    /// The error of creating a thread, eventfd or epoll.
    pub fn start(count: usize) -> std::io::Result<Arc<Self>> {
        Self::pinned(&vec![CpuMask::new(); count.max(1)])
    }

    /// Starts a thread per mask, pinned to its CPUs; an empty mask pins nothing.
    ///
    /// # Errors
    /// As for [`start`](Threads::start), or a mask has no CPU that this process may use; `InvalidInput` without masks.
    pub fn pinned(masks: &[CpuMask]) -> std::io::Result<Arc<Self>> {
        if masks.is_empty() {
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        let mut threads = Self {
            inboxes: Vec::with_capacity(masks.len()),
            next: AtomicUsize::new(0),
        };
        for (n, mask) in masks.iter().enumerate() {
            let inbox = Arc::new(Inbox {
                state: Mutex::default(),
                bell: thread::event_fd()?,
            });
            let epoll = Epoll::new()?;
            epoll.add(inbox.bell.as_fd(), BELL)?;
            threads.inboxes.push(Arc::clone(&inbox));
            let (mask, (pinned, is_pinned)) = (mask.clone(), std::sync::mpsc::channel());
            std::thread::Builder::new()
                .name(format!("ublk-shared-{n}"))
                .spawn(move || {
                    let result = if mask.is_empty() {
                        Ok(())
                    } else {
                        thread::pin(&mask)
                    };
                    let go_on = result.is_ok();
                    // The receiver still exists: it waits for this message.
                    let _ = pinned.send(result);
                    if go_on {
                        thread::set_io_flusher();
                        Host::new(epoll, inbox).run();
                    }
                })?;
            if let Ok(Err(errno)) = is_pinned.recv() {
                return Err(std::io::Error::from_raw_os_error(errno.get()));
            }
        }
        Ok(Arc::new(threads))
    }

    /// Number of threads.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inboxes.len()
    }

    /// Index of the first thread for a new device.
    pub(crate) fn next_thread(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Passes a new worker to a thread.
    pub(crate) fn attach(&self, at: usize, newcomer: Newcomer) {
        if let Some(inbox) = self.inboxes.get(at % self.inboxes.len().max(1)) {
            inbox.lock().newcomers.push(newcomer);
            thread::signal_event(inbox.bell.as_fd());
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for inbox in &self.inboxes {
            inbox.lock().closed = true;
            thread::signal_event(inbox.bell.as_fd());
        }
    }
}

/// Token of the inbox's eventfd; other tokens are indices into `places`.
const BELL: u64 = u64::MAX;

/// The thread's own state.
struct Host {
    epoll: Epoll,
    inbox: Arc<Inbox>,
    places: Vec<Option<HostedWorker>>,
    /// Number of places with a deadline for their next turn: usually 0.
    timed: usize,
}

struct HostedWorker {
    worker: Box<dyn Hosted>,
    by: Option<Instant>,
}

impl Host {
    const fn new(epoll: Epoll, inbox: Arc<Inbox>) -> Self {
        Self {
            epoll,
            inbox,
            places: Vec::new(),
            timed: 0,
        }
    }

    fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            let timeout = self.timeout();
            self.epoll.wait(timeout, &mut ready);
            for token in ready.drain(..) {
                if token == BELL {
                    thread::drain_event(self.inbox.bell.as_fd());
                    self.take_newcomers();
                } else if let Ok(at) = usize::try_from(token) {
                    self.drive(at);
                }
            }
            if self.timed > 0 {
                self.drive_late();
            }
            // No device left, and none will come.
            if self.places.is_empty() && self.inbox.lock().closed {
                return;
            }
        }
    }

    fn take_newcomers(&mut self) {
        let newcomers = std::mem::take(&mut self.inbox.lock().newcomers);
        for newcomer in newcomers {
            // A worker contains its handlers' panics; any other panic must not end the neighbours (L64).
            let Some(worker) = caught(newcomer).flatten() else {
                continue;
            };
            let free = self.places.iter().position(Option::is_none);
            let at = free.unwrap_or_else(|| {
                self.places.push(None);
                self.places.len() - 1
            });
            let token = u64::try_from(at).unwrap_or(BELL);
            let fd = worker.fd();
            let watched = fd.map_or(Ok(()), |fd| self.epoll.add(fd, token));
            self.places[at] = Some(HostedWorker { worker, by: None });
            match watched {
                // Serves what arrived before the ring was watched.
                Ok(()) => self.drive(at),
                // Unwatched, the device would hang: dropping the worker ends it and reports the failure.
                Err(_) => self.end(at),
            }
        }
    }

    fn drive(&mut self, at: usize) {
        let Some(Some(place)) = self.places.get_mut(at) else {
            return;
        };
        self.timed -= usize::from(place.by.take().is_some());
        match place.worker.drive() {
            Next::Ready => {}
            Next::Within(time) => {
                place.by = Some(deadline_in(time));
                self.timed += 1;
            }
            Next::Ended => self.end(at),
        }
    }

    fn end(&mut self, at: usize) {
        // Closing the ring ends the watch, too, but only once the kernel is done with the ring.
        if let Some(place) = self.places.get_mut(at).and_then(Option::take) {
            if let Some(fd) = place.worker.fd() {
                self.epoll.remove(fd);
            }
            // A handler that panics in its drop belongs to a device that has ended.
            caught(|| drop(place));
        }
        while let Some(None) = self.places.last() {
            self.places.pop();
        }
    }

    fn drive_late(&mut self) {
        let now = Instant::now();
        for at in 0..self.places.len() {
            let late = |place: &HostedWorker| place.by.is_some_and(|by| by <= now);
            if self
                .places
                .get(at)
                .is_some_and(|place| place.as_ref().is_some_and(late))
            {
                self.drive(at);
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        if self.timed == 0 {
            return None;
        }
        let times = self.places.iter().flatten().filter_map(|place| place.by);
        Some(times.min()?.saturating_duration_since(Instant::now()))
    }
}
