//! A device that serves I/O.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ublk_core::{DevId, Features, Geometry, QueueId, Recovery};
use ublk_ctrl::Controller;
use ublk_ctrl::wait::deadline_in;
use ublk_metrics::{Level, Snapshot};
use ublk_queue::{Health, Recorder, Server};

use crate::error::{Error, Failure, Left};
use crate::stages::{Armed, Resize, Stage, Stopped, Unsettled};

/// Interval between repetitions of QUIESCE_DEV.
const QUIESCE_AGAIN: Duration = Duration::from_millis(5);

/// A live device. Dropping it stops and deletes the device on a background thread without blocking;
/// [`Device::remove`] does the same and returns the result, [`Device::detach`] keeps it serving until the process
/// ends.
pub struct Device {
    /// `None` only while the value is being taken apart.
    live: Option<Live>,
}

struct Live {
    server: Server,
    geometry: Geometry,
    /// Behind a lock so that a stop can be sent while another thread waits for the end.
    controller: Mutex<Box<dyn Controller>>,
    deadline: Duration,
    resize: Resize,
    /// Size of the device in bytes. Locked during a resize.
    size: Mutex<u64>,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl Device {
    pub(crate) fn new(armed: Armed) -> Self {
        let Armed {
            server,
            unserved,
            controller,
            deadline,
            resize,
            size,
            ..
        } = armed;
        let geometry = *unserved.geometry();
        let (controller, size) = (Mutex::new(controller), Mutex::new(size));
        Self {
            live: Some(Live {
                server,
                geometry,
                controller,
                deadline,
                resize,
                size,
            }),
        }
    }

    fn live(&self) -> &Live {
        self.live
            .as_ref()
            .expect("taken only by the methods that consume the device")
    }

    fn take(mut self) -> Live {
        self.live
            .take()
            .expect("taken only by the methods that consume the device")
    }

    /// The device's number.
    #[must_use]
    pub fn id(&self) -> DevId {
        self.live().geometry.dev_id()
    }

    /// The block device, `/dev/ublkbN`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/ublkb{}", self.id()))
    }

    /// The geometry that the kernel granted: queues, depth, largest request, features.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.live().geometry
    }

    /// A snapshot of state, first error and counters.
    #[must_use]
    pub fn health(&self) -> Health {
        self.live().server.health()
    }

    /// What the device has done since this program began to serve it: requests, bytes and errors of each queue and
    /// operation, facts of its data mode, and what [`measure`](Device::measure) adds. Two snapshots of a device give the
    /// work in between: [`Snapshot::since`].
    #[must_use]
    pub fn metrics(&self) -> Snapshot {
        self.live().server.metrics()
    }

    /// Changes what is measured, while the device serves: nothing more than what is always counted, also batch sizes, or
    /// also latencies. [`Builder::metrics`](crate::Builder::metrics) sets it from the start.
    pub fn measure(&self, level: Level) {
        self.live().server.measure(level);
    }

    /// Passes each request that arrives and ends from now on to a recorder of its lane, while the device serves: its op,
    /// range, errno, and when it began and how long it took. `make` makes the recorder of a lane: a queue with several
    /// threads has one for each. Ends an earlier recording. Latencies are measured meanwhile. Returns when the recording
    /// began.
    ///
    /// A recorder runs on the thread that serves: it must not block. `ublk_trace::recorder` has rings and a file for it.
    pub fn record(&self, make: impl FnMut(QueueId) -> Box<dyn Recorder>) -> Instant {
        self.live().server.record(make)
    }

    /// Ends the recording. True once no lane uses its recorder any more; false if that takes longer than `patience`.
    #[must_use]
    pub fn end_recording(&self, patience: Duration) -> bool {
        self.live().server.end_recording(deadline_in(patience))
    }

    /// Waits until the device has ended: stopped from outside, or failed. False after the timeout.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.live().server.wait(timeout)
    }

    /// Readable once the device has ended.
    pub(crate) fn ended_fd(&self) -> BorrowedFd<'_> {
        self.live().server.ended_fd()
    }

    /// Sends STOP_DEV while the queues continue to serve.
    pub(crate) fn send_stop(&self) -> Result<(), Error> {
        self.live().send_stop()
    }

    /// Changes the size of the device in bytes while it is in use (UPDATE_SIZE, Linux 6.16). To grow, the backend is resized
    /// first ([`Backend::resize`](ublk_core::Backend::resize)), and requests beyond the old end are accepted before a client can send them. To
    /// shrink, the end of the device is cut off even if it is in use.
    ///
    /// # Errors
    /// [`Error::Resize`] if the backend cannot have the size, or an error of the driver; the device keeps its size.
    pub fn resize(&self, bytes: u64) -> Result<(), Error> {
        self.live().resize(bytes)
    }

    /// Sends STOP_DEV while the queues continue to serve, waits until no request is in flight, and frees threads,
    /// rings, mappings and the char device (L22).
    ///
    /// # Errors
    /// The error of STOP_DEV, with the unchanged device; after a deadline the device is unsettled.
    pub fn stop(self) -> Result<Stopped, Failure<Self>> {
        let mut live = self.take();
        match live.stop() {
            Ok(()) => Ok(live.into_stopped()),
            Err(error) if is_deadline(&error) => Err(Failure {
                error,
                left: Left::Unsettled(Box::new(live.into_unsettled())),
            }),
            Err(error) => Err(Failure {
                error,
                left: Left::Same(Box::new(Self { live: Some(live) })),
            }),
        }
    }

    /// Stops and deletes the device.
    ///
    /// # Errors
    /// The error of the first step that failed; the device stays listed.
    pub fn remove(self) -> Result<(), Error> {
        match self.stop() {
            Ok(stopped) => stopped.delete(),
            Err(failure) => {
                let error = failure.error;
                if let Left::Same(mut device) = failure.left {
                    // Keep the drop from trying again.
                    device.live = None;
                }
                Err(error)
            }
        }
    }

    /// Leaves a recoverable device to its next server ([`Builder::recover`](crate::Builder::recover), here or in
    /// another process): new requests wait, or fail, by its policy; the device itself stays.
    ///
    /// Requests in flight are answered first. This requires QUIESCE (Linux 6.16): on earlier kernels, end the process
    /// to leave the device.
    ///
    /// # Errors
    /// [`Error::NotRecoverable`] or [`Error::CannotHold`] with the unchanged device. After a deadline requests are
    /// still in flight: the device is unsettled and serves no new requests.
    pub fn leave(self) -> Result<(), Failure<Self>> {
        let mut live = self.take();
        let id = live.geometry.dev_id();
        let features = live.geometry.features();
        let error = if !Recovery::of(features).is_recoverable() {
            Some(Error::NotRecoverable { id })
        } else if !features.contains(Features::QUIESCE) {
            Some(Error::CannotHold { id })
        } else {
            None
        };
        if let Some(error) = error {
            return Err(Failure {
                error,
                left: Left::Same(Box::new(Self { live: Some(live) })),
            });
        }
        live.leave().map_err(|error| Failure {
            error,
            left: Left::Unsettled(Box::new(live.into_unsettled())),
        })
    }

    /// Lets the device serve until the process ends, without a handle. It is then never deleted.
    pub fn detach(self) {
        std::mem::forget(self.take());
    }
}

impl Stage for Device {
    fn remove(self) -> Result<(), Error> {
        Self::remove(self)
    }
}

impl Live {
    fn send_stop(&self) -> Result<(), Error> {
        let mut controller = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(controller.stop(self.geometry.dev_id(), self.deadline)?)
    }

    fn resize(&self, bytes: u64) -> Result<(), Error> {
        let id = self.geometry.dev_id();
        let backend = |errno| Error::Resize { id, bytes, errno };
        let mut size = self.size.lock().unwrap_or_else(PoisonError::into_inner);
        let grows = bytes > *size;
        if grows {
            (self.resize)(bytes).map_err(backend)?;
            self.server.set_size(bytes);
        }
        let mut controller = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let updated = controller.update_size(id, bytes, self.deadline);
        drop(controller);
        if let Err(error) = updated {
            // A larger backend is harmless, and after a timeout the driver may already use the new size.
            if grows && !matches!(error, ublk_ctrl::Error::TimedOut { .. }) {
                self.server.set_size(*size);
            }
            return Err(error.into());
        }
        *size = bytes;
        self.server.set_size(bytes);
        if !grows {
            // The device is already smaller, whether or not its backend can free the space.
            let _ = (self.resize)(bytes);
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        let id = self.geometry.dev_id();
        let until = deadline_in(self.deadline);
        // QUIESCE does not reach a server whose tags are all busy, so repeat it.
        loop {
            let mut controller = self
                .controller
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            controller.quiesce(id, self.deadline)?;
            drop(controller);
            if self.server.wait(Some(QUIESCE_AGAIN)) || Instant::now() >= until {
                break;
            }
        }
        self.server.finish(Duration::ZERO)?;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.send_stop()?;
        self.server.finish(self.deadline)?;
        Ok(())
    }

    fn into_stopped(self) -> Stopped {
        let controller = self
            .controller
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Stopped {
            geometry: self.geometry,
            controller,
            deadline: self.deadline,
        }
    }

    fn into_unsettled(self) -> Unsettled {
        let Self {
            server,
            geometry,
            controller,
            deadline,
            ..
        } = self;
        let controller = controller
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        Unsettled {
            geometry,
            controller,
            server: Some(server),
            deadline,
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        // The handle may be dropped on any thread, in a panic, or in the last line of main; dropping it never waits for the
        // kernel (L29).
        let name = format!("ublk-{}-drop", live.geometry.dev_id());
        let _ = thread::Builder::new()
            .name(name)
            .spawn(move || Device { live: Some(live) }.remove());
    }
}

fn is_deadline(error: &Error) -> bool {
    matches!(
        error,
        Error::Control(ublk_ctrl::Error::TimedOut { .. })
            | Error::Server(ublk_queue::Error::TimedOut { .. })
    )
}
