//! A scripted kernel behind the control ring, for tests here and in the layers above.
#![expect(unsafe_code, reason = "a port promises that its completions are true")]

use crate::port::{Completion, CtrlPort};
use crate::{Buffer, Error};
use core::time::Duration;
use std::collections::VecDeque;
use ublk_core::Errno;
use ublk_sys::ublksrv_ctrl_cmd;

/// How the script handles a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Act {
    /// Completes at once.
    Answer(Result<u32, Errno>),
    /// Completes only when cancelled: with EINTR, as START does, or with success.
    UntilCancelled(Result<u32, Errno>),
    /// Does not complete, cancelled or not, before [`FakeKernel::release`].
    Stuck,
}

type Script = Box<dyn FnMut(u32, &ublksrv_ctrl_cmd, &Buffer) -> Act + Send>;

/// A [`CtrlPort`] whose kernel is a closure: it gets opcode, header and payload, fills the payload, and returns how the
/// command ends. A wait without a pending completion times out at once, so that deadlines of hours cost nothing.
#[non_exhaustive]
pub struct FakeKernel {
    script: Script,
    ready: VecDeque<Completion>,
    waiting: Vec<(u64, Act)>,
    capacity: usize,
    /// The opcodes seen, in order.
    pub seen: Vec<u32>,
    /// Number of cancel requests.
    pub cancels: usize,
}

impl FakeKernel {
    /// A kernel that follows a script.
    pub fn new(
        script: impl FnMut(u32, &ublksrv_ctrl_cmd, &Buffer) -> Act + Send + 'static,
    ) -> Self {
        Self {
            script: Box::new(script),
            ready: VecDeque::new(),
            waiting: Vec::new(),
            capacity: 8,
            seen: Vec::new(),
            cancels: 0,
        }
    }

    /// Sets the maximum number of pending commands.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Completes every pending command with this result, as late completions of abandoned commands.
    pub fn release(&mut self, res: i32) {
        let ended = self.waiting.drain(..);
        self.ready
            .extend(ended.map(|(user_data, _)| Completion { user_data, res }));
    }

    /// Delivers a completion that belongs to no command.
    pub fn inject(&mut self, user_data: u64, res: i32) {
        self.ready.push_back(Completion { user_data, res });
    }
}

/// Encodes a result like the kernel's CQE `res`.
fn raw(result: Result<u32, Errno>) -> i32 {
    match result {
        Ok(value) => i32::try_from(value).unwrap_or(i32::MAX),
        Err(errno) => errno.to_result(),
    }
}

// SAFETY: nothing uses a command's memory after its completion; no scripted device is served.
unsafe impl CtrlPort for FakeKernel {
    fn submit(
        &mut self,
        user_data: u64,
        cmd_op: u32,
        header: &ublksrv_ctrl_cmd,
        buffer: &Buffer,
    ) -> Result<(), Error> {
        self.seen.push(cmd_op);
        match (self.script)(cmd_op, header, buffer) {
            Act::Answer(result) => {
                let res = raw(result);
                self.ready.push_back(Completion { user_data, res });
            }
            act => self.waiting.push((user_data, act)),
        }
        Ok(())
    }

    fn cancel(&mut self, user_data: u64, target: u64) -> Result<(), Error> {
        self.cancels += 1;
        let found = self.waiting.iter().position(|(word, _)| *word == target);
        let res = match found.map(|at| (at, self.waiting[at].1)) {
            Some((at, Act::UntilCancelled(result))) => {
                self.waiting.remove(at);
                self.ready.push_back(Completion {
                    user_data: target,
                    res: raw(result),
                });
                Errno::EALREADY.to_result()
            }
            Some(_) => Errno::EALREADY.to_result(),
            None => Errno::ENOENT.to_result(),
        };
        self.ready.push_back(Completion { user_data, res });
        Ok(())
    }

    fn wait(&mut self, _timeout: Duration) -> Result<Option<Completion>, Error> {
        Ok(self.ready.pop_front())
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

impl std::fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeKernel")
            .field("seen", &self.seen)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}
