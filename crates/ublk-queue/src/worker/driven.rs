//! A worker that its owner drives: the owner watches the ring among other things and calls it.

use std::time::Duration;

use super::{Worker, WorkerError};
use crate::handler::Handler;
use crate::lane::{ABORT_WAIT, Lane};
use crate::port::{Descriptors, Port};

/// When the owner of a driven worker has to call it again. The enum is exhaustive on purpose: an owner that does not
/// know a variant would sleep through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "who sleeps longer than it says waits for requests that nobody submits"]
pub enum Next {
    /// Once its ring is readable.
    Ready,
    /// Once its ring is readable, or after this time.
    Within(Duration),
    /// Never: all lanes are empty.
    Ended,
}

/// Batches of a busy worker per call, so that the owner's other work gets its turn.
const ROUNDS: u32 = 8;

impl<P: Port, D: Descriptors, H: Handler> Worker<P, D, H> {
    /// Serves what has arrived without sleeping, and returns when to be called again. By then everything pushed is with
    /// the kernel, or the result has a time limit. A busy worker returns after some batches, with its ring still
    /// readable.
    ///
    /// # Errors
    /// Why the worker cannot continue.
    pub fn drive(&mut self) -> Result<Next, WorkerError> {
        self.port.unpark();
        match self.guarded(Self::serve_awake)? {
            Some(next) => Ok(next),
            // A handler's `turn` panicked: the other lanes' turns have been done.
            None if self.unusual(0, None)? => Ok(Next::Ended),
            None => Ok(Next::Within(ABORT_WAIT)),
        }
    }

    fn serve_awake(&mut self) -> Result<Next, WorkerError> {
        for lane in &mut self.lanes {
            lane.serve_fetched(&mut self.port)?;
        }
        // Once a round has nothing to submit, later completions show as readiness of the descriptor.
        let mut enters = true;
        for _ in 0..ROUNDS {
            self.round_begins();
            self.take_completions_seldom()?;
            let mut again = false;
            for lane in &mut self.lanes {
                again |= lane.turn(&mut self.port);
                lane.take_answers(&mut self.port);
                lane.flush(&mut self.port);
                lane.shared.meters.in_hand.set(u64::from(lane.away()));
            }
            self.round_ends();
            if self.lanes.iter().all(Lane::is_empty) && self.last_commits_taken()? {
                return Ok(Next::Ended);
            }
            if self.leave.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(WorkerError::Left);
            }
            let retries = self.has_retries();
            if enters || retries || self.port.pending() > 0 {
                // One system call submits what was pushed and collects what the kernel has.
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
            // A ring with entries that the kernel did not take (EAGAIN, EBUSY) must not park: no completion of theirs
            // would end the sleep (L61).
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
