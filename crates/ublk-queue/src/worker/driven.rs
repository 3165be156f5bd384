//! A worker that does not sleep by itself: its owner watches the ring among other things, and drives it.

use std::time::Duration;

use super::{Worker, WorkerError};
use crate::handler::Handler;
use crate::lane::{ABORT_WAIT, Lane};
use crate::seam::{Descriptors, Port};

/// What a worker that is driven wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To be driven once its ring is readable.
    Ready,
    /// The same, but no later than after this time.
    Within(Duration),
    /// Nothing: all lanes are empty.
    Ended,
}

/// Batches of a busy worker, after which the owner's other things have their turn.
const ROUNDS: u32 = 8;

impl<P: Port, D: Descriptors, H: Handler> Worker<P, D, H> {
    /// One turn of a worker that its owner drives: submits what was answered and takes what is there, without
    /// sleeping. True once all lanes are empty.
    ///
    /// # Errors
    /// Why the worker cannot go on.
    pub fn step(&mut self) -> Result<bool, WorkerError> {
        for lane in &mut self.lanes {
            lane.turn(&mut self.port);
            lane.take_answers(&mut self.port);
            lane.flush(&mut self.port);
            lane.shared.meters.enters.add(1);
        }
        self.port.enter(0, None).map_err(WorkerError::Ring)?;
        if self.has_retries() {
            self.take_retries();
        }
        self.mark_serving();
        self.take_completions_seldom()?;
        Ok(self.lanes.iter().all(Lane::is_empty) && self.last_commits_taken()?)
    }

    /// Serves what there is without sleeping, and says when to be called again. A busy worker comes back after some
    /// batches, its ring still readable.
    ///
    /// # Errors
    /// Why the worker cannot go on.
    pub fn drive(&mut self) -> Result<Next, WorkerError> {
        self.port.unpark();
        self.guarded(Self::serve_awake)
    }

    fn serve_awake(&mut self) -> Result<Next, WorkerError> {
        for lane in &mut self.lanes {
            lane.serve_fetched(&mut self.port)?;
        }
        for _ in 0..ROUNDS {
            self.take_completions_seldom()?;
            let mut again = false;
            for lane in &mut self.lanes {
                again |= lane.turn(&mut self.port);
                lane.take_answers(&mut self.port);
                lane.flush(&mut self.port);
                lane.shared.meters.enters.add(1);
                lane.shared.meters.in_hand.set(u64::from(lane.away()));
            }
            if self.lanes.iter().all(Lane::is_empty) && self.last_commits_taken()? {
                return Ok(Next::Ended);
            }
            if self.leave.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(WorkerError::Left);
            }
            let retries = self.has_retries();
            // One system call: what was pushed goes, what the kernel has comes.
            self.port.enter(0, None).map_err(WorkerError::Ring)?;
            self.mark_serving();
            if retries {
                let backoff = self.backoff;
                self.take_retries();
                self.port.enter(0, None).map_err(WorkerError::Ring)?;
                if self.has_retries() {
                    return Ok(Next::Within(backoff));
                }
            }
            if again || !self.port.park().map_err(WorkerError::Ring)? {
                continue;
            }
            let mut lanes = self.lanes.iter_mut();
            let aborts = lanes.any(Lane::waits_for_aborts);
            return Ok(match aborts {
                true => Next::Within(ABORT_WAIT),
                false => Next::Ready,
            });
        }
        Ok(Next::Within(Duration::ZERO))
    }
}
