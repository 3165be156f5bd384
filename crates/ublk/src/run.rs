//! Serves a device for the duration of a program.

use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use ublk_core::Backend;
use ublk_queue::State;

use crate::builder::Builder;
use crate::device::Device;
use crate::error::Error;

impl<B: Backend> Builder<B> {
    /// Starts the device, calls `ready` with it, and serves until SIGINT, SIGTERM, an external stop, or a failure; then
    /// stops and deletes the device. A device that does not stop by the deadline, because its backend does not answer,
    /// is abandoned.
    ///
    /// # Errors
    /// It could not be started, failed, or could not be removed.
    pub fn run(self, ready: impl FnOnce(&Device)) -> Result<(), Error> {
        // Before the device, so that a signal during its creation is not lost.
        let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(Error::Signals)?;
        let device = self.start()?;
        ready(&device);
        let close = signals.handle();
        // A duplicate for the thread, which is left behind if the device does not end by the deadline.
        let ended = device.ended_fd().try_clone_to_owned();
        let ended = ended.map_err(Error::Signals)?;
        let watch = move || {
            let mut fds = [PollFd::new(&ended, PollFlags::IN)];
            while poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
            close.close();
        };
        let watching = thread::Builder::new()
            .name("ublk-watch".into())
            .spawn(watch);
        watching.map_err(Error::Signals)?;
        // Ends on a signal, or when the thread above closes it.
        let stopped = match signals.forever().next() {
            Some(_) => device.send_stop(),
            None => Ok(()),
        };
        let health = device.health();
        stopped?;
        device.remove()?;
        match health.first_error {
            Some(cause) if health.state == State::Failed => Err(Error::Failed { cause }),
            _ => Ok(()),
        }
    }
}
