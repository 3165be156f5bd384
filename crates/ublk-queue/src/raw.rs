//! A queue driven by its owner, for programs with an event loop of their own: requests come from a call and are
//! answered at any time.

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

/// Collects new requests for the owner.
struct Collect(VecDeque<KeptRequest>);

impl Handler for Collect {
    const CLIENT_MEMORY: bool = true;
    const ZONES: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        self.0.push_back(request.keep());
    }
}

/// One hw queue of a device on the calling thread, without a thread or callbacks of its own.
///
/// [`turn`](RawQueue::turn) submits the answers given since the last turn and collects new requests; the iterator hands
/// them out. Answer them with [`KeptRequest::complete`] at any time; the answer goes with the next `turn`. Between two
/// turns the owner may sleep in any call that watches [`as_fd`](RawQueue::as_fd), for at most as long as the last turn
/// allows ([`Next`]).
///
/// Call `turn` until it returns [`Next::Ended`] before you drop the queue: closing a ring with requests in flight, in a
/// thread that lives on, can lose one on kernels before 6.16.
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
    /// Fetches every tag of a queue. START_DEV, from another thread, succeeds once every queue of the device is armed;
    /// keep calling `turn` on this thread meanwhile.
    ///
    /// # Errors
    /// The ring or the buffers could not be created, or the driver refused a fetch.
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
        lane.measure(plan.options.metrics);
        Ok(Self {
            worker,
            lane,
            ended: false,
        })
    }

    /// Submits the answers given since the last turn and collects new requests, without sleeping. The result says when
    /// to call it next: once [`as_fd`](RawQueue::as_fd) is readable or an answer was given, and sometimes no later than
    /// a given time, for instance after the kernel had no memory for a command. [`Next::Ended`] once the driver has
    /// taken the queue back and no request is in hand: drop the queue then, so that the device can be deleted.
    ///
    /// # Errors
    /// Why the queue cannot continue.
    pub fn turn(&mut self) -> Result<Next, WorkerError> {
        if self.ended {
            return Ok(Next::Ended);
        }
        let next = self.worker.drive()?;
        self.ended = next == Next::Ended;
        Ok(next)
    }

    /// State, counters and what it measures.
    #[must_use]
    pub const fn lane(&self) -> &LaneHandle {
        &self.lane
    }

    /// Ends the queue and records the result of the last [`turn`](RawQueue::turn) in its state; dropping it does the
    /// rest.
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

    /// The next request that a turn has collected. After `None` the next turn may bring more.
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
