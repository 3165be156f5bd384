//! The port to the kernel: what a control ring does, by the real ring or by a script.
//!
//! # Why there is `unsafe` here
//! A command names memory of ours to the kernel. [`RingPort`] makes such entries; the memory belongs
//! to the slot table, which keeps it until the completion or for ever.
#![expect(unsafe_code, reason = "entries that name memory")]

use crate::{Buffer, Error, Operation};
use core::time::Duration;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;
use ublk_core::Errno;
use ublk_sys::ublksrv_ctrl_cmd;
use uring_lite::{Cqe16, EnterError, Fd, Ring, SetupError, Sqe128, op};

/// Entries of the ring's submission queue, and kernel workers asked for.
const ENTRIES: u32 = 64;

/// Commands that may be pending at once, far fewer than the workers.
const CAPACITY: usize = 16;

/// Pause where the kernel is short of memory and has no event to offer.
const RETRY: Duration = Duration::from_micros(100);

/// A completion of the control ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The word the command was submitted with.
    pub user_data: u64,
    /// Count or negative errno.
    pub res: i32,
}

/// What carries control commands to the kernel and brings completions back.
///
/// # Safety
/// A completion is shown once, when the kernel no more uses the memory of its command, and that memory then holds what
/// the driver wrote there. (A scripted kernel is nobody's driver: no device that it tells of is to be served.)
pub unsafe trait CtrlPort {
    /// Queues a command. The memory of `buffer` stays valid until its completion was returned by
    /// [`CtrlPort::wait`].
    ///
    /// # Errors
    /// [`Error::Ring`] where nothing can be queued any more.
    fn submit(
        &mut self,
        user_data: u64,
        cmd_op: u32,
        header: &ublksrv_ctrl_cmd,
        buffer: &Buffer,
    ) -> Result<(), Error>;

    /// Queues a request to cancel the command `target` (`IORING_OP_ASYNC_CANCEL`); its own
    /// completion carries `user_data`.
    ///
    /// # Errors
    /// As [`CtrlPort::submit`].
    fn cancel(&mut self, user_data: u64, target: u64) -> Result<(), Error>;

    /// Hands over what is queued and waits for a completion; `None` when the time is over. The
    /// answer is believed: a script needs no clock.
    ///
    /// # Errors
    /// [`Error::Ring`] where the ring broke.
    fn wait(&mut self, timeout: Duration) -> Result<Option<Completion>, Error>;

    /// How many commands may be pending at once.
    fn capacity(&self) -> usize;
}

/// The control node and a ring of 128-byte entries, of the thread that opened them.
#[derive(Debug)]
pub struct RingPort {
    ring: Ring<Sqe128, Cqe16>,
    node: File,
    capacity: usize,
}

impl RingPort {
    pub(crate) fn open(node: &Path) -> Result<Self, Error> {
        // The node first: without the module the ring's own errors matter to nobody.
        let file = OpenOptions::new().read(true).write(true).open(node);
        let node = file.map_err(|e| open_error(Errno::from_io(&e)))?;
        let mut ring = Ring::builder(ENTRIES).build().map_err(|e| match e {
            SetupError::Disabled { sysctl } => Error::IoUringDisabled { sysctl },
            other => Error::Ring {
                message: other.to_string(),
            },
        })?;
        // A blocked command occupies a kernel worker, of which there are four a CPU by default: on a
        // small machine a STOP would wait behind the very commands it is to end (seen with 3 blocked
        // on one CPU of 6.12, with 4 on 7.3).
        let capacity = if ring.allow_workers(ENTRIES).is_ok() {
            CAPACITY
        } else {
            let cpus = std::thread::available_parallelism().map_or(1, usize::from);
            (cpus * 4 - 1).min(CAPACITY)
        };
        Ok(Self {
            ring,
            node,
            capacity,
        })
    }

    fn push(&mut self, sqe: &Sqe128) -> Result<(), Error> {
        if self.ring.push(sqe).is_ok() {
            return Ok(());
        }
        // The queue is longer than what may be pending, so the kernel has refused to take entries.
        let flushed = self.ring.submit();
        self.ring.push(sqe).map_err(|full| Error::Ring {
            message: match flushed {
                Err(error) => error.to_string(),
                Ok(_) => full.to_string(),
            },
        })
    }
}

/// What the errno of opening the control node means.
fn open_error(errno: Errno) -> Error {
    let (operation, dev) = (Operation::Open, None);
    match errno {
        // A node left over in a static /dev has no driver behind it.
        Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => Error::MissingModule,
        Errno::EPERM | Errno::EACCES => Error::NoPermission {
            operation,
            dev,
            errno,
        },
        _ => Error::Refused {
            operation,
            dev,
            errno,
        },
    }
}

// SAFETY: completions are those of the kernel's own ring, to which only this port pushes.
unsafe impl CtrlPort for RingPort {
    fn submit(
        &mut self,
        user_data: u64,
        cmd_op: u32,
        header: &ublksrv_ctrl_cmd,
        _buffer: &Buffer,
    ) -> Result<(), Error> {
        // The header is the first 32 of the 80 bytes of the command area.
        let mut area = [0; 80];
        area[..size_of::<ublksrv_ctrl_cmd>()].copy_from_slice(&header.to_bytes());
        // SAFETY: the port has the node open as long as its ring.
        let node = unsafe { Fd::raw(self.node.as_fd()) };
        // SAFETY: `header` names the memory of `_buffer` and its length or no memory (`addr` 0);
        // only `Control` can call this, and its slot table frees a buffer after the completion of
        // its ticket was returned by `wait`, else never.
        let sqe = unsafe { op::uring_cmd128(node, cmd_op, &area) };
        self.push(&sqe.user_data(user_data))
    }

    fn cancel(&mut self, user_data: u64, target: u64) -> Result<(), Error> {
        self.push(&op::async_cancel(target).user_data(user_data).into())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Option<Completion>, Error> {
        let until = crate::wait::deadline_in(timeout);
        let mut left = timeout;
        loop {
            // Every outcome of enter (L50): what was pushed stays pushed, a signal or a short submit
            // ends the call and not the wait.
            let entered = match self.ring.enter(1, Some(left)) {
                Ok(entered) => Some(entered),
                Err(EnterError::Again | EnterError::Busy | EnterError::NoMemory) => None,
                Err(error) => {
                    return Err(Error::Ring {
                        message: error.to_string(),
                    });
                }
            };
            if let Some(cqe) = self.ring.next_cqe() {
                return Ok(Some(Completion {
                    user_data: cqe.user_data,
                    res: cqe.res,
                }));
            }
            left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if entered.is_none() {
                // The kernel is short of memory and told us to come back: there is no event for it.
                std::thread::sleep(left.min(RETRY));
            }
        }
    }

    fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    extern "C" fn nothing(_: libc::c_int) {}

    /// L50 A signal ends the call of the control ring, and not the wait.
    #[test]
    fn l50_a_signal_does_not_end_the_wait() {
        const WAIT: Duration = Duration::from_millis(400);
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing, so it is safe at any point of any thread.
        unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
        let (tell, told) = channel();
        let waiter = std::thread::spawn(move || {
            let file = tempfile::NamedTempFile::new().unwrap();
            let port = RingPort::open(file.path());
            // SAFETY: names the calling thread and touches no memory.
            tell.send(unsafe { libc::pthread_self() }).unwrap();
            // No ring is a failure, not a pass (L91).
            let mut port = port.expect("a ring on this host");
            let begun = Instant::now();
            assert_eq!(port.wait(WAIT), Ok(None));
            begun.elapsed()
        });
        let thread = told.recv().unwrap();
        for _ in 0..10 {
            std::thread::sleep(WAIT / 40);
            // SAFETY: the thread is not joined yet, so its handle is valid; it handles the signal.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
        }
        assert!(waiter.join().unwrap() >= WAIT);
    }
}
