//! Threads that serve many devices.
//!
//! Each device has a ring of its own on each of its threads, since a ring holds the device's character device for as
//! long as it lives: one device ends, fails or is handed over without the others. A thread sleeps in one epoll that
//! watches them all. An idle device costs its descriptors and its mappings, and no wake-up.

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

/// A device's worker on a thread of several.
pub(crate) trait Hosted {
    /// The ring.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
    /// Serves what there is. `Ended` also for what failed: its health says so.
    fn drive(&mut self) -> Next;
}

/// A worker, and what is dropped when its ring is gone.
pub(crate) struct Guest<H: Handler, G> {
    worker: Option<Worker<RingPort, DescTable, H>>,
    /// How it ended; nothing after a panic that was not its handler's, which `guard` tells.
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
        // What is not a handler's panic is a defect of the engine: it ends this device and not its neighbours.
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

/// Makes a worker on the thread that will drive it; `None` if that failed, which it has told.
pub(crate) type Newcomer = Box<dyn FnOnce() -> Option<Box<dyn Hosted>> + Send>;

/// What a thread's owner leaves for it.
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

/// A set of threads that serve any number of devices, of any backends: the queues of each new device are dealt to
/// them in turn. Give it to [`Plan::hosts`](crate::Plan::hosts).
///
/// Dropping it makes each thread end with its last device, and waits for none.
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
    /// Starts so many threads, at least one, not pinned.
    ///
    /// # Errors
    /// No thread, eventfd or epoll could be had.
    pub fn start(count: usize) -> std::io::Result<Arc<Self>> {
        Self::pinned(&vec![CpuMask::new(); count.max(1)])
    }

    /// Starts a thread for each mask, pinned to its CPUs; an empty mask pins nothing.
    ///
    /// # Errors
    /// As for [`start`](Threads::start), or a mask has no CPU that this process may use; `InvalidInput` for no mask at all.
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
                    // The one who asks is still there: it waits for this.
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

    /// How many threads these are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.inboxes.len()
    }

    /// The place of a new device: which thread is the first in turn.
    pub(crate) fn deal(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a thread make and drive a worker.
    pub(crate) fn host(&self, at: usize, newcomer: Newcomer) {
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

/// The token of the inbox's bell; the others are places.
const BELL: u64 = u64::MAX;

/// A thread's own side.
struct Host {
    epoll: Epoll,
    inbox: Arc<Inbox>,
    places: Vec<Option<HostedWorker>>,
    /// How many of the places have a time by which they are to be driven: usually none.
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
            // Nothing to live for any more.
            if self.places.is_empty() && self.inbox.lock().closed {
                return;
            }
        }
    }

    fn take_newcomers(&mut self) {
        let newcomers = std::mem::take(&mut self.inbox.lock().newcomers);
        for newcomer in newcomers {
            // It contains its handlers' panics; whatever else it may be ends no neighbour (L64).
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
                // What came before the ring was watched is served now.
                Ok(()) => self.drive(at),
                // Without being watched the device would hang: dropping the worker ends it, and tells.
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
        // Closing the ring ends the watch too, but not before the kernel is done with the ring.
        if let Some(place) = self.places.get_mut(at).and_then(Option::take) {
            if let Some(fd) = place.worker.fd() {
                self.epoll.remove(fd);
            }
            // A handler that panics when it is dropped ends its device, which has ended.
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
