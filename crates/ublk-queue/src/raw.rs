//! The queue as its owner's own: requests by the call, answers whenever, for those with an event loop of their own.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ublk_core::{OpenDevice, QueueId};

use crate::handler::Handler;
use crate::port::{DescTable, RingPort};
use crate::request::{KeptRequest, Request};
use crate::server::Parts;
use crate::server::{Error, Plan};
use crate::worker::{LaneHandle, Next, Worker, WorkerError};

/// Keeps what comes for the owner.
struct Collect(VecDeque<KeptRequest>);

impl Handler for Collect {
    const SHARED: bool = true;
    const ZONES: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        self.0.push_back(request.keep());
    }
}

/// One hw queue of a device on the calling thread: no thread of ours, no callback.
///
/// [`turn`](RawQueue::turn) submits the answers given since the last one and brings new requests;
/// the iterator hands them out. Requests are answered by [`KeptRequest::complete`] at any time; an answer
/// goes with the next `turn`. Between two turns the owner may sleep in whatever it likes that watches
/// [`as_fd`](RawQueue::as_fd), for as long as the last turn allows ([`Next`]).
///
/// Take turns until [`Next::Ended`] before you drop it: a ring that is closed in a thread that lives on, with requests
/// under way, can lose one on kernels before 6.16.
pub struct RawQueue {
    worker: Worker<RingPort, DescTable, Collect>,
    lane: LaneHandle,
    ended: bool,
}

impl std::fmt::Debug for RawQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawQueue")
            .field("lane", &self.lane)
            .finish_non_exhaustive()
    }
}

impl RawQueue {
    /// Gives every tag of a queue to the driver. START_DEV, from another thread, succeeds once every queue of the
    /// device has been armed; this thread must take turns meanwhile.
    ///
    /// # Errors
    /// The ring or the buffers could not be had, or the driver refused a fetch.
    pub fn arm(device: &OpenDevice, plan: &Plan, qid: QueueId) -> Result<Self, Error> {
        let parts = Parts {
            qids: &[qid],
            share: None,
            device,
            plan,
        };
        let leave = Arc::new(AtomicBool::new(false));
        let depth = usize::from(device.geometry().depth());
        let port = parts.port::<Collect>()?;
        let make = |_| Collect(VecDeque::with_capacity(depth));
        let (worker, mut lanes) = parts.worker(port, leave, make)?;
        let Some(lane) = lanes.pop() else {
            return Err(Error::Worker(WorkerError::Left));
        };
        Ok(Self {
            worker,
            lane,
            ended: false,
        })
    }

    /// Submits the answers given since the last turn and takes what has come, without sleeping; says when the next turn
    /// is due: once [`as_fd`](RawQueue::as_fd) is readable or an answer was given, and in some cases after a time at the
    /// latest, such as when the kernel was short of memory for a command. [`Next::Ended`] once the driver has taken the
    /// queue back and nothing is in hand: drop the queue then, so that the device can be deleted.
    ///
    /// # Errors
    /// Why the queue cannot go on.
    pub fn turn(&mut self) -> Result<Next, WorkerError> {
        if self.ended {
            return Ok(Next::Ended);
        }
        let next = self.worker.drive()?;
        self.ended = next == Next::Ended;
        Ok(next)
    }

    /// State and counters.
    #[must_use]
    pub const fn lane(&self) -> &LaneHandle {
        &self.lane
    }

    /// Ends the queue as [`turn`](RawQueue::turn) found it, for its state; dropping it does the rest.
    pub fn finish(self) {
        let result = if self.ended {
            Ok(())
        } else {
            Err(WorkerError::Left)
        };
        self.worker.finish(&result);
    }
}

impl Iterator for RawQueue {
    type Item = KeptRequest;

    /// The next request that a turn has brought; after `None` the next turn may bring more.
    fn next(&mut self) -> Option<KeptRequest> {
        let collect = self.worker.handler(0)?;
        collect.0.pop_front()
    }
}

impl AsFd for RawQueue {
    /// The ring's descriptor: readable when a turn would bring something.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.worker.port().as_fd()
    }
}
