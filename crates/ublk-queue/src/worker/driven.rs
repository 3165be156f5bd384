//! A worker that does not sleep by itself: its owner watches the ring among other things, and drives it.

use std::time::Duration;

use super::{Worker, WorkerError};
use crate::handler::Handler;
use crate::lane::{ABORT_WAIT, Lane};
use crate::port::{Descriptors, Port};

/// What a worker that is driven wants next: when its owner has to call it again. There are no more answers than these: one
/// that an owner does not know would be slept through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "who sleeps longer than it says waits for requests that nobody submits"]
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
    /// Serves what there is without sleeping, and says when to be called again. Whatever the requests made is with the
    /// kernel by then, or a time is given; a busy worker comes back after some batches, its ring still readable.
    ///
    /// # Errors
    /// Why the worker cannot go on.
    pub fn drive(&mut self) -> Result<Next, WorkerError> {
        self.port.unpark();
        match self.guarded(Self::serve_awake)? {
            Some(next) => Ok(next),
            // A handler's `turn` has panicked: the others have had theirs.
            None if self.unusual(0, None)? => Ok(Next::Ended),
            None => Ok(Next::Within(ABORT_WAIT)),
        }
    }

    fn serve_awake(&mut self) -> Result<Next, WorkerError> {
        for lane in &mut self.lanes {
            lane.serve_fetched(&mut self.port)?;
        }
        // What the kernel has made meanwhile shows by the descriptor once this round has found nothing to submit.
        let mut enters = true;
        for _ in 0..ROUNDS {
            self.take_completions_seldom()?;
            let mut again = false;
            for lane in &mut self.lanes {
                again |= lane.turn(&mut self.port);
                lane.take_answers(&mut self.port);
                lane.flush(&mut self.port);
                lane.shared.meters.in_hand.set(u64::from(lane.away()));
            }
            if self.lanes.iter().all(Lane::is_empty) && self.last_commits_taken()? {
                return Ok(Next::Ended);
            }
            if self.leave.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(WorkerError::Left);
            }
            let retries = self.has_retries();
            if enters || retries || self.port.pending() > 0 {
                // One system call: what was pushed goes, what the kernel has comes.
                self.port.enter(0, None).map_err(WorkerError::Ring)?;
                for lane in &self.lanes {
                    lane.shared.meters.enters.add(1);
                }
                enters = false;
            }
            self.mark_serving();
            if retries {
                let backoff = self.backoff;
                self.take_retries();
                self.port.enter(0, None).map_err(WorkerError::Ring)?;
                if self.has_retries() {
                    return Ok(Next::Within(backoff));
                }
            }
            // A ring with entries that the kernel did not take (EAGAIN, EBUSY) does not park: they have no completion that
            // ends a sleep (L61).
            let sleeps = !again && !self.has_retries() && !self.has_late();
            if !sleeps || !self.port.park().map_err(WorkerError::Ring)? {
                continue;
            }
            let mut lanes = self.lanes.iter_mut();
            let aborts = lanes.any(Lane::waits_for_aborts);
            return Ok(match aborts {
                true => Next::Within(ABORT_WAIT),
                false => Next::Ready,
            });
        }
        let waits = self.has_retries() || self.port.pending() > 0;
        Ok(Next::Within(match waits {
            true => self.backoff,
            false => Duration::ZERO,
        }))
    }
}
