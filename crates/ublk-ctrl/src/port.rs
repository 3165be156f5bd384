//! The kernel interface of a control ring, implemented by the real ring and by a script.
//!
//! # Why there is `unsafe` here
//! A command names memory of ours to the kernel. [`RingPort`] builds such entries; the slot table owns the memory and
//! keeps it until the completion, or forever.
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

/// Submission queue entries of the ring, and limit of kernel workers.
const ENTRIES: u32 = 64;

/// Maximum number of pending commands; far fewer than the workers.
const CAPACITY: usize = 16;

/// Pause while the kernel is short of memory, for which there is no event.
const RETRY: Duration = Duration::from_micros(100);

/// A completion of the control ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The `user_data` of the command.
    pub user_data: u64,
    /// Count or negative errno.
    pub res: i32,
}

/// Sends control commands to the kernel and receives completions.
///
/// # Safety
/// A completion is returned once, when the kernel no longer uses the command's memory, and that memory then holds what
/// the driver wrote. (A scripted kernel has no driver: devices that it reports must not be served.)
pub unsafe trait CtrlPort {
    /// Queues a command. The memory of `buffer` must stay valid until [`CtrlPort::wait`] has returned its completion.
    ///
    /// # Errors
    /// [`Error::Ring`] if nothing more can be queued.
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

    /// Submits queued entries and waits for a completion; `None` on timeout. The caller trusts this result instead of a
    /// clock, so that a script needs none.
    ///
    /// # Errors
    /// [`Error::Ring`] if the ring failed.
    fn wait(&mut self, timeout: Duration) -> Result<Option<Completion>, Error>;

    /// Maximum number of pending commands.
    fn capacity(&self) -> usize;
}

/// The control node and a ring of 128-byte entries, owned by the thread that opened them.
#[derive(Debug)]
pub struct RingPort {
    ring: Ring<Sqe128, Cqe16>,
    node: File,
    capacity: usize,
}

impl RingPort {
    pub(crate) fn open(node: &Path) -> Result<Self, Error> {
        // Open the node first: without the module, errors of the ring are irrelevant.
        let file = OpenOptions::new().read(true).write(true).open(node);
        let node = file.map_err(|e| open_error(Errno::from_io(&e)))?;
        let mut ring = Ring::builder(ENTRIES).build().map_err(|e| match e {
            SetupError::Disabled { sysctl } => Error::IoUringDisabled { sysctl },
            other => Error::Ring {
                message: other.to_string(),
            },
        })?;
        // A blocked command occupies a kernel worker, of which there are four per CPU by default. On a small machine a
        // STOP would wait behind the very commands that it is to end (seen with 3 blocked commands on one CPU of 6.12,
        // with 4 on 7.3).
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
        // The queue is longer than the limit of pending commands, so the kernel has refused entries.
        let flushed = self.ring.submit();
        self.ring.push(sqe).map_err(|full| Error::Ring {
            message: match flushed {
                Err(error) => error.to_string(),
                Ok(_) => full.to_string(),
            },
        })
    }
}

/// Interprets the errno of opening the control node.
fn open_error(errno: Errno) -> Error {
    let (operation, dev) = (Operation::Open, None);
    match errno {
        // A leftover node in a static /dev has no driver behind it.
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
        // SAFETY: the port keeps the node open as long as its ring.
        let node = unsafe { Fd::raw(self.node.as_fd()) };
        // SAFETY: `header` names the memory of `_buffer` and its length, or no memory (`addr` 0). Only `Control` can
        // call this, and its slot table frees a buffer only after `wait` has returned the completion of its ticket.
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
            // All outcomes of enter (L50): pushed entries stay pushed; a signal or a short submit ends the call but not
            // the wait.
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
                // The kernel is short of memory and asks for a retry, for which there is no event.
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

    /// L50 A signal ends the ring's system call, but not the wait.
    #[test]
    fn l50_a_signal_does_not_end_the_wait() {
        const WAIT: Duration = Duration::from_millis(400);
        let handler = nothing as extern "C" fn(libc::c_int);
        // SAFETY: the handler does nothing, so it may run at any point of any thread.
        unsafe { libc::signal(libc::SIGUSR2, handler as libc::sighandler_t) };
        let (tell, told) = channel();
        let waiter = std::thread::spawn(move || {
            let file = tempfile::NamedTempFile::new().unwrap();
            let port = RingPort::open(file.path());
            // SAFETY: names the calling thread and touches no memory.
            tell.send(unsafe { libc::pthread_self() }).unwrap();
            // A missing ring is a failure, not a pass (L91).
            let mut port = port.expect("a ring on this host");
            let begun = Instant::now();
            assert_eq!(port.wait(WAIT), Ok(None));
            begun.elapsed()
        });
        let thread = told.recv().unwrap();
        for _ in 0..10 {
            std::thread::sleep(WAIT / 40);
            // SAFETY: the thread is not joined yet, so its handle is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
        }
        assert!(waiter.join().unwrap() >= WAIT);
    }
}
